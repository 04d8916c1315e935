"""Q over aggregate buckets: a policy from released tables alone.

Here: from noisy tables to values by turn and bucket, and to a policy near the released behavior. Not here: reading the
tables (`rl.datasets.aggregates`), the decision head (`rl.policies.bucketed`), the job (`rl.trainers.train_aggregate`).

Formulas. With n customers, c conversions and the value v of a conversion,

    Q_b(x, a) = v · E[ rate(x, a) | tables ]            what the log earned after a in bucket x
    Q_t(x, a) = Q_b(x, a) + Σ_x' P(x' | x, a, t) · (V_{t+1}(x') − V_b(x'))
    V_t(x) = Σ_a π_t(a | x) Q_t(x, a),   π_t ∝ π_b exp(Q_t / τ),   V_b(x) = Σ_a π_b(a | x) Q_b(x, a)

from the turn limit back to the first turn. Q_b is a mean of outcomes and not of modelled values, so it is right in its
cell however little of the state a bucket holds; the model of transitions carries only the part that later turns gain.
Rates are posterior means under a Gaussian prior that shares what buckets and strategies have in common, with the noise
of the release and the spread of binomial counts as error: a cell of few customers says what its neighbours say.

Everything here is computed from what was released, so it costs no privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl.datasets.aggregates import Aggregates, Array
from rl.errors import TrainingError
from rl.policies.bucketed import BucketedPolicy, ObservationParts
from rl.policies.regularized import find_temperature, tilted_probabilities
from rl.settings import AggregateTrainerSettings

MAX_CELLS = 4_000
"""Cells of the table of rates; its smoother solves a system of that size (4,000: 2.3 s on one core, measured once by
hand). Finer grids are summed up first."""

COUNT_DEVIATION = 0.7
"""How far a cell's number of customers is expected to lie from bucket total × share of the strategy, relative to it."""

SMALLEST_COUNT_SHARE = 0.3
"""No cell is taken to have fewer customers than this share of that product: noise must not make a choice unheard of."""

_ROWS_FOR_TEMPERATURE = 4_000


@dataclass(frozen=True)
class FittedAggregates:
    """A policy from aggregates, and what was found on the way; all of it may be released."""

    policy: BucketedPolicy
    divergence: float
    """Mean KL to the released behavior in nats per decision, over the released buckets."""
    value_per_conversion: float
    """Reward units."""
    conversion_rate: float
    """Mean over the cells."""
    steps: Array
    """(L, B) released steps by turn and bucket, for means over decisions."""
    n_customers: float
    """Released customers: those with a first step."""


def fit_aggregate_policy(
    aggregates: Aggregates, parts: ObservationParts, settings: AggregateTrainerSettings, name: str
) -> FittedAggregates:
    """Learn a policy from one release.

    Parameters
    ----------
    aggregates : Aggregates
        The noisy tables.
    parts : ObservationParts
        Layout of the observations that the policy will read, and the action catalogue.
    settings : AggregateTrainerSettings
        How much is believed, and how far the policy may move.

    Raises
    ------
    TrainingError
        If the tables show no conversions beyond their noise.
    """
    aggregates = _coarse_enough(aggregates)
    counts = denoised_counts(aggregates.n_customers, aggregates.sigma_customers)
    behavior = counts / counts.sum(axis=1, keepdims=True)
    mean_rate = _mean_rate(aggregates)
    rates = np.clip(smoothed_rates(aggregates, counts, mean_rate, settings.rate_deviation), 0.0, 1.0)
    value = value_per_conversion(aggregates)
    logged_values = rates * value
    steps = counts.sum(axis=1) * _on_turn(aggregates, parts.turn_limit)
    q_values = np.repeat(logged_values[None], parts.turn_limit, axis=0)
    temperature, divergence = _temperature(behavior, q_values, steps, settings.divergence_limit)
    q_values = _looking_ahead(aggregates, behavior, logged_values, temperature, parts.turn_limit, settings)
    temperature, divergence = _temperature(behavior, q_values, steps, settings.divergence_limit)
    ids = [parts.strategies.index(strategy) for strategy in aggregates.strategies]
    policy = BucketedPolicy(
        aggregates.buckets,
        parts,
        _by_action(behavior, ids, len(parts.strategies)),
        _by_action(q_values, ids, len(parts.strategies)),
        temperature,
        name,
    )
    n_customers = float(max(aggregates.n_customers[aggregates.band == 0].sum(), 0.0))
    return FittedAggregates(policy, divergence, value, mean_rate, steps, n_customers)


