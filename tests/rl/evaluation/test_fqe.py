"""Fitted Q evaluation on worlds with known values-to-go."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_worlds import World, world

from rl.datasets.transitions import TransitionSet
from rl.errors import TrainingError
from rl.evaluation.fqe import TrainingRows, fit_q_function, retrace_targets
from rl.settings import EvaluationSettings

SETTINGS = EvaluationSettings(fqe_steps=1000, fqe_hidden_units=(64, 64))


def training_rows(here: World, dataset: TransitionSet) -> TrainingRows:
    return TrainingRows(
        dataset.observations,
        dataset.actions,
        dataset.rewards,
        dataset.propensities,
        np.asarray(here.evaluation)[dataset.step_index, dataset.state_bucket],
        dataset.episode_offsets,
    )


@pytest.mark.parametrize("seed", range(3))
def test_values_are_within_2_percent_under_full_support(seed: int) -> None:
    here = world(seed, distance=0.8, masked_share=0.2)
    assert abs(here.true_advantage) > 0.02 * here.truth
    rows = training_rows(here, here.process.sample(here.behavior, 10_000, seed))
    function = fit_q_function(rows, SETTINGS)
    state_values = (function.values(here.process.observations()[0]) * np.asarray(here.evaluation)[0]).sum(1)
    assert here.process.initial @ state_values == pytest.approx(here.truth, rel=0.02)


def test_targets_with_the_exact_values_average_to_the_exact_values() -> None:
    here = world(4)
    dataset = here.process.sample(here.behavior, 30_000, seed=4)
    exact = here.process.q_values(here.evaluation)
    targets = retrace_targets(training_rows(here, dataset), exact[dataset.step_index, dataset.state_bucket])
    taken = exact[dataset.step_index, dataset.state_bucket, dataset.actions]
    for action in range(dataset.n_actions):
        rows = dataset.actions == action
        assert targets[rows].mean() == pytest.approx(taken[rows].mean(), abs=0.03)


def test_first_targets_of_the_behavior_policy_are_its_returns_to_go() -> None:
    here = world(0)
    dataset = here.process.sample(here.behavior, 50, seed=0)
    same = World(here.process, here.behavior, here.behavior)
    targets = retrace_targets(training_rows(same, dataset), np.zeros((dataset.n_steps, dataset.n_actions)))
    assert targets[dataset.episode_offsets[:-1]] == pytest.approx(dataset.returns, rel=1e-5)


def test_the_same_seed_gives_the_same_function() -> None:
    here = world(1)
    rows = training_rows(here, here.process.sample(here.behavior, 200, seed=1))
    short = EvaluationSettings(fqe_steps=100, fqe_hidden_units=(16,))
    first, second = (fit_q_function(rows, short).values(rows.observations) for _ in range(2))
    assert np.array_equal(first, second)


def test_a_few_dialogues_do_not_make_the_fit_explode() -> None:
    here = world(2)
    dataset = here.process.sample(here.behavior, 30, seed=2)
    values = fit_q_function(training_rows(here, dataset), SETTINGS).values(here.process.observations()[0])
    assert np.abs(values).max() < 3 * np.abs(dataset.returns).max()


def test_divergence_is_reported_with_what_to_change() -> None:
    here = world(3)
    rows = training_rows(here, here.process.sample(here.behavior, 200, seed=3))
    with pytest.raises(TrainingError, match="Lower fqe_learning_rate"):
        fit_q_function(rows, EvaluationSettings(fqe_steps=300, fqe_learning_rate=1e30))
