r"""Doubly robust (DR) estimators: a model of values, corrected by importance weights along each dialogue.

Here: estimators that need `q_values` and `state_values`. Not here: where those come from (`fqe`).

Right in the limit if either the propensities or the value model is right; the better the model, the smaller
the variance. Weights are clipped at `weight_clip`: what is cut off is left to the value model.
"""

from __future__ import annotations

import numpy as np

from rl.errors import DataError
from rl.evaluation.inputs import Array, Contributions, EvaluationInput


def direct_method(log: EvaluationInput) -> Contributions:
    r"""DM: :math:`\frac1E \sum_i \hat V(s^i_0)`, the value model alone; its bias is that of the model."""
    _, state_values = _modelled_values(log)
    return Contributions.of_mean(state_values[:, 0])


def doubly_robust(log: EvaluationInput) -> Contributions:
    r"""Per-decision DR: :math:`\frac1E \sum_i [\hat V(s_0) + \sum_t \rho_t (r_t + \hat V(s_{t+1}) - \hat
    Q(s_t, a_t))]`.

    Source: Jiang and Li (2016), "Doubly Robust Off-policy Value Evaluation for Reinforcement Learning".
    Difference: cumulative weights are clipped at `weight_clip`.
    """
    initial_values, corrections = _value_and_corrections(log)
    return Contributions.of_mean(initial_values + (_clipped_weights(log) * corrections).sum(1))


def weighted_doubly_robust(log: EvaluationInput) -> Contributions:
    r"""WDR: as DR, with :math:`\rho^i_t` divided by its mean over episodes at each step index.

    Raises SupportError if no episode has a positive weight.

    Source: Thomas and Brunskill (2016), "Data-Efficient Off-Policy Policy Evaluation for Reinforcement
    Learning", section 5. Difference: state values of the next step share the weight of the step that led
    there, which is the same sum, and weights are clipped at `weight_clip`.
    """
    initial_values, corrections = _value_and_corrections(log)
    weights = _clipped_weights(log)
    return Contributions(
        np.column_stack([initial_values, weights * corrections]),
        np.column_stack([np.ones(log.n_episodes), weights]),
    )


def _clipped_weights(log: EvaluationInput) -> Array:
    return np.minimum(log.cumulative_weights, log.weight_clip)


def _value_and_corrections(log: EvaluationInput) -> tuple[Array, Array]:
    """(E,) first state's value, (E, T) one-step errors r + V' - Q; V' is 0 after the last step."""
    q_values, state_values = _modelled_values(log)
    next_values = np.column_stack([state_values[:, 1:], np.zeros(log.n_episodes)])
    return state_values[:, 0], log.by_step(log.rewards) + next_values - q_values


def _modelled_values(log: EvaluationInput) -> tuple[Array, Array]:
    if log.q_values is None or log.state_values is None:
        raise DataError(
            "A doubly robust estimate needs `q_values` and `state_values`. Fit them with rl.evaluation.fqe."
        )
    return log.by_step(log.q_values), log.by_step(log.state_values)
