"""n-step returns and λ-returns: numbers by hand, and when the λ-returns are made anew."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from rl.datasets.transitions import TransitionSet
from rl.policies.networks import Standardizer
from rl.trainers import trainer
from rl.trainers.algorithm import Networks, Sizes
from rl.trainers.batches import ResidentRows
from rl.trainers.double_dqn import DoubleDQN
from rl.trainers.lambda_returns import renew_lambda_returns
from rl.trainers.learner import Learner
from rl.trainers.settings import DoubleDQNSettings, trainer_settings

REWARDS = np.array([1.0, 2, 3, 10, 20], dtype=np.float32)
AS_THEY_ARE = Standardizer(np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.float32))


def log(**arrays: Any) -> TransitionSet:
    """Dialogues of 3 steps, terminated, and of 2, truncated; what is observed at row i is i, and 5 at the end."""
    return TransitionSet.from_arrays(
        observations=np.arange(5.0)[:, None].astype(np.float32),
        actions=np.zeros(5, dtype=np.int64),
        rewards=REWARDS,
        episode_offsets=np.array([0, 3, 5]),
        terminated=np.array([True, False]),
        truncated=np.array([False, True]),
        final_observations=np.array([[0.0], [5.0]], dtype=np.float32),
        final_action_mask=np.ones((2, 2), dtype=bool),
        n_actions=2,
        **arrays,
    )


def rows_of(dataset: TransitionSet, discounts: Sequence[float], return_steps: int = 1) -> ResidentRows:
    return ResidentRows(dataset, AS_THEY_ARE, 1.0, tuple(discounts), return_steps, torch.device("cpu"))


def third_illegal() -> TransitionSet:
    """Today's rules forbid what was done at row 2."""
    mask = np.ones((5, 2), dtype=bool)
    mask[2, 0] = False
    return log(action_mask=mask)


class Valued(DoubleDQN):
    """The value of a state is 100 times what is observed there."""

    def state_values(self, networks: Any, inputs: Any, mask: Any, knobs: Any) -> torch.Tensor:
        return 100 * inputs.state.squeeze(-1)


def lambda_returns(rows: ResidentRows, trace: float) -> Any:
    algorithm = Valued(DoubleDQNSettings(), Sizes(1, 2))
    renew_lambda_returns(rows, trace, algorithm, Networks({}, {}, {}), {})
    assert rows.lambda_returns is not None
    return rows.lambda_returns.numpy()


def test_rewards_of_n_steps_and_where_they_lead() -> None:
    rows = rows_of(log(), [0.5], return_steps=2)

    batch = rows.batch(torch.arange(5)[None])

    assert batch.rewards.tolist() == [[1 + 0.5 * 2, 2 + 0.5 * 3, 3, 10 + 0.5 * 20, 20]]
    assert batch.discounts.tolist() == [[0.25, 0, 0, 0.25, 0.5]]
    following = batch.next_inputs.state[0, :, 0].tolist()
    assert (following[0], following[3], following[4]) == (2, 5, 5)


def test_n_steps_go_no_further_than_an_action_that_is_illegal_today() -> None:
    rows = rows_of(third_illegal(), [0.5], return_steps=3)
    assert rows.starts.tolist() == [0, 1, 3, 4]

    batch = rows.batch(torch.arange(2)[None])

    assert batch.rewards.tolist() == [[1 + 0.5 * 2, 2]]
    assert batch.discounts.tolist() == [[0.25, 0.5]]
    assert batch.next_inputs.state[0, :, 0].tolist() == [2, 2]


def test_lambda_returns_by_hand() -> None:
    found = lambda_returns(rows_of(log(), [0.5, 1.0]), trace=0.8)

    # γ = 0.5. Terminated: G(2) = 3, G(1) = 2 + ½ (0.2 · 200 + 0.8 · 3), G(0) = 1 + ½ (0.2 · 100 + 0.8 G(1)).
    # Truncated: G(4) = 20 + ½ 500, G(3) = 10 + ½ (0.2 · 400 + 0.8 · 270).
    second = 2 + 0.5 * (40 + 2.4)
    np.testing.assert_allclose(found[0], [1 + 0.5 * (20 + 0.8 * second), second, 3, 10 + 0.5 * (80 + 216), 270])
    second = 2 + 40 + 2.4
    np.testing.assert_allclose(found[1], [1 + 20 + 0.8 * second, second, 3, 10 + 80 + 0.8 * 520, 520], rtol=1e-6)


