"""From action values to a policy that stays near the behavior policy.

Here: the decision head of all trainers that learn Q, and the search for its temperature. Not here: learning Q
(`rl.trainers`), estimating the behavior policy (`rl.policies.behavior`).

The head is the closed-form solution of

    maximise over π   E_s [ Σ_a π(a|s) Q(s,a) ]   with   E_s [ KL(π(·|s) ‖ π_b(·|s)) ] ≤ ε,

which is π(a|s) ∝ π_b(a|s) exp(Q(s,a)/τ), with τ the multiplier of the constraint. Sources: relative entropy
policy search (Peters et al., 2010), KL control of dialogue models (Jaques et al., 2019, arXiv:1907.00456),
BRAC (Wu et al., 2019, arXiv:1911.11361), AWAC (Nair et al., 2020, arXiv:2006.09359). Differences: the
exponent is applied at decision time and not distilled into a second network (the action set is small enough
to sum over); τ is found from ε by a search on training rows, so that the setting is a number of nats
that a reader can compare between data sets and not a temperature in reward units; masked actions are left out
of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.policies.networks import masked_softmax
from rl.policies.scores import Scores, Support
from rl.policies.storage import StoredPolicy, policy_from_state, with_prefix, without_prefix
from rl.types import Bool2D, Float2D, Observations

SMALLEST_TEMPERATURE_SHARE = 1e-4
"""τ is at least this share of the widest gap between two Q-values of a row: by then the head is greedy."""

DIVERGENCE_TOLERANCE = 1e-9
"""Relative error of the divergence at which the search for τ ends."""

MOST_TRIALS = 100
"""Divergences that the search computes at most; it takes about eight."""

ROWS_FOR_TEMPERATURE = 20_000
"""Rows, evenly spread, that the search looks at. The mean of divergences that vary by as much as their mean is then
known to 1 %."""


class RegularizedQPolicy(StoredPolicy):
    """π(a|s) ∝ π_b(a|s) exp(Q(s,a)/τ) over the legal actions.

    `values` gives Q in reward units (of an actor: logarithms of preferences, in nats), `temperature` τ has the same
    unit, `behavior` is π_b. An action that π_b never takes is never taken here. With τ = 0 the policy is greedy on
    `values` and does not look at π_b. `support` leaves actions out that an imitation of the log holds for unlikely.
    """

    kind = "regularized_q"

    def __init__(
        self,
        values: Scores,
        behavior: StoredPolicy,
        temperature: float,
        name: str,
        support: Support | None = None,
    ) -> None:
        super().__init__(name, values.n_actions, values.observation_size)
        self.values = values
        self.behavior = behavior
        self.temperature = float(temperature)
        self.support = support
        parts: list[Scores | StoredPolicy] = [values, behavior]
        parts += [support.imitation] if support else []
        self.reads_history = any(part.reads_history for part in parts)
        self.reads_past = any(part.reads_past for part in parts)

    def q_values(self, observations: Observations, action_mask: Bool2D) -> Float2D:
        """B observations, (B, A) → (B, A): expected discounted return from here on, in reward units, with the
        ensemble's pessimism; what stands at masked actions means nothing."""
        return self.values(observations, action_mask)

    def _probabilities(self, observations: Observations, action_mask: Bool2D) -> Float2D:
        mask = action_mask if self.support is None else self.support(observations, action_mask)
        q_values = self.values(observations, mask)
        if self.temperature == 0:
            return greedy_probabilities(q_values, mask)
        log_behavior = log_probabilities(self.behavior.action_probabilities(observations, mask))
        return tilted_probabilities(log_behavior, q_values, self.temperature, mask)

    def fields(self) -> dict[str, Any]:
        support = self.support and {"ratio": self.support.ratio, "scores": self.support.imitation.fields()}
        return {
            "temperature": self.temperature,
            "values": self.values.fields(),
            "behavior": self.behavior.document(),
            "support": support,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        stored = with_prefix("q", self.values.arrays()) | with_prefix("behavior", self.behavior.arrays())
        return stored | (with_prefix("support", self.support.imitation.arrays()) if self.support else {})

    @classmethod
    def from_state(cls, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> RegularizedQPolicy:
        support = document["support"]
        return cls(
            Scores.from_state(document["values"], without_prefix("q", arrays)),
            policy_from_state(document["behavior"], without_prefix("behavior", arrays)),
            document["temperature"],
            document["name"],
            support
            and Support(Scores.from_state(support["scores"], without_prefix("support", arrays)), support["ratio"]),
        )


def greedy_probabilities(q_values: Float2D, action_mask: Bool2D) -> Float2D:
    """(B, A) with 1 at the largest legal value, the first of several equal ones."""
    best = np.where(action_mask, q_values, -np.inf).argmax(axis=1)
    return np.asarray(np.eye(q_values.shape[1])[best])


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
    rows = spread_rows(len(q_values))
    divergence = _DivergenceOfTilts(behavior_probabilities[rows], q_values[rows], action_mask[rows])
    if divergence.widest == 0:
        return 1.0, 0.0
    # The search is over x = log(1/τ), in which the logarithm of a small divergence is a line of slope 2.
    largest = -math.log(divergence.widest * SMALLEST_TEMPERATURE_SHARE)
    target = math.log(divergence_limit)
    low, high = -math.inf, math.inf
    below, above = 0.0, 0.0
    x = min(divergence.small_tilt(divergence_limit), largest)
    for _ in range(MOST_TRIALS):
        reached = divergence(math.exp(x))
        excess = math.log(reached) - target if reached > 0 else -math.inf
        if abs(excess) < DIVERGENCE_TOLERANCE or (excess < 0 and x == largest):
            break
        if excess < 0:
            low, below = x, excess
        else:
            high, above = x, excess
        x = _next_trial(low, below, high, above, largest)
    return math.exp(-x), reached


class _DivergenceOfTilts:
    """Mean KL(π ‖ π_b) in nats of π ∝ π_b exp(Q/τ), by 1/τ.

    With Z = Σ π_b exp((Q − max Q)/τ) it is E_π[Q − max Q]/τ − log Z: one exponential for each value.
    """

    def __init__(self, behavior_probabilities: Float2D, q_values: Float2D, action_mask: Bool2D) -> None:
        self.behavior = np.where(action_mask, behavior_probabilities, 0.0).astype(np.float64)
        possible = self.behavior > 0
        highest = np.where(possible, q_values, -np.inf).max(axis=1, keepdims=True)
        self.below_best = np.where(possible, q_values - highest, 0.0).astype(np.float64)
        self.widest = _widest_gap(q_values, action_mask)

    def __call__(self, inverse_temperature: float) -> float:
        odds = self.behavior * np.exp(inverse_temperature * self.below_best)
        total = odds.sum(axis=1)
        mean = np.einsum("ba,ba->b", odds, self.below_best) / total
        return float((inverse_temperature * mean - np.log(total)).mean())

    def small_tilt(self, divergence: float) -> float:
        """log(1/τ) at which the divergence would be this if it grew as for small tilts: by (1/τ²) · variance / 2."""
        mean = np.einsum("ba,ba->b", self.behavior, self.below_best)
        squares = np.einsum("ba,ba,ba->b", self.behavior, self.below_best, self.below_best)
        variance = float((squares - mean**2).mean())
        return 0.5 * math.log(2 * divergence / variance) if variance > 0 else math.inf


def _next_trial(low: float, below: float, high: float, above: float, largest: float) -> float:
    """Where to look next for the x between `low` and `high` whose excess is 0, given the excess at both."""
    if math.isinf(high):
        return min(low + max(1.0, -below), largest)
    if math.isinf(low):
        return high - max(1.0, above)
    width = high - low
    straight = low + width * (-below / (above - below)) if math.isfinite(below) else low + width / 2
    # A straight line alone may creep along one side.
    return min(max(straight, low + 0.01 * width), high - 0.01 * width)


def _tilted_logits(log_behavior: Float2D, q_values: Float2D, temperature: float, mask: Bool2D) -> Float2D:
    # The largest legal Q of the row is subtracted before dividing, so that a tiny τ cannot overflow.
    largest = np.where(mask & np.isfinite(log_behavior), q_values, -np.inf).max(axis=1, keepdims=True)
    return np.asarray(log_behavior + (q_values - largest) / temperature)


def _widest_gap(q_values: Float2D, mask: Bool2D) -> float:
    highest = np.where(mask, q_values, -np.inf).max(axis=1)
    return float((highest - np.where(mask, q_values, np.inf).min(axis=1)).max())


def log_probabilities(probabilities: Float2D) -> Float2D:
    """Logarithms in nats; -inf of 0."""
    with np.errstate(divide="ignore"):
        return np.log(probabilities)


def spread_rows(n_rows: int) -> slice:
    """Every k-th of the rows, `ROWS_FOR_TEMPERATURE` at most: deterministic, and spread over all days."""
    return slice(0, None, max(1, -(-n_rows // ROWS_FOR_TEMPERATURE)))
