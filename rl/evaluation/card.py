"""The policy card: one HTML page about one candidate that a product owner can read and print.

Here: what the page says and in which order. Not here: the numbers (`evaluate`), the verdict (`registry.gates`), the
drawings (`card_plots`). The page refers to nothing outside itself, runs no script, and shows no customer text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Protocol

from rl.errors import DataError
from rl.evaluation.card_plots import (
    CANDIDATE_COLOUR,
    LOG_COLOUR,
    IntervalRow,
    interval_plot,
    short_number,
    use_plot,
)
from rl.evaluation.evidence import CandidateEvidence, Evidence, EvidencePrivacy, ValueEstimate
from rl.shown_counts import count_text

MAX_STRATEGIES = 16
"""Rows of the chart; the rest is the rarest and is counted as left out."""

_TEMPLATE = Path(__file__).with_name("card.html")


class VerdictLike(Protocol):
    """What the card reads of a gate's verdict."""

    @property
    def passed(self) -> bool: ...
    @property
    def mode(self) -> str: ...
    @property
    def reasons(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class _Term:
    """An entry of the glossary."""

    name: str
    formula: str
    meaning: str


ESTIMATORS = {
    "dr": _Term(
        "Doubly robust (DR)",
        "mean V(s₀) + Σₜ Σᵢ ρₜ (rₜ + V(sₜ₊₁) − Q(sₜ, aₜ)) / Σᵢ ρₜ",
        "A model of values, corrected by weighted dialogues. Right if either the propensities or the model are; "
        "the one the gate reads.",
    ),
    "pdis": _Term(
        "Per-decision importance sampling",
        "Σₜ Σᵢ ρₜ rₜ / Σᵢ ρₜ",
        "Each reward weighted by how likely the candidate was to get there. Needs no model.",
    ),
    "wis": _Term(
        "Weighted importance sampling",
        "Σᵢ ρ_T G / Σᵢ ρ_T",
        "Each whole dialogue weighted by how likely the candidate was to lead it. Needs no model; the widest.",
    ),
    "fqe": _Term(
        "Fitted Q evaluation (FQE)",
        "mean V(s₀), V(s) = Σₐ π(a|s) Q(s, a)",
        "The model of values alone. Its interval covers who the customers were and not the model's own error, "
        "so it is too narrow.",
    ),
}

GLOSSARY = (
    _Term("Value", "mean of G = Σₜ rₜ", "What a dialogue brings on average, in the unit of the reward."),
    _Term("Behavior policy", "π_b", "Whatever led the logged dialogues: a person, a bot, an earlier version."),
    _Term(
        "Weight",
        "ρₜ = Πₖ≤ₜ π(aₖ|sₖ) / π_b(aₖ|sₖ)",
        "How much more likely the candidate was to decide as the log did, up to turn t.",
    ),
    _Term(
        "Advantage",
        "DR − mean return, same dialogues",
        "What the candidate adds per dialogue. Paired, so that luck with customers cancels.",
    ),
    _Term(
        "Interval",
        "percentiles over resamples of whole customers",
        "Repeated on new logs, such intervals hold the true value as often as their level says.",
    ),
    _Term(
        "Effective dialogues",
        "(Σ ρ_T)² / Σ ρ_T²",
        "How many equally weighted dialogues would say as much. Few: the estimate hangs on a handful.",
    ),
)


@dataclass(frozen=True)
class _Light:
    """How a diagnostic is judged for the reader: good up to `good`, poor beyond `poor`, in the direction given."""

    name: str
    good: float
    poor: float
    is_share: bool
    higher_is_better: bool
    sentence: str
    formula: str

    def colour(self, value: float) -> str:
        sign = 1 if self.higher_is_better else -1
        if sign * value >= sign * self.good:
            return "good"
        return "fair" if sign * value >= sign * self.poor else "poor"


LIGHTS = {
    "effective_share": _Light(
        "Effective share", 0.2, 0.02, True, True,
        "Share of the held-out dialogues that carries the estimate.", "effective dialogues / dialogues",
    ),
    "mean_weight_distance": _Light(
        "Mean weight, distance from 1", 0.1, 0.3, False, False,
        "Weights average 1 where propensities are right and support is full.", "|mean ρ_T − 1|",
    ),
    "max_weight_share": _Light(
        "Heaviest dialogue", 0.01, 0.05, True, False,
        "Share of all weight on one single dialogue.", "max ρ_T / Σ ρ_T",
    ),
    "clipped_share": _Light(
        "Clipped weights", 0.001, 0.01, True, False,
        "Share of turns whose weight was cut; there the value model speaks alone.", "share of ρₜ above the clip",
    ),
    "overlap_share": _Light(
        "Overlap", 0.98, 0.9, True, True,
        "Share of the candidate's choices that the log also makes, at least once in a hundred.",
        "mean Σₐ π(a|s) · [π_b(a|s) ≥ 0.01]",
    ),
    "out_of_mask_share": _Light(
        "Forbidden choices", 0.0, 0.0, True, False,
        "Share of the candidate's choices that today's rules forbid.", "mean Σₐ∉mask π(a|s)",
    ),
    "logged_outside_mask_share": _Light(
        "Log outside today's rules", 0.05, 0.3, True, False,
        "Share of logged choices that today's rules forbid; the candidate never makes them.", "share of aₜ ∉ mask",
    ),
    "divergence": _Light(
        "Distance from the log", 0.15, 0.5, False, False,
        "How differently the candidate decides, per turn, in nats.", "mean KL(π ‖ π_b)",
    ),
    "estimator_disagreement": _Light(
        "Disagreement of estimators", 1.0, 2.0, False, False,
        "Distance between the highest and the lowest estimate; up to 1 is within what the data can tell.",
        "(max − min) / half the widest interval",
    ),
}  # fmt: skip


def render_card(evidence: Evidence, candidate: str, verdict: VerdictLike, lineage: Mapping[str, Any]) -> str:
    """The page as HTML text.

    Parameters
    ----------
    lineage : where the policy came from, by label: data set hash, code revision, settings, ... Values that are
        mappings or lists are shown as JSON.

    Raises
    ------
    DataError
        If the evidence has no candidate of that name.
    """
    found = {each.name: each for each in evidence.candidates}.get(candidate)
    if found is None:
        known = ", ".join(sorted(each.name for each in evidence.candidates)) or "none"
        raise DataError(f"The evidence has no candidate {candidate!r}; it has {known}. Choose one of them.")
    sections = (
        _header(evidence, found, verdict),
        _values(evidence, found),
        _estimators(found),
        _diagnostics(found),
        _strategies(found),
        _data(evidence),
        _lineage(evidence, lineage),
        _glossary(),
    )
    body = "\n".join(section for section in sections if section)
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(title=escape(candidate), body=body)


def _header(evidence: Evidence, candidate: CandidateEvidence, verdict: VerdictLike) -> str:
    colour, headline = _headline(verdict)
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
    note = f"<p><b>About this policy.</b> {escape(candidate.policy_note)}</p>" if candidate.policy_note else ""
    return (
        f'<p class="overline">Policy card · {escape(_days(evidence))}</p><h1>{escape(candidate.name)}</h1>'
        f'<p class="soft">Trained with {escape(candidate.algorithm.replace("_", " "))}, judged on '
        f"{escape(count_text(evidence.n_validation_episodes))} dialogues it has not learned from.</p>"
        f'<div class="verdict {colour}"><strong>{headline}</strong><ul>{reasons}</ul></div>{note}'
    )


def _headline(verdict: VerdictLike) -> tuple[str, str]:
    outcome = getattr(verdict, "outcome", "passed" if verdict.passed else "refused")
    return {
        "passed": ("good", "Passed: may become challenger"),
        "refused": ("poor", "Refused: stays out of traffic"),
        "passed_in_dry_run": ("fair", "Would be refused: the gate only reports (dry run)"),
        "unchecked": ("fair", "Not checked: the gate is disabled"),
    }.get(str(outcome), ("fair", escape(str(outcome))))


def _values(evidence: Evidence, candidate: CandidateEvidence) -> str:
    unit = escape(evidence.reward_unit)
    level = f"{evidence.confidence:.0%} interval"
    if candidate.refusal:
        return f"<h2>Value</h2><p><b>This candidate could not be evaluated.</b> {escape(candidate.refusal)}</p>"
    behavior, value, gain = (
        evidence.behavior_validation,
        candidate.estimates["dr"],
        candidate.advantage,
    )
    relative = f" ({gain.value / behavior.value:+.1%})" if behavior.value > 0 else ""
    figures = "".join(
        f'<div class="figure"><span>{label}</span><b>{number}</b><span>{unit} per dialogue</span>'
        f"<span>{level} {interval}</span></div>"
        for label, number, interval in (
            ("The log (behavior)", short_number(behavior.value), _interval(behavior)),
            ("This candidate", short_number(value.value), _interval(value)),
            ("Difference" + relative, f"{'+' * (gain.value > 0)}{short_number(gain.value)}", _interval(gain)),
        )
    )
    rows = [IntervalRow("The log (behavior)", behavior, LOG_COLOUR)]
    rows += [
        IntervalRow(term.name, candidate.estimates[key])
        for key, term in ESTIMATORS.items()
        if key in candidate.estimates
    ]
    return (
        f'<h2>Value</h2><div class="figures">{figures}</div>'
        + interval_plot(rows, evidence.reward_unit, "Value by estimator", behavior.value)
        + '<p class="soft">The dashed line is what the log brought on the same dialogues.</p>'
        + "<h3>Difference to the log</h3>"
        + interval_plot([IntervalRow("Candidate minus log", gain)], evidence.reward_unit, "Difference to the log", 0.0)
    )


def _estimators(candidate: CandidateEvidence) -> str:
    if not candidate.estimates:
        return ""
    rows = "".join(
        f"<tr><td><b>{term.name}</b><br><span class='soft'>{term.meaning}</span></td>"
        f'<td class="number">{short_number(each.value)}</td><td class="number">{_interval(each)}</td>'
        f'<td class="number">{each.effective_sample_size:,.0f} of {escape(count_text(each.n_episodes))}</td></tr>'
        for key, term in ESTIMATORS.items()
        if (each := candidate.estimates.get(key)) is not None
    )
    return (
        "<h2>Estimators</h2><p>Each answers the same question, what the candidate would have brought, in a way that "
        "fails differently. Trust grows where they agree.</p><table><thead><tr><th>Estimator</th>"
        '<th class="number">Value</th><th class="number">Interval</th><th class="number">Effective dialogues</th>'
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )


def _diagnostics(candidate: CandidateEvidence) -> str:
    figures = dict(candidate.diagnostics)
    if "mean_weight" in figures:
        figures["mean_weight_distance"] = abs(figures["mean_weight"] - 1)
    words = {"good": "good", "fair": "look", "poor": "poor"}
    rows = "".join(
        f'<tr><td><span class="light {light.colour(figures[key])}">{words[light.colour(figures[key])]}</span></td>'
        f'<td><b>{light.name}</b><br><span class="soft">{light.sentence}</span></td>'
        f'<td class="number">{_share(figures[key]) if light.is_share else short_number(figures[key])}</td>'
        f'<td class="number soft">{_range(light)}</td></tr>'
        for key, light in LIGHTS.items()
        if key in figures
    )
    if not rows:
        return ""
    return (
        "<h2>Can the numbers be trusted?</h2><table><thead><tr><th></th><th>Figure</th>"
        f'<th class="number">Found</th><th class="number">Good</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _strategies(candidate: CandidateEvidence) -> str:
    if not candidate.strategy_use:
        return ""
    peaks: dict[str, float] = {}
    for use in candidate.strategy_use:
        peaks[use.strategy] = max(peaks.get(use.strategy, 0.0), use.behavior_rate, use.candidate_rate)
    strategies = sorted(peaks, key=lambda name: -peaks[name])
    left_out = len(strategies) - MAX_STRATEGIES
    more = f'<p class="soft">{left_out} rarer strategies are left out.</p>' if left_out > 0 else ""
    return (
        "<h2>What the policy does</h2><p>Share of agent turns by strategy and stage of the dialogue. Both are "
        "counted on the same logged situations, so the difference is the policy's and not the customers'.</p>"
        f'<p class="key"><i style="background:{LOG_COLOUR}"></i><span>log</span>'
        f'<i style="background:{CANDIDATE_COLOUR}"></i><span>candidate</span>'
        f"<span>numbers: candidate, in % of the turns of the stage, and its change against the log</span></p>"
        f"{use_plot(candidate.strategy_use, strategies[:MAX_STRATEGIES], 'Use of strategies by stage')}{more}"
    )


def _data(evidence: Evidence) -> str:
    if evidence.privacy is not None:
        return _private_data(evidence, evidence.privacy)
    parts = "".join(
        f'<tr><td>{escape(name.replace("_", " "))}</td><td class="number">{short_number(value)}</td></tr>'
        for name, value in evidence.behavior_parts.items()
    )
    calibration = evidence.propensity_calibration_error
    estimated = _share(evidence.propensities_estimated_share)
    if calibration is not None:
        estimated += f" (calibration error of the behavior model {calibration:.3f})"
    facts = {
        "Days": _days(evidence),
        "Dialogues": f"{count_text(evidence.n_episodes)}, of which {count_text(evidence.n_validation_episodes)} "
        "held out to judge",
        "Agent turns": count_text(evidence.n_steps),
        "Value of all logged dialogues": f"{short_number(evidence.behavior.value)} {evidence.reward_unit} "
        f"{_interval(evidence.behavior)}",
        "Estimated propensities": estimated,
    }
    return (
        f"<h2>Data</h2>{_definitions(facts)}<h3>What the log brought, per dialogue</h3><table><thead><tr>"
        '<th>Part of the reward (unweighted)</th><th class="number">Mean</th></tr></thead>'
        f"<tbody>{parts}</tbody></table>"
    )


def _private_data(evidence: Evidence, privacy: EvidencePrivacy) -> str:
    """The same where every figure carries noise: what was protected, and at what price."""
    unit = evidence.reward_unit
    facts = {
        "Days": _days(evidence),
        "Privacy mode": "aggregate: learned from released tables alone, may be exported",
        "Unit of privacy": privacy.unit_of_privacy,
        "Held-out customers": f"about {count_text(evidence.n_validation_episodes)} (with noise)",
        "Spent on this evaluation": f"ρ {privacy.rho:g}, ε {privacy.epsilon:.2g} at δ {privacy.delta:g}",
        "Noise on the difference": f"{short_number(privacy.advantage_noise)} {unit} (standard deviation)",
        "Logged return": f"{short_number(evidence.behavior.value)} {unit} {_interval(evidence.behavior)}",
        "Estimated propensities": _share(evidence.propensities_estimated_share),
    }
    return f"<h2>Data</h2>{_definitions(facts)}"


def _lineage(evidence: Evidence, lineage: Mapping[str, Any]) -> str:
    shown = {"Release" if evidence.privacy else "Data set": evidence.dataset_hash, **lineage}
    return f"<h2>Where it comes from</h2>{_definitions(shown, is_code=True)}"


def _glossary() -> str:
    terms = [*GLOSSARY, *ESTIMATORS.values()]
    terms += [_Term(light.name, light.formula, light.sentence) for light in LIGHTS.values()]
    rows = "".join(
        f"<tr><td>{escape(term.name)}</td><td><code>{escape(term.formula)}</code></td><td>{escape(term.meaning)}</td></tr>"
        for term in terms
    )
    return (
        "<h2>Glossary</h2><p>π is the candidate, s a situation, a the strategy chosen there, r the reward, t the "
        "agent's turn, i the dialogue.</p><table><thead><tr><th>Figure</th><th>Formula</th><th>Meaning</th></tr>"
        f"</thead><tbody>{rows}</tbody></table><footer>Made by Talktrack. Contains no customer text.</footer>"
    )


def _definitions(entries: Mapping[str, Any], is_code: bool = False) -> str:
    def shown(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        return f"<code>{escape(text)}</code>" if is_code else escape(text)

    return (
        "<dl>"
        + "".join(
            f"<dt>{escape(str(name).replace('_', ' '))}</dt><dd>{shown(value)}</dd>" for name, value in entries.items()
        )
        + "</dl>"
    )


def _days(evidence: Evidence) -> str:
    first, last = evidence.window
    return f"{first} to {last}" if first and last else "days not recorded"


def _interval(found: ValueEstimate) -> str:
    return f"[{short_number(found.low)}, {short_number(found.high)}]"


def _share(value: float) -> str:
    return f"{value:.1%}" if value == 0 or value >= 0.001 else f"{value:.2%}"


def _range(light: _Light) -> str:
    sign = "≥" if light.higher_is_better else "≤"
    limit = _share(light.good) if light.is_share else f"{light.good:g}"
    return f"{sign} {limit}"
