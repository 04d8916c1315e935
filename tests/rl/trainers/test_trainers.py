"""The contract that every trainer keeps, on a decision process whose values are computed exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rl.datasets.transitions import TransitionSet
from rl.environments.tabular import TabularMDP
from rl.errors import DataError, TrainingError
from rl.policies import StoredPolicy, fit_behavior_model, load_policy
from rl.settings import BehaviorModelSettings, TrainerSettings
from rl.trainers import TRAINERS, TrainingRecord
from rl.types import Observations

Q_TRAINERS = sorted(set(TRAINERS) - {"behavior_cloning"})
SETTINGS = TrainerSettings(
    n_steps=600,
    batch_size=128,
    hidden_units=(32,),
    learning_rate=5e-3,
    target_update_interval=50,
    conservative_weight=0.05,
)


class World:
    """A process, its behavior policy, a log of it, and the behavior model fitted on the log."""

    def __init__(self) -> None:
        self.process = TabularMDP.random(4, 4, horizon=3, seed=1, masked_share=0.25, ending_rate=0.2, reward_noise=0.2)
        uniform_values = self.process.q_values(self.process.uniform_policy())
        self.behavior = self.process.softmax_policy(uniform_values, temperature=1.0)
        self.dataset = self.process.sample(self.behavior, n_episodes=4000, seed=0)
        self.model = fit_behavior_model(self.dataset, BehaviorModelSettings(n_folds=2)).policy

    def value(self, policy: StoredPolicy) -> float:
        return self.process.value(self.process.policy_table(policy))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def trained(world: World) -> dict[str, tuple[StoredPolicy, TrainingRecord]]:
    """One policy per trainer with the default divergence limit, and what was reported on the way."""
    results = {}
    for name, trainer in TRAINERS.items():
        record = TrainingRecord()
        settings = SETTINGS.model_copy(update={"algorithm": name})
        results[name] = (trainer.fit(world.dataset, settings, world.model, record), record)
    return results


@pytest.mark.parametrize("name", Q_TRAINERS)
def test_a_learned_policy_is_better_than_the_behavior_policy(
    world: World, trained: dict[str, tuple[StoredPolicy, TrainingRecord]], name: str
) -> None:
    policy, record = trained[name]

    behavior, optimum = world.process.value(world.behavior), world.process.optimal_value()
    assert world.value(policy) > behavior + 0.3 * (optimum - behavior)
    assert record.last("policy/divergence") == pytest.approx(SETTINGS.divergence_limit, rel=1e-3)


@pytest.mark.parametrize("name", Q_TRAINERS)
def test_without_a_tight_limit_a_learned_policy_comes_near_the_optimum(world: World, name: str) -> None:
    settings = SETTINGS.model_copy(update={"algorithm": name, "divergence_limit": 10.0})

    policy = TRAINERS[name].fit(world.dataset, settings, world.model)

    assert world.value(policy) > 0.97 * world.process.optimal_value()


@pytest.mark.parametrize("name", Q_TRAINERS)
def test_learned_values_are_in_reward_units(
    world: World, trained: dict[str, tuple[StoredPolicy, TrainingRecord]], name: str
) -> None:
    policy, record = trained[name]
    states = Observations(world.process.observations().reshape(-1, world.process.observation_size))
    legal = np.tile(world.process.legal, (world.process.horizon, 1))
    truth = world.process.optimal_q_values().reshape(-1, world.process.n_actions)

    learned = policy.q_values(states)  # type: ignore[attr-defined]

    assert np.corrcoef(learned[legal], truth[legal])[0, 1] > 0.9
    assert np.abs(learned - truth)[legal].mean() < 0.2 * truth[legal].mean()
    assert record.last("values/greedy") == pytest.approx(truth[legal].mean(), rel=0.5)


def test_behavior_cloning_matches_the_behavior_policy(
    world: World, trained: dict[str, tuple[StoredPolicy, TrainingRecord]]
) -> None:
    table = world.process.policy_table(trained["behavior_cloning"][0])

    logged = np.unique(world.dataset.observations, axis=0)
    seen = (world.process.observations()[:, :, None, :] == logged).all(axis=-1).any(axis=-1)
    assert np.abs(table - world.behavior)[seen].mean() < 0.04
    assert world.value(trained["behavior_cloning"][0]) == pytest.approx(world.process.value(world.behavior), rel=0.03)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_masked_action_is_never_chosen(
    world: World, trained: dict[str, tuple[StoredPolicy, TrainingRecord]], name: str
) -> None:
    table = world.process.policy_table(trained[name][0])

    assert (table[:, ~world.process.legal] == 0).all()


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trained_policy_acts_the_same_after_save_and_load(
    world: World, trained: dict[str, tuple[StoredPolicy, TrainingRecord]], name: str, tmp_path: Path
) -> None:
    policy = trained[name][0]

    policy.save(tmp_path)

    np.testing.assert_array_equal(world.process.policy_table(load_policy(tmp_path)), world.process.policy_table(policy))


@pytest.mark.parametrize("name", TRAINERS)
def test_the_same_seed_gives_the_same_policy(world: World, name: str) -> None:
    def learn(seed: int) -> np.ndarray:
        settings = SETTINGS.model_copy(update={"algorithm": name, "n_steps": 45, "seed": seed})
        return world.process.policy_table(TRAINERS[name].fit(world.dataset, settings, world.model))

    np.testing.assert_array_equal(learn(5), learn(5))
    assert (learn(5) != learn(6)).any()


@pytest.mark.parametrize("name", TRAINERS)
def test_held_out_dialogues_are_not_learned_from(world: World, name: str) -> None:
    held_out = world.dataset.validation[world.dataset.episode_index]
    other_rewards = np.where(held_out, -100.0, world.dataset.rewards).astype(np.float32)
    changed = _changed(world.dataset, rewards=other_rewards)
    settings = SETTINGS.model_copy(update={"algorithm": name, "n_steps": 40})

    policies = [TRAINERS[name].fit(dataset, settings, world.model) for dataset in (world.dataset, changed)]

    np.testing.assert_array_equal(*(world.process.policy_table(policy) for policy in policies))


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("array", ["observations", "rewards"])
def test_numbers_that_are_not_finite_are_refused(world: World, name: str, array: str) -> None:
    first = int(np.flatnonzero(~world.dataset.validation[world.dataset.episode_index])[0])
    values = np.array(getattr(world.dataset, array))
    values[first] = np.nan
    settings = SETTINGS.model_copy(update={"algorithm": name})

    with pytest.raises(DataError, match=rf"1 of \d+ rows of `{array}` hold NaN or infinity; the first is row 0"):
        TRAINERS[name].fit(_changed(world.dataset, **{array: values}), settings, world.model)


@pytest.mark.parametrize("name", TRAINERS)
def test_all_metrics_are_in_the_glossary(trained: dict[str, tuple[StoredPolicy, TrainingRecord]], name: str) -> None:
    glossary = (Path(__file__).parents[3] / "rl" / "README.md").read_text()

    record = trained[name][1]

    assert {"losses/total", "seconds/step"} <= set(record.curves)
    assert [metric for metric in record.curves if f"`{metric}`" not in glossary] == []
    assert record.curves["losses/total"]["steps"][-1] == SETTINGS.n_steps


def test_a_diverging_training_is_an_error_and_not_a_policy(world: World) -> None:
    settings = SETTINGS.model_copy(update={"algorithm": "double_dqn", "learning_rate": 1e30})

    with pytest.raises(TrainingError, match=r"diverged. Lower `learning_rate`"):
        TRAINERS["double_dqn"].fit(world.dataset, settings, world.model)


def _changed(dataset: TransitionSet, **arrays: np.ndarray) -> TransitionSet:
    """The set with other arrays, unchecked: what a broken builder could hand over."""
    names = dataset.__dataclass_fields__
    return TransitionSet(**({name: getattr(dataset, name) for name in names} | arrays))
