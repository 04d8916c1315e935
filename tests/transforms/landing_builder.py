"""Writes small landing folders for warehouse tests, in the form that ingest writes."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl.files import content_hash, write_json

START = datetime(2026, 1, 1, 12)
LIST = pa.list_(pa.string())
TIME = pa.timestamp("us", tz="UTC")
ARRIVAL = [("source", pa.string()), ("source_row", pa.int64())]
SCHEMAS = {
    "turns": pa.schema(
        [
            ("dialogue_id", pa.string()),
            ("turn_index", pa.int32()),
            ("occurred_at", TIME),
            ("speaker", pa.string()),
            ("text", pa.string()),
            ("content_hash", pa.string()),
            ("customer_id", pa.string()),
            ("segment", pa.string()),
            ("channel", pa.string()),
            ("locale", pa.string()),
            ("strategies", LIST),
            ("eligible_strategies", LIST),
            ("propensity", pa.float64()),
            ("policy_version", pa.string()),
            ("item_ids", LIST),
            ("candidate_item_ids", LIST),
            ("item_propensity", pa.float64()),
            ("is_synthetic", pa.bool_()),
            ("extra", pa.string()),
            ("customer_act", pa.string()),
            ("canonical_reply", pa.string()),
            *ARRIVAL,
        ]
    ),
    "outcomes": pa.schema(
        [
            ("dialogue_id", pa.string()),
            ("occurred_at", TIME),
            ("kind", pa.string()),
            ("value", pa.float64()),
            ("is_synthetic", pa.bool_()),
            ("extra", pa.string()),
            *ARRIVAL,
        ]
    ),
    "decisions": pa.schema(
        [
            ("decision_id", pa.string()),
            ("dialogue_id", pa.string()),
            ("turn_index", pa.int32()),
            ("occurred_at", TIME),
            ("customer_id", pa.string()),
            ("segment", pa.string()),
            ("policy_version", pa.string()),
            ("stage", pa.string()),
            ("strategy", pa.string()),
            ("probability", pa.float64()),
            ("item_id", pa.string()),
            ("item_probability", pa.float64()),
            ("eligible_strategies", LIST),
            ("blocked_by", LIST),
            ("fallback", pa.bool_()),
            *ARRIVAL,
        ]
    ),
    "incomplete": pa.schema([("dialogue_id", pa.string()), *ARRIVAL, ("reason", pa.string())]),
}
STRATEGIES = [
    ("greet", 9, "fallback"),
    ("offer", 1, "selectable"),
    ("inquire", 1, "selectable"),
    ("thank", 0, "after_decision"),
    ("booked", 0, "outcome"),
]

Row = dict[str, Any]


def write_catalogue(path: Path) -> Path:
    """The five strategies of these tests, as orchestration writes them for dbt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["strategy_id", "strategy", "description", "priority", "role"])
        writer.writerows(
            [i, name, "Says, in short, something.", p, role] for i, (name, p, role) in enumerate(STRATEGIES)
        )
    return path


def empty_landing(landing: Path) -> Path:
    """The schema-only files that every landing folder has."""
    for kind, schema in SCHEMAS.items():
        folder = landing / kind / "arrival_day=1970-01-01"
        folder.mkdir(parents=True)
        pq.write_table(schema.empty_table(), folder / "empty.parquet")
    return landing


def land(landing: Path, arrival_day: str, **kinds: Iterable[Row]) -> str:
    """Land the rows of one source file (turns=..., outcomes=...) and commit it; returns its source name."""
    rows_by_kind = {kind: list(rows) for kind, rows in kinds.items()}
    source = content_hash(f"{arrival_day}{rows_by_kind}".encode())[:16]
    for kind, rows in rows_by_kind.items():
        complete = [
            {**dict.fromkeys(SCHEMAS[kind].names), **row, "source": source, "source_row": number}
            for number, row in enumerate(rows)
        ]
        folder = landing / kind / f"arrival_day={arrival_day}"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(complete, schema=SCHEMAS[kind]), folder / f"{source}.parquet")
    write_json(landing / "_files" / f"{source}.json", {"arrival_day": arrival_day})
    return source


def turn(dialogue: str, index: int, at: datetime, *labels: str, **fields: Any) -> Row:
    """A turn: the agent's where labels are given or `speaker` says so, else the customer's."""
    speaker = fields.pop("speaker", "agent" if labels else "customer")
    return {
        "dialogue_id": dialogue,
        "turn_index": index,
        "occurred_at": at + timedelta(seconds=10 * index),
        "speaker": speaker,
        "text": "words",
        "content_hash": content_hash(f"{dialogue}{index}".encode()),
        "strategies": list(labels) or None,
        "is_synthetic": False,
        **fields,
    }


def outcome(dialogue: str, at: datetime, kind: str = "conversion", value: float | None = 5.0) -> Row:
    """An outcome record."""
    return {"dialogue_id": dialogue, "occurred_at": at, "kind": kind, "value": value, "is_synthetic": False}


def dialogue(name: str, at: datetime, n_pairs: int = 3, **fields: Any) -> list[Row]:
    """`n_pairs` pairs of an agent turn (inquire, then offers) and the customer's answer."""
    labels = ["inquire", *["offer"] * (n_pairs - 1)]
    pairs = zip(range(0, 2 * n_pairs, 2), labels, strict=True)
    logged = {
        "propensity": 0.4,
        "policy_version": "v1",
        "eligible_strategies": ["offer", "inquire"],
        **fields,
    }
    shared = {key: logged[key] for key in ("customer_id", "segment") if key in logged}
    return [row for i, label in pairs for row in (turn(name, i, at, label, **logged), turn(name, i + 1, at, **shared))]
