"""The offline gate: evidence in, verdict with reasons out. A pure function and its thresholds.

Not here: how the numbers are computed (`rl.evaluation`), what a verdict sets in motion (`registry.rollout`).

Each check is a statement that should be true of a candidate, with the number found, the number asked for
and a sentence for the person who decides. A number that is missing or not finite fails its check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import Field

from rl.errors import DataError
from rl.evaluation.evidence import CandidateEvidence, Evidence
from rl.settings import Settings

GateMode = Literal["disabled", "dry_run", "enabled"]
Outcome = Literal["passed", "refused", "passed_in_dry_run", "unchecked"]


class GateSettings(Settings):
    """When a candidate may become challenger."""

    mode: GateMode = "enabled"
    """`disabled`: everything passes, unchecked. `dry_run`: checked and reported, passes. `enabled`:
    enforced."""

    margin: float = Field(0.0, ge=0)
    """Reward units per dialogue by which the lower bound of candidate minus behavior may fall below zero.
    Raised: candidates that may be slightly worse pass. At 0 a candidate must be better than the log at the
    stated confidence."""

    min_effective_sample_size: float = Field(200.0, ge=1)
    """Episodes. A candidate whose weights rest on fewer is refused, whatever its estimate: intervals from
    so few episodes are too narrow. Raised: safer, and only candidates close to the log pass."""

    min_effective_share: float = Field(0.02, ge=0, le=1)
    """The same as a share of the held-out episodes. Raised: candidates must stay closer to the log."""

    min_overlap_share: float = Field(0.9, ge=0, le=1)
    """Share of the candidate's choices that the log covers (makes at least once in a hundred). Raised: fewer choices
    may rest on extrapolation."""

    max_mean_weight_distance: float = Field(0.3, ge=0)
    """Distance of the mean importance weight from 1, which it is where propensities are right and the log covers
    all choices. Raised: wrong propensities are noticed later."""

    max_estimator_gap: float = Field(0.5, ge=0)
    """Widths of the doubly robust interval that may lie between it and the interval of another estimator; 0
    where they overlap. Estimators fail in different ways, so a wide gap says that one of them is wrong.
    Raised: more disagreement is accepted."""

    max_propensity_calibration_error: float = Field(0.05, ge=0, le=1)
    """Expected calibration error of the behavior model, as a probability; asked only where the log had no
    propensities of its own. Raised: importance weights may rest on worse estimates."""


class Check(Settings):
    """One statement about the candidate, and whether it is true."""

    name: str
    passed: bool
    value: float | None
    """What was found; None where the evidence does not say, or the number is not finite."""
    threshold: float
    unit: str
    reason: str
    """One sentence with the numbers in it."""


class Verdict(Settings):
    """What the gate says of one candidate."""

    candidate: str
    passed: bool
    """Whether the candidate may become challenger; in `dry_run` and `disabled` always true."""
    mode: GateMode
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    """What a person should read: the failed checks, or why there are none."""

    @property
    def outcome(self) -> Outcome:
        """One word for tags and tables; tells a pass from a pass that nobody enforced."""
        if self.mode == "disabled":
            return "unchecked"
        if all(check.passed for check in self.checks):
            return "passed"
        return "passed_in_dry_run" if self.mode == "dry_run" else "refused"


def judge(evidence: Evidence, candidate: str, settings: GateSettings) -> Verdict:
    """Decide whether `candidate` may become challenger. The same evidence always gives the same verdict.

    Raises DataError if the evidence does not speak of the candidate.
    """
    known = {found.name: found for found in evidence.candidates}
    if candidate not in known:
        raise DataError(
            f"The evidence has no candidate {candidate!r}; it has {', '.join(sorted(known)) or 'none'}. "
            "Evaluate the candidate first."
        )
    if settings.mode == "disabled":
        return Verdict(
            candidate=candidate,
            passed=True,
            mode=settings.mode,
            checks=(),
            reasons=("The gate is disabled, so nothing was checked.",),
        )
    checks = tuple(_checks(evidence, known[candidate], settings))
    failed = tuple(check.reason for check in checks if not check.passed)
    return Verdict(
        candidate=candidate,
        passed=not failed or settings.mode == "dry_run",
        mode=settings.mode,
        checks=checks,
        reasons=failed or (f"All {len(checks)} checks passed.", *_caveats(evidence)),
    )


def _caveats(evidence: Evidence) -> Iterator[str]:
    """What a pass does not cover, for the person who decides."""
    if evidence.propensities_estimated_share > 0:
        yield (
            f"{evidence.propensities_estimated_share:.0%} of the propensities are estimated: what moved the log's "
            "choices beyond what the policy sees is not accounted for, so start with a small canary."
        )
    if evidence.privacy is not None:
        yield (
            f"The figures carry noise (ε {evidence.privacy.epsilon:.2f}; {evidence.privacy.advantage_noise:.2g} "
            f"{evidence.reward_unit} on the difference, inside its interval) and clipped contributions, which can bias "
            "them: start with a small canary."
        )


def _checks(evidence: Evidence, candidate: CandidateEvidence, settings: GateSettings) -> Iterator[Check]:
    yield _advantage(evidence, candidate, settings)
    yield _effective_sample_size(evidence, candidate, settings)
    yield _effective_share(evidence, candidate, settings)
    yield _overlap(candidate, settings)
    yield _mean_weight(candidate, settings)
    yield _agreement(candidate, settings)
    yield _inside_mask(candidate)
    if evidence.propensities_estimated_share != 0:
        yield _calibration(evidence, settings)


def _check(
    name: str,
    value: float | None,
    threshold: float,
    unit: str,
    holds: Callable[[float], bool],
    sentence: str,
) -> Check:
    """A check whose `sentence` has `{}` where the number goes; a missing or non-finite number fails."""
    if value is None or not math.isfinite(value):
        reason = f"The evidence gives no usable number for {name.replace('_', ' ')}, so nothing can be concluded."
        return Check(name=name, passed=False, value=None, threshold=threshold, unit=unit, reason=reason)
    return Check(
        name=name,
        passed=holds(value),
        value=value,
        threshold=threshold,
        unit=unit,
        reason=sentence.format(value),
    )


def _advantage(evidence: Evidence, candidate: CandidateEvidence, settings: GateSettings) -> Check:
    gain, unit = candidate.advantage, evidence.reward_unit
    bound = 0.0 - settings.margin
    # An interval with one unusable end is no interval: the whole of it must be finite.
    usable = all(math.isfinite(number) for number in (gain.value, gain.low, gain.high))
    return _check(
        "better_than_behavior",
        gain.low if usable else None,
        bound,
        f"{unit} per dialogue",
        lambda low: low > bound,
        f"Candidate minus logged behavior is {gain.value:+.4g} {unit} per dialogue; the lower end "
        f"of the {evidence.confidence:.0%} interval is {{:+.4g}}, and it must be above {bound:.4g}.",
    )


def _effective_sample_size(evidence: Evidence, candidate: CandidateEvidence, settings: GateSettings) -> Check:
    least = settings.min_effective_sample_size
    return _check(
        "enough_effective_episodes",
        candidate.effective_sample_size,
        least,
        "episodes",
        lambda size: size >= least,
        f"The estimate rests on {{:,.0f}} effective of {evidence.n_validation_episodes:,} held-out dialogues; at "
        f"least {least:,.0f} are asked for.",
    )


def _effective_share(evidence: Evidence, candidate: CandidateEvidence, settings: GateSettings) -> Check:
    least = settings.min_effective_share
    return _check(
        "enough_effective_share",
        candidate.effective_share,
        least,
        "share of held-out episodes",
        lambda share: share >= least,
        f"{{:.1%}} of the held-out dialogues carry the estimate; at least {least:.1%} must.",
    )


def _overlap(candidate: CandidateEvidence, settings: GateSettings) -> Check:
    least = settings.min_overlap_share
    return _check(
        "log_covers_choices",
        candidate.diagnostics.get("overlap_share"),
        least,
        "share of choices",
        lambda share: share >= least,
        f"{{:.1%}} of the candidate's choices are ones that the log makes too; at least {least:.1%} must be.",
    )


def _mean_weight(candidate: CandidateEvidence, settings: GateSettings) -> Check:
    most, mean = settings.max_mean_weight_distance, candidate.diagnostics.get("mean_weight")
    return _check(
        "importance_weights_average_one",
        None if mean is None else abs(mean - 1),
        most,
        "distance from 1",
        lambda distance: distance <= most,
        f"The importance weights average {math.nan if mean is None else mean:.3f}, {{:.3f}} away from 1; at most "
        f"{most:.3f} is accepted.",
    )


def _agreement(candidate: CandidateEvidence, settings: GateSettings) -> Check:
    most = settings.max_estimator_gap
    farthest, gap = _largest_gap(candidate)
    return _check(
        "estimators_agree",
        gap,
        most,
        "widths of the doubly robust interval",
        lambda found: found <= most,
        f"The interval of {farthest} lies {{:.2f}} interval widths from the doubly robust one; at most {most:.2f} is "
        "accepted.",
    )


def _largest_gap(candidate: CandidateEvidence) -> tuple[str, float | None]:
    """The estimator farthest from the doubly robust one, and the gap in widths of the latter's interval."""
    if "dr" not in candidate.estimates:
        return "dr", None
    center = candidate.estimates["dr"]
    width = center.high - center.low
    gaps = {"dr": 0.0}
    for name, other in candidate.estimates.items():
        between = max(other.low - center.high, center.low - other.high, 0.0)
        if not all(math.isfinite(number) for number in (width, other.low, other.high)):
            return name, None
        gaps[name] = between / width if width > 0 else (0.0 if between == 0 else float("inf"))
    farthest = max(gaps, key=lambda name: gaps[name])
    return farthest, gaps[farthest]


def _inside_mask(candidate: CandidateEvidence) -> Check:
    return _check(
        "never_chooses_forbidden_strategies",
        candidate.diagnostics.get("out_of_mask_share"),
        0.0,
        "share of probability",
        lambda share: share <= 0,
        "The candidate puts {:.2%} of its probability on strategies that were not allowed; it must put none there.",
    )


def _calibration(evidence: Evidence, settings: GateSettings) -> Check:
    most = settings.max_propensity_calibration_error
    return _check(
        "estimated_propensities_are_calibrated",
        evidence.propensity_calibration_error,
        most,
        "probability",
        lambda error: error <= most,
        f"{evidence.propensities_estimated_share:.0%} of the propensities are estimated, with a calibration error of "
        f"{{:.3f}}; at most {most:.3f} is accepted.",
    )
