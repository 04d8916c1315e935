"""ConvoKit corpora: a folder with utterances.jsonl, conversations.json and speakers.json.

Here: finding out who is the agent, and outcomes in the conversations' metadata. Not here: replies as trees; the
utterances of a conversation count in file order.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from orchestration.ingest.readers.files import CUT_OFF, read_json
from orchestration.ingest.readers.jsonlines import objects
from orchestration.ingest.readers.turns import AGENT, CUSTOMER, Outcome, Utterance, dialogue_records
from orchestration.ingest.records import Fault, RawRecord, Reader, ReaderOptions, Survey
from orchestration.ingest.schema import OUTCOME_KINDS

_CONVERSATIONS, _SPEAKERS = "conversations.json", "speakers.json"
_ROLES = {
    **dict.fromkeys(("agent", "assistant", "system", "recommender", "persuader", "seller", "wizard", "support"), AGENT),
    **dict.fromkeys(("customer", "user", "seeker", "persuadee", "buyer", "client"), CUSTOMER),
}
_ROLE_FIELDS = ("role", "speaker_type", "speaker_role")
_LABEL_FIELDS = ("strategies", "strategy")


def read(path: str, options: ReaderOptions) -> Iterator[RawRecord | Fault]:
    """Turns and outcomes of every conversation.

    The agent is known by `role` in the metadata of the utterance or of the speaker; failing that, whoever speaks
    first is the customer. Outcomes: `outcome` in the conversation's metadata (a kind, or an object with kind and
    value). `timestamp` counts as seconds since 1970, where every utterance of the conversation has one above zero.
    """
    folder = path.rsplit("/", 1)[0]
    speakers, conversations = _companion(folder, _SPEAKERS), _companion(folder, _CONVERSATIONS)
    for name, content in ((_SPEAKERS, speakers), (_CONVERSATIONS, conversations)):
        if content is None:
            yield Fault(1, "file", f"{name}: {CUT_OFF}", is_whole_file=True)
    dialogues: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for line, utterance in objects(path):
        if isinstance(utterance, Fault):
            yield utterance
        elif fault := _fault(line, utterance):
            yield fault
        else:
            dialogues.setdefault(_conversation_id(utterance), []).append((line, utterance))
    for number, (dialogue_id, numbered) in enumerate(dialogues.items()):
        metadata = _metadata((conversations or {}).get(dialogue_id))
        yield from _records(dialogue_id, numbered, metadata, speakers or {}, options, number)


def survey(path: str) -> Survey:
    """Whether the first utterance carries a time; if not, the number of conversations."""
    ids: set[str] = set()
    for line, item in objects(path):
        if isinstance(item, dict) and _fault(line, item) is None:
            if not ids and _time(item) is not None:
                return Survey(0, has_times=True)
            ids.add(_conversation_id(item))
    return Survey(len(ids), has_times=False)


def _records(
    dialogue_id: str,
    numbered: list[tuple[int, dict[str, Any]]],
    metadata: dict[str, Any],
    speakers: dict[str, Any],
    options: ReaderOptions,
    number: int,
) -> Iterator[RawRecord]:
    first = _speaker_id(numbered[0][1])
    utterances, customers = [], []
    for line, raw in numbered:
        role = _role(raw, speakers) or (CUSTOMER if _speaker_id(raw) == first else AGENT)
        utterances.append(_utterance(line, raw, role))
        if role == CUSTOMER:
            customers.append(_speaker_id(raw))
    rest = {k: v for k, v in metadata.items() if k not in ("outcome", "segment", "channel", "locale")}
    common = {name: metadata.get(name) for name in ("segment", "channel", "locale")}
    yield from dialogue_records(
        dialogue_id,
        customers[0] if customers else dialogue_id,
        utterances,
        _outcomes(metadata.get("outcome")),
        options=options,
        number=number,
        common={**common, "conversation_metadata": rest or None},
        has_times=all(_time(raw) is not None for _, raw in numbered),
    )


def _utterance(line: int, raw: dict[str, Any], role: str) -> Utterance:
    meta = _metadata(raw)
    given: Any = next((meta[name] for name in _LABEL_FIELDS if meta.get(name)), [])
    labels = (given if isinstance(given, list) else [given]) if role == AGENT else []
    time = _time(raw)
    extra = {k: v for k, v in meta.items() if k not in (*_LABEL_FIELDS, *_ROLE_FIELDS) and v is not None}
    return Utterance(role, raw["text"], line, labels, {} if time is None else {"occurred_at": time}, extra)


def _fault(line: int, raw: dict[str, Any]) -> Fault | None:
    if not isinstance(_speaker_id(raw), str):
        return Fault(line, "speaker", "is missing")
    if not isinstance(_conversation_id(raw), str):
        return Fault(line, "conversation_id", "is missing")
    if not isinstance(raw.get("text"), str):
        return Fault(line, "text", "must be a string", dialogue_id=_conversation_id(raw))
    return None


def _conversation_id(raw: dict[str, Any]) -> Any:
    # `root` and `user` are the names of older corpora.
    return raw.get("conversation_id") or raw.get("root")


def _speaker_id(raw: dict[str, Any]) -> Any:
    return raw.get("speaker") or raw.get("user")


def _metadata(item: Any) -> dict[str, Any]:
    meta = item.get("meta", {}) if isinstance(item, dict) else {}
    return meta if isinstance(meta, dict) else {}


def _role(raw: dict[str, Any], speakers: dict[str, Any]) -> str | None:
    for meta in (_metadata(raw), _metadata(speakers.get(_speaker_id(raw)))):
        for name in _ROLE_FIELDS:
            if role := _ROLES.get(str(meta.get(name, "")).lower()):
                return role
    return None


def _time(raw: dict[str, Any]) -> datetime | None:
    try:
        seconds = float(raw.get("timestamp") or 0)
        return datetime.fromtimestamp(seconds, UTC) if seconds > 0 else None
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _outcomes(given: Any) -> list[Outcome]:
    if isinstance(given, dict):
        return [Outcome(given.get("kind"), given.get("value"))]  # type: ignore[arg-type]
    return [Outcome(given)] if given in OUTCOME_KINDS else []


def _companion(folder: str, name: str) -> dict[str, Any] | None:
    """Content of a file beside the utterances: empty when there is none, None when it is damaged."""
    try:
        content = read_json(f"{folder}/{name}")
    except FileNotFoundError:
        return {}
    return content if isinstance(content, dict) else None


CONVOKIT = Reader("convokit", ("utterances.jsonl", "utterances.jsonl.gz"), read, survey, (_CONVERSATIONS, _SPEAKERS))
