"""Private evidence: noisy sums of clipped contributions → the numbers that the gate reads.

Here: booking an evaluation's budget, its one draw, what was drawn as a file of the released zone, and the arithmetic
from there on, which costs nothing. Not here: what a customer contributes and why it is bounded
(`rl.evaluation.private_contributions`), the verdict (`registry.gates`).

The order is that of a release: reserve → draw → keep → commit → publish. An evaluation is named by the release, the
policy and the settings; asked for again, it is read and not drawn again. One that was cut off after its reservation and
before its figures were kept has spent its budget and has no figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from pydantic import ValidationError

from registry.errors import ReleaseError, ReleaseLostError
from registry.privacy.accounting import epsilon
from registry.privacy.budget import BudgetLedger, Cost, Entry
from registry.privacy.mechanisms import gaussian_sums
from registry.privacy.release import ReleasePlaces, one_at_a_time, open_budget
from registry.privacy.settings import UNIT_OF_PRIVACY
from registry.privacy.windows import Window
from rl.evaluation.evidence import CandidateEvidence, Evidence, EvidencePrivacy, StrategyUse, ValueEstimate
from rl.evaluation.private_contributions import BoundedSums, Bounds
from rl.files import content_hash, write_json
from rl.settings import PrivateEvaluationSettings, Settings

EVALUATIONS = "evaluations"
"""Folder of the noisy sums, in the released zone and in the staging folder."""

CLEAR_OF_NOISE = 5.0
"""Noise deviations that a noisy sum must exceed to be divided by; below, a mean would be of nobody."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """Which policy is to be judged on the held-out customers of which release, and at what price."""

    candidate: str
    release_id: str
    window: Window
    policy_hash: str
    """Of the policy's files."""
    settings: PrivateEvaluationSettings
    bounds: Bounds
    cost: Cost
    """Of this evaluation."""
    budget: Cost
    """Of the whole window."""

    @property
    def evaluation_id(self) -> str:
        """Equal for equal questions; the price is not part of the question."""
        return content_hash(
            {
                "candidate": self.candidate,
                "release_id": self.release_id,
                "policy": self.policy_hash,
                "settings": self.settings.model_dump(mode="json"),
                "bounds": self.bounds.model_dump(mode="json"),
            }
        )

    @property
    def purpose(self) -> str:
        """In the ledger. Another policy under the same name is another evaluation."""
        return f"gate:{self.candidate}:{self.evaluation_id[:8]}"


class NoisyContributions(Settings):
    """What was drawn: sums over held-out customers with noise, each in the unit of its coordinate. Released."""

    evaluation_id: str
    candidate: str
    release_id: str
    policy_hash: str
    window_start: date
    window_end: date
    """Not part of the window."""
    unit_of_privacy: str
    rho: float
    settings: dict[str, Any]
    bounds: dict[str, float]
    sums: dict[str, float]
    sigmas: dict[str, float]
    limits: dict[str, float]
    """Largest absolute contribution of one customer to each sum."""
    opendp_version: str
    ledger_seq: int
    ledger_hash: str
    at: datetime


class PublicFacts(Settings):
    """What is known of a candidate without looking at the log again: from configuration and released tables."""

    algorithm: str
    reward_unit: str
    divergence: float
    overlap_share: float
    strategy_use: tuple[StrategyUse, ...] = ()
    delta: float
    """At which ε is stated."""


# ---------- the draw


def find_evaluation(request: EvaluationRequest, places: ReleasePlaces) -> NoisyContributions | None:
    """What was drawn for this request, verified against the ledger; None if nothing was booked for it.

    Raises
    ------
    ReleaseLostError
        If its budget was spent and its figures were not kept.
    ReleaseError, LedgerError
        If its file or the ledger is not what it was.
    """
    if open_budget(places).find(request.window.start, request.purpose) is None:
        return None
    with one_at_a_time(places, "evaluation", doing="evaluating"):  # whoever booked it may be drawing now
        return _found(request, places)


