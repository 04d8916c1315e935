"""The sample world: its rules, its known truth, and its Gymnasium interface."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from rl.environments.storefront import (
    Decisions,
    StorefrontEnv,
    behavior_value,
    policy_value,
    rollout,
)
from rl.environments.storefront_customers import TURN_LIMIT, start_dialogues
from rl.environments.storefront_items import (
    CONFIRMING,
    N_STRATEGIES,
    REFERRING,
    SEGMENTS,
    STRATEGIES,
    STRATEGY_IDS,
    item_prices,
    read_storefront_catalogue,
    storefront_items,
)
from rl.environments.storefront_policies import (
    POLICY_VERSIONS,
    DecisionBatch,
    behavior_policy,
    constant_policy,
    decision_batch,
    informed_policy,
    uniform_policy,
)
from rl.environments.storefront_texts import CustomerAct, utterance_table
from rl.errors import DataError, PolicyError
from rl.types import Float2D


def play(policy_name: str = "storefront-v1", n: int = 2000, seed: int = 0) -> list[Decisions]:
    rng = np.random.default_rng(seed)
    return list(rollout(start_dialogues(n, rng), behavior_policy(policy_name), rng))


def test_the_catalogue_file_names_the_strategies_in_the_order_of_their_ids() -> None:
    catalogue = read_storefront_catalogue()

    assert catalogue.names == STRATEGIES
    assert catalogue.fallback == STRATEGY_IDS["no_strategy"]
    assert catalogue.selectable.all()


def test_items_are_many_distinct_and_priced_by_tier() -> None:
    items = storefront_items()

    assert len(items) >= 200
    assert len({item.item_id for item in items}) == len({item.name for item in items}) == len(items)
    assert (np.diff(item_prices().reshape(-1, 5), axis=1) > 0).all()


@pytest.mark.parametrize("act", list(CustomerAct))
def test_each_customer_act_has_words_in_both_tones(act: CustomerAct) -> None:
    table = utterance_table()

    assert {int(t) for t in table.tone[table.act == act]} == {0, 1}
    assert not any("{" in text for text in table.texts)


def test_agents_say_what_their_strategy_is_and_customers_answer_in_turn() -> None:
    table = utterance_table()

    for decisions in play():
        state, turn = decisions.dialogues, int(decisions.dialogues.turn[0])
        said = state.utterances[:, 2 * turn - 1]
        assert np.array_equal(table.strategy[said], decisions.actions)
        going = ~decisions.endings.ended
        assert (table.act[state.utterances[going, 2 * turn]] >= 0).all()


def test_items_are_named_as_the_words_name_them() -> None:
    table, items = utterance_table(), storefront_items()

    first = play()[0]
    for row in np.flatnonzero(first.actions == STRATEGY_IDS["offer_help"])[:50]:
        item = items[first.dialogues.item[row]]
        assert item.name in table.texts[first.dialogues.utterances[row, 1]]
        assert first.dialogues.item[row] in first.endings.picks.candidates[row]


def test_confirming_waits_for_a_preference_and_praise_for_an_item() -> None:
    dialogues = start_dialogues(500, np.random.default_rng(0))
    eligible = dialogues.eligible()

    for name in REFERRING:
        assert not eligible[:, STRATEGY_IDS[name]].any()
    for name in CONFIRMING:
        assert np.array_equal(eligible[:, STRATEGY_IDS[name]], dialogues.known > 0)
    assert eligible[:, STRATEGY_IDS["no_strategy"]].all()


@pytest.mark.parametrize("version", POLICY_VERSIONS)
def test_behavior_probabilities_are_positive_exactly_where_eligible_and_sum_to_one(version: str) -> None:
    smallest = 1.0
    for decisions in play(version):
        assert np.array_equal(decisions.probabilities > 0, decisions.eligible)
        assert decisions.probabilities.sum(axis=1) == pytest.approx(1)
        smallest = min(smallest, decisions.probabilities[decisions.eligible].min())
    assert 0.01 <= smallest < 0.02


def test_dialogues_end_at_the_turn_limit_at_the_latest() -> None:
    turns = play()

    assert len(turns) <= TURN_LIMIT
    assert sum(d.endings.ended.sum() for d in turns) == 2000


@pytest.mark.parametrize("policy", [uniform_policy, constant_policy("offer_help")])
def test_a_quick_value_agrees_with_a_long_run_of_actual_purchases(policy: object) -> None:
    quick = policy_value(policy, 0.01, seed=1)  # type: ignore[arg-type]
    rng = np.random.default_rng(2)
    purchases = np.zeros(60_000)
    for decisions in rollout(start_dialogues(len(purchases), rng), policy, rng):  # type: ignore[arg-type]
        purchases[decisions.rows] += decisions.endings.value
    noise = np.hypot(purchases.std() / np.sqrt(len(purchases)), quick.standard_error)

    assert quick.standard_error <= 0.01 * quick.value
    assert abs(quick.value - purchases.mean()) < 4 * noise


def test_who_never_shows_an_item_sells_nothing() -> None:
    assert policy_value(constant_policy("opinion_inquiry"), max_dialogues=10_000).value == 0


def test_equal_seeds_give_equal_values_and_other_seeds_other_ones() -> None:
    first, again = (policy_value(uniform_policy, 0.03, seed=3) for _ in range(2))

    assert first == again
    assert policy_value(uniform_policy, 0.03, seed=4) != first


def test_reading_the_customer_pays_at_least_a_quarter_more_than_the_behavior_policies() -> None:
    informed, behavior = policy_value(informed_policy, 0.01), behavior_value(0.01)

    assert informed.value > 1.25 * behavior
    assert 6 <= policy_value(behavior_policy("storefront-v1"), 0.02).mean_turns <= 8


def test_the_value_over_all_segments_is_the_mean_of_the_segments_by_share() -> None:
    by_segment = [policy_value(uniform_policy, 0.01, segment=segment).value for segment in SEGMENTS]

    assert np.dot(by_segment, (0.45, 0.30, 0.25)) == pytest.approx(policy_value(uniform_policy, 0.01).value, rel=0.04)


def test_probability_on_what_is_not_eligible_is_refused() -> None:
    def stubborn(batch: DecisionBatch) -> Float2D:
        return np.tile(np.eye(N_STRATEGIES)[STRATEGY_IDS["credibility"]], (len(batch), 1))

    with pytest.raises(PolicyError, match="eligible strategies"):
        policy_value(stubborn)


def test_an_unknown_segment_is_named_in_the_error() -> None:
    with pytest.raises(DataError, match="passer_by"):
        policy_value(uniform_policy, segment="passer_by")


def test_the_turns_of_a_batch_read_as_a_dialogue() -> None:
    batch = decision_batch(play(n=50)[0].dialogues)
    turns = batch.turns(0)

    assert [turn["speaker"] for turn in turns][:2] == ["customer", "agent"]
    assert turns[1]["strategies"] == [STRATEGIES[batch.last_strategy[0]]]
    assert all(turn["text"] in utterance_table().texts for turn in turns)


def test_the_environment_restarts_a_dialogue_in_the_step_after_its_end() -> None:
    env = StorefrontEnv(64)
    observation, _ = env.reset(seed=0)
    ended = np.zeros(64, dtype=bool)
    for _ in range(30):
        assert env.observation_space.contains(observation)
        actions = np.where(observation["eligible"][:, 1] == 1, 1, STRATEGY_IDS["offer_help"])
        observation, rewards, terminated, truncated, info = env.step(actions)
        assert (observation["turn"][ended] == 0).all()
        assert not truncated.any()
        assert not terminated[ended].any()
        assert (rewards[~terminated] == 0).all()
        assert np.array_equal(rewards, info["purchase_value"])
        ended = terminated


def test_the_environment_and_the_rollout_are_the_same_world() -> None:
    env = StorefrontEnv(6000, expected_rewards=True)
    env.reset(seed=0)
    returns, finished, rng = np.zeros(6000), np.zeros(6000, dtype=bool), np.random.default_rng(1)
    while not finished.all():
        probabilities = uniform_policy(env.decision_batch())
        actions = (probabilities.cumsum(axis=1) > rng.random((6000, 1))).argmax(axis=1)
        _, rewards, terminated, _, _ = env.step(actions)
        returns += np.where(finished, 0, rewards)
        finished |= terminated

    assert returns.mean() == pytest.approx(policy_value(uniform_policy, 0.01).value, rel=0.08)


def test_the_environment_refuses_an_action_that_is_not_eligible() -> None:
    env = StorefrontEnv(4)
    env.reset(seed=0)

    with pytest.raises(DataError, match="4 of 4 actions are not eligible"):
        env.step(np.full(4, STRATEGY_IDS["credibility"]))


def test_the_environment_is_a_gymnasium_vector_environment() -> None:
    env = StorefrontEnv(3)

    assert isinstance(env, gymnasium.vector.VectorEnv)
    assert env.action_space.shape == (3,)
    assert len(env.utterance_texts) == len(utterance_table().texts)
