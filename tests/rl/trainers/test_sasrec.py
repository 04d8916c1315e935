"""SASRec: the same in torch and numpy, blind to padding and the future, and good for what the state does not show."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl.datasets.transitions import TransitionSet
from rl.errors import DataError, PolicyError, SettingsError
from rl.evaluation.evaluate import probabilities_of
from rl.policies import RegularizedQPolicy, StoredPolicy, UniformPolicy, load_policy
from rl.policies.networks import ScoreNetwork, Standardizer
from rl.trainers import trainer, trainer_settings
from rl.trainers.algorithm import Sizes
from rl.trainers.attention import blocks, causal, initial_blocks
from rl.trainers.batches import Inputs, ResidentRows
from rl.trainers.cql import CQL
from rl.trainers.networks import NetworkShape, Parameters
from rl.types import History, Observations
from tests.rl.datasets.sets import random_set

SETTINGS: dict[str, Any] = {
    "algorithm": "cql",
    "encoder": "sasrec",
    "n_steps": 300,
    "batch_size": 64,
    "hidden_units": (16,),
    "learning_rate": 3e-3,
    "n_members": 1,
    "longest_history": 4,
    "sequence_width": 8,
    "selection_share": 0.0,
    "mode": "eager",
    "divergence_limit": None,
}
N_FEATURES, N_ACTIONS, DIMENSIONS = 3, 5, 2


def shape_of(**changed: Any) -> NetworkShape:
    settings = trainer_settings(**(SETTINGS | {"sequence_layers": 2} | changed))
    return CQL(settings, Sizes(N_FEATURES, N_ACTIONS, DIMENSIONS)).shapes()["q"]  # type: ignore[arg-type]


def weights_of(shape: NetworkShape, seeds: tuple[int, ...] = (0, 1)) -> Parameters:
    drawn = [shape.initial(torch.Generator().manual_seed(seed)) for seed in seeds]
    return {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]}


def inputs_of(n_rows: int = 6, length: int = 4, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    said = torch.arange(length, 0, -1) <= torch.randint(length + 1, (2, n_rows, 1), generator=generator)
    utterances = torch.randn(2, n_rows, length, DIMENSIONS, generator=generator) * said.unsqueeze(-1)
    return Inputs(torch.randn(2, n_rows, N_FEATURES, generator=generator), utterances, said)


@pytest.mark.parametrize("head", ["mean", "dueling", "quantile"])
def test_numpy_scores_as_torch_does(head: str) -> None:
    shape, rng = shape_of(head=head, n_quantiles=3), np.random.default_rng(0)
    parameters = weights_of(shape)
    n_said = np.array([0, 1, 3, 4, 9, 2])
    offsets = np.concatenate(([0], np.cumsum(n_said)))
    vectors = rng.normal(size=(offsets[-1], DIMENSIONS)).astype(np.float16)
    raw = rng.normal(2.0, 3.0, size=(len(n_said), N_FEATURES)).astype(np.float32)
    standardizer = Standardizer.fit(raw)
    window, said = np.zeros((len(n_said), 4, DIMENSIONS), dtype=np.float32), np.zeros((len(n_said), 4), dtype=bool)
    for row, (start, stop) in enumerate(pairwise(offsets)):
        n = min(4, stop - start)
        window[row, 4 - n :], said[row, 4 - n :] = vectors[stop - n : stop], True
    state, heard, there = (torch.from_numpy(each).expand(2, *each.shape) for each in (standardizer(raw), window, said))

    learned = shape(parameters, Inputs(state, heard, there)).detach()
    mask = np.ones((len(n_said), N_ACTIONS), dtype=bool)
    for member in range(2):
        stored = shape.stored({name: each[member].numpy() for name, each in parameters.items()}, standardizer, 2.0)
        found = stored(Observations(raw, History(vectors, offsets)), mask)
        wanted = learned[member]
        if head == "dueling":
            wanted = wanted[:, :1] + wanted[:, 1:] - wanted[:, 1:].mean(dim=1, keepdim=True)
        if head == "quantile":
            wanted = wanted.unflatten(1, (N_ACTIONS, 3)).mean(dim=2)
        np.testing.assert_allclose(found, 2.0 * wanted.numpy(), atol=1e-5)


def test_what_stands_in_front_of_the_first_utterance_changes_nothing() -> None:
    shape, inputs = shape_of(), inputs_of()
    parameters = weights_of(shape)
    assert inputs.utterances is not None
    assert inputs.said is not None
    filled = torch.where(inputs.said.unsqueeze(-1), inputs.utterances, torch.full_like(inputs.utterances, 7.0))

    assert not inputs.said.all()
    torch.testing.assert_close(shape(parameters, Inputs(inputs.state, filled, inputs.said)), shape(parameters, inputs))


def test_an_utterance_that_was_said_counts_and_so_does_the_order() -> None:
    shape, inputs = shape_of(), inputs_of()
    parameters = weights_of(shape)
    said = torch.ones(2, 6, 4, dtype=torch.bool)
    words = torch.randn(2, 6, 4, DIMENSIONS, generator=torch.Generator().manual_seed(1))

    scores, turned = (
        shape(parameters, Inputs(inputs.state, each, said)) for each in (words, words[:, :, [1, 0, 2, 3]])
    )

    assert (scores - turned).abs().amax(dim=-1).min() > 1e-4


def test_a_position_reads_nothing_that_comes_later() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = {name: each.unsqueeze(0) for name, each in initial_blocks(2, 8, generator).items()}
    tokens = torch.randn(1, 3, 5, 8, generator=generator)
    later = torch.cat([tokens[:, :, :3], torch.randn(1, 3, 2, 8, generator=generator)], dim=2)

    before, after = (blocks(parameters, each, causal(5, each.device), 2, n_wanted=5) for each in (tokens, later))

    torch.testing.assert_close(before[:, :, :3], after[:, :, :3])
    assert (before[:, :, 3:] - after[:, :, 3:]).abs().min() > 0
    torch.testing.assert_close(blocks(parameters, tokens, causal(5, tokens.device), 2, n_wanted=1), before[:, :, -1:])


def resident(dataset: TransitionSet, longest_history: int) -> ResidentRows:
    as_it_is = Standardizer(np.zeros(3, dtype=np.float32), np.ones(3, dtype=np.float32))
    return ResidentRows(dataset, as_it_is, 1.0, (1.0,), 1, torch.device("cpu"), True, longest_history)


def test_windows_hold_the_newest_utterances_of_the_dialogue() -> None:
    dataset = random_set([3, 1, 6, 4], seed=3)
    rows = np.arange(dataset.n_steps)
    history = dataset.batch_observations(rows, with_history=True).history
    assert history is not None

    found = resident(dataset, 3).inputs(torch.from_numpy(rows)[None])

    assert found.utterances is not None
    assert found.said is not None
    for row, (start, stop) in enumerate(pairwise(history.offsets)):
        wanted = np.zeros((3, 2), dtype=np.float32)
        n = min(3, stop - start)
        wanted[3 - n :] = history.vectors[stop - n : stop]
        np.testing.assert_array_equal(found.utterances[0, row], wanted)
        np.testing.assert_array_equal(found.said[0, row], np.arange(3) >= 3 - n)


def test_the_final_observation_of_a_truncated_episode_has_the_history_of_its_last_step() -> None:
    dataset = random_set([3, 1, 6, 4], seed=3, truncated=np.array([False, True, True, False]))
    rows = resident(dataset, 3)

    behind, last = (rows.inputs(torch.tensor([places])) for places in ([14, 15], [3, 9]))

    assert behind.utterances is not None
    assert last.utterances is not None
    torch.testing.assert_close(behind.utterances, last.utterances)
    np.testing.assert_array_equal(behind.state[0], dataset.final_observations[[1, 2]])


def order_world(n_episodes: int = 1200, seed: int = 0) -> tuple[TransitionSet, np.ndarray]:
    """Dialogues of two decisions. Before the first, one thing is said and then another, in either order; before the
    second, the same in all. The second pays 1 where the action names the order, and the state shows the step alone."""
    rng = np.random.default_rng(seed)
    order = rng.integers(2, size=n_episodes)
    said = np.where(order[:, None] == 0, [0, 1, 2], [1, 0, 2])
    actions = rng.integers(2, size=(n_episodes, 2))
    rewards = np.stack([np.zeros(n_episodes), actions[:, 1] == order], axis=1)
    dataset = TransitionSet.from_arrays(
        observations=np.tile(np.eye(2), (n_episodes, 1)),
        actions=actions.ravel(),
        rewards=rewards.ravel(),
        episode_offsets=2 * np.arange(n_episodes + 1),
        utterance_vectors=np.eye(3)[said.ravel()],
        utterance_offsets=np.concatenate(([0], np.cumsum(np.tile([2, 1], n_episodes)))),
        propensities=np.full(2 * n_episodes, 0.5),
        n_actions=2,
    )
    return dataset, order


def share_right(policy: StoredPolicy, dataset: TransitionSet, order: np.ndarray) -> float:
    rows = np.arange(1, dataset.n_steps, 2)
    observations = dataset.batch_observations(rows, with_history=policy.reads_history)
    probabilities = policy.action_probabilities(observations, dataset.action_mask[rows])
    return float(probabilities[np.arange(len(order)), order].mean())


@pytest.fixture(scope="module")
def learned() -> StoredPolicy:
    dataset, _ = order_world()
    return trainer("cql").fit(dataset, trainer_settings(**SETTINGS), UniformPolicy(2, 2))


def test_it_learns_what_only_the_order_of_words_tells(learned: StoredPolicy) -> None:
    dataset, order = order_world()
    of_words = {"encoder", "longest_history", "sequence_width"}
    blind = trainer_settings(**{name: value for name, value in SETTINGS.items() if name not in of_words})

    assert learned.reads_history
    assert share_right(learned, *order_world(seed=1)) > 0.95
    assert share_right(trainer("cql").fit(dataset, blind, UniformPolicy(2, 2)), dataset, order) < 0.6


def test_later_words_and_other_dialogues_change_no_row(learned: StoredPolicy) -> None:
    dataset, _ = order_world(n_episodes=50, seed=2)
    changed = dataset.utterance_vectors.copy()
    changed[2::3] = 5.0  # said between the first and the second decision
    other = TransitionSet(**(dataset.arrays() | {"utterance_vectors": changed}), manifest=dataset.manifest)
    first = np.arange(0, dataset.n_steps, 2)

    def scores(of: TransitionSet, rows: np.ndarray) -> np.ndarray:
        assert isinstance(learned, RegularizedQPolicy)
        return learned.q_values(of.batch_observations(rows, with_history=True), of.action_mask[rows])

    np.testing.assert_array_equal(scores(dataset, first), scores(other, first))
    np.testing.assert_allclose(scores(dataset, first[7:9]), scores(dataset, first)[7:9], atol=1e-6)


def test_it_acts_the_same_after_save_and_load(learned: StoredPolicy, tmp_path: Path) -> None:
    dataset, _ = order_world(n_episodes=50, seed=2)
    observations = dataset.batch_observations(slice(None), with_history=True)
    mask = np.eye(2, dtype=bool)[np.arange(dataset.n_steps) % 2] | (np.arange(dataset.n_steps) % 3 == 0)[:, None]

    learned.save(tmp_path)
    loaded = load_policy(tmp_path)

    probabilities = loaded.action_probabilities(observations, mask)
    np.testing.assert_array_equal(probabilities, learned.action_probabilities(observations, mask))
    np.testing.assert_allclose(
        probabilities_of(learned, dataset), learned.action_probabilities(observations, dataset.action_mask)
    )
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert (probabilities[~mask] == 0).all()
    assert loaded.reads_history
    with pytest.raises(PolicyError, match="reads the history"):
        loaded.action_probabilities(dataset.batch_observations(slice(None)), mask)


def test_vectors_of_another_encoder_are_refused(learned: StoredPolicy) -> None:
    dataset, _ = order_world(n_episodes=50)
    history = History(np.zeros((2, 4), dtype=np.float16), np.array([0, 2]))

    with pytest.raises(PolicyError, match="reads utterance vectors of 3 numbers and was given 4"):
        learned.action_probabilities(Observations(dataset.observations[:1], history), dataset.action_mask[:1])


@pytest.mark.parametrize("algorithm", ["behavior_cloning", "iql", "bcq"])
def test_a_member_learns_the_same_alone_and_among_others(algorithm: str) -> None:
    dataset, _ = order_world(n_episodes=100)
    settings = SETTINGS | {"algorithm": algorithm, "n_steps": 20}

    def networks(seed: int, n_members: int) -> tuple[ScoreNetwork, ...]:
        chosen = trainer_settings(**(settings | {"seed": seed, "n_members": n_members}))
        policy: Any = trainer(algorithm).fit(dataset, chosen, UniformPolicy(2, 2))
        return (policy.values if isinstance(policy, RegularizedQPolicy) else policy.scores).members

    among, alone = networks(0, 3)[2], networks(2, 1)[0]
    for name, array in alone.arrays().items():
        np.testing.assert_allclose(among.arrays()[name], array, atol=1e-5, err_msg=name)


def test_a_set_without_utterances_is_refused() -> None:
    dataset, _ = order_world(n_episodes=100)
    silent = TransitionSet.from_arrays(
        observations=dataset.observations,
        actions=dataset.actions,
        rewards=dataset.rewards,
        episode_offsets=dataset.episode_offsets,
        n_actions=2,
    )
    with pytest.raises(DataError, match="the data set keeps none"):
        trainer("cql").fit(silent, trainer_settings(**SETTINGS), UniformPolicy(2, 2))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(SettingsError, match="does not divide `sequence_width`, which is 8"):
        trainer_settings(**(SETTINGS | {"sequence_heads": 3}))


def test_dialogues_in_which_nothing_was_said_are_learned_from() -> None:
    dataset = random_set([3] * 30)
    silent = TransitionSet.from_arrays(
        observations=dataset.observations,
        actions=dataset.actions,
        rewards=dataset.rewards,
        episode_offsets=dataset.episode_offsets,
        n_actions=dataset.n_actions,
        utterance_vectors=np.zeros((0, DIMENSIONS), dtype=np.float16),
        utterance_offsets=np.zeros(dataset.n_steps + 1, dtype=np.int64),
    )
    behavior = UniformPolicy(silent.n_actions, silent.observation_size)

    policy = trainer("cql").fit(silent, trainer_settings(**(SETTINGS | {"n_steps": 3})), behavior)

    observations = silent.batch_observations(slice(0, 5), with_history=True)
    assert policy.action_probabilities(observations, silent.action_mask[:5]).sum() == pytest.approx(5)
