"""A workspace as ingest and the warehouse leave it, small and made here, with a text encoder that needs no model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from rl.catalogue import ActionCatalogue, Strategy
from rl.datasets.build import BuildSettings
from rl.encoders.customer_replies import customer_act
from rl.encoders.encode import as_hashes, write_shard
from rl.encoders.static import StaticEncoder
from rl.files import content_hash

WORDS = ("hello", "offer", "price", "blue", "red", "yes", "no", "later", "thanks", "why")
CATALOGUE = ActionCatalogue(
    (
        Strategy("greet", "", 3, "selectable"),
        Strategy("inquire", "", 2, "fallback"),
        Strategy("offer", "", 1, "selectable"),
        Strategy("close", "", 9, "after_decision"),
    )
)
FIRST_DAY = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass
class Workspace:
    """The folder, the settings that build it, and the dialogues as Python objects."""

    folder: Path
    settings: BuildSettings
    dialogues: list[dict[str, Any]]


def word_encoder(dimensions: int = 8) -> StaticEncoder:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(("[UNK]", *WORDS))}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vectors = np.random.default_rng(0).normal(size=(len(WORDS) + 1, dimensions)).astype(np.float16)
    return StaticEncoder(vectors, tokenizer, "test")


def make_dialogues(n_days: int, n_per_day: int, seed: int = 0) -> list[dict[str, Any]]:
    """Dialogues of 1 to 4 agent turns that alternate with the customer, who begins every second one."""
    rng = np.random.default_rng(seed)
    names = [s.strategy for s in CATALOGUE.strategies if s.is_selectable]
    dialogues = []
    for k in range(n_days * n_per_day):
        started = FIRST_DAY + timedelta(days=k // n_per_day, minutes=k % n_per_day)
        n_agent = int(rng.integers(1, 5))
        speakers = ["customer"] * (k % 2) + ["agent", "customer"] * n_agent
        turns = [
            {"speaker": speaker, "text": " ".join(rng.choice(WORDS, size=3))}
            | ({"strategies": [str(rng.choice(names))]} if speaker == "agent" else {})
            for speaker in speakers
        ]
        dialogues.append(
            {
                "dialogue_id": f"d{k}",
                "customer_id": None if k % 5 == 0 else f"c{k % 37}",
                "segment": ("new", "loyal", None)[k % 3],
                "started_at": started,
                "turns": turns,
                "is_truncated": k % 4 == 0,
                "is_mature": True,
                "is_incomplete": False,
                "eligible": None if k % 2 else names,
                "propensity": None if k % 7 == 0 else 1 / 3,
            }
        )
    return dialogues


def write_marts(folder: Path, dialogues: list[dict[str, Any]]) -> None:
    by_day: dict[str, list[dict[str, Any]]] = {}
    for dialogue in dialogues:
        by_day.setdefault(dialogue["started_at"].date().isoformat(), []).append(dialogue)
    for day, of_day in by_day.items():
        rows = [_rows(dialogue) for dialogue in of_day]
        for model, schema in SCHEMAS.items():
            path = folder / "marts" / model / f"day={day}" / "part-0.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = [row for of_dialogue in rows for row in of_dialogue[model]]
            pq.write_table(pa.Table.from_pylist(table[::-1], schema=schema), path)


def _rows(dialogue: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    turns, key = dialogue["turns"], dialogue["dialogue_id"]
    agent = [i for i, turn in enumerate(turns) if turn["speaker"] == "agent"]
    steps = [
        {
            "dialogue_id": key,
            "step_index": step,
            "turn_index": i,
            "strategy": turns[i]["strategies"][0],
            "eligible_strategies": dialogue["eligible"],
            "propensity": dialogue["propensity"],
            "policy_version": "v1",
            "item_id": "item" if step else None,
            "state_bucket": f"turn_{step}",
            "reward": 2.0 if i == agent[-1] else 0.0,
            "reward_conversion_value": 2.0 if i == agent[-1] else 0.0,
            "reward_conversion": 1.0 if i == agent[-1] else 0.0,
            "is_last_step": i == agent[-1],
            "is_terminated": i == agent[-1] and not dialogue["is_truncated"],
            "is_truncated": i == agent[-1] and dialogue["is_truncated"],
        }
        for step, i in enumerate(agent)
    ]
    usable = dialogue["is_mature"] and not dialogue["is_incomplete"]
    fields = ("dialogue_id", "customer_id", "segment", "started_at", "is_mature", "is_incomplete")
    summary = {name: dialogue[name] for name in fields}
    summary |= {"n_turns": len(turns), "n_steps": len(agent), "n_unlabelled_steps": 0, "is_usable": usable}
    summary["has_one_customer"] = dialogue["customer_id"] is not None
    said = [
        {
            "dialogue_id": key,
            "turn_index": i,
            "speaker": turn["speaker"],
            "content_hash": content_hash(turn["text"].encode()),
            "customer_act": customer_act(turn["text"]) if turn["speaker"] == "customer" else None,
        }
        for i, turn in enumerate(turns)
    ]
    return {"fct_transitions": steps, "fct_dialogues": [summary], "fct_turns": said}


_STRING, _BOOL, _INT, _DOUBLE = pa.string(), pa.bool_(), pa.int32(), pa.float64()
SCHEMAS = {
    "fct_transitions": pa.schema(
        {
            "dialogue_id": _STRING, "step_index": _INT, "turn_index": _INT, "strategy": _STRING,
            "eligible_strategies": pa.list_(_STRING), "propensity": _DOUBLE, "policy_version": _STRING,
            "item_id": _STRING, "state_bucket": _STRING, "reward": _DOUBLE, "reward_conversion_value": _DOUBLE,
            "reward_conversion": _DOUBLE, "is_last_step": _BOOL, "is_terminated": _BOOL, "is_truncated": _BOOL,
        }
    ),
    "fct_dialogues": pa.schema(
        {
            "dialogue_id": _STRING, "customer_id": _STRING, "segment": _STRING,
            "started_at": pa.timestamp("us", "UTC"), "n_turns": _INT, "n_steps": _INT,
            "n_unlabelled_steps": _INT, "is_mature": _BOOL, "is_incomplete": _BOOL, "is_usable": _BOOL,
            "has_one_customer": _BOOL,
        }
    ),
    "fct_turns": pa.schema(
        {
            "dialogue_id": _STRING, "turn_index": _INT, "speaker": _STRING, "content_hash": _STRING,
            "customer_act": _STRING,
        }
    ),
}  # fmt: skip


@pytest.fixture
def make_workspace(tmp_path: Path) -> Callable[..., Workspace]:
    def make(dialogues: list[dict[str, Any]] | None = None) -> Workspace:
        dialogues = make_dialogues(4, 30) if dialogues is None else dialogues
        write_marts(tmp_path, dialogues)
        encoder = word_encoder()
        encoder.save(tmp_path / "encoders" / encoder.encoder_id)
        texts = sorted({turn["text"] for dialogue in dialogues for turn in dialogue["turns"]})
        hashes = as_hashes([content_hash(text.encode()) for text in texts])
        write_shard(tmp_path / "features" / encoder.encoder_id, hashes, encoder.encode(texts))
        (tmp_path / "catalogue.json").write_text(json.dumps(CATALOGUE.to_json()))
        settings = BuildSettings(
            encoder=tmp_path / "encoders" / encoder.encoder_id, catalogue=tmp_path / "catalogue.json"
        )
        return Workspace(tmp_path, settings, dialogues)

    return make


@pytest.fixture
def new_dialogues() -> Callable[..., list[dict[str, Any]]]:
    return make_dialogues
