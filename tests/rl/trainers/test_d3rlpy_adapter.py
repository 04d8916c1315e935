"""Each of d3rlpy's traps has a test that would fail if it were open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl.datasets.transitions import TransitionSet
from rl.errors import DataError
from rl.policies import UniformPolicy
from rl.policies.networks import masked_softmax
from rl.trainers import D3RLPY, TrainingRecord, trainer, trainer_settings
from rl.trainers.batches import next_rows, reward_scale
from rl.trainers.d3rlpy_adapter import MASKED_VALUE, TransitionSampler, encoder_factory, export_network, train_algorithm
from rl.trainers.d3rlpy_trainers import DiscreteBCQ, DiscreteCQL, DiscreteSAC
from rl.trainers.d3rlpy_transformer import WindowSampler, exported, learn
from rl.trainers.protocol import ignore_metric
from rl.trainers.settings import TrainerSettings
from rl.types import Observations

N_FEATURES, N_ACTIONS = 7, 4


def _dataset(n_episodes: int = 60, length: int = 3, **arrays: Any) -> TransitionSet:
    rng = np.random.default_rng(0)
    n_rows = n_episodes * length
    values = {
        "observations": rng.normal(3.0, 2.0, size=(n_rows, N_FEATURES)).astype(np.float32),
        "actions": rng.integers(N_ACTIONS - 1, size=n_rows),
        "rewards": (50.0 * rng.random(n_rows)).astype(np.float32),
        "episode_offsets": np.arange(0, n_rows + 1, length),
        "validation": np.zeros(n_episodes, dtype=bool),
        "n_actions": N_ACTIONS,
    }
    return TransitionSet.from_arrays(**(values | arrays))


def _sampler(dataset: TransitionSet, **changes: Any) -> TransitionSampler:
    arguments = {"mask": dataset.action_mask, "seed": 0, "legal_starts_only": True}
    return TransitionSampler(dataset, **(arguments | changes))


def _settings(**changes: Any) -> TrainerSettings:
    return trainer_settings(**({"algorithm": "d3rlpy_cql", "n_steps": 25, "hidden_units": (16, 8)} | changes))


def _train_q(dataset: TransitionSet, settings: TrainerSettings) -> tuple[Any, TransitionSampler]:
    sampler = _sampler(dataset)
    config = DiscreteCQL().configuration(settings, dataset.manifest.training_discount)
    return train_algorithm(config, sampler, dataset.n_actions, settings, ignore_metric), sampler


def _all_legal(n_rows: int) -> Any:
    return np.ones((n_rows, N_ACTIONS), dtype=bool)


def test_an_exported_network_gives_the_values_that_d3rlpy_predicts() -> None:
    dataset = _dataset()
    algorithm, sampler = _train_q(dataset, _settings())
    network = export_network(algorithm.impl.modules.q_funcs[0], sampler.standardizer)

    inputs = sampler.probe()
    for action in range(N_ACTIONS):
        predicted = algorithm.predict_value(inputs, np.full(len(inputs), action))
        np.testing.assert_allclose(network.outputs(dataset.observations)[:, action], predicted, atol=1e-5)


def test_an_action_that_the_log_never_shows_is_still_an_action() -> None:
    dataset = _dataset()
    assert dataset.actions.max() == N_ACTIONS - 2

    policy = trainer("d3rlpy_cql").fit(dataset, _settings(), UniformPolicy(N_ACTIONS, N_FEATURES))

    everything = np.ones((dataset.n_steps, N_ACTIONS), dtype=bool)
    assert policy.action_probabilities(Observations(dataset.observations), everything).shape[1] == N_ACTIONS


@pytest.mark.parametrize("n_steps", [1, 7, 20, 33])
def test_exactly_the_asked_number_of_gradient_steps_is_taken(n_steps: int) -> None:
    record = TrainingRecord()
    settings = _settings(algorithm="d3rlpy_double_dqn", n_steps=n_steps)

    trainer("d3rlpy_double_dqn").fit(_dataset(), settings, UniformPolicy(N_ACTIONS, N_FEATURES), record)

    assert record.curves["losses/total"]["steps"][-1] == n_steps
    assert len(record.curves["losses/total"]["steps"]) <= 21


def test_the_last_step_of_a_terminated_episode_is_terminal_and_all_steps_are_drawn() -> None:
    dataset = _dataset(n_episodes=5, length=1)

    batch = _sampler(dataset).sample_transition_batch(400)

    assert (batch.terminals == 1).all()
    assert len(np.unique(batch.observations, axis=0)) == 5


def test_the_last_step_of_a_truncated_episode_is_kept_and_looks_at_the_final_observation() -> None:
    truncated = np.arange(6) % 2 == 1
    final = np.where(truncated[:, None], 9.0 + np.arange(6)[:, None], 0.0) * np.ones((1, N_FEATURES))
    dataset = _dataset(
        n_episodes=6,
        length=2,
        terminated=~truncated,
        truncated=truncated,
        final_observations=final.astype(np.float32),
        final_action_mask=np.repeat(truncated[:, None], N_ACTIONS, axis=1),
    )

    sampler = _sampler(dataset)
    batch = sampler.sample_transition_batch(2000)

    assert next_rows(dataset).tolist() == [1, 1, 3, 12, 5, 5, 7, 13, 9, 9, 11, 14]
    assert len(np.unique(batch.observations, axis=0)) == 12
    last_of_first_cut = sampler.standardizer(dataset.observations)[3]
    rows = (batch.observations[:, :N_FEATURES] == last_of_first_cut).all(axis=1)
    assert rows.any()
    assert (batch.terminals[rows] == 0).all()
    expected = sampler.standardizer(final[1:2].astype(np.float32))[0]
    np.testing.assert_allclose(batch.next_observations[rows][0, :N_FEATURES], expected)


def test_behavior_cloning_is_not_pulled_towards_uniform() -> None:
    rng = np.random.default_rng(0)
    n_rows, truth = 6000, np.array([0.75, 0.15, 0.07, 0.03])
    dataset = _dataset(n_rows, 1, actions=rng.choice(N_ACTIONS, p=truth, size=n_rows))
    settings = _settings(algorithm="d3rlpy_bc", n_steps=300, learning_rate=3e-3)

    policy = trainer("d3rlpy_bc").fit(dataset, settings, UniformPolicy(N_ACTIONS, N_FEATURES))

    everything = np.ones((n_rows, N_ACTIONS), dtype=bool)
    mean = policy.action_probabilities(Observations(dataset.observations), everything).mean(axis=0)
    np.testing.assert_allclose(mean, truth, atol=0.05)


def test_behavior_cloning_learns_preferences_among_what_was_legal() -> None:
    # Action 0 is chosen 3 : 1 over action 1 whenever both are legal, but is legal in only a quarter of the rows.
    rng = np.random.default_rng(0)
    n_rows = 6000
    mask = np.ones((n_rows, N_ACTIONS), dtype=bool)
    mask[:, 0] = rng.random(n_rows) < 0.25
    probabilities = masked_softmax(np.tile(np.log([0.6, 0.2, 0.1, 0.1]), (n_rows, 1)), mask)
    actions = (rng.random((n_rows, 1)) > probabilities.cumsum(axis=1)).sum(axis=1)
    dataset = _dataset(n_rows, 1, actions=actions, logged_mask=mask, action_mask=mask)
    settings = _settings(algorithm="d3rlpy_bc", n_steps=300, learning_rate=3e-3)

    policy = trainer("d3rlpy_bc").fit(dataset, settings, UniformPolicy(N_ACTIONS, N_FEATURES))

    everything = np.ones((n_rows, N_ACTIONS), dtype=bool)
    mean = policy.action_probabilities(Observations(dataset.observations), everything).mean(axis=0)
    np.testing.assert_allclose(mean, [0.6, 0.2, 0.1, 0.1], atol=0.05)


def test_a_masked_value_never_enters_a_target() -> None:
    # Action 3 pays 50 whenever it is taken, and is illegal in the second step of each dialogue under today's rules.
    rng = np.random.default_rng(0)
    n_episodes = 400
    actions = rng.integers(N_ACTIONS, size=2 * n_episodes)
    second = np.arange(2 * n_episodes) % 2 == 1
    mask = np.ones((2 * n_episodes, N_ACTIONS), dtype=bool)
    mask[second, 3] = False
    observations = np.stack([second, ~second], axis=1).astype(np.float32)
    dataset = _dataset(
        n_episodes,
        2,
        observations=observations,
        actions=actions,
        rewards=np.where(second & (actions == 3), 50.0, 1.0).astype(np.float32),
        action_mask=mask,
    )
    settings = _settings(algorithm="d3rlpy_double_dqn", n_steps=600, learning_rate=1e-2, target_update_interval=50)

    policy: Any = trainer("d3rlpy_double_dqn").fit(dataset, settings, UniformPolicy(N_ACTIONS, 2))

    values = policy.q_values(Observations(np.array([[0.0, 1.0]], dtype=np.float32)), _all_legal(1))[0]
    np.testing.assert_allclose(values, 1.0 + 0.97 * 1.0, atol=0.3)


def test_a_step_that_is_illegal_today_is_no_start_and_still_what_comes_next() -> None:
    mask = np.ones((180, N_ACTIONS), dtype=bool)
    dataset = _dataset(action_mask=mask)
    mask[1, dataset.actions[1]] = False
    dataset = _dataset(action_mask=mask)

    batch = _sampler(dataset).sample_transition_batch(5000)

    standardised = _sampler(dataset).standardizer(dataset.observations)
    assert not (batch.observations[:, :N_FEATURES] == standardised[1]).all(axis=1).any()
    assert (batch.next_observations[:, :N_FEATURES] == standardised[1]).all(axis=1).any()


def test_masked_networks_give_the_masked_value_and_ignore_the_mask_as_a_feature() -> None:
    dataset = _dataset()
    algorithm, sampler = _train_q(dataset, _settings())
    inputs = torch.from_numpy(sampler.probe().copy())
    some_masked = inputs.clone()
    some_masked[:, N_FEATURES + 1] = 0

    with torch.no_grad():
        module = algorithm.impl.modules.targ_q_funcs[0]
        plain, masked = module(inputs).q_value, module(some_masked).q_value

    assert (masked[:, 1] == MASKED_VALUE).all()
    torch.testing.assert_close(masked[:, [0, 2, 3]], plain[:, [0, 2, 3]])


def test_rare_large_returns_are_valued_by_their_mean() -> None:
    # One dialogue in 25 pays 100. A Huber loss would settle far below the mean of 4.
    rng = np.random.default_rng(0)
    rewards = np.where(rng.random(5000) < 0.04, 100.0, 0.0).astype(np.float32)
    dataset = _dataset(5000, 1, rewards=rewards, observations=np.ones((5000, 1), dtype=np.float32))
    settings = _settings(algorithm="d3rlpy_double_dqn", n_steps=400, learning_rate=1e-3)

    policy: Any = trainer("d3rlpy_double_dqn").fit(dataset, settings, UniformPolicy(N_ACTIONS, 1))

    values = policy.q_values(Observations(np.ones((1, 1), dtype=np.float32)), _all_legal(1))[0, : N_ACTIONS - 1]
    assert values.mean() == pytest.approx(rewards.mean(), rel=0.2)


def test_the_reward_scale_is_the_deviation_of_what_is_still_to_come() -> None:
    dataset = _dataset(2, 2, rewards=np.array([1.0, 2.0, 0.0, 5.0], dtype=np.float32))

    assert reward_scale(dataset.rewards, dataset.episode_offsets) == pytest.approx(np.std([3.0, 2.0, 5.0, 5.0]))
    still = _dataset(rewards=np.zeros(180, dtype=np.float32))
    assert reward_scale(still.rewards, still.episode_offsets) == 1.0


def test_values_beside_a_masked_action_keep_their_digits_in_bcq() -> None:
    # d3rlpy subtracts the row's least value before it compares: beside a masked -1e6, 1.01 and 1.0 would be equal.
    mask = _all_legal(180)
    mask[:, 3] = False
    dataset = _dataset(action_mask=mask)
    sampler = _sampler(dataset)
    settings = _settings(algorithm="d3rlpy_bcq", support_ratio=0.01)
    config = DiscreteBCQ().configuration(settings, 0.97)
    learned = train_algorithm(config, sampler, N_ACTIONS, settings, ignore_metric)
    modules = learned.impl.modules
    with torch.no_grad():
        for network, bias in ((modules.q_funcs[0]._fc, [1.0, 1.01, 0.99, 9.0]), (modules.imitator._fc, [0.0] * 4)):
            network.weight.zero_()
            network.bias.copy_(torch.tensor(bias))

    chosen = learned.predict(sampler.probe())

    assert (chosen == 1).all()


def test_the_temperature_of_sac_does_not_run_away_where_few_actions_are_legal() -> None:
    # An entropy of 0.98 log 4 cannot be had from two legal actions: a learned temperature would only grow.
    mask = _all_legal(180)
    dataset = _dataset(actions=np.arange(180) % 2)
    mask[:, 2:] = False
    sampler = _sampler(_dataset(actions=dataset.actions, action_mask=mask))
    settings = _settings(algorithm="d3rlpy_sac", n_steps=50, entropy_weight=0.02)
    config = DiscreteSAC().configuration(settings, 0.97)

    learned = train_algorithm(config, sampler, N_ACTIONS, settings, ignore_metric)

    temperature = float(next(learned.impl.modules.log_temp.parameters()).detach().exp())
    assert temperature == pytest.approx(0.02)


def test_a_policy_says_on_its_card_that_its_masks_come_from_outside() -> None:
    record = TrainingRecord()

    trainer("d3rlpy_cql").fit(_dataset(), _settings(), UniformPolicy(N_ACTIONS, N_FEATURES), record)

    assert "knows no action masks" in record.notes[0]


def test_a_log_in_which_nothing_is_legal_today_is_refused() -> None:
    mask = np.zeros((180, N_ACTIONS), dtype=bool)
    mask[:, N_ACTIONS - 1] = True

    with pytest.raises(DataError, match="No logged action is legal under today's rules"):
        _sampler(_dataset(action_mask=mask))


def test_training_writes_no_file_and_nothing_to_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    for name in D3RLPY:
        settings = _settings(algorithm=name, hidden_units=(16,), n_steps=5)
        trainer(name).fit(_dataset(), settings, UniformPolicy(N_ACTIONS, N_FEATURES))

    captured = capfd.readouterr()
    assert list(tmp_path.iterdir()) == []
    assert (captured.out, captured.err) == ("", "")


def test_hidden_units_are_the_layers_of_the_network() -> None:
    settings = _settings(hidden_units=(16, 8))
    assert encoder_factory(settings).hidden_units == [16, 8]

    algorithm, sampler = _train_q(_dataset(), settings)
    network = export_network(algorithm.impl.modules.q_funcs[0], sampler.standardizer)

    assert [weight.shape for weight in network.weights] == [(16, N_FEATURES), (8, 16), (N_ACTIONS, 8)]


def test_the_exported_decision_transformer_scores_as_d3rlpy_does() -> None:
    dataset = _dataset(length=5)
    settings = trainer_settings(
        algorithm="d3rlpy_decision_transformer", n_steps=20, hidden_units=(16,), context_steps=4
    )
    sampler = WindowSampler(dataset, 4, seed=0)
    learned = learn(sampler, N_ACTIONS, settings, TrainingRecord())
    rows = np.arange(4, 300, 5)  # the last step of each dialogue, with three before it
    transformer = learned.impl.modules.transformer.eval()
    wanted = 0.7

    network = exported(transformer, sampler.standardizer, 4, wanted)
    observations = dataset.batch_observations(rows, with_past=True)
    scores = network(observations, dataset.logged_mask[rows])

    inputs = sampler.inputs[rows[:, None] + np.arange(-3, 1)]
    actions = dataset.actions[rows[:, None] + np.arange(-3, 1)]
    with torch.no_grad():
        _, logits = transformer(
            torch.from_numpy(inputs),
            torch.from_numpy(actions)[..., None],
            torch.full((len(rows), 4, 1), wanted),
            torch.arange(4).expand(len(rows), 4),
            torch.zeros(len(rows), 4),
        )
    np.testing.assert_allclose(scores, logits[:, -1].numpy(), atol=1e-5)


def test_padded_steps_have_no_weight_in_the_decision_transformer() -> None:
    # Dialogues of one step, in which action 2 is always taken, in windows of four: three of four places are padding.
    dataset = _dataset(200, 1, actions=np.full(200, 2))
    sampler = WindowSampler(dataset, 4, seed=0)
    settings = trainer_settings(
        algorithm="d3rlpy_decision_transformer", n_steps=60, hidden_units=(16,), context_steps=4, learning_rate=1e-2
    )
    record = TrainingRecord()

    learn(sampler, N_ACTIONS, settings, record)

    assert record.last("losses/total") < 0.1  # counted as action 0, the padding would keep it above log 4 / 2
