"""The decision transformer: the same in torch and numpy, causal, and better where more is asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl.datasets.transitions import TransitionSet
from rl.errors import PolicyError, SettingsError
from rl.evaluation.evaluate import probabilities_of
from rl.policies import DecisionTransformer, SoftmaxPolicy, StoredPolicy, UniformPolicy, load_policy
from rl.policies.networks import Standardizer
from rl.trainers import TrainingRecord, trainer, trainer_settings
from rl.trainers.algorithm import Networks, Sizes
from rl.trainers.decision_transformer import DecisionTransformerShape, Steps, WindowRows
from rl.types import Observations, Past
from tests.rl.datasets.sets import random_set

SETTINGS: dict[str, Any] = {
    "algorithm": "decision_transformer",
    "n_steps": 300,
    "batch_size": 64,
    "hidden_units": (16,),
    "n_layers": 1,
    "context_steps": 3,
    "learning_rate": 3e-3,
    "selection_share": 0.0,
    "mode": "eager",
    "divergence_limit": None,
}
N_STATES, N_ACTIONS, N_STEPS = 3, 4, 3


def two_kinds(n_episodes: int = 1500, seed: int = 0) -> TransitionSet:
    """Dialogues of three decisions by two kinds of agents: one mostly takes the action that fits the state, the other
    mostly another one. At the end a dialogue pays the number of fitting actions. The last action is never legal."""
    rng = np.random.default_rng(seed)
    is_good = rng.random(n_episodes) < 0.5
    states = rng.integers(N_STATES, size=(n_episodes, N_STEPS))
    fits = rng.random((n_episodes, N_STEPS)) < np.where(is_good, 0.8, 0.2)[:, None]
    actions = np.where(fits, states, (states + rng.integers(1, N_STATES, size=states.shape)) % N_STATES)
    rewards = np.zeros(states.shape)
    rewards[:, -1] = fits.sum(axis=1)
    mask = np.ones((states.size, N_ACTIONS), dtype=bool)
    mask[:, -1] = False
    return TransitionSet.from_arrays(
        observations=np.eye(N_STATES)[states.ravel()],
        actions=actions.ravel(),
        rewards=rewards.ravel(),
        episode_offsets=N_STEPS * np.arange(n_episodes + 1),
        logged_mask=mask,
        n_actions=N_ACTIONS,
    )


def value(policy: StoredPolicy, n_dialogues: int = 2000) -> float:
    """Mean return of a policy that talks in `two_kinds`, its own decisions being its past."""
    rng = np.random.default_rng(9)
    states = rng.integers(N_STATES, size=(n_dialogues, N_STEPS))
    taken = np.zeros((n_dialogues, N_STEPS), dtype=np.int64)
    mask = np.ones((n_dialogues, N_ACTIONS), dtype=bool)
    mask[:, -1] = False
    features = np.eye(N_STATES, dtype=np.float32)[states]
    for step in range(N_STEPS):
        past = Past(
            features[:, :step].reshape(-1, N_STATES), taken[:, :step].ravel(), step * np.arange(n_dialogues + 1)
        )
        probabilities = policy.action_probabilities(Observations(features[:, step], None, past), mask)
        taken[:, step] = (probabilities.cumsum(axis=1) < rng.random((n_dialogues, 1))).sum(axis=1)
    return float((taken == states).sum(axis=1).mean())


def learn(**changed: Any) -> tuple[StoredPolicy, TrainingRecord]:
    record = TrainingRecord()
    settings = trainer_settings(**(SETTINGS | changed))
    policy = trainer("decision_transformer").fit(two_kinds(), settings, UniformPolicy(N_ACTIONS, N_STATES), record)
    return policy, record


@pytest.fixture(scope="module")
def learned() -> StoredPolicy:
    return learn(n_members=2)[0]


def test_asking_for_more_gets_more(learned: StoredPolicy) -> None:
    modest, _ = learn(target_quantile=0.1)

    assert value(learned) > 2.5
    assert value(modest) < 1.0
    assert two_kinds().returns.mean() == pytest.approx(1.5, abs=0.1)


def test_it_imitates_better_than_what_ignores_the_return(learned: StoredPolicy) -> None:
    _, record = learn()

    # Without the return, in nats: half the decisions fit, the others are one of two.
    assert record.last("losses/imitation") < np.log(2) + 0.5 * np.log(2) - 0.2


def test_the_decision_head_and_the_choice_of_a_checkpoint_know_the_past() -> None:
    policy, record = learn(n_steps=60, n_looks=3, divergence_limit=0.05, selection_share=0.3)

    assert policy.reads_past
    assert record.last("policy/divergence") == pytest.approx(0.05, rel=0.1)
    assert record.selection


def shape_of(context_steps: int = 3) -> tuple[DecisionTransformerShape, dict[str, torch.Tensor]]:
    shape = DecisionTransformerShape(N_STATES, N_ACTIONS, context_steps, 8, n_layers=2, n_heads=2, wanted=0.7)
    drawn = [shape.initial(torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    return shape, {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]}


def steps_of(n_rows: int = 5, context_steps: int = 3) -> Steps:
    generator = torch.Generator().manual_seed(0)
    return Steps(
        torch.full((2, n_rows, context_steps), 0.7),
        torch.randn(2, n_rows, context_steps, N_STATES, generator=generator),
        torch.randint(N_ACTIONS, (2, n_rows, context_steps), generator=generator),
    )


def test_numpy_scores_as_torch_does() -> None:
    shape, parameters = shape_of()
    steps = steps_of()
    learned = shape(parameters, steps).detach().numpy()
    as_it_is = Standardizer(np.zeros(N_STATES, dtype=np.float32), np.ones(N_STATES, dtype=np.float32))
    for member in range(2):
        stored = shape.stored({name: each[member].numpy() for name, each in parameters.items()}, as_it_is)
        states, actions = steps.states[member].numpy(), steps.actions[member].numpy()
        for n_past in range(3):
            past = Past(states[:, :n_past].reshape(-1, N_STATES), actions[:, :n_past].ravel(), n_past * np.arange(6))
            observations = Observations(states[:, n_past], None, past)
            found = stored(observations, np.ones((5, N_ACTIONS), dtype=bool))
            np.testing.assert_allclose(found, learned[member, :, n_past], atol=1e-5)


def test_rows_of_different_pasts_are_scored_as_they_are_alone(learned: StoredPolicy) -> None:
    dataset = random_set([5, 1, 2, 7])
    dataset = TransitionSet.from_arrays(
        observations=dataset.observations,
        actions=dataset.actions % 3,
        rewards=dataset.rewards,
        episode_offsets=dataset.episode_offsets,
        n_actions=N_ACTIONS,
    )
    rows = np.array([14, 3, 0, 6, 5, 11])
    together = learned.action_probabilities(dataset.batch_observations(rows, with_past=True), dataset.action_mask[rows])
    for place, row in enumerate(rows):
        alone = dataset.batch_observations(np.array([row]), with_past=True)
        np.testing.assert_allclose(
            learned.action_probabilities(alone, dataset.action_mask[[row]])[0], together[place], atol=1e-6
        )


def test_a_score_depends_on_nothing_that_comes_later() -> None:
    shape, parameters = shape_of()
    steps = steps_of()
    states, actions, returns = steps.states.clone(), steps.actions.clone(), steps.returns.clone()
    states[:, :, 2], returns[:, :, 2], actions[:, :, 1:] = 9.0, 9.0, 0

    before, after = shape(parameters, steps), shape(parameters, Steps(returns, states, actions))

    torch.testing.assert_close(before[:, :, :2], after[:, :, :2])
    assert (before[:, :, 2] - after[:, :, 2]).abs().min() > 0


def test_windows_end_at_their_row_and_stay_in_its_dialogue() -> None:
    dataset = random_set([2, 5], seed=1)
    as_it_is = Standardizer(np.zeros(3, dtype=np.float32), np.ones(3, dtype=np.float32))
    rows = WindowRows(dataset, as_it_is, 2.0, n_members=1, context_steps=3, device=torch.device("cpu"))

    found = rows.batch(torch.arange(7)[None])

    places = [[0], [0, 1], [2], [2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]]
    in_windows = np.bincount(np.concatenate(places))
    for window, wanted in enumerate(places):
        n = len(wanted)
        np.testing.assert_array_equal(found.steps.states[0, window, :n], dataset.observations[wanted])
        np.testing.assert_array_equal(found.steps.actions[0, window, :n], dataset.actions[wanted])
        np.testing.assert_array_equal(found.mask[0, window, :n], dataset.logged_mask[wanted])
        np.testing.assert_allclose(found.weights[0, window, :n], 1 / in_windows[wanted])
        assert (found.weights[0, window, n:] == 0).all()
        to_come = [dataset.rewards[row : (2 if row < 2 else 7)].sum() / 2.0 for row in wanted]
        np.testing.assert_allclose(found.steps.returns[0, window, :n], to_come, rtol=1e-5)
    assert float(found.weights.sum()) == pytest.approx(7)


def test_a_member_learns_the_same_alone_and_among_others(learned: StoredPolicy) -> None:
    alone, _ = learn(seed=1)
    assert isinstance(learned, SoftmaxPolicy)
    assert isinstance(alone, SoftmaxPolicy)

    for name, array in alone.scores.members[0].arrays().items():
        np.testing.assert_allclose(learned.scores.members[1].arrays()[name], array, atol=1e-4, err_msg=name)


def test_it_acts_the_same_after_save_and_load(learned: StoredPolicy, tmp_path: Path) -> None:
    dataset = two_kinds(n_episodes=20, seed=1)
    observations = dataset.batch_observations(slice(None), with_past=True)

    learned.save(tmp_path)
    loaded = load_policy(tmp_path)

    probabilities = loaded.action_probabilities(observations, dataset.action_mask)
    np.testing.assert_array_equal(probabilities, learned.action_probabilities(observations, dataset.action_mask))
    np.testing.assert_allclose(probabilities_of(learned, dataset), probabilities)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert (probabilities[~dataset.action_mask] == 0).all()
    with pytest.raises(PolicyError, match="reads the past"):
        loaded.action_probabilities(dataset.batch_observations(slice(None)), dataset.action_mask)


def test_what_it_asks_for_is_a_quantile_of_the_training_returns(learned: StoredPolicy) -> None:
    returns = two_kinds().training().returns
    assert isinstance(learned, SoftmaxPolicy)
    network = learned.scores.members[0]
    assert isinstance(network, DecisionTransformer)

    assert network.wanted > 0
    assert np.quantile(returns, 0.9) / network.wanted == pytest.approx(
        reward_scale_of(two_kinds().training()), rel=1e-4
    )


def reward_scale_of(dataset: TransitionSet) -> float:
    """Deviation of the return-to-go over the rows: here each row's is its dialogue's return."""
    return float(np.repeat(dataset.returns, N_STEPS).std())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder": "sasrec"}, "reads the dialogue by itself"),
        ({"hidden_units": (16, 16)}, "one width that `n_heads` divides"),
        ({"n_heads": 3}, "one width that `n_heads` divides"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        trainer_settings(**(SETTINGS | changed))


def test_masked_actions_are_in_no_likelihood() -> None:
    dataset = random_set([3, 1, 5, 2])
    settings: Any = trainer_settings(**SETTINGS)
    learned: Any = trainer("decision_transformer").algorithm(settings, Sizes(3, 4))  # type: ignore[attr-defined]
    learned.wanted = 1.0
    shapes = learned.shapes()
    # No weights at all: every legal action is equally likely.
    nothing = {name: torch.zeros_like(each)[None] for name, each in shapes["actor"].initial(torch.Generator()).items()}
    as_it_is = Standardizer(np.zeros(3, dtype=np.float32), np.ones(3, dtype=np.float32))
    rows = learned.rows(dataset, as_it_is, 1.0, (1.0,), torch.device("cpu"))

    loss, _ = learned.loss(Networks(shapes, {"actor": nothing}, {}), rows.batch(torch.arange(11)[None]), {})

    # Over the windows of all rows, every decision counts once.
    assert loss.item() == pytest.approx(np.log(dataset.logged_mask.sum(axis=1)).mean(), rel=1e-5)
