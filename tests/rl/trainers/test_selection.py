"""The choice among checkpoints and settings: bounds with known answers, and what a whole training makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rl.datasets.transitions import TransitionSet
from rl.environments.tabular import TabularMDP
from rl.errors import DataError, SettingsError
from rl.policies import Scores, SoftmaxPolicy, UniformPolicy
from rl.policies.networks import MLP, Standardizer
from rl.trainers import TrainingRecord, trainer, trainer_settings
from rl.trainers import selection as module
from rl.trainers.decision import Decided, Situations
from rl.trainers.fit import looks
from rl.trainers.selection import Contest, Judge, Look, parted, spread_episodes
from rl.types import Float2D

PROCESS = TabularMDP.random(4, 3, horizon=3, seed=2, masked_share=0.2, reward_noise=0.1)
_PLAIN = Standardizer(np.zeros(7, dtype=np.float32), np.ones(7, dtype=np.float32))
UNIFORM = UniformPolicy(PROCESS.n_actions, PROCESS.observation_size)


def _log(n_episodes: int = 600, seed: int = 0, **arrays: Any) -> TransitionSet:
    return PROCESS.sample(PROCESS.uniform_policy(), n_episodes, seed, **arrays)


def _judge(dataset: TransitionSet) -> Judge:
    return Judge(dataset, np.ones(dataset.n_episodes, dtype=bool), UNIFORM, module.MOST_ROWS)


def _decided(probabilities: Float2D) -> Decided:
    return Decided(UNIFORM, probabilities, np.zeros((1, *probabilities.shape)), {})


def _states(dataset: TransitionSet) -> tuple[np.ndarray, np.ndarray]:
    """(N,) step and (N,) state of each logged row of the process."""
    state = dataset.observations[:, : PROCESS.n_states].argmax(axis=1)
    return dataset.step_index, state


def _settings(**changes: Any) -> Any:
    fields = {"n_steps": 40, "n_looks": 4, "batch_size": 64, "hidden_units": (16,), "n_members": 2}
    return trainer_settings(**({"algorithm": "cql", "learning_rate": 1e-2} | fields | changes))


def _train(dataset: TransitionSet, **changes: Any) -> tuple[Any, TrainingRecord]:
    record = TrainingRecord()
    settings = _settings(**changes)
    return trainer(settings.algorithm).fit(dataset, settings, UNIFORM, record), record


def test_the_log_s_own_policy_is_worth_the_mean_return_and_its_bound_is_the_textbook_s() -> None:
    dataset = _log()
    judge = _judge(dataset)

    look = judge.look(_decided(judge.situations.behavior_probabilities(judge.situations.mask)), None, 7)

    error = dataset.returns.std() / np.sqrt(dataset.n_episodes)
    assert look.step == 7
    assert look.value == pytest.approx(dataset.returns.mean())
    assert look.low == pytest.approx(dataset.returns.mean() - 1.6448536 * error)
    assert look.effective_sample_size == pytest.approx(dataset.n_episodes)
    assert look.divergence == pytest.approx(0.0, abs=1e-12)
    assert judge.logged()["behavior_low"] == pytest.approx(look.low)


def test_dialogues_of_one_customer_count_as_one() -> None:
    dataset = _log()
    twice = dataset.select(np.repeat(np.arange(dataset.n_episodes), 2))

    once, repeated = (
        judge.look(_decided(judge.situations.behavior_probabilities(judge.situations.mask)), None, 0)
        for judge in (_judge(dataset), _judge(twice))
    )

    assert repeated.low == pytest.approx(once.low)
    assert repeated.effective_sample_size == pytest.approx(once.effective_sample_size)


def test_dialogues_of_few_customers_have_no_bound_however_many_they_are() -> None:
    dataset = _log()
    few = replace(dataset, customer_index=dataset.customer_index % 7)
    judge = _judge(few)

    look = judge.look(_decided(judge.situations.behavior_probabilities(judge.situations.mask)), None, 0)

    assert look.value == pytest.approx(dataset.returns.mean())
    assert look.effective_sample_size == pytest.approx(7, abs=0.01)
    assert not look.is_judged
    assert judge.logged()["behavior_low"] is None
    assert judge.note(look).startswith("Nothing chose checkpoint and setting")


@pytest.mark.parametrize("exponent", [308.0, 312.0], ids=["in their sum", "each"])
def test_weights_that_overflow_say_nothing(exponent: float) -> None:
    plain = _log()
    joined = replace(  # 200 dialogues of 9 steps
        plain,
        episode_offsets=plain.episode_offsets[::3],
        propensities=np.full(plain.n_steps, 10 ** (-exponent / 9) / 3, dtype=np.float32),
        **{name: getattr(plain, name)[::3] for name in ("terminated", "truncated", "customer_index")},
    )

    look = _judge(joined).look(_decided(np.full((plain.n_steps, 3), 1 / 3)), None, 0)

    assert (look.value, look.effective_sample_size, look.is_judged) == (None, 0.0, False)


def test_the_bound_lies_below_the_truth_as_often_as_it_says_also_with_a_wrong_value_model() -> None:
    optimal = PROCESS.optimal_q_values()
    policy = PROCESS.softmax_policy(optimal, temperature=0.5)
    truth, wrong_values = PROCESS.value(policy), 0.5 * optimal + 0.3

    below, values = [], []
    for seed in range(60):
        dataset = _log(400, seed)
        step, state = _states(dataset)
        look = _judge(dataset).look(_decided(policy[step, state]), wrong_values[None, step, state], 0)
        below.append(look.low < truth)
        values.append(look.value)

    assert np.mean(values) == pytest.approx(truth, abs=0.01)
    assert np.mean(below) >= 0.88


def test_a_policy_that_few_dialogues_agree_with_is_not_judged() -> None:
    dataset = _log(60)
    judge = _judge(dataset)
    step, state = _states(dataset)

    look = judge.look(_decided(PROCESS.optimal_policy()[step, state]), None, 0)
    nowhere = judge.look(_decided(np.zeros((dataset.n_steps, 3)) + np.eye(3)[(dataset.actions + 1) % 3]), None, 0)

    assert not look.is_judged
    assert 0 < look.effective_sample_size < module.LEAST_EFFECTIVE_CUSTOMERS
    assert look.low == nowhere.low == dataset.returns.min()
    assert (nowhere.value, nowhere.effective_sample_size) == (None, 0.0)


def test_a_policy_that_does_what_the_behavior_policy_never_does_has_no_divergence() -> None:
    dataset = _log(50)
    never = SoftmaxPolicy(Scores.of(MLP(_PLAIN, (np.zeros((3, 7), np.float32),), (np.float32([0, 0, -1e9]),))), "never")
    judge = Judge(dataset, np.ones(50, dtype=bool), never, module.MOST_ROWS)

    look = judge.look(_decided(np.tile([0.0, 0.0, 1.0], (dataset.n_steps, 1))), None, 0)

    assert look.divergence is None
    contest = Contest.of(2)
    contest.enter([look, _look(0, 0.0, False, 3.0)])
    assert contest.ranking() == [1, 0]


def test_unknown_propensities_are_the_behavior_model_s_over_what_was_legal_then() -> None:
    today = _log().logged_mask & (np.arange(3) < 2)
    today |= _log().logged_mask & ~today.any(axis=1, keepdims=True)
    plain = _log(action_mask=today)
    unknown = _log(action_mask=today, propensities=np.full(plain.n_steps, np.nan, dtype=np.float32))
    table = np.random.default_rng(0).dirichlet(np.ones(3), size=plain.n_steps)
    table = np.where(plain.action_mask, table, 0.0)
    decided = _decided(table / table.sum(axis=1, keepdims=True))

    logged, estimated = _judge(plain), _judge(unknown)

    assert estimated.look(decided, None, 0).value == pytest.approx(logged.look(decided, None, 0).value, rel=1e-6)
    assert (today != plain.logged_mask).any()
    assert "propensity" not in logged.note(_look(0, 0.0))
    assert "For 100% of their decisions the propensity is the behavior model's own" in estimated.note(_look(0, 0.0))


def test_the_value_model_is_the_mean_of_the_members() -> None:
    dataset = _log()
    judge = _judge(dataset)
    decided = _decided(judge.situations.behavior_probabilities(judge.situations.mask))
    values = np.random.default_rng(0).normal(size=(2, dataset.n_steps, 3))

    several, one = (judge.look(decided, each, 0).low for each in (values, values.mean(axis=0, keepdims=True)))

    assert several == one != judge.look(decided, values[:1], 0).low


def test_large_weights_are_clipped() -> None:
    plain = _log()
    first = plain.episode_offsets[0]
    propensities = plain.propensities.copy()
    propensities[first] = 1e-6
    judge = _judge(replace(plain, propensities=propensities))
    decided = _decided(judge.situations.behavior_probabilities(judge.situations.mask))
    values = np.zeros((1, plain.n_steps, 3))

    look = judge.look(decided, values, 0)

    weights = np.ones(600)
    weights[0] = module.WEIGHT_CLIP
    assert look.value == pytest.approx(float(np.average(plain.returns, weights=weights)))


def test_members_that_disagree_by_two_units_on_one_action_have_that_spread() -> None:
    dataset = _log(50)
    judge = _judge(dataset)
    values = np.zeros((2, dataset.n_steps, 3))
    values[0, :, 1], values[1, :, 1] = 1.0, -1.0

    look = judge.look(_decided(np.tile([0.25, 0.5, 0.25], (dataset.n_steps, 1))), values, 0)

    assert look.spread == pytest.approx(0.5 * np.sqrt(2.0))


def _look(step: int, low: float, is_judged: bool = True, divergence: float = 0.0) -> Look:
    return Look(step, low, low, 99.0, is_judged, divergence)


def test_the_contest_keeps_the_earliest_of_the_best_looks() -> None:
    contest = Contest.of(2)

    better = [
        contest.enter([_look(step, a), _look(step, b)]) for step, a, b in ((1, 1.0, 0.0), (2, 1.0, 2.0), (3, 0.5, 2.0))
    ]

    assert better == [[0, 1], [1], []]
    assert [look and look.step for look in contest.best] == [1, 2]
    assert [look and look.step for look in contest.last] == [3, 3]
    assert contest.ranking() == [1, 0]
    assert contest.looks_without_gain == 1
    contest.enter([_look(4, 2.5), _look(4, 0.0)])
    assert contest.looks_without_gain == 0
    assert Contest.from_document(contest.document()) == contest


def test_without_evidence_the_last_look_stands_and_the_setting_nearest_to_the_log_leads() -> None:
    contest = Contest.of(3)

    for step in (1, 2):
        contest.enter([_look(step, 9.0, False, 0.5), _look(step, 9.0, False, 0.1), _look(step, -5.0, step == 1)])

    assert [look and look.step for look in contest.best] == [2, 2, 1]
    assert contest.ranking() == [2, 1, 0]


def test_selection_dialogues_choose_and_are_not_learned_from() -> None:
    dataset = _log()
    _, choosing = parted(dataset, 0.2)
    rewards = np.where(choosing[dataset.episode_index], dataset.rewards + 1.0, dataset.rewards)
    arrays = dataset.arrays() | {"rewards": rewards, "reward_parts": rewards[:, None]}
    shifted = TransitionSet.from_arrays(**arrays, manifest=dataset.manifest)

    plain, other = (_train(each, selection_share=0.2)[1] for each in (dataset, shifted))

    assert other.curves["losses/total"] == plain.curves["losses/total"]
    assert other.selection["behavior_value"] == pytest.approx(plain.selection["behavior_value"] + 3.0, abs=1e-3)
    assert other.selection["low"] > plain.selection["low"] + 1.0


def test_a_sweep_has_a_leaderboard_best_first_and_its_leader_is_the_policy() -> None:
    policy, record = _train(_log(), sweep={"conservative_weight": (0.1, 30.0)}, pessimism=0.0)

    lows = [row["low"] for row in record.leaderboard]
    assert lows == sorted(lows, reverse=True)
    assert {row["knobs"]["conservative_weight"] for row in record.leaderboard} == {0.1, 30.0}
    assert sorted(record.leaderboard[0]["members"] + record.leaderboard[1]["members"]) == [0, 1, 2, 3]
    assert record.selection["low"] == lows[0]
    assert record.selection["setting"] == record.leaderboard[0]["setting"]
    assert record.selection["last"]["step"] == 40
    assert len(record.member_curves) == 4
    leader = record.leaderboard[0]["knobs"]["conservative_weight"]
    alone, _ = _train(_log(), conservative_weight=leader, pessimism=0.0)
    states, mask = _log().batch_observations(slice(0, 50)), _log().action_mask[:50]
    np.testing.assert_allclose(policy.q_values(states, mask), alone.q_values(states, mask), atol=1e-4)


def test_the_policy_has_the_weights_of_the_chosen_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def best_at_twenty(self: Judge, decided: Decided, values: Any, step: int) -> Look:
        return _look(step, -abs(step - 20.0))

    monkeypatch.setattr(Judge, "look", best_at_twenty)

    chosen, record = _train(_log())
    shorter, _ = _train(_log(), n_steps=20, n_looks=2)

    assert (record.selection["step"], record.selection["last"]["step"]) == (20, 40)
    assert record.curves["selection/low"] == {"steps": [10, 20, 30, 40], "values": [-10, 0, -10, -20]}
    for name, values in shorter.arrays().items():
        np.testing.assert_array_equal(chosen.arrays()[name], values)


def test_training_ends_when_nothing_gets_better() -> None:
    _, record = _train(_log(), learning_rate=1e-30, patience=2)

    assert record.curves["losses/total"]["steps"] == [10, 20, 30]
    assert (record.selection["step"], record.selection["last"]["step"]) == (10, 30)


def test_without_selection_the_last_step_is_kept_and_said_so() -> None:
    dataset = _log()
    _, record = _train(dataset, selection_share=0.0)

    assert record.selection["by"].startswith("nothing")
    assert record.selection["step"] == 40
    assert record.leaderboard[0]["low"] is None
    assert "selection/low" not in record.curves
    assert record.curves["data/passes"]["values"][-1] == pytest.approx(40 * 64 / dataset.training().n_steps)


@pytest.mark.parametrize(
    ("algorithm", "divergence_limit"),
    [("cql", 0.08), ("cql", None), ("bcq", 0.08), ("bcq", None), ("iql", None), ("behavior_cloning", None)],
)
def test_what_is_judged_is_what_the_policy_does(
    algorithm: str, divergence_limit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Judge, Decided]] = []
    original = Judge.look

    def noted(self: Judge, decided: Decided, values: Any, step: int) -> Look:
        seen.append((self, decided))
        return original(self, decided, values, step)

    monkeypatch.setattr(Judge, "look", noted)

    policy, _ = _train(_log(), algorithm=algorithm, divergence_limit=divergence_limit, n_looks=1)

    judge, decided = seen[-1]
    acted = policy.action_probabilities(judge.rows.batch_observations(slice(None)), judge.rows.action_mask)
    np.testing.assert_allclose(decided.probabilities, acted, atol=1e-6)


def test_a_set_of_judging_dialogues_alone_is_refused() -> None:
    dataset = _log(20, validation=np.ones(20, dtype=bool))

    for share, message in ((0.0, "none is left to learn from"), (0.2, "leaves 0 to learn from and 0 to choose by")):
        with pytest.raises(DataError, match=message):
            parted(dataset, share)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"`device` is cuda:99, and torch finds \d+ GPUs"):
        _train(_log(50), device="cuda:99")


def test_many_episodes_are_thinned_evenly() -> None:
    dataset = _log(600)
    episodes = np.arange(600) >= 100

    thinned = spread_episodes(dataset, episodes, most_rows=300)

    assert thinned.n_steps == 300
    assert set(thinned.customer_index) == set(dataset.customer_index[100::5])
    assert spread_episodes(dataset, episodes, most_rows=3000).n_episodes == 500


@pytest.mark.parametrize(("n_steps", "rows"), [(40, 6_000), (4_000, 17_066), (100_000, 30_000)])
def test_a_look_reads_about_a_third_of_what_the_updates_before_it_read(n_steps: int, rows: int) -> None:
    assert module.rows_of_a_look(_settings(n_steps=n_steps, n_looks=20, batch_size=256)) == rows


def test_situations_are_answered_in_blocks_as_at_once() -> None:
    dataset = _log(600)
    rows = np.arange(dataset.n_steps)

    found = Situations(dataset, UNIFORM, rows).behavior_probabilities(dataset.action_mask)

    expected = UNIFORM.action_probabilities(dataset.batch_observations(slice(None)), dataset.action_mask)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("n_steps", "n_looks", "expected"),
    [(3, 20, [1, 2, 3]), (100, 4, [25, 50, 75, 100]), (1000, 4, [256, 512, 768, 1000]), (64, 1, [64])],
)
def test_looks_are_evenly_spread_and_far_apart_at_whole_blocks(n_steps: int, n_looks: int, expected: list[int]) -> None:
    assert looks(n_steps, n_looks) == expected
