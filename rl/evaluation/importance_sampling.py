r"""Importance sampling (IS): reweigh logged dialogues to look like those of the evaluation policy.

Here: estimators without a model of values. Not here: intervals (`intervals`), value models (`fqe`).

With :math:`\rho_t = \prod_{k \le t} \pi_e(a_k \mid s_k) / \pi_b(a_k \mid s_k)`; an ended episode keeps its
last ρ. Unbiased where propensities are true; the variance grows exponentially with the horizon.

Source: Precup, Sutton and Singh (2000), "Eligibility Traces for Off-Policy Policy Evaluation";
Thomas (2015), "Safe Reinforcement Learning", chapter 3.
"""

from __future__ import annotations

import numpy as np

from rl.evaluation.inputs import Contributions, EvaluationInput


def importance_sampling(log: EvaluationInput) -> Contributions:
    r"""IS: :math:`\frac1E \sum_i \rho^i_T G_i`. Unbiased, of large variance; for tests and comparison."""
    return Contributions.of_mean(log.cumulative_weights[:, -1] * log.returns)


def weighted_importance_sampling(log: EvaluationInput) -> Contributions:
    r"""WIS: :math:`\sum_i \rho^i_T G_i / \sum_i \rho^i_T`. Consistent, bounded by the observed returns.

    Raises SupportError if no episode has a positive weight.
    """
    weights = log.cumulative_weights[:, -1:]
    return Contributions(weights * log.returns[:, None], weights)


def per_decision_importance_sampling(log: EvaluationInput) -> Contributions:
    r"""Per-decision IS: :math:`\frac1E \sum_i \sum_t \rho^i_t r^i_t`. Unbiased, below IS in variance."""
    return Contributions.of_mean((log.cumulative_weights * log.by_step(log.rewards)).sum(1))


def weighted_per_decision(log: EvaluationInput) -> Contributions:
    r"""PDIS, self-normalised per step index: :math:`\sum_t \sum_i \rho^i_t r^i_t / \sum_i \rho^i_t`.

    Raises SupportError if no episode has a positive weight.
    """
    weights = log.cumulative_weights
    return Contributions(weights * log.by_step(log.rewards), weights)


def effective_sample_size(weights: np.ndarray) -> float:
    r"""Kish's n, :math:`(\sum w)^2 / \sum w^2`: how many equally weighted episodes (E,) carry as much; 0 if
    none."""
    largest = float(np.max(weights, initial=0.0))
    if largest <= 0:
        return 0.0
    scaled = weights / largest
    return float(scaled.sum() ** 2 / np.square(scaled).sum())
