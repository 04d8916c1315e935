"""Intervals: coverage of known values, clusters, and what they do with little data."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from evaluation_worlds import world

from rl.errors import DataError
from rl.evaluation.doubly_robust import weighted_doubly_robust
from rl.evaluation.importance_sampling import weighted_per_decision
from rl.evaluation.inputs import Contributions
from rl.evaluation.intervals import bca_interval, bootstrap_values, estimate, percentile_interval


def coverage(horizon: int, n_episodes: int, estimated: bool, seeds: Iterable[int]) -> dict[str, float]:
    """Share of logs whose 95 % interval holds the value, and the advantage, of the evaluation policy."""
    hits: dict[str, list[bool]] = {"value": [], "advantage": []}
    for seed in seeds:
        here = world(seed % 20, horizon, distance=0.3)
        log = here.log(n_episodes, 1000 + seed, model_error=0.15, estimated=estimated)
        value = weighted_doubly_robust(log)
        advantage = value.minus(Contributions.of_mean(log.returns))
        customers = np.arange(n_episodes)
        for name, contributions, truth in (
            ("value", value, here.truth),
            ("advantage", advantage, here.true_advantage),
        ):
            found = estimate(contributions, customers, n_bootstrap=300, seed=seed)
            hits[name].append(found.low <= truth <= found.high)
    return {name: float(np.mean(each)) for name, each in hits.items()}


@pytest.mark.parametrize("estimated", [False, True], ids=["logged", "estimated"])
def test_the_default_interval_covers_the_truth_as_often_as_it_says(estimated: bool) -> None:
    # At a true coverage of 95 %, 200 logs fall below 90 % once in 500 runs; the seeds are fixed.
    for name, share in coverage(5, 300, estimated, range(200)).items():
        assert 0.90 <= share <= 0.99, (name, share)


@pytest.mark.slow
@pytest.mark.parametrize("estimated", [False, True], ids=["logged", "estimated"])
@pytest.mark.parametrize(("horizon", "n_episodes"), [(5, 300), (12, 1000), (20, 2000), (8, 100)])
def test_the_default_interval_covers_the_truth_on_500_logs(horizon: int, n_episodes: int, estimated: bool) -> None:
    for name, share in coverage(horizon, n_episodes, estimated, range(500)).items():
        assert 0.91 <= share <= 0.99, (name, share)


def test_the_bootstrap_spread_is_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(0).exponential(size=1000)
    replicates = bootstrap_values(Contributions.of_mean(values), np.arange(1000), 4000, seed=0)
    assert replicates.std() == pytest.approx(values.std() / np.sqrt(1000), rel=0.05)
    assert replicates.mean() == pytest.approx(values.mean(), abs=0.005)


def test_resampling_renormalises_the_weights() -> None:
    log = world(0).log(100, seed=0)
    contributions = weighted_per_decision(log)
    constant = Contributions(contributions.denominators * 3.0, contributions.denominators)
    n_columns = contributions.denominators.shape[1]
    replicates = bootstrap_values(constant, np.arange(100), 200, seed=0)
    assert replicates == pytest.approx(np.full(200, 3.0 * n_columns))


def test_dialogues_of_one_customer_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=100), 10)
    apart = estimate(Contributions.of_mean(values), np.arange(1000))
    together = estimate(Contributions.of_mean(values), np.repeat(np.arange(100), 10))
    assert (together.high - together.low) == pytest.approx(np.sqrt(10) * (apart.high - apart.low), rel=0.15)


def test_the_paired_difference_is_narrower_than_the_parts() -> None:
    log = world(1).log(1000, seed=1, model_error=0.1)
    value, returns = weighted_doubly_robust(log), Contributions.of_mean(log.returns)
    customers = np.arange(1000)
    parts = [estimate(each, customers) for each in (value, returns)]
    paired = estimate(value.minus(returns), customers)
    assert paired.value == pytest.approx(parts[0].value - parts[1].value)
    independent = np.hypot(*(part.high - part.low for part in parts))
    assert paired.high - paired.low < 0.7 * independent


def test_the_corrected_interval_leans_to_the_side_of_the_long_tail() -> None:
    values = np.random.default_rng(1).exponential(size=40) ** 2
    replicates = bootstrap_values(Contributions.of_mean(values), np.arange(40), 4000, seed=0)
    plain = percentile_interval(replicates, 0.95)
    corrected = bca_interval(replicates, float(values.mean()), values - values.mean(), 0.95)
    assert corrected[0] > plain[0]
    assert corrected[1] > plain[1]


def test_equal_returns_give_an_interval_without_width() -> None:
    found = estimate(Contributions.of_mean(np.full(10, 2.0)), np.arange(10), method="bca")
    assert (found.low, found.value, found.high) == (2.0, 2.0, 2.0)


def test_one_customer_makes_no_interval() -> None:
    with pytest.raises(DataError, match="dialogues of at least two customers; the 3 held-out dialogues are of 1"):
        estimate(Contributions.of_mean(np.arange(3.0)), np.zeros(3, dtype=int))


def test_the_same_seed_gives_the_same_interval() -> None:
    contributions = Contributions.of_mean(np.random.default_rng(0).normal(size=50))
    assert estimate(contributions, np.arange(50), seed=3) == estimate(contributions, np.arange(50), seed=3)
