"""Figures that say whether an estimate deserves trust.

Here: one function per figure, and `diagnose`, which collects them by the names of the glossary in
rl/README.md. Not here: thresholds (`registry.gates`) or colours (`card`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rl.evaluation.evidence import ValueEstimate
from rl.evaluation.importance_sampling import effective_sample_size
from rl.evaluation.inputs import EvaluationInput
from rl.types import Bool1D, Bool2D, Float1D, Float2D, Int1D

SUPPORT_PROBABILITY = 0.01
"""A choice that the behavior policy makes at least this often counts as covered by the log."""


@dataclass(frozen=True)
class Decisions:
    """Held-out decisions with both policies' full distributions over actions."""

    actions: Int1D
    """(N,) as logged."""
    action_mask: Bool2D
    """(N, A) what today's rules allow."""
    behavior: Float2D
    """(N, A) modelled out of fold."""
    evaluation: Float2D
    """(N, A)"""

    @property
    def is_action_allowed(self) -> Bool1D:
        """(N,) whether today's rules allow the logged action."""
        return np.asarray(np.take_along_axis(self.action_mask, self.actions[:, None], axis=1)[:, 0])


def diagnose(log: EvaluationInput, decisions: Decisions, estimates: dict[str, ValueEstimate]) -> dict[str, float]:
    """All diagnostics of one candidate by name."""
    weights = log.cumulative_weights[:, -1]
    return {
        "mean_weight": float(weights.mean()),
        "max_weight_share": max_weight_share(weights),
        "effective_share": effective_sample_size(weights) / len(weights),
        "clipped_share": float((log.cumulative_weights[log.is_step] > log.weight_clip).mean()),
        "overlap_share": overlap_share(decisions),
        "out_of_mask_share": out_of_mask_share(decisions),
        "logged_outside_mask_share": float(1 - decisions.is_action_allowed.mean()),
        "divergence": divergence(decisions),
        "estimator_disagreement": disagreement(estimates),
    }


def max_weight_share(weights: Float1D) -> float:
    """The heaviest episode's share of all weight; 0 where there is none."""
    total = float(weights.sum())
    return float(weights.max()) / total if total > 0 else 0.0


def overlap_share(decisions: Decisions) -> float:
    """Share of the evaluation policy's probability on actions that the log covers."""
    is_covered = decisions.behavior >= SUPPORT_PROBABILITY
    return float((decisions.evaluation * is_covered).sum(1).mean())


def out_of_mask_share(decisions: Decisions) -> float:
    """Share of the evaluation policy's probability on actions that today's rules forbid; 0 by contract."""
    return float((decisions.evaluation * ~decisions.action_mask).sum(1).mean())


def divergence(decisions: Decisions) -> float:
    """Mean over decisions of KL(evaluation ‖ behavior), in nats."""
    smallest = 1e-12
    ratio = np.maximum(decisions.evaluation, smallest) / np.maximum(decisions.behavior, smallest)
    return float((decisions.evaluation * np.log(ratio)).sum(1).mean())


def disagreement(estimates: dict[str, ValueEstimate]) -> float:
    """Distance between the highest and the lowest estimate, in half-widths of the widest interval.

    Up to 1 the estimators agree within what the data can tell. 0 where no interval has a width.
    """
    values = [each.value for each in estimates.values()]
    half_width = max((each.high - each.low for each in estimates.values()), default=0.0) / 2
    return (max(values) - min(values)) / half_width if half_width > 0 else 0.0