def denoised_counts(noisy: Array, sigma: float) -> Array:
    """(B, S) counts shrunk towards bucket total × share of the strategy, all positive."""
    totals, shares = np.maximum(noisy.sum(axis=1, keepdims=True), 1.0), np.maximum(noisy.sum(axis=0), 1.0)
    expected = totals * shares / shares.sum()
    spread = np.square(COUNT_DEVIATION * expected)
    shrunk = (spread * noisy + sigma**2 * expected) / (spread + sigma**2)
    return np.asarray(np.maximum(shrunk, SMALLEST_COUNT_SHARE * expected))


def smoothed_rates(aggregates: Aggregates, counts: Array, mean_rate: float, deviation: float) -> Array:
    """(B, S) posterior mean of the conversion rate of each cell.

    Prior: independent effects of each part of the bucket, of the strategy, of both together and of the cell, with
    standard deviations of `deviation` and, for the cell's own, half of it. Cells with a noisy number of customers
    below `minimum_customers` say nothing of their own.
    """
    says = (aggregates.n_customers >= aggregates.minimum_customers).ravel()
    if not says.any():
        raise TrainingError(
            "No cell of the release has enough customers to be published, so there is nothing to learn from. Use a "
            "coarser grid (privacy.grid) or a longer window (privacy.window_days)."
        )
    observed = aggregates.n_conversions / counts
    noise = aggregates.sigma_conversions**2 + np.square(mean_rate * aggregates.sigma_customers)
    variance = (noise + counts * mean_rate * (1 - mean_rate)) / np.square(counts)
    prior = _prior_covariance(aggregates, deviation)
    solved = np.linalg.solve(
        prior[np.ix_(says, says)] + np.diag(variance.ravel()[says]),
        np.column_stack([observed.ravel()[says], np.ones(int(says.sum()))]),
    )
    center = solved[:, 0].sum() / solved[:, 1].sum()
    smoothed = center + prior[:, says] @ (solved[:, 0] - center * solved[:, 1])
    return np.asarray(smoothed.reshape(observed.shape))


def value_per_conversion(aggregates: Aggregates) -> float:
    """Mean reward of a conversion, in reward units: one number, because the sums of rewards carry most noise.

    Released rewards over released conversions (counted where dialogues end), pulled to the middle of the bounds of
    rewards as far as noise asks for. The policy does not depend on it; values and their unit do.

    Raises TrainingError if the conversions are not clear of their noise.
    """
    _, _, following = aggregates.transitions
    ends = following == len(aggregates.buckets)
    conversions, noise = float(aggregates.n_steps[ends].sum()), aggregates.sigma_steps * math.sqrt(ends.sum())
    if conversions <= 2 * noise:
        raise TrainingError(
            f"The release shows {conversions:.0f} conversions with a noise of {noise:.0f}: too few to learn from. A "
            "larger log, a longer window (privacy.window_days) or a coarser grid (privacy.grid) help from the next one."
        )
    low, high = aggregates.reward_bounds
    prior_variance = (high - low) ** 2 / 12
    variance = aggregates.sigma_rewards**2 * aggregates.rewards.size / conversions**2
    measured = float(aggregates.rewards.sum()) / conversions
    pulled = (prior_variance * measured + variance * (low + high) / 2) / (prior_variance + variance)
    return float(np.clip(pulled, low, high))


def _coarse_enough(aggregates: Aggregates) -> Aggregates:
    for part in ("last_strategy", "customer_act"):
        if len(aggregates.buckets) * len(aggregates.strategies) > MAX_CELLS:
            aggregates = aggregates.without(part)
    return aggregates


def _mean_rate(aggregates: Aggregates) -> float:
    total = max(float(aggregates.n_customers.sum()), 1.0)
    return float(np.clip(aggregates.n_conversions.sum() / total, 0.005, 0.995))


def _prior_covariance(aggregates: Aggregates, deviation: float) -> Array:
    """(B·S, B·S)"""
    n_strategies = len(aggregates.strategies)
    same_strategy = np.eye(n_strategies)
    own = np.eye(len(aggregates.buckets))
    columns = zip(*((p.first_turn, p.last_strategy, p.segment, p.customer_act) for p in aggregates.parts), strict=True)
    shared = []
    for column in columns:
        values = np.unique(np.array(column), return_inverse=True)[1]
        if values.max() > 0:
            shared.append((values[:, None] == values[None, :]).astype(float))
    everywhere = np.ones_like(own)
    by_bucket = sum(shared, start=0.25 * own)
    return np.asarray(
        deviation**2
        * (
            np.kron(by_bucket, np.ones_like(same_strategy))
            + np.kron(0.25 * everywhere + 0.25 * by_bucket, same_strategy)
        )
    )


