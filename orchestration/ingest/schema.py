"""The canonical log: validation of one raw record, and the Arrow schemas of the landing.

Here: what a turn, an outcome and a decision must look like. Not here: reading formats (`readers`), scrubbing and
writing (`landing`).

Validation is written by hand: a night reads millions of records, and a model class per record costs ten times
as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from orchestration.ingest.records import Fault, RawRecord
from rl.catalogue import ActionCatalogue

SCHEMA_VERSION = "2"

SPEAKERS = ("agent", "customer")
OUTCOME_KINDS = ("conversion", "rejection", "abandonment", "rating", "survey")
STAGES = ("champion", "canary", "shadow", "challenger")

_TIME = pa.timestamp("us", tz="UTC")
_STRINGS = pa.list_(pa.string())


def _schema(required: dict[str, pa.DataType], nullable: dict[str, pa.DataType]) -> pa.Schema:
    tail = {"source": pa.string(), "source_row": pa.int64()}
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in required.items()]
        + [pa.field(name, kind) for name, kind in nullable.items()]
        + [pa.field(name, kind, nullable=False) for name, kind in tail.items()]
    )


SCHEMAS: dict[str, pa.Schema] = {
    "turns": _schema(
        {
            "dialogue_id": pa.string(),
            "turn_index": pa.int32(),
            "occurred_at": _TIME,
            "speaker": pa.string(),
            "text": pa.string(),
            "content_hash": pa.string(),
        },
        {
            "customer_id": pa.string(),
            "segment": pa.string(),
            "channel": pa.string(),
            "locale": pa.string(),
            "strategies": _STRINGS,
            "eligible_strategies": _STRINGS,
            "propensity": pa.float64(),
            "policy_version": pa.string(),
            "item_ids": _STRINGS,
            "candidate_item_ids": _STRINGS,
            "item_propensity": pa.float64(),
            "is_synthetic": pa.bool_(),
            "extra": pa.string(),
            "customer_act": pa.string(),
            "canonical_reply": pa.string(),
        },
    ),
    "outcomes": _schema(
        {"dialogue_id": pa.string(), "occurred_at": _TIME, "kind": pa.string()},
        {"value": pa.float64(), "is_synthetic": pa.bool_(), "extra": pa.string()},
    ),
    "decisions": _schema(
        {
            "decision_id": pa.string(),
            "dialogue_id": pa.string(),
            "turn_index": pa.int32(),
            "occurred_at": _TIME,
        },
        {
            "customer_id": pa.string(),
            "segment": pa.string(),
            "policy_version": pa.string(),
            "stage": pa.string(),
            "strategy": pa.string(),
            "probability": pa.float64(),
            "item_id": pa.string(),
            "item_probability": pa.float64(),
            "eligible_strategies": _STRINGS,
            "blocked_by": _STRINGS,
            "fallback": pa.bool_(),
        },
    ),
    "incomplete": pa.schema(
        [
            pa.field("dialogue_id", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("source_row", pa.int64(), nullable=False),
            pa.field("reason", pa.string(), nullable=False),
        ]
    ),
}
"""Landing tables by folder name. `occurred_at` is handed over as whole microseconds since 1970."""

TABLES = {"turn": "turns", "outcome": "outcomes", "decision": "decisions"}
"""Landing table by record kind."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MAX_INT32 = 2**31 - 1
_FIRST_YEAR, _LAST_YEAR = 1990, 2200
_SHOWN = 60


class _Faults(list[Fault]):
    """Faults of one record, with its line and dialogue filled in."""

    def __init__(self, record: RawRecord) -> None:
        super().__init__()
        self.line = record.line
        dialogue_id = record.fields.get("dialogue_id")
        self.dialogue_id = str(dialogue_id) if isinstance(dialogue_id, (str, int)) and dialogue_id != "" else None

    def note(self, field: str, reason: str, value: Any = None) -> None:
        self.append(Fault(self.line, field, reason, _shown(value), self.dialogue_id))


Priorities = Mapping[str, int | None]
"""Strategy → priority; None where the strategy is never an action."""


def priorities(catalogue: ActionCatalogue) -> Priorities:
    """What validation needs to know of the action catalogue."""
    return {s.strategy: s.priority if s.is_selectable else None for s in catalogue.strategies}


