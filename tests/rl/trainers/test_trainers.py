"""The contract that every trainer keeps, on a decision process whose values are computed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.datasets.transitions import TransitionSet
from rl.environments.tabular import TabularMDP
from rl.errors import DataError, TrainingError
from rl.policies import RegularizedQPolicy, StoredPolicy, fit_behavior_model, load_policy
from rl.settings import BehaviorModelSettings
from rl.trainers import ALGORITHMS, D3RLPY, TrainerSettings, TrainingRecord, trainer, trainer_settings
from rl.types import Observations

NAMES = [*ALGORITHMS, *D3RLPY]
IMITATION = {"behavior_cloning", "d3rlpy_bc", "decision_transformer", "d3rlpy_decision_transformer"}
ACTORS = {"iql", "awac", "crr", "conservative_actor_critic", "d3rlpy_sac"}
LEARNERS = [name for name in NAMES if name not in IMITATION]
VALUES = [name for name in LEARNERS if name not in ACTORS]

N_STEPS = 400


def settings_of(name: str, **changes: Any) -> TrainerSettings:
    """Small settings of an algorithm; what it does not know of them is left out."""
    wanted = {
        "n_steps": N_STEPS,
        "batch_size": 128,
        "hidden_units": (32,),
        "learning_rate": 5e-3,
        "target_update_interval": 50,
        "conservative_weight": 0.05,
        "n_members": 2,
        "n_looks": 4,
    }
    if name.endswith("decision_transformer"):  # an update takes 40 times as long as another's
        wanted |= {"n_steps": N_STEPS // 20, "hidden_units": (16,), "context_steps": 3}
    known = type(trainer_settings(algorithm=name)).model_fields
    return trainer_settings(algorithm=name, **{key: each for key, each in (wanted | changes).items() if key in known})


class World:
    """A process, its behavior policy, a log of it, the behavior model fitted on the log, and a policy per trainer."""

    def __init__(self) -> None:
        self.process = TabularMDP.random(4, 4, horizon=3, seed=1, masked_share=0.25, ending_rate=0.2, reward_noise=0.2)
        uniform_values = self.process.q_values(self.process.uniform_policy())
        self.behavior = self.process.softmax_policy(uniform_values, temperature=1.0)
        self.dataset = self.process.sample(self.behavior, n_episodes=4000, seed=0)
        self.model = fit_behavior_model(self.dataset, BehaviorModelSettings(n_folds=2)).policy
        self._trained: dict[str, tuple[StoredPolicy, TrainingRecord]] = {}

    def value(self, policy: StoredPolicy) -> float:
        return self.process.value(self.process.policy_table(policy))

    def share_of_gain(self, policy: StoredPolicy) -> float:
        """0: as good as the behavior policy, 1: optimal."""
        behavior, optimum = self.process.value(self.behavior), self.process.optimal_value()
        return (self.value(policy) - behavior) / (optimum - behavior)

    def fit(self, name: str, dataset: TransitionSet | None = None, **changes: Any) -> StoredPolicy:
        return trainer(name).fit(dataset or self.dataset, settings_of(name, **changes), self.model)

    def trained(self, name: str) -> tuple[StoredPolicy, TrainingRecord]:
        """With the default divergence limit, and what was reported on the way."""
        if name not in self._trained:
            record = TrainingRecord()
            self._trained[name] = trainer(name).fit(self.dataset, settings_of(name), self.model, record), record
        return self._trained[name]

    def probabilities(self, policy: StoredPolicy, n_rows: int = 300) -> np.ndarray:
        """On the first logged steps, with all that a policy may read."""
        observations = self.dataset.batch_observations(slice(0, n_rows), policy.reads_history, policy.reads_past)
        return policy.action_probabilities(observations, self.dataset.action_mask[:n_rows])


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learned_policy_is_better_than_the_behavior_policy(world: World, name: str) -> None:
    policy, record = world.trained(name)

    assert world.share_of_gain(policy) > 0.25
    assert record.last("policy/divergence") == pytest.approx(0.08, rel=1e-3)
    assert record.last("policy/temperature") == policy.document()["temperature"]


@pytest.mark.parametrize("name", VALUES)
def test_learned_values_are_in_reward_units_and_lead_near_the_optimum(world: World, name: str) -> None:
    policy, record = world.trained(name)
    assert isinstance(policy, RegularizedQPolicy)
    states = Observations(world.process.observations().reshape(-1, world.process.observation_size))
    legal = np.tile(world.process.legal, (world.process.horizon, 1))
    truth = world.process.optimal_q_values().reshape(-1, world.process.n_actions)

    learned = policy.q_values(states, legal)
    greedy = RegularizedQPolicy(policy.values, policy.behavior, 0.0, "greedy", policy.support)

    assert np.corrcoef(learned[legal], truth[legal])[0, 1] > 0.9
    assert np.abs(learned - truth)[legal].mean() < 0.2 * truth[legal].mean()
    assert record.last("values/greedy") == pytest.approx(truth[legal].mean(), rel=0.5)
    assert world.share_of_gain(greedy) > 0.9


@pytest.mark.parametrize("name", ["behavior_cloning", "d3rlpy_bc"])
def test_behavior_cloning_matches_the_behavior_policy(world: World, name: str) -> None:
    policy = world.trained(name)[0]
    table = world.process.policy_table(policy)

    logged = np.unique(world.dataset.observations, axis=0)
    seen = (world.process.observations()[:, :, None, :] == logged).all(axis=-1).any(axis=-1)
    assert np.abs(table - world.behavior)[seen].mean() < 0.04
    assert world.value(policy) == pytest.approx(world.process.value(world.behavior), rel=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_a_masked_action_is_never_chosen(world: World, name: str) -> None:
    probabilities = world.probabilities(world.trained(name)[0])

    assert (probabilities[~world.dataset.action_mask[: len(probabilities)]] == 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_policy_acts_the_same_after_save_and_load(world: World, name: str, tmp_path: Path) -> None:
    policy = world.trained(name)[0]

    policy.save(tmp_path)

    np.testing.assert_array_equal(world.probabilities(load_policy(tmp_path)), world.probabilities(policy))


@pytest.mark.parametrize("name", NAMES)
def test_the_policy_depends_on_the_seed_and_the_training_dialogues_alone(world: World, name: str) -> None:
    held_out = world.dataset.validation[world.dataset.episode_index]
    other_rewards = np.where(held_out, -100.0, world.dataset.rewards).astype(np.float32)
    judged_otherwise = changed(world.dataset, rewards=other_rewards)

    first, again, other_seed = (
        world.probabilities(world.fit(name, dataset, n_steps=12, seed=seed))
        for dataset, seed in ((world.dataset, 5), (judged_otherwise, 5), (world.dataset, 6))
    )

    np.testing.assert_array_equal(first, again)
    assert (first != other_seed).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("array", ["observations", "rewards"])
def test_numbers_that_are_not_finite_are_refused(world: World, name: str, array: str) -> None:
    first = int(np.flatnonzero(~world.dataset.validation[world.dataset.episode_index])[0])
    values = np.array(getattr(world.dataset, array))
    values[first] = np.nan

    with pytest.raises(DataError, match=rf"1 of \d+ rows of `{array}` hold NaN or infinity; the first is row \d+"):
        world.fit(name, changed(world.dataset, **{array: values}))


@pytest.mark.parametrize("name", NAMES)
def test_all_metrics_are_in_the_glossary(world: World, name: str) -> None:
    glossary = (Path(__file__).parents[3] / "rl" / "README.md").read_text()

    record = world.trained(name)[1]

    assert {"losses/total", "seconds/step"} <= set(record.curves)
    assert [metric for metric in record.curves if f"`{metric}`" not in glossary] == []
    assert record.curves["losses/total"]["steps"][-1] == settings_of(name).n_steps


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(world: World, name: str, tmp_path: Path) -> None:
    settings = settings_of(name, n_steps=24, target_update_interval=7)
    whole, stopped = TrainingRecord(), TrainingRecord(forward=_stop_at(step=18), checkpoint=tmp_path / "checkpoint")
    resumed = TrainingRecord(checkpoint=tmp_path / "checkpoint")

    expected = trainer(name).fit(world.dataset, settings, world.model, whole)
    with pytest.raises(KeyboardInterrupt):
        trainer(name).fit(world.dataset, settings, world.model, stopped)
    was_kept = (tmp_path / "checkpoint").exists()
    policy = trainer(name).fit(world.dataset, settings, world.model, resumed)

    assert was_kept
    assert policy.document() == expected.document()
    for array, values in expected.arrays().items():
        np.testing.assert_array_equal(policy.arrays()[array], values)
    assert _without_times(resumed) == _without_times(whole)


@pytest.mark.parametrize("name", ["cql", "d3rlpy_cql"])
def test_a_diverging_training_is_an_error_and_not_a_policy(world: World, name: str) -> None:
    with pytest.raises(TrainingError, match=r"diverged. Lower `learning_rate`"):
        world.fit(name, learning_rate=1e30)


def changed(dataset: TransitionSet, **arrays: np.ndarray) -> TransitionSet:
    """The set with other arrays, unchecked: what a broken builder could hand over."""
    names = dataset.__dataclass_fields__
    return TransitionSet(**({name: getattr(dataset, name) for name in names} | arrays))


def _stop_at(step: int) -> Any:
    def forward(name: str, value: float, at: int) -> None:
        if at >= step:
            raise KeyboardInterrupt

    return forward


def _without_times(record: TrainingRecord) -> Any:
    curves = {name: curve for name, curve in record.curves.items() if not name.startswith("seconds/")}
    return curves, record.member_curves, record.leaderboard, record.selection, record.notes
