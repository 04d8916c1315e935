"""Intervals by resampling whole customers: dialogues of one customer are not independent.

Here: the bootstrap, two ways to read an interval from it, and `estimate`, which ties value, interval and
effective sample size together. Not here: the estimators.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Literal

import numpy as np

from rl.errors import DataError
from rl.evaluation.evidence import ValueEstimate
from rl.evaluation.importance_sampling import effective_sample_size
from rl.evaluation.inputs import Array, Contributions
from rl.types import Float1D, Int1D

_COUNTS_AT_ONCE = 8_000_000
"""Resample counts held at a time (64 MB as float64)."""

IntervalMethod = Literal["percentile", "bca"]


def bootstrap_values(contributions: Contributions, customers: Int1D, n_bootstrap: int, seed: int) -> Array:
    """The estimate (n_bootstrap,) on resamples of customers, weights renormalised in each.

    Equal `customers`, `n_bootstrap` and `seed` give the same resamples for every estimator.
    """
    n_customers, cluster = _clusters(customers, len(contributions.numerators))
    numerators = _sum_by(cluster, contributions.numerators, n_customers)
    denominators = _sum_by(cluster, contributions.denominators, n_customers)
    rng = np.random.default_rng(seed)
    n_at_once = max(1, _COUNTS_AT_ONCE // n_customers)
    replicates = []
    for start in range(0, n_bootstrap, n_at_once):
        counts = _resample_counts(rng, min(n_at_once, n_bootstrap - start), n_customers)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = (counts @ numerators) / (counts @ denominators)
        replicates.append(np.nan_to_num(ratios, nan=0.0, posinf=0.0, neginf=0.0).sum(1))
    return np.concatenate(replicates)


def percentile_interval(replicates: Array, confidence: float) -> tuple[float, float]:
    """The central share `confidence` of the replicates (Efron, 1979)."""
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bca_interval(replicates: Array, value: float, influence: Float1D, confidence: float) -> tuple[float, float]:
    """Bias-corrected and accelerated percentiles (Efron, 1987).

    Parameters
    ----------
    replicates : (n_bootstrap,)
    value : the estimate on the data itself.
    influence : (C,)
        What each customer adds beyond the mean; its skewness gives the acceleration.
    """
    normal = NormalDist()
    n = len(replicates)
    share_below = (np.sum(replicates < value) + 0.5 * np.sum(replicates == value)) / n
    bias = normal.inv_cdf(float(np.clip(share_below, 1 / (n + 1), n / (n + 1))))
    spread = float(np.sqrt(np.square(influence).sum()))
    acceleration = float(np.power(influence / spread, 3).sum()) / 6 if spread > 0 else 0.0
    levels = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        shifted = bias + normal.inv_cdf(tail)
        # Beyond this the correction runs away and the plain level is the safer one.
        scale = max(1 - acceleration * shifted, 0.2)
        levels.append(normal.cdf(bias + shifted / scale))
    low, high = np.quantile(replicates, levels)
    return float(low), float(high)


def estimate(
    contributions: Contributions,
    customers: Int1D,
    confidence: float = 0.95,
    n_bootstrap: int = 1000,
    seed: int = 0,
    weights: Float1D | None = None,
    method: IntervalMethod = "percentile",
) -> ValueEstimate:
    """Value, interval and effective sample size of one estimator.

    Parameters
    ----------
    customers : (E,)
        Whose dialogue each is; resampled as a whole.
    weights : (E,), optional
        Episode weights behind the estimate, for Kish's n; without them n is the number of episodes.

    Raises
    ------
    DataError
        If there are fewer than two customers, of which no interval can be made.
    SupportError
        If the weights of a self-normalised estimate are all zero.
    """
    n_episodes = len(contributions.numerators)
    value = contributions.value
    replicates = bootstrap_values(contributions, customers, n_bootstrap, seed)
    if method == "percentile":
        low, high = percentile_interval(replicates, confidence)
    else:
        n_customers, cluster = _clusters(customers, n_episodes)
        influence = _sum_by(cluster, contributions.per_episode - value, n_customers)
        low, high = bca_interval(replicates, value, influence, confidence)
    return ValueEstimate(
        value=value,
        low=min(low, value),
        high=max(high, value),
        effective_sample_size=float(n_episodes) if weights is None else effective_sample_size(weights),
        n_episodes=n_episodes,
    )


def _clusters(customers: Int1D, n_episodes: int) -> tuple[int, Int1D]:
    """Number of customers, and the dense index (E,) of each episode's customer."""
    if len(customers) != n_episodes:
        raise DataError(f"{len(customers)} customers are given for {n_episodes} episodes. Give one per episode.")
    unique, cluster = np.unique(customers, return_inverse=True)
    if len(unique) < 2:
        raise DataError(
            f"An interval needs dialogues of at least two customers; the {n_episodes} held-out dialogues "
            f"are of {len(unique)}. Collect more dialogues, or raise validation_share."
        )
    return len(unique), cluster


def _sum_by(cluster: Int1D, values: Array, n_clusters: int) -> Array:
    sums = np.zeros((n_clusters, *values.shape[1:]))
    np.add.at(sums, cluster, values)
    return sums


def _resample_counts(rng: np.random.Generator, n_resamples: int, n_customers: int) -> Array:
    """(n_resamples, n_customers) how often each customer was drawn; a row adds up to n_customers."""
    drawn = rng.integers(n_customers, size=(n_resamples, n_customers))
    drawn += np.arange(n_resamples)[:, None] * n_customers
    flat = np.bincount(drawn.ravel(), minlength=n_resamples * n_customers)
    return flat.reshape(n_resamples, n_customers).astype(np.float64)
