"""Every estimator against the exact value of a policy on worlds that are solved by dynamic programming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from evaluation_worlds import world

from rl.errors import DataError, PropensityError, SupportError
from rl.evaluation.doubly_robust import direct_method, doubly_robust, weighted_doubly_robust
from rl.evaluation.importance_sampling import (
    effective_sample_size,
    importance_sampling,
    per_decision_importance_sampling,
    weighted_importance_sampling,
    weighted_per_decision,
)
from rl.evaluation.inputs import Contributions, EvaluationInput

Estimator = Callable[[EvaluationInput], Contributions]

UNBIASED: list[Estimator] = [importance_sampling, per_decision_importance_sampling, doubly_robust]
SELF_NORMALISED: list[Estimator] = [
    weighted_importance_sampling,
    weighted_per_decision,
    weighted_doubly_robust,
]
ALL = [*UNBIASED, *SELF_NORMALISED]


def two_episodes(**changes: object) -> EvaluationInput:
    """Two steps and one step, easily computed by hand."""
    log = EvaluationInput(
        rewards=np.array([1.0, 2.0, 4.0]),
        propensities=np.array([0.5, 0.5, 0.5]),
        evaluation_probabilities=np.array([0.25, 0.75, 1.0]),
        episode_offsets=np.array([0, 2, 3]),
    )
    return replace(log, **changes)


def test_values_agree_with_a_calculation_by_hand() -> None:
    log = two_episodes()  # cumulative weights: 0.5, 0.75 and 2 (which stays after the end)
    assert importance_sampling(log).value == pytest.approx((0.75 * 3 + 2 * 4) / 2)
    assert weighted_importance_sampling(log).value == pytest.approx((0.75 * 3 + 2 * 4) / 2.75)
    assert per_decision_importance_sampling(log).value == pytest.approx((0.5 * 1 + 0.75 * 2 + 2 * 4) / 2)
    assert weighted_per_decision(log).value == pytest.approx((0.5 * 1 + 2 * 4) / 2.5 + 0.75 * 2 / 2.75)


def test_doubly_robust_agrees_with_a_calculation_by_hand() -> None:
    log = two_episodes().with_values(np.array([3.0, 1.0, 2.0]), np.array([2.5, 1.5, 3.5]))
    errors = [0.5 * (1 + 1.5 - 3), 0.75 * (2 - 1), 2 * (4 - 2)]
    assert direct_method(log).value == pytest.approx((2.5 + 3.5) / 2)
    assert doubly_robust(log).value == pytest.approx((2.5 + 3.5 + sum(errors)) / 2)
    expected = 3 + (errors[0] + errors[2]) / 2.5 + errors[1] / 2.75
    assert weighted_doubly_robust(log).value == pytest.approx(expected)


@pytest.mark.parametrize("estimator", ALL)
def test_contributions_of_episodes_average_to_the_estimate(estimator: Estimator) -> None:
    contributions = estimator(world(0).log(200, seed=0, model_error=0.2))
    assert contributions.per_episode.shape == (200,)
    assert contributions.per_episode.mean() == pytest.approx(contributions.value)


@pytest.mark.parametrize("estimator", ALL)
def test_estimates_lie_near_the_exact_value_on_20_seeds(estimator: Estimator) -> None:
    errors = []
    for seed in range(20):
        here = world(seed)
        errors.append(estimator(here.log(2000, seed, model_error=0.1)).value / here.truth - 1)
    # Measured: root mean squares of 1.1 % (weighted per-decision and DR) to 2.5 % (plain IS).
    assert float(np.sqrt(np.mean(np.square(errors)))) < 0.04


@pytest.mark.parametrize("estimator", UNBIASED)
def test_unnormalised_estimators_are_unbiased_over_many_small_logs(estimator: Estimator) -> None:
    here = world(3)
    values = np.array([estimator(here.log(20, seed, model_error=0.3)).value for seed in range(800)])
    standard_error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - here.truth) < 3.5 * standard_error
    assert standard_error < 0.03 * here.truth


def test_doubly_robust_with_exact_values_varies_less_than_importance_sampling() -> None:
    log = world(1).log(5000, seed=1)
    spread = {f.__name__: float(f(log).per_episode.std()) for f in ALL}
    assert spread["doubly_robust"] < 0.9 * spread["per_decision_importance_sampling"]
    assert spread["doubly_robust"] < 0.8 * spread["importance_sampling"]


@pytest.mark.parametrize("estimator", [doubly_robust, weighted_doubly_robust])
def test_doubly_robust_is_right_with_a_wrong_model_and_with_wrong_propensities(estimator: Estimator) -> None:
    here = world(2)
    log = here.log(40_000, seed=2, model_error=0.0)
    wrong_propensities = replace(log, propensities=0.8 * log.propensities)
    wrong_model = here.log(40_000, seed=2, model_error=0.5)
    assert direct_method(wrong_model).value != pytest.approx(here.truth, rel=0.1)
    assert estimator(wrong_model).value == pytest.approx(here.truth, rel=0.02)
    assert per_decision_importance_sampling(wrong_propensities).value > 1.2 * here.truth
    assert estimator(wrong_propensities).value == pytest.approx(here.truth, rel=0.02)


@pytest.mark.parametrize("estimator", [weighted_importance_sampling, weighted_per_decision])
def test_the_behavior_policy_itself_gets_its_mean_return(estimator: Estimator) -> None:
    log = world(4).log(300, seed=4)
    same = replace(log, evaluation_probabilities=log.propensities)
    assert estimator(same).value == pytest.approx(same.returns.mean(), abs=1e-12)


@pytest.mark.parametrize("estimator", SELF_NORMALISED)
def test_estimated_propensities_come_as_close_as_true_ones(estimator: Estimator) -> None:
    errors = {False: [], True: []}
    for seed in range(20):
        here = world(seed)
        for estimated in errors:
            log = here.log(2000, seed, model_error=0.1, estimated=estimated)
            errors[estimated].append(estimator(log).value / here.truth - 1)
    assert np.std(errors[True]) < 1.3 * np.std(errors[False])


def test_weights_above_the_clip_are_cut_in_doubly_robust_sums_only() -> None:
    log = two_episodes().with_values(np.zeros(3), np.zeros(3))
    clipped = replace(log, weight_clip=1.5)
    assert doubly_robust(clipped).value == pytest.approx((0.5 * 1 + 0.75 * 2 + 1.5 * 4) / 2)
    assert importance_sampling(clipped).value == importance_sampling(log).value


def test_effective_sample_size_counts_equal_weights_and_ignores_scale() -> None:
    assert effective_sample_size(np.ones(50)) == pytest.approx(50)
    assert effective_sample_size(np.array([1e300, 1e300, 0.0])) == pytest.approx(2)
    assert effective_sample_size(np.zeros(3)) == 0.0


def test_masked_actions_leave_the_estimate_right() -> None:
    here = world(5, masked_share=0.3)
    assert weighted_doubly_robust(here.log(5000, seed=5, model_error=0.1)).value == pytest.approx(here.truth, rel=0.03)


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.2, np.nan])
def test_a_propensity_outside_its_range_is_named_with_its_row(bad: float) -> None:
    with pytest.raises(PropensityError, match=r"1 of 3 propensities lie outside \(0, 1\]; the first is row 1"):
        two_episodes(propensities=np.array([0.5, bad, 0.5]))


def test_a_reward_that_is_not_finite_is_named_with_its_row() -> None:
    with pytest.raises(DataError, match="`rewards` is not finite at row 2"):
        two_episodes(rewards=np.array([0.0, 1.0, np.nan]))


def test_offsets_that_leave_an_episode_empty_are_refused() -> None:
    with pytest.raises(DataError, match="do not cut 3 steps into episodes of at least one step"):
        two_episodes(episode_offsets=np.array([0, 2, 2, 3]))


def test_a_policy_without_support_is_refused_with_the_step() -> None:
    log = two_episodes(evaluation_probabilities=np.array([0.0, 1.0, 0.0]))
    with pytest.raises(SupportError, match="no probability to any of the 2 logged dialogues from step 0 on"):
        _ = weighted_per_decision(log).value


def test_overflowing_weights_are_refused() -> None:
    log = EvaluationInput(np.zeros(400), np.full(400, 1e-3), np.ones(400), np.array([0, 400]))
    with pytest.raises(PropensityError, match="importance weight overflows"):
        _ = log.cumulative_weights


def test_a_doubly_robust_estimate_without_values_says_where_to_get_them() -> None:
    with pytest.raises(DataError, match=r"rl\.evaluation\.fqe"):
        doubly_robust(two_episodes())