def _looking_ahead(
    aggregates: Aggregates,
    behavior: Array,
    logged_values: Array,
    temperature: float,
    turn_limit: int,
    settings: AggregateTrainerSettings,
) -> Array:
    """(L, B, S) Q by turn, from the last turn back."""
    following = _transition_probabilities(aggregates, settings.shrinkage)
    log_behavior, everything = np.log(behavior), np.ones_like(behavior, dtype=bool)
    logged = (behavior * logged_values).sum(axis=1)
    gain = np.zeros(len(behavior))
    q_values = np.empty((turn_limit, *behavior.shape))
    on_turn = _on_turn(aggregates, turn_limit)
    for turn in reversed(range(turn_limit)):
        reachable = on_turn[turn + 1] if turn + 1 < turn_limit else np.zeros(len(behavior), dtype=bool)
        q_values[turn] = logged_values + following.gain(np.where(reachable, gain, 0.0), reachable)
        policy = tilted_probabilities(log_behavior, q_values[turn], temperature, everything)
        gain = (policy * q_values[turn]).sum(axis=1) - logged
    return q_values


@dataclass(frozen=True)
class _Following:
    """Released transitions as probabilities: of going on, and of the next bucket among those of its turn band."""

    source: NDArray[np.int64]
    strategy: NDArray[np.int64]
    target: NDArray[np.int64]
    weight: Array
    """(T,) probability of the target given that the dialogue goes on, up to a factor per cell and band."""
    goes_on: Array
    """(B, S)"""

    def gain(self, gain: Array, reachable: NDArray[np.bool_]) -> Array:
        """(B,) what is gained in each bucket of the next turn → (B, S) its mean after each cell."""
        rows = reachable[self.target]
        cells = self.source[rows] * self.goes_on.shape[1] + self.strategy[rows]
        size = self.goes_on.size
        total = np.bincount(cells, self.weight[rows] * gain[self.target[rows]], size)
        weight = np.bincount(cells, self.weight[rows], size)
        mean = np.divide(total, weight, out=np.zeros(size), where=weight > 0)
        return np.asarray(self.goes_on * mean.reshape(self.goes_on.shape))


def _transition_probabilities(aggregates: Aggregates, shrinkage: float) -> _Following:
    """Noisy counts below zero count as zero; each cell is pulled to its bucket with `shrinkage` steps."""
    source, strategy, following = aggregates.transitions
    steps = np.maximum(aggregates.n_steps, 0.0)
    n_buckets, n_strategies = len(aggregates.buckets), len(aggregates.strategies)
    going = following < n_buckets
    of_bucket = np.zeros((n_buckets, n_buckets + 2))
    np.add.at(of_bucket, (source, following), steps)
    share = of_bucket / np.maximum(of_bucket.sum(axis=1, keepdims=True), 1.0)
    weight = steps + shrinkage * share[source, following]
    all_steps, steps_on = np.zeros((n_buckets, n_strategies)), np.zeros((n_buckets, n_strategies))
    np.add.at(all_steps, (source, strategy), weight)
    np.add.at(steps_on, (source[going], strategy[going]), weight[going])
    goes_on = np.divide(steps_on, all_steps, out=np.zeros_like(steps_on), where=all_steps > 0)
    return _Following(source[going], strategy[going], following[going], weight[going], goes_on)


def _on_turn(aggregates: Aggregates, turn_limit: int) -> NDArray[np.bool_]:
    """(L, B) whether a step of each turn can be in each bucket."""
    edges = np.array(aggregates.turn_edges)
    band = np.searchsorted(edges, np.arange(1, turn_limit + 1), side="right") - 1
    return np.asarray(aggregates.band[None, :] == band[:, None])


def _temperature(behavior: Array, q_values: Array, steps: Array, limit: float) -> tuple[float, float]:
    """τ and the divergence it gives, over (turn, bucket) rows repeated in proportion to their (released) steps."""
    repeats = np.ceil(steps.ravel() / steps.sum() * _ROWS_FOR_TEMPERATURE).astype(np.int64)
    rows = np.repeat(np.arange(len(repeats)), repeats)
    everything = np.ones((len(rows), behavior.shape[1]), dtype=bool)
    by_row = q_values.reshape(-1, behavior.shape[1])[rows]
    return find_temperature(behavior[rows % len(behavior)], by_row, everything, limit)


def _by_action(table: Array, ids: list[int], n_actions: int) -> NDArray[np.float32]:
    """(…, S) → (…, A): strategies at their ids, zero elsewhere."""
    wide = np.zeros((*table.shape[:-1], n_actions), dtype=np.float32)
    wide[..., ids] = table
    return wide