def test_lambda_0_is_one_step_and_lambda_1_the_logged_return() -> None:
    rows = rows_of(log(), [0.5, 1.0])
    batch = rows.batch(torch.arange(5).expand(2, -1))
    one_step = batch.rewards + batch.discounts * 100 * batch.next_inputs.state.squeeze(-1)

    np.testing.assert_allclose(lambda_returns(rows, 0.0), one_step)
    # The truncated dialogue's tail is worth 500 after its last step.
    tail = np.array([[0, 0, 0, 125, 250], [0, 0, 0, 500, 500]])
    np.testing.assert_allclose(lambda_returns(rows, 1.0), rows.returns.numpy() + tail)


def test_a_lambda_return_is_cut_before_an_action_that_is_illegal_today() -> None:
    found = lambda_returns(rows_of(third_illegal(), [1.0]), trace=1.0)

    np.testing.assert_allclose(found[0, :2], [1 + 2 + 200, 2 + 200])


def test_many_dialogues_of_many_lengths_agree_with_a_loop() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 9, size=60)
    n = int(lengths.sum())
    mask = random.random((n, 3)) < 0.7
    mask[:, 2] = True
    dataset = TransitionSet.from_arrays(
        observations=random.normal(size=(n, 1)).astype(np.float32),
        actions=random.integers(3, size=n),
        rewards=random.normal(size=n).astype(np.float32),
        episode_offsets=np.concatenate(([0], np.cumsum(lengths))),
        terminated=np.arange(60) % 2 == 0,
        truncated=np.arange(60) % 2 == 1,
        final_observations=random.normal(size=(60, 1)).astype(np.float32),
        final_action_mask=np.ones((60, 3), dtype=bool),
        action_mask=mask,
        n_actions=3,
    )

    found = lambda_returns(rows_of(dataset, [0.9]), trace=0.7)[0]

    expected = np.zeros(n)
    for episode, (start, end) in enumerate(zip(dataset.episode_offsets[:-1], dataset.episode_offsets[1:], strict=True)):
        last = 100 * dataset.final_observations[episode, 0] if episode % 2 else 0.0
        expected[end - 1] = dataset.rewards[end - 1] + 0.9 * last
        for row in range(end - 2, start - 1, -1):
            trace = 0.7 if mask[row + 1, dataset.actions[row + 1]] else 0.0
            value = 100 * dataset.observations[row + 1, 0]
            expected[row] = dataset.rewards[row] + 0.9 * ((1 - trace) * value + trace * expected[row + 1])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


SETTINGS: Any = trainer_settings(
    algorithm="double_dqn", hidden_units=(4,), n_members=2, return_lambda=0.5, target_update_interval=5, batch_size=4
)


def learner() -> Learner:
    return Learner(DoubleDQN(SETTINGS, Sizes(1, 2)), SETTINGS.members(0.9), SETTINGS, torch.device("cpu"))


def test_lambda_returns_are_made_anew_when_the_target_networks_are() -> None:
    rows, learning = rows_of(log(), [0.9, 0.9]), learner()
    seen = []
    for _ in range(11):
        learning.advance(rows, 1)
        seen.append(rows.lambda_returns.clone())  # type: ignore[union-attr]

    changed = [bool((before != after).any()) for before, after in itertools.pairwise(seen)]
    assert changed == [step in (5, 10) for step in range(1, 11)]


def test_a_resumed_training_has_the_same_lambda_returns_and_weights() -> None:
    through, first, resumed = learner(), learner(), learner()
    through.advance(rows_of(log(), [0.9, 0.9]), 13)
    first.advance(rows_of(log(), [0.9, 0.9]), 7)
    resumed.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    resumed.advance(rows_of(log(), [0.9, 0.9]), 6)

    assert torch.equal(resumed.flat, through.flat)


@pytest.mark.parametrize(
    "algorithm", ["cql", "calibrated_cql", "bcq", "iql", "awac", "crr", "conservative_actor_critic"]
)
def test_every_algorithm_that_bootstraps_learns_from_lambda_returns(algorithm: str) -> None:
    common = SETTINGS.model_dump(exclude_unset=True, exclude={"algorithm"})
    settings: Any = trainer_settings(algorithm=algorithm, **common)
    weights = []
    for rewards in (REWARDS, REWARDS * 2):
        made = trainer(algorithm).algorithm(settings, Sizes(1, 2))  # type: ignore[attr-defined]
        learning = Learner(made, settings.members(0.9), settings, torch.device("cpu"))
        rows = rows_of(log(), [0.9, 0.9])
        rows.rewards = torch.from_numpy(rewards)
        learning.advance(rows, 7)
        weights.append(learning.flat.clone())
        assert rows.lambda_returns is not None

    assert bool((weights[0] != weights[1]).any())