def evaluate_privately(request: EvaluationRequest, sums: BoundedSums, places: ReleasePlaces) -> NoisyContributions:
    """Draw the noisy sums of an evaluation, or return what was drawn for it before.

    Parameters
    ----------
    request : EvaluationRequest
        Names and pays the evaluation.
    sums : BoundedSums
        Exact sums, in whose levels one customer is bounded.
    places : ReleasePlaces
        Where ledger, staging folder and released zone are.

    Raises
    ------
    BudgetExceededError
        If the window has less left than the evaluation costs. Nothing was drawn.
    ReleaseLostError, ReleaseError, LedgerError, CertificationError
        As `release.release_tables` does.
    """
    with one_at_a_time(places, "evaluation", doing="evaluating"):
        if (known := _found(request, places)) is not None:
            return known
        ledger = open_budget(places)
        # On nothing first: what cannot be certified must not be booked.
        gaussian_sums(np.zeros(1, dtype=np.int64), l2=sums.l2, rho=request.cost.rho)
        row = ledger.reserve(
            request.window,
            request.purpose,
            release_id=request.evaluation_id,
            cost=request.cost,
            budget=request.budget,
        )
        noisy = gaussian_sums(np.array(sums.sums, dtype=np.int64), l2=sums.l2, rho=request.cost.rho)
        drawn = _drawn(request, sums, noisy.values.tolist(), noisy.sigma, row)
        try:
            write_json(_staged_file(request, places), drawn.model_dump(mode="json"), 0o600)
        except OSError as error:
            raise ReleaseLostError(_lost(row, f"could not be kept ({error.strerror})")) from None
        return _published(request, places, ledger, row)


def _found(request: EvaluationRequest, places: ReleasePlaces) -> NoisyContributions | None:
    ledger = open_budget(places)
    booking = ledger.find(request.window.start, request.purpose)
    return None if booking is None else _published(request, places, ledger, booking.reservation)


def _drawn(
    request: EvaluationRequest, sums: BoundedSums, values: list[int], sigma: float, row: Entry
) -> NoisyContributions:
    scale = {n: b / level for n, b, level in zip(sums.names, sums.bounds, sums.levels, strict=True)}
    return NoisyContributions(
        evaluation_id=request.evaluation_id,
        candidate=request.candidate,
        release_id=request.release_id,
        policy_hash=request.policy_hash,
        window_start=request.window.start,
        window_end=request.window.end,
        unit_of_privacy=UNIT_OF_PRIVACY,
        rho=request.cost.rho,
        settings=request.settings.model_dump(mode="json"),
        bounds=request.bounds.model_dump(mode="json"),
        sums={name: value * scale[name] for name, value in zip(sums.names, values, strict=True)},
        sigmas={name: sigma * scale[name] for name in sums.names},
        limits=dict(zip(sums.names, sums.bounds, strict=True)),
        opendp_version=version("opendp"),
        ledger_seq=row.seq,
        ledger_hash=row.hash,
        at=datetime.now(UTC),
    )


def _published(
    request: EvaluationRequest, places: ReleasePlaces, ledger: BudgetLedger, row: Entry
) -> NoisyContributions:
    """Commit what was kept, put it into the released zone, and check it against the ledger."""
    public, staged = _public_file(request, places), _staged_file(request, places)
    found = _read(public) or _read(staged)
    booking = ledger.find(request.window.start, request.purpose)
    committed = booking is not None and booking.commitment is not None
    if found is None or found.ledger_hash != row.hash:
        if committed:
            raise ReleaseError(
                f"The noisy sums of {request.purpose} (row {row.seq} of the privacy ledger) are not in {public}. "
                "Restore the file from a backup; it is not drawn again."
            )
        raise ReleaseLostError(_lost(row, "were not kept"))
    commitment = ledger.commit(row, content_hash(found.model_dump(mode="json")))
    assert commitment.output_hash is not None
    if not public.exists():
        write_json(public, found.model_dump(mode="json"))
    staged.unlink(missing_ok=True)
    return found


def _lost(row: Entry, fault: str) -> str:
    return (
        f"The figures of {row.purpose} {fault}: the evaluation was cut off after {row.cost} were booked (row {row.seq} "
        "of the privacy ledger). They count as spent, since nobody can tell whether the figures were seen. The "
        f"candidate stays without evidence; the next window opens on {row.window.end}."
    )


def _public_file(request: EvaluationRequest, places: ReleasePlaces) -> Path:
    return places.released / EVALUATIONS / _file_name(request)


def _staged_file(request: EvaluationRequest, places: ReleasePlaces) -> Path:
    return places.staging / EVALUATIONS / _file_name(request)


def _file_name(request: EvaluationRequest) -> str:
    return f"{request.window.start.isoformat()}/{request.candidate}-{request.evaluation_id[:8]}.json"


