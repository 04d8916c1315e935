"""The dialogue state: causal, complete, and stored so that it loads the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from rl.catalogue import ActionCatalogue, Strategy
from rl.encoders.customer_replies import CUSTOMER_ACTS, customer_act
from rl.encoders.dialogue import (
    NO_ACT,
    DecisionPoints,
    DialogueContext,
    DialogueEncoder,
    StateLayout,
    Utterances,
    dialogue_state,
)
from rl.encoders.static import StaticEncoder
from rl.errors import DataError

LAYOUT = StateLayout(utterance_dimensions=3, n_segments=2, n_actions=4, turn_limit=10, n_last_strategies=2)
CATALOGUE = ActionCatalogue(
    (
        Strategy("greet", "", 3, "selectable"),
        Strategy("inquire", "", 2, "fallback"),
        Strategy("offer", "", 1, "selectable"),
        Strategy("close", "", 0, "after_decision"),
    )
)


@pytest.fixture
def live() -> DialogueEncoder:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "blue": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vectors = np.array([[9, 9], [1, 0], [0, 1]], dtype=np.float16)
    return DialogueEncoder(StaticEncoder(vectors, tokenizer, "test"), CATALOGUE, ("new", "loyal"), 10, 2)


def column(live: DialogueEncoder, name: str) -> slice:
    return slice(*live.layout.columns[name])


def test_each_feature_says_what_its_name_says(live: DialogueEncoder) -> None:
    context = DialogueContext.model_validate(
        {
            "segment": "loyal",
            "turns": [
                {"speaker": "customer", "text": "red"},
                {"speaker": "agent", "text": "blue", "strategies": ["close", "greet", "offer"]},
                {"speaker": "customer", "text": "blue"},
                {"speaker": "agent", "text": "red", "strategies": ["inquire"]},
                {"speaker": "agent", "text": "red", "strategies": ["close"]},
            ],
        }
    )
    state = live.observe([context])[0].state[0]

    np.testing.assert_allclose(state[column(live, "customer_mean")], [0.5, 0.5])
    np.testing.assert_allclose(state[column(live, "agent_mean")], [2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(state[column(live, "last_customer")], [0, 1])
    np.testing.assert_allclose(state[column(live, "turn")], [0.3, 0.7, 0.2, np.log(6)], rtol=1e-6)
    np.testing.assert_array_equal(state[column(live, "segment")], [0, 1, 0])
    np.testing.assert_array_equal(state[column(live, "last_strategy_1")], [0, 1, 0, 0])
    np.testing.assert_array_equal(state[column(live, "last_strategy_2")], [0, 0, 1, 0])
    assert np.flatnonzero(state[column(live, "customer_act")]).tolist() == [CUSTOMER_ACTS.index("other")]


def test_the_latest_customer_act_is_seen_and_none_before_any(live: DialogueEncoder) -> None:
    question = {"speaker": "customer", "text": "Is it red?"}
    answer = {"speaker": "agent", "text": "blue", "strategies": ["offer"]}
    contexts = [
        DialogueContext.model_validate({"turns": turns})
        for turns in ([answer], [question, answer], [question, {"speaker": "customer", "text": "blue"}])
    ]
    acts = live.observe(contexts)[0].state[:, column(live, "customer_act")]

    assert [np.flatnonzero(row).tolist() for row in acts] == [
        [],
        [CUSTOMER_ACTS.index(customer_act("Is it red?"))],
        [CUSTOMER_ACTS.index(customer_act("blue"))],
    ]


def test_an_empty_dialogue_of_an_unknown_segment_has_a_state(live: DialogueEncoder) -> None:
    observations, mask = live.observe([DialogueContext(segment="martian")])
    state = observations.state[0]
    assert state[column(live, "segment")].tolist() == [0, 0, 1]
    assert state[column(live, "turn")].tolist() == [0, 1, 0, 0]
    assert np.count_nonzero(state) == 2
    assert mask.tolist() == [[True, True, True, False]]


def test_no_contexts_give_no_rows(live: DialogueEncoder) -> None:
    observations, mask = live.observe([])
    assert observations.state.shape == (0, live.layout.observation_size)
    assert mask.shape == (0, 4)


def test_personal_data_is_scrubbed_before_it_is_encoded(live: DialogueEncoder) -> None:
    seen: list[str] = []
    encode = live.encoder.encode
    live.encoder.encode = lambda texts: (seen.extend(texts), encode(texts))[1]  # type: ignore[method-assign]
    turn = {"speaker": "customer", "text": "write to jane.roe@example.com"}
    live.observe([DialogueContext.model_validate({"turns": [turn]})])
    assert "example.com" not in seen[0]


def test_a_stored_encoder_observes_the_same(live: DialogueEncoder, tmp_path: Path) -> None:
    contexts = [DialogueContext.model_validate({"turns": [{"speaker": "customer", "text": "red blue blue"}]})]
    live.save(tmp_path / "dialogue")
    loaded = DialogueEncoder.load(tmp_path / "dialogue")
    np.testing.assert_array_equal(loaded.observe(contexts)[0].state, live.observe(contexts)[0].state)


def test_a_stored_layout_of_another_version_is_refused(live: DialogueEncoder, tmp_path: Path) -> None:
    live.save(tmp_path)
    stored = json.loads((tmp_path / "dialogue.json").read_text())
    stored["layout"]["turn"] = [0, 4]
    (tmp_path / "dialogue.json").write_text(json.dumps(stored))
    with pytest.raises(DataError, match="Build the data set again"):
        DialogueEncoder.load(tmp_path)


@given(
    before=st.lists(st.booleans(), max_size=8),
    after=st.lists(st.booleans(), min_size=1, max_size=8),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=80, deadline=None)
def test_what_is_said_later_never_changes_a_row(before: list[bool], after: list[bool], seed: int) -> None:
    rng = np.random.default_rng(seed)
    point = DecisionPoints(np.array([0]), np.array([len(before)]), np.array([0]), np.array([[1, -1]]))

    def state(future: np.ndarray, speakers: list[bool]) -> np.ndarray:
        past = np.random.default_rng(seed).normal(size=(len(before), 3))
        vectors = np.concatenate([past, future]).astype(np.float16)
        return dialogue_state(LAYOUT, Utterances(vectors, np.where(before + speakers, 1, NO_ACT)), point)

    one = state(rng.normal(size=(len(after), 3)), after)
    other = state(rng.normal(size=(len(after) + 2, 3)) * 100, [*[not s for s in after], True, False])
    np.testing.assert_array_equal(one, other)


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6), seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_many_dialogues_at_once_equal_each_alone(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    total, n = sum(lengths), len(lengths)
    utterances = Utterances(rng.normal(size=(total, 3)).astype(np.float16), rng.integers(-1, 3, size=total))
    starts = np.cumsum(lengths) - lengths
    latest = rng.integers(-1, 4, size=(n, 2))
    points = DecisionPoints(starts, np.array(lengths), rng.integers(-1, 2, size=n), latest)
    together = dialogue_state(LAYOUT, utterances, points)
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        rows = slice(start, start + length)
        own = Utterances(utterances.vectors[rows], utterances.customer_act[rows])
        point = DecisionPoints(np.array([0]), np.array([length]), points.segment[i : i + 1], latest[i : i + 1])
        np.testing.assert_allclose(dialogue_state(LAYOUT, own, point)[0], together[i], atol=1e-6)
