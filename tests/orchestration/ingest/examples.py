"""One tiny made-up log per format, for tests: two dialogues, the first converts.

Here: writing the files. Not here: tests.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def turn(dialogue_id: str, turn_index: int, /, **fields: Any) -> dict[str, Any]:
    """A canonical turn with made-up content."""
    speaker = "customer" if turn_index % 2 == 0 else "agent"
    record = {
        "record": "turn",
        "dialogue_id": dialogue_id,
        "turn_index": turn_index,
        "occurred_at": f"2026-01-05T10:{turn_index:02d}:00Z",
        "speaker": speaker,
        "text": "I would like a lamp" if speaker == "customer" else "This one is bright",
        "customer_id": f"c-{dialogue_id}",
    }
    if speaker == "agent":
        record |= {"strategy": "inform", "propensity": 0.5}
    return record | fields


def outcome(dialogue_id: str, kind: str = "conversion", /, **fields: Any) -> dict[str, Any]:
    """A canonical outcome."""
    return {
        "record": "outcome",
        "dialogue_id": dialogue_id,
        "occurred_at": "2026-01-05T12:00:00Z",
        "kind": kind,
    } | fields


def write_json_lines(path: Path, records: list[Any]) -> Path:
    """JSON Lines, compressed with gzip when the name says so. Strings are written as they are."""
    text = "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records)
    return write_text(path, text)


def write_text(path: Path, text: str) -> Path:
    """Text, compressed with gzip when the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = text.encode()
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    return path


def canonical(folder: Path) -> None:
    records = [turn("d1", 0), turn("d1", 1), turn("d2", 0), turn("d2", 1), outcome("d1"), outcome("d2", "abandonment")]
    write_json_lines(folder / "arrival_day=2026-01-06" / "turns.jsonl.gz", records)


def persuasionforgood(folder: Path) -> None:
    rows = [
        ["d1", "1", "0", "Hello", "", "greeting"],
        ["d1", "0", "0", "Hi.", "greeting", ""],
        ["d1", "0", "0", "Will you give?", "proposition-of-donation", ""],
        ["d2", "1", "0", "Hello", "", "greeting"],
        ["d2", "0", "0", "Hi, friend.", "greeting", ""],
    ]
    write_text(folder / "300_dialog.csv.gz", _table(["B2", "B4", "Turn", "Unit", "er_label_1", "ee_label_1"], rows))
    info = [["d1", "u0", "0", "9"], ["d1", "u1", "1", "0.5"], ["d2", "u0", "0", "0"], ["d2", "u2", "1", "0"]]
    write_text(folder / "300_info.csv.gz", _table(["B2", "B3", "B4", "B6"], info))


def sgd(folder: Path) -> None:
    def said(speaker: str, text: str, *acts: str) -> dict[str, Any]:
        return {"speaker": speaker, "utterance": text, "frames": [{"actions": [{"act": act} for act in acts]}]}

    first = [said("USER", "A room, please", "INFORM_INTENT"), said("SYSTEM", "Booked", "NOTIFY_SUCCESS")]
    second = [said("USER", "A room, please", "INFORM_INTENT"), said("SYSTEM", "Where?", "REQUEST", "REQUEST")]
    dialogues = [
        {"dialogue_id": "d1", "services": ["Hotels_1"], "turns": first},
        {"dialogue_id": "d2", "services": ["Hotels_1"], "turns": second},
    ]
    write_text(folder / "train" / "dialogues_001.json.gz", json.dumps(dialogues, indent=1))


def inspired(folder: Path) -> None:
    columns = ["dialog_id", "speaker", "text", "expert_label", "fine_label"]
    rows = [
        ["d1", "SEEKER", 'A film with a " in it', "", "accept_rating_good"],
        ["d1", "RECOMMENDER", "See QUOTATION_MARKThisQUOTATION_MARK", "offer_help", "accept_rating_good"],
        ["d2", "SEEKER", "Hello", "", "accept_others"],
        ["d2", "RECOMMENDER", "Hi", "no_strategy", "accept_others"],
    ]
    text = "".join("\t".join(row) + "\n" for row in [columns, *rows])
    write_text(folder / "dev.tsv.gz", text)


def redial(folder: Path) -> None:
    def dialogue(number: int, form: Any) -> dict[str, Any]:
        return {
            "conversationId": f"d{number}",
            "initiatorWorkerId": 1,
            "respondentWorkerId": 2,
            "movieMentions": {"77": "Example (2001)"},
            "initiatorQuestions": form,
            "messages": [
                {"senderWorkerId": 1, "text": "Hello"},
                {"senderWorkerId": 2, "text": "Hi."},
                {"senderWorkerId": 2, "text": "See @77"},
            ],
        }

    liked = {"77": {"suggested": 1, "seen": 0, "liked": 1}}
    seen = {"77": {"suggested": 1, "seen": 1, "liked": 1}}
    write_json_lines(folder / "part.jsonl.gz", [dialogue(1, liked), dialogue(2, seen), dialogue(3, [])])


def convokit(folder: Path) -> None:
    def said(name: str, conversation: str, text: str, **meta: Any) -> dict[str, Any]:
        return {"id": text, "speaker": name, "conversation_id": conversation, "text": text, "meta": meta}

    utterances = [
        said("ann", "d1", "Hello"),
        said("bob", "d1", "Hi", strategy="greeting"),
        said("cyd", "d2", "Hello there"),
        said("bob", "d2", "Hi there", strategy="greeting"),
    ]
    write_json_lines(folder / "utterances.jsonl", utterances)
    outcomes = {"d1": {"meta": {"outcome": "conversion"}}, "d2": {"meta": {"outcome": "rejection"}}}
    write_text(folder / "conversations.json", json.dumps(outcomes))
    write_text(folder / "speakers.json", json.dumps({"bob": {"meta": {"role": "agent"}}}))


def chat(folder: Path) -> None:
    def dialogue(number: int, kind: str) -> dict[str, Any]:
        return {
            "id": f"d{number}",
            "metadata": {"outcome": kind, "campaign": "winter"},
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hello"},
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "Hi"}],
                    "metadata": {"strategy": "greeting"},
                },
            ],
        }

    write_json_lines(folder / "chat.jsonl", [dialogue(1, "conversion"), dialogue(2, "rejection")])


WRITERS: dict[str, Callable[[Path], None]] = {
    "canonical": canonical,
    "persuasionforgood": persuasionforgood,
    "sgd": sgd,
    "inspired": inspired,
    "redial": redial,
    "convokit": convokit,
    "chat": chat,
}

CATALOGUES = {
    "canonical": "conversation",
    "persuasionforgood": "persuasionforgood",
    "sgd": "sgd",
    "inspired": "inspired",
    "redial": "redial",
    "convokit": "conversation",
    "chat": "conversation",
}


def _table(columns: list[str], rows: list[list[str]]) -> str:
    stream = io.StringIO()
    csv.writer(stream).writerows([columns, *rows])
    return stream.getvalue()