def _read(path: Path) -> NoisyContributions | None:
    try:
        return NoisyContributions.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise ReleaseError(
            f"{path} cannot be read as the noisy sums of an evaluation. Restore it from a backup; it is not "
            "drawn again."
        ) from None


# ---------- from noisy sums to evidence


def evidence_of(drawn: NoisyContributions, facts: PublicFacts) -> Evidence:
    """The gate's evidence from noisy sums alone; nothing is looked up in the log.

    Means are sums over the noisy number of customers. Their intervals add up the spread between customers (estimated
    from noisy squares, rounded up by one deviation of their noise), the noise of the sum and that of the number of
    customers, as independent normal errors.
    """
    confidence = PrivateEvaluationSettings.model_validate(drawn.settings).confidence
    means = _Means(drawn, confidence)
    privacy = EvidencePrivacy(
        unit_of_privacy=drawn.unit_of_privacy,
        rho=drawn.rho,
        epsilon=epsilon(drawn.rho, facts.delta),
        delta=facts.delta,
        advantage_noise=drawn.sigmas["advantage"] / means.n,
        note=_clipping_note(drawn, facts.reward_unit),
    )
    behavior = means.estimate("logged")
    if means.is_usable:
        candidate = _candidate(drawn, facts, means)
    else:
        candidate = _refused(drawn.candidate, facts, Bounds.model_validate(drawn.bounds), _too_few(drawn))
    return Evidence(
        dataset_hash=drawn.release_id,
        reward_unit=facts.reward_unit,
        confidence=confidence,
        window=_days(drawn.window_start, drawn.window_end),
        n_steps=0,
        n_episodes=means.n_shown,
        n_validation_episodes=means.n_shown,
        behavior=behavior,
        behavior_validation=behavior,
        behavior_parts={},
        propensities_estimated_share=means.estimated_share,
        propensity_calibration_error=None,
        candidates=(candidate,),
        privacy=privacy,
    )


def not_evaluated(request: EvaluationRequest, facts: PublicFacts, reason: str) -> Evidence:
    """Evidence that says why there is none: the gate refuses the candidate, and the night goes on."""
    candidate = _refused(request.candidate, facts, request.bounds, reason)
    return Evidence(
        dataset_hash=request.release_id,
        reward_unit=facts.reward_unit,
        confidence=request.settings.confidence,
        window=_days(request.window.start, request.window.end),
        n_steps=0,
        n_episodes=0,
        n_validation_episodes=0,
        behavior=candidate.advantage,
        behavior_validation=candidate.advantage,
        behavior_parts={},
        propensities_estimated_share=0.0,
        propensity_calibration_error=None,
        candidates=(candidate,),
    )


class _Means:
    """Noisy sums as means over customers, with their errors."""

    def __init__(self, drawn: NoisyContributions, confidence: float) -> None:
        self.sums, self.sigmas, self.limits = drawn.sums, drawn.sigmas, drawn.limits
        self.n = max(drawn.sums["customers"], 1.0)
        self.is_usable = drawn.sums["customers"] > CLEAR_OF_NOISE * drawn.sigmas["customers"]
        self.z = NormalDist().inv_cdf((1 + confidence) / 2)
        self.n_shown = max(round(drawn.sums["customers"]), 0)

    @property
    def estimated_share(self) -> float:
        """Share of steps without logged propensity, to tenths; 0 where it is not clear of its noise."""
        share = self.mean("estimated")
        return float(np.clip(round(share, 1), 0.0, 1.0)) if share > self.z * self.sigmas["estimated"] / self.n else 0.0

    def mean(self, name: str) -> float:
        return self.sums[name] / self.n

    def error(self, name: str) -> float:
        """Standard error of a mean, noise included."""
        mean = float(np.clip(self.mean(name), -self.limits[name], self.limits[name]))
        squares = (self.sums[f"{name}_squared"] + self.sigmas[f"{name}_squared"]) / self.n
        spread = min(max(squares - mean**2, 0.0), self.limits[name] ** 2)
        noise = math.hypot(self.sigmas[name], mean * self.sigmas["customers"]) / self.n
        return math.hypot(math.sqrt(spread / self.n), noise)

    def estimate(self, name: str, size: float | None = None) -> ValueEstimate:
        return self.around(self.mean(name), self.error(name), size)

    def around(self, value: float, error: float, size: float | None = None) -> ValueEstimate:
        half = self.z * error
        effective = float(self.n_shown) if size is None else size
        return ValueEstimate(
            value=value, low=value - half, high=value + half, effective_sample_size=effective, n_episodes=self.n_shown
        )

    def effective_size(self) -> float:
        """Kish's n of the customers' mean weights; at most the number of customers."""
        weight = self.sums["weight"]
        if weight <= 0:
            return 0.0
        squares = max(self.sums["weight_squared"] + self.sigmas["weight_squared"], weight**2 / self.n)
        return weight**2 / squares

    def weighted(self, center: float, size: float) -> ValueEstimate | None:
        """WIS around the center; None where the noisy weights add up to nothing."""
        weight = self.sums["weight"]
        if weight <= CLEAR_OF_NOISE * self.sigmas["weight"]:
            return None
        excess = self.sums["excess"] / weight
        squares = max(self.sums["excess_squared"] + self.sigmas["excess_squared"], 0.0)
        weights = max(self.sums["weight_squared"] + self.sigmas["weight_squared"], 0.0)
        spread = math.sqrt(squares) + abs(excess) * math.sqrt(weights)
        noise = math.hypot(self.sigmas["excess"], excess * self.sigmas["weight"])
        return self.around(center + excess, math.hypot(spread, noise) / weight, size)


