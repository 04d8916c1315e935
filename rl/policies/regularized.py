"""From action values to a policy that stays near the behavior policy.

Here: the decision head of all trainers that learn Q, and the search for its temperature. Not here: learning Q
(`rl.trainers`), estimating the behavior policy (`rl.policies.behavior`).

The head is the closed-form solution of

    maximise over π   E_s [ Σ_a π(a|s) Q(s,a) ]   with   E_s [ KL(π(·|s) ‖ π_b(·|s)) ] ≤ ε,

which is π(a|s) ∝ π_b(a|s) exp(Q(s,a)/τ), with τ the multiplier of the constraint. Sources: relative entropy
policy search (Peters et al., 2010), KL control of dialogue models (Jaques et al., 2019, arXiv:1907.00456),
BRAC (Wu et al., 2019, arXiv:1911.11361), AWAC (Nair et al., 2020, arXiv:2006.09359). Differences: the
exponent is applied at decision time and not distilled into a second network (the action set is small enough
to sum over); τ is found from ε by bisection on the training rows, so that the setting is a number of nats
that a reader can compare between data sets and not a temperature in reward units; masked actions are left out
of the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.policies.networks import Network, log_masked_softmax, masked_softmax, mean_divergence
from rl.policies.storage import StoredPolicy, policy_from_state, with_prefix, without_prefix
from rl.types import Bool2D, Float2D, Observations

SMALLEST_TEMPERATURE_SHARE = 1e-4
"""τ is at least this share of the widest gap between two Q-values of a row: by then the head is greedy."""

BISECTION_STEPS = 60
"""Halvings of the interval of log τ; 60 leave less than float64 can tell."""

ROWS_FOR_TEMPERATURE = 100_000
"""Rows that the search looks at; more would not change the third digit of a mean over rows."""


class RegularizedQPolicy(StoredPolicy):
    """π(a|s) ∝ π_b(a|s) exp(Q(s,a)/τ) over the legal actions.

    `network` gives Q in reward units, `temperature` τ has the same unit, `behavior` is π_b. An action that
    π_b never takes is never taken here.
    """

    kind = "regularized_q"

    def __init__(self, network: Network, behavior: StoredPolicy, temperature: float, name: str) -> None:
        super().__init__(name, network.n_actions, network.observation_size)
        self.network = network
        self.behavior = behavior
        self.temperature = float(temperature)

    def q_values(self, observations: Observations) -> Float2D:
        """(B, D) → (B, A): expected discounted return from here on, in reward units; masked actions
        included."""
        return self.network(np.asarray(observations.state))

    def _probabilities(self, state: Float2D, action_mask: Bool2D) -> Float2D:
        log_behavior = _log(self.behavior.action_probabilities(Observations(state), action_mask))
        return tilted_probabilities(log_behavior, self.network(state), self.temperature, action_mask)

    def fields(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "behavior": self.behavior.document()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return with_prefix("q", self.network.arrays()) | with_prefix("behavior", self.behavior.arrays())

    @classmethod
    def from_state(cls, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> RegularizedQPolicy:
        return cls(
            Network.from_arrays(without_prefix("q", arrays)),
            policy_from_state(document["behavior"], without_prefix("behavior", arrays)),
            document["temperature"],
            document["name"],
        )


def tilted_probabilities(log_behavior: Float2D, q_values: Float2D, temperature: float, action_mask: Bool2D) -> Float2D:
    """(B, A) of π ∝ π_b exp(Q/τ) over the legal actions; rows sum to 1."""
    return masked_softmax(_tilted_logits(log_behavior, q_values, temperature, action_mask), action_mask)


def find_temperature(
    behavior_probabilities: Float2D, q_values: Float2D, action_mask: Bool2D, divergence_limit: float
) -> tuple[float, float]:
    """Find τ such that the mean of KL(π ‖ π_b) over the rows equals `divergence_limit`.

    Parameters
    ----------
    behavior_probabilities, q_values, action_mask : (N, A)
        π_b over the legal actions, Q in reward units, and which actions are legal.
    divergence_limit : float
        Nats per decision, above 0.

    Returns
    -------
    temperature, divergence : float
        τ in reward units, and the mean divergence it gives in nats. The divergence stays below the limit
        where even the greedy policy does: τ is then its smallest value. Q that is equal for all actions gives
        τ = 1 and 0 nats.
    """
    rows = _spread_rows(len(q_values))
    mask, q_values = action_mask[rows], q_values[rows].astype(np.float64)
    log_behavior = _log(behavior_probabilities[rows])
    widest = _widest_gap(q_values, mask)
    if widest == 0:
        return 1.0, 0.0

    def divergence(temperature: float) -> float:
        logits = _tilted_logits(log_behavior, q_values, temperature, mask)
        return mean_divergence(log_masked_softmax(logits, mask), log_behavior)

    low = widest * SMALLEST_TEMPERATURE_SHARE
    if (reached := divergence(low)) <= divergence_limit:
        return low, reached
    high = widest
    while divergence(high) > divergence_limit:
        high *= 4.0
    for _ in range(BISECTION_STEPS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if divergence(middle) > divergence_limit else (low, middle)
    return high, divergence(high)


def _tilted_logits(log_behavior: Float2D, q_values: Float2D, temperature: float, mask: Bool2D) -> Float2D:
    # The largest legal Q of the row is subtracted before dividing, so that a tiny τ cannot overflow.
    largest = np.where(mask & np.isfinite(log_behavior), q_values, -np.inf).max(axis=1, keepdims=True)
    return np.asarray(log_behavior + (q_values - largest) / temperature)


def _widest_gap(q_values: Float2D, mask: Bool2D) -> float:
    highest = np.where(mask, q_values, -np.inf).max(axis=1)
    return float((highest - np.where(mask, q_values, np.inf).min(axis=1)).max())


def _log(probabilities: Float2D) -> Float2D:
    with np.errstate(divide="ignore"):
        return np.log(probabilities)


def _spread_rows(n_rows: int) -> slice:
    """Every k-th row: deterministic, and spread over all days."""
    return slice(0, None, max(1, -(-n_rows // ROWS_FOR_TEMPERATURE)))