def validate(record: RawRecord, strategies: Priorities) -> dict[str, Any] | list[Fault]:
    """One raw record → its canonical row, or everything that is wrong with it.

    The row has the columns of the landing table without `content_hash`, `source` and `source_row`; `extra` is still
    a mapping, `text` not yet scrubbed and `customer_id` not yet a pseudonym. `strategies` are those of the catalogue.
    """
    faults = _Faults(record)
    row = _VALIDATORS[record.kind](record.fields, strategies, faults)
    return faults or row


def _turn(fields: dict[str, Any], known: Priorities, faults: _Faults) -> dict[str, Any]:
    get = fields.get
    strategies = _strategies(fields, known, faults)
    row = {
        "dialogue_id": _id(get("dialogue_id"), "dialogue_id", faults),
        "turn_index": _index(get("turn_index"), faults),
        "occurred_at": _time(get("occurred_at"), faults),
        "speaker": _one_of(get("speaker"), "speaker", SPEAKERS, faults),
        "text": _text(get("text"), faults),
        "customer_id": _optional_id(get("customer_id"), "customer_id", faults),
        "segment": _optional_text(get("segment"), "segment", faults),
        "channel": _optional_text(get("channel"), "channel", faults),
        "locale": _optional_text(get("locale"), "locale", faults),
        "strategies": strategies,
        "eligible_strategies": _eligible(get("eligible_strategies"), strategies, known, faults),
        "propensity": _probability(get("propensity"), "propensity", faults),
        "policy_version": _optional_text(get("policy_version"), "policy_version", faults),
        "item_ids": _ids(get("item_ids"), "item_ids", faults),
        "candidate_item_ids": _ids(get("candidate_item_ids"), "candidate_item_ids", faults),
        "item_propensity": _probability(get("item_propensity"), "item_propensity", faults),
        "is_synthetic": bool(get("is_synthetic", False)),
        "extra": _extra(fields, _TURN_FIELDS),
    }
    if strategies and row["speaker"] == "customer":
        faults.note("strategies", "a customer turn carries a strategy; only agent turns have one")
    return row


def _outcome(fields: dict[str, Any], known: Priorities, faults: _Faults) -> dict[str, Any]:
    get = fields.get
    return {
        "dialogue_id": _id(get("dialogue_id"), "dialogue_id", faults),
        "occurred_at": _time(get("occurred_at"), faults),
        "kind": _one_of(get("kind"), "kind", OUTCOME_KINDS, faults),
        "value": _number(get("value"), "value", faults),
        "is_synthetic": bool(get("is_synthetic", False)),
        "extra": _extra(fields, _OUTCOME_FIELDS),
    }


def _decision(fields: dict[str, Any], known: Priorities, faults: _Faults) -> dict[str, Any]:
    get = fields.get
    strategy = _optional_text(get("strategy"), "strategy", faults)
    if strategy is not None:
        _check_known([strategy], "strategy", known, faults)
    fallback = get("fallback")
    if fallback is not None and not isinstance(fallback, bool):
        faults.note("fallback", "must be true or false")
    return {
        "decision_id": _id(get("decision_id"), "decision_id", faults),
        "dialogue_id": _id(get("dialogue_id"), "dialogue_id", faults),
        "turn_index": _index(get("turn_index"), faults),
        "occurred_at": _time(get("occurred_at"), faults),
        "customer_id": _optional_id(get("customer_id"), "customer_id", faults),
        "segment": _optional_text(get("segment"), "segment", faults),
        "policy_version": _optional_text(get("policy_version"), "policy_version", faults),
        "stage": None if get("stage") is None else _one_of(get("stage"), "stage", STAGES, faults),
        "strategy": strategy,
        "probability": _probability(get("probability"), "probability", faults),
        "item_id": _optional_id(get("item_id"), "item_id", faults),
        "item_probability": _probability(get("item_probability"), "item_probability", faults),
        "eligible_strategies": _eligible(
            get("eligible_strategies"), None if strategy is None else [strategy], known, faults
        ),
        "blocked_by": _ids(get("blocked_by"), "blocked_by", faults),
        "fallback": fallback,
    }


_Validator = Callable[[dict[str, Any], Priorities, _Faults], dict[str, Any]]
_VALIDATORS: dict[str, _Validator] = {"turn": _turn, "outcome": _outcome, "decision": _decision}

_TURN_FIELDS = frozenset(SCHEMAS["turns"].names) - {"content_hash", "source", "source_row"} | {"record", "strategy"}
_OUTCOME_FIELDS = frozenset(SCHEMAS["outcomes"].names) - {"source", "source_row"} | {"record"}


