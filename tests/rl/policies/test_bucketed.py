"""A policy over buckets: the bucket it reads is the one that SQL writes, and its head keeps the contract."""

import numpy as np
import pytest

from rl.encoders.customer_replies import CUSTOMER_ACTS, customer_act
from rl.encoders.dialogue import DialogueContext, StateLayout
from rl.errors import PolicyError
from rl.policies import BucketedPolicy, load_policy
from rl.policies.bucketed import BucketIndex, ObservationParts
from rl.types import Observations
from tests.studies.aggregate_world import storefront_encoder

STRATEGIES = ("greet", "inquire", "offer")
LAYOUT = StateLayout(1, 2, 3, 12, 2)
PARTS = ObservationParts(LAYOUT.columns, ("new", "loyal"), STRATEGIES, 12, LAYOUT.observation_size)
BUCKETS = [f"{band}|any|{segment}|any" for band in ("1", "2-3", "4+") for segment in ("new", "loyal", "other")]


def policy(temperature: float = 1.0) -> BucketedPolicy:
    rng = np.random.default_rng(0)
    behavior = rng.dirichlet(np.ones(3), size=len(BUCKETS)).astype(np.float32)
    q_values = rng.normal(size=(12, len(BUCKETS), 3)).astype(np.float32)
    return BucketedPolicy(BUCKETS, PARTS, behavior, q_values, temperature, "aggregate_q")


def state(turn: int, segment: int | None = None, last: int | None = None, act: int | None = None) -> np.ndarray:
    row = np.zeros((1, LAYOUT.observation_size), dtype=np.float32)
    row[0, LAYOUT.columns["turn"][0]] = (turn - 1) / 12
    row[0, LAYOUT.columns["segment"][0] + (2 if segment is None else segment)] = 1
    for feature, value in (("last_strategy_1", last), ("customer_act", act)):
        if value is not None:
            row[0, LAYOUT.columns[feature][0] + value] = 1
    return row


@pytest.mark.parametrize(
    ("observed", "bucket"),
    [
        (state(1, 0), "1|any|new|any"),
        (state(2, 1), "2-3|any|loyal|any"),
        (state(3, None), "2-3|any|other|any"),
        (state(4, 1), "4+|any|loyal|any"),
        (state(30, 0), "4+|any|new|any"),
    ],
)
def test_an_observation_lands_in_the_bucket_of_its_turn_and_segment(observed: np.ndarray, bucket: str) -> None:
    assert BUCKETS[int(BucketIndex(BUCKETS, PARTS)(observed)[0])] == bucket


def test_the_finest_level_tells_last_strategy_and_customer_act_apart() -> None:
    fine = ["1|start|any|none", "1|start|any|other"]
    fine += [f"2+|{s}|any|{a}" for s in STRATEGIES for a in (*CUSTOMER_ACTS, "none")]
    index = BucketIndex(fine, PARTS)

    assert fine[int(index(state(1))[0])] == "1|start|any|none"
    assert fine[int(index(state(5, 0, last=2, act=0))[0])] == f"2+|offer|any|{CUSTOMER_ACTS[0]}"
    assert fine[int(index(state(5, 0, last=1))[0])] == "2+|inquire|any|none"


def test_a_live_dialogue_lands_in_the_bucket_that_the_warehouse_would_write() -> None:
    encoder = storefront_encoder()
    strategies = encoder.catalogue.names
    parts = ObservationParts(
        encoder.layout.columns, encoder.segments, strategies, encoder.turn_limit, encoder.layout.observation_size
    )
    question = "What is the price of it?"
    context = DialogueContext.model_validate(
        {
            "segment": "enthusiast",
            "turns": [
                {"speaker": "customer", "text": "hello"},
                {"speaker": "agent", "text": "May I help?", "strategies": ["offer_help"]},
                {"speaker": "customer", "text": question},
            ],
        }
    )
    expected = f"2-3|offer_help|enthusiast|{customer_act(question)}"
    buckets = ["1|start|enthusiast|none", "2-3|offer_help|enthusiast|none", expected]
    assert buckets[int(BucketIndex(buckets, parts)(encoder.observe([context])[0].state)[0])] == expected


def test_probabilities_are_legal_and_tilted_by_value() -> None:
    chosen = policy().action_probabilities(Observations(state(2, 0)), np.array([[True, False, True]]))
    at = BUCKETS.index("2-3|any|new|any")
    weights = policy().behavior[at] * np.exp(policy().q_values[1, at])
    np.testing.assert_allclose(chosen, [[weights[0], 0, weights[2]] / (weights[0] + weights[2])], rtol=1e-5)


def test_where_the_tables_know_no_legal_action_each_legal_one_is_as_likely() -> None:
    made = policy()
    made.behavior[:, 1:] = 0
    made.q_values[:, :, 1:] = 0
    chosen = made.action_probabilities(Observations(state(1, 0)), np.array([[False, True, True]]))
    np.testing.assert_allclose(chosen, [[0, 0.5, 0.5]])


def test_a_stored_policy_answers_the_same_and_reads_another_layout(tmp_path) -> None:  # type: ignore[no-untyped-def]
    policy().save(tmp_path / "p")
    loaded = load_policy(tmp_path / "p")
    mask = np.ones((1, 3), dtype=bool)
    here = policy().action_probabilities(Observations(state(3, 1)), mask)
    np.testing.assert_array_equal(loaded.action_probabilities(Observations(state(3, 1)), mask), here)

    wide = StateLayout(5, 2, 3, 12, 1)
    parts = ObservationParts(wide.columns, ("loyal", "new"), STRATEGIES, 12, wide.observation_size)
    row = np.zeros((1, wide.observation_size), dtype=np.float32)
    row[0, wide.columns["turn"][0]] = 2 / 12
    row[0, wide.columns["segment"][0]] = 1
    np.testing.assert_allclose(policy().reading(parts).action_probabilities(Observations(row), mask), here)


def test_another_catalogue_and_a_missing_feature_are_refused() -> None:
    other = ObservationParts(LAYOUT.columns, (), ("a", "b", "c"), 12, LAYOUT.observation_size)
    with pytest.raises(PolicyError, match="another action catalogue"):
        policy().reading(other)
    lacking = {name: at for name, at in LAYOUT.columns.items() if name != "customer_act"}
    with pytest.raises(PolicyError, match="customer_act"):
        BucketIndex(BUCKETS, ObservationParts(lacking, (), STRATEGIES, 12, LAYOUT.observation_size))
