"""OpenAI-style chat logs: one object with `messages` per line.

Here: roles, metadata under canonical names, outcomes in `metadata.outcome`. Not here: tool calls and system prompts,
which are no turns of the dialogue and are skipped.

    {"id": "d1", "metadata": {"customer_id": "c1", "outcome": "conversion"}, "messages": [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!", "metadata": {"strategy": "greeting", "propensity": 0.5}}]}
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import orjson

from orchestration.ingest.readers.jsonlines import objects
from orchestration.ingest.readers.turns import AGENT, CUSTOMER, Outcome, Utterance, dialogue_records
from orchestration.ingest.records import Fault, RawRecord, Reader, ReaderOptions, Survey

_SPEAKERS = {"user": CUSTOMER, "assistant": AGENT}
_SKIPPED = ("system", "developer", "tool", "function")
_IDS = ("dialogue_id", "conversation_id", "id")
_TIMES = ("occurred_at", "created_at", "timestamp")
_NOT_EXTRA = {*_IDS, "customer_id", "user_id", "outcome", "outcomes"}
_DIALOGUE_FIELDS = ("segment", "channel", "locale", "policy_version")
_TURN_FIELDS = (
    "eligible_strategies",
    "propensity",
    "policy_version",
    "item_ids",
    "candidate_item_ids",
    "item_propensity",
)


def read(path: str, options: ReaderOptions) -> Iterator[RawRecord | Fault]:
    """Turns and outcomes. A dialogue without an id gets one from its content, without times a made-up one."""
    number = 0
    for line, dialogue in objects(path):
        if isinstance(dialogue, Fault):
            yield dialogue
            continue
        try:
            records, unknown = _records(line, dialogue, options, number)
        except (KeyError, TypeError, AttributeError):
            yield Fault(line, "messages", "must be a list of objects with role and content")
            continue
        number += 1
        yield from unknown
        yield from records


def survey(path: str) -> Survey:
    """Whether every message of the first dialogue carries a time; if not, the number of dialogues."""
    n_dialogues = 0
    for _, item in objects(path):
        if isinstance(item, dict) and isinstance(item.get("messages"), list):
            if n_dialogues == 0 and _has_times(item["messages"]):
                return Survey(0, has_times=True)
            n_dialogues += 1
    return Survey(n_dialogues, has_times=False)


def _records(
    line: int, dialogue: dict[str, Any], options: ReaderOptions, number: int
) -> tuple[list[RawRecord], list[Fault]]:
    metadata = {**{k: v for k, v in dialogue.items() if k not in ("messages", "metadata")}}
    metadata |= dialogue.get("metadata") or {}
    dialogue_id = next((str(metadata[name]) for name in _IDS if metadata.get(name)), None) or _made_up_id(dialogue)
    customer_id = str(metadata.get("customer_id") or metadata.get("user_id") or dialogue_id)
    messages = dialogue["messages"]
    faults = [
        Fault(line, "role", f"must be one of {', '.join((*_SPEAKERS, *_SKIPPED))}", str(m["role"])[:60], dialogue_id)
        for m in messages
        if m["role"] not in _SPEAKERS and m["role"] not in _SKIPPED
    ]
    records = dialogue_records(
        dialogue_id,
        customer_id,
        [utterance for message in messages if (utterance := _utterance(line, message)) is not None],
        _outcomes(metadata),
        options=options,
        number=number,
        common=_common(metadata),
        has_times=_has_times(messages),
    )
    return list(records), faults


def _common(metadata: dict[str, Any]) -> dict[str, Any]:
    """Fields of the dialogue that each turn repeats; those without a canonical name end in `extra`."""
    known = {name: metadata[name] for name in _DIALOGUE_FIELDS if metadata.get(name) is not None}
    rest = {k: v for k, v in metadata.items() if k not in _DIALOGUE_FIELDS and k not in _NOT_EXTRA}
    return {**known, "dialogue_metadata": rest or None}


def _utterance(line: int, message: dict[str, Any]) -> Utterance | None:
    speaker = _SPEAKERS.get(message["role"])
    text = _text(message.get("content"))
    if speaker is None or not text:
        return None
    values = {k: v for k, v in message.items() if k not in ("role", "content", "metadata")}
    values |= message.get("metadata") or {}
    fields = {name: values.pop(name) for name in _TURN_FIELDS if name in values}
    if (time := _time(values)) is not None:
        fields["occurred_at"] = time
    labels = values.pop("strategies", None) or ([values.pop("strategy")] if values.get("strategy") else [])
    extra = {k: v for k, v in values.items() if k not in _TIMES and v is not None}
    return Utterance(speaker, text, line, list(labels), fields, extra)


def _text(content: Any) -> str:
    """Content is a string, or a list of parts of which the text parts count."""
    if isinstance(content, list):
        return " ".join(str(part["text"]) for part in content if isinstance(part, dict) and part.get("text"))
    return content if isinstance(content, str) else ""


def _has_times(messages: list[dict[str, Any]]) -> bool:
    spoken = [m for m in messages if isinstance(m, dict) and m.get("role") in _SPEAKERS and _text(m.get("content"))]
    return bool(spoken) and all(_time({**m, **(m.get("metadata") or {})}) is not None for m in spoken)


def _time(values: dict[str, Any]) -> Any:
    return next((values[name] for name in _TIMES if values.get(name) is not None), None)


def _outcomes(metadata: dict[str, Any]) -> list[Outcome]:
    given = metadata.get("outcomes") or metadata.get("outcome") or []
    entries = given if isinstance(given, list) else [given]
    return [
        Outcome(entry.get("kind"), entry.get("value"), entry.get("occurred_at"))  # type: ignore[arg-type]
        if isinstance(entry, dict)
        else Outcome(entry)
        for entry in entries
    ]


def _made_up_id(dialogue: dict[str, Any]) -> str:
    return "chat-" + hashlib.blake2b(orjson.dumps(dialogue["messages"]), digest_size=8).hexdigest()


CHAT = Reader("chat", ("*.jsonl", "*.jsonl.gz", "*.jsonl.zst"), read, survey)
