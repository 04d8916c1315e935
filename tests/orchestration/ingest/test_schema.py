"""Validation of single records: what passes, and what each fault says."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.ingest.records import Fault, RawRecord, RecordKind
from orchestration.ingest.schema import SCHEMAS, validate
from tests.orchestration.ingest.examples import outcome, turn

STRATEGIES = {"inform": 2, "offer": 1, "closing": None}


def faults(record: dict[str, Any]) -> list[tuple[str, str | float | int | None]]:
    result = validate(RawRecord(record["record"], record, 7), STRATEGIES)
    assert isinstance(result, list)
    assert all(isinstance(fault, Fault) and fault.line == 7 for fault in result)
    return [(fault.field, fault.value) for fault in result]


def row(record: dict[str, Any]) -> dict[str, Any]:
    result = validate(RawRecord(record["record"], record, 1), STRATEGIES)
    assert isinstance(result, dict), result
    return result


def test_a_valid_turn_has_the_columns_of_the_landing() -> None:
    added_later = {"content_hash", "source", "source_row", "customer_act", "canonical_reply"}

    assert set(row(turn("d1", 1))) | added_later == set(SCHEMAS["turns"].names)
    assert set(row(outcome("d1"))) | {"source", "source_row"} == set(SCHEMAS["outcomes"].names)


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"dialogue_id": ""}, "dialogue_id", None),
        ({"turn_index": -1}, "turn_index", -1),
        ({"turn_index": "3"}, "turn_index", None),
        ({"turn_index": True}, "turn_index", True),
        ({"occurred_at": "yesterday"}, "occurred_at", None),
        ({"occurred_at": "0001-01-01T00:00:00+14:00"}, "occurred_at", None),
        ({"occurred_at": 1_700_000_000}, "occurred_at", None),
        ({"speaker": "bot"}, "speaker", "bot"),
        ({"speaker": ["agent"]}, "speaker", None),
        ({"text": None}, "text", None),
        ({"text": 5}, "text", None),
        ({"propensity": 0}, "propensity", 0),
        ({"propensity": 1.2}, "propensity", 1.2),
        ({"propensity": float("nan")}, "propensity", "nan"),
        ({"item_propensity": -0.1}, "item_propensity", -0.1),
        ({"strategy": "sing"}, "strategies", "sing"),
        ({"strategy": 3}, "strategies", None),
        ({"eligible_strategies": ["inform", "sing"]}, "eligible_strategies", "sing"),
        ({"eligible_strategies": ["offer"]}, "eligible_strategies", "inform"),
        ({"item_ids": "77"}, "item_ids", None),
        ({"speaker": "customer"}, "strategies", None),
    ],
)
def test_each_fault_names_field_and_value_of_enums_and_numbers_only(
    change: dict[str, Any], field: str, value: object
) -> None:
    assert faults(turn("d1", 1, **change)) == [(field, value)]


def test_all_faults_of_a_record_are_reported_at_once() -> None:
    assert [field for field, _ in faults(turn("d1", 1, turn_index=-1, speaker="bot", text=None))] == [
        "turn_index",
        "speaker",
        "text",
    ]


def test_an_unknown_strategy_says_what_to_do() -> None:
    (fault,) = validate(RawRecord("turn", turn("d1", 1, strategy="sing"), 1), STRATEGIES)

    assert "add it to the catalogue CSV" in fault.reason
    assert fault.dialogue_id == "d1"


def test_one_strategy_and_a_list_are_both_taken() -> None:
    assert row(turn("d1", 1))["strategies"] == ["inform"]
    assert row(turn("d1", 1, strategies=["inform", "offer"]))["strategies"] == ["inform", "offer"]
    assert row(turn("d1", 1, strategy=None, strategies=[]))["strategies"] is None


def test_the_action_of_several_labels_must_be_eligible() -> None:
    assert row(turn("d1", 1, strategies=["inform", "offer"], eligible_strategies=["offer"]))
    assert faults(turn("d1", 1, strategies=["inform", "offer"], eligible_strategies=["inform"]))
    assert row(turn("d1", 1, strategies=["closing"], eligible_strategies=["inform"]))


@pytest.mark.parametrize(
    "text", ["2026-01-05T12:00:00.000001Z", "2026-01-05T13:00:00.000001+01:00", "2026-01-05T12:00:00.000001"]
)
def test_times_are_microseconds_of_utc(text: str) -> None:
    assert row(outcome("d1", occurred_at=text))["occurred_at"] == 1_767_614_400_000_001


def test_unknown_fields_are_kept() -> None:
    assert row(turn("d1", 0, mood="good", extra={"page": 3}))["extra"] == {"mood": "good", "page": 3}


def test_lone_surrogates_become_writable_text() -> None:
    row(turn("d1", 0, text="a\ud800b"))["text"].encode()


def test_an_outcome_of_an_unknown_kind_is_refused_with_its_value() -> None:
    assert faults(outcome("d1", "sale", value="ten")) == [("kind", "sale"), ("value", None)]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("inform"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_FIELDS = st.sampled_from(
    [*SCHEMAS["turns"].names, *SCHEMAS["outcomes"].names, *SCHEMAS["decisions"].names, "strategy"]
)


@given(st.sampled_from(["turn", "outcome", "decision"]), st.dictionaries(_FIELDS, _JSON))
def test_whatever_a_record_holds_it_is_a_row_or_faults(kind: RecordKind, fields: dict[str, Any]) -> None:
    result = validate(RawRecord(kind, fields, 1), STRATEGIES)

    assert isinstance(result, dict) or all(isinstance(fault, Fault) for fault in result)


def test_validation_keeps_up_with_a_night() -> None:
    records = [RawRecord("turn", turn(f"d{i}", i % 20, extra=None), i) for i in range(5_000)]

    started = time.process_time()
    for record in records:
        validate(record, STRATEGIES)
    records_per_second = len(records) / (time.process_time() - started)

    # About 150,000 on an idle core; the bar leaves room for a busy machine.
    assert records_per_second > 20_000