def _extra(fields: dict[str, Any], known: frozenset[str]) -> dict[str, Any] | None:
    unknown = {name: value for name, value in fields.items() if name not in known and value is not None}
    given = fields.get("extra")
    if isinstance(given, dict):
        unknown = {**given, **unknown}
    elif given is not None:
        unknown["extra"] = given
    return unknown or None


def _shown(value: Any) -> str | float | int | None:
    if isinstance(value, str):
        return value[:_SHOWN]
    if isinstance(value, (bool, int, float)):
        return value if isinstance(value, bool) or not isinstance(value, float) or math.isfinite(value) else str(value)
    return None


def _numeric(value: Any) -> float | int | None:
    """A number to show; a string in a numeric field may be anything, so it is not shown."""
    return value if isinstance(value, (int, float)) else None


def _id(value: Any, field: str, faults: _Faults) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    faults.note(field, "is missing" if value in (None, "") else "must be a string")
    return ""


def _optional_id(value: Any, field: str, faults: _Faults) -> str | None:
    return None if value is None or value == "" else _id(value, field, faults)


def _index(value: Any, faults: _Faults) -> int:
    if type(value) is int and 0 <= value <= _MAX_INT32:
        return value
    if isinstance(value, float) and value.is_integer() and 0 <= value <= _MAX_INT32:
        return int(value)
    faults.note("turn_index", "is missing" if value is None else "must be a whole number of 0 or more", _numeric(value))
    return 0


def _time(value: Any, faults: _Faults) -> int:
    """Microseconds since 1970; a time without a zone is read as UTC."""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        if not _FIRST_YEAR <= moment.year < _LAST_YEAR:
            faults.note("occurred_at", f"lies outside {_FIRST_YEAR} to {_LAST_YEAR}")
        return (moment - _EPOCH) // _MICROSECOND
    except (TypeError, ValueError, OverflowError):
        reason = "is missing" if value is None else "must be an ISO 8601 time such as 2026-01-31T12:00:00Z"
        faults.note("occurred_at", reason)
        return 0


def _one_of(value: Any, field: str, allowed: tuple[str, ...], faults: _Faults) -> str:
    if value in allowed:
        return str(value)
    faults.note(field, "is missing" if value is None else f"must be one of {', '.join(allowed)}", value)
    return ""


def _text(value: Any, faults: _Faults) -> str:
    if isinstance(value, str):
        # A lone surrogate is legal in JSON and cannot be written as UTF-8.
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    faults.note("text", "is missing" if value is None else "must be a string")
    return ""


def _optional_text(value: Any, field: str, faults: _Faults) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    faults.note(field, "must be a string")
    return None


def _ids(value: Any, field: str, faults: _Faults) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, (list, tuple)) and all(isinstance(item, (str, int)) for item in value):
        return [str(item) for item in value] or None
    faults.note(field, "must be a list of strings")
    return None


def _strategies(fields: dict[str, Any], known: Priorities, faults: _Faults) -> list[str] | None:
    value = fields.get("strategies")
    if value is None:
        value = fields.get("strategy")
        value = None if value is None or value == "" else [value]
    return _labels(value, "strategies", known, faults)


def _labels(value: Any, field: str, known: Priorities, faults: _Faults) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(isinstance(label, str) for label in value):
        faults.note(field, "must be a string or a list of strings")
        return None
    _check_known(value, field, known, faults)
    return list(value) or None


def _check_known(labels: Collection[str], field: str, known: Priorities, faults: _Faults) -> None:
    for label in labels:
        if label not in known:
            faults.note(field, "is not in the action catalogue; add it to the catalogue CSV", label)


def _eligible(value: Any, strategies: list[str] | None, known: Priorities, faults: _Faults) -> list[str] | None:
    eligible = _labels(value, "eligible_strategies", known, faults)
    action = _action(strategies, known) if eligible and strategies else None
    if eligible and action is not None and action not in eligible:
        faults.note("eligible_strategies", "does not contain the logged strategy", action)
    return eligible


def _action(strategies: list[str], known: Priorities) -> str | None:
    """The label with the lowest priority number among those that can be actions; ties to the earliest."""
    ranked = [(priority, i) for i, label in enumerate(strategies) if (priority := known.get(label)) is not None]
    return strategies[min(ranked)[1]] if ranked else None


def _number(value: Any, field: str, faults: _Faults) -> float | None:
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    faults.note(field, "must be a number", _numeric(value))
    return None


def _probability(value: Any, field: str, faults: _Faults) -> float | None:
    number = _number(value, field, faults)
    if number is not None and not 0 < number <= 1:
        faults.note(field, "must lie in (0, 1]", number)
    return number