def _candidate(drawn: NoisyContributions, facts: PublicFacts, means: _Means) -> CandidateEvidence:
    size = means.effective_size()
    value = means.mean("logged") + means.mean("advantage")
    estimates = {"dr": means.around(value, means.error("logged") + means.error("advantage"), size)}
    if (weighted := means.weighted(drawn.bounds["center"], size)) is not None:
        estimates["wis"] = weighted
    return CandidateEvidence(
        name=drawn.candidate,
        algorithm=facts.algorithm,
        estimates=estimates,
        advantage=_advantage(drawn, means, size),
        effective_sample_size=size,
        effective_share=size / means.n,
        diagnostics={
            "mean_weight": means.mean("weight"),
            "effective_share": size / means.n,
            "overlap_share": facts.overlap_share,
            # The job refuses a policy that gives a forbidden action anything, on any row: no count is needed.
            "out_of_mask_share": 0.0,
            "divergence": facts.divergence,
        },
        strategy_use=facts.strategy_use,
        policy_note=_clipping_note(drawn, facts.reward_unit),
    )


def _advantage(drawn: NoisyContributions, means: _Means, size: float) -> ValueEstimate:
    """The difference; its upper end allows for what was cut off: weight that is missing from a mean of 1, at the
    highest return. The lower end takes it as worth what the log earned."""
    clipped = means.estimate("advantage", size)
    cut_weight = max(1.0 - means.mean("weight") + means.z * drawn.sigmas["weight"] / means.n, 0.0)
    hidden = cut_weight * (drawn.bounds["return_high"] - drawn.bounds["center"])
    return clipped.model_copy(update={"high": clipped.high + hidden})


def _refused(name: str, facts: PublicFacts, bounds: Bounds, reason: str) -> CandidateEvidence:
    """No estimate, and a difference of anything that the bounds allow for."""
    span = bounds.return_high - bounds.return_low
    return CandidateEvidence(
        name=name,
        algorithm=facts.algorithm,
        estimates={},
        advantage=ValueEstimate(value=0.0, low=-span, high=span, effective_sample_size=0.0, n_episodes=0),
        effective_sample_size=0.0,
        effective_share=0.0,
        diagnostics={},
        strategy_use=facts.strategy_use,
        refusal=f"Not evaluated: {reason}",
    )


def _too_few(drawn: NoisyContributions) -> str:
    return (
        f"the noisy number of held-out customers is not clear of its noise (σ {drawn.sigmas['customers']:.0f}), so "
        "means over them would say nothing. A larger log, or a higher dataset.validation_share from the next "
        "window, helps."
    )


def _clipping_note(drawn: NoisyContributions, unit: str) -> str:
    bounds, limits = drawn.bounds, drawn.limits
    return (
        f"Learned from released aggregates alone, and judged with noise: each customer counts once, with a mean return "
        f"between {bounds['return_low']:g} and {bounds['return_high']:g} {unit}, weights up to {limits['weight']:.3g} "
        f"and a difference of at most {limits['advantage']:.3g} {unit} either way. What is cut off counts as "
        "what the log earned; the upper end of the difference allows for the most it can be worth."
    )


def _days(start: date, end: date) -> tuple[str, str]:
    return start.isoformat(), Window(start, end).last_day.isoformat()
