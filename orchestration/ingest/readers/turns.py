"""What the readers of public sets share: joining utterances into turns, and made-up times.

Here: turning one dialogue into canonical records. Not here: any one format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from orchestration.ingest.records import RawRecord, ReaderOptions

SECONDS_PER_TURN = 10
MINUTES_PER_DIALOGUE = 1

AGENT, CUSTOMER = "agent", "customer"


@dataclass
class Utterance:
    """One message or sentence: who said it, what, under which labels; `fields` are further canonical fields."""

    speaker: str
    text: str
    line: int
    labels: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a dialogue came to."""

    kind: str
    value: float | None = None
    occurred_at: Any = None
    extra: dict[str, Any] | None = None


def joined_turns(utterances: Iterable[Utterance]) -> Iterator[Utterance]:
    """Consecutive utterances of one speaker as one turn: texts joined by a space, labels in order without repeats.

    Lists among `fields` and `extra` are joined; of other values the first wins.
    """
    turn: Utterance | None = None
    for utterance in utterances:
        if turn is None or utterance.speaker != turn.speaker:
            if turn is not None:
                yield turn
            turn = Utterance(utterance.speaker, utterance.text, utterance.line)
        else:
            turn.text = f"{turn.text} {utterance.text}"
        turn.labels += [label for label in utterance.labels if label not in turn.labels]
        turn.fields = _joined(turn.fields, utterance.fields)
        turn.extra = _joined(turn.extra, utterance.extra)
    if turn is not None:
        yield turn


def dialogue_records(
    dialogue_id: str,
    customer_id: str,
    utterances: Iterable[Utterance],
    outcomes: Iterable[Outcome],
    *,
    options: ReaderOptions,
    number: int,
    common: dict[str, Any] | None = None,
    has_times: bool = False,
) -> Iterator[RawRecord]:
    """The canonical records of one dialogue, the `number`-th of its file.

    Without times of its own, dialogue k of the source starts k minutes after the start date, a turn comes every ten
    seconds, and the outcomes come with the last turn; such records are marked synthetic.
    """
    started_at = options.start + timedelta(minutes=MINUTES_PER_DIALOGUE * (options.first_dialogue + number))
    last_time: Any = started_at
    line = 1
    for turn_index, turn in enumerate(joined_turns(utterances)):
        made_up = started_at + timedelta(seconds=SECONDS_PER_TURN * turn_index)
        last_time = turn.fields.get("occurred_at", made_up) if has_times else made_up
        line = turn.line
        fields = {
            **(common or {}),
            **turn.fields,
            "dialogue_id": dialogue_id,
            "turn_index": turn_index,
            "occurred_at": last_time,
            "speaker": turn.speaker,
            "text": turn.text,
            "customer_id": customer_id,
            "strategies": turn.labels or None,
            "is_synthetic": not has_times,
            "extra": turn.extra or None,
        }
        yield RawRecord("turn", fields, turn.line)
    for outcome in outcomes:
        yield _outcome_record(dialogue_id, outcome, last_time, line, has_times)


def _outcome_record(
    dialogue_id: str, outcome: Outcome, last_time: datetime | Any, line: int, has_times: bool
) -> RawRecord:
    occurred_at = outcome.occurred_at if has_times and outcome.occurred_at is not None else last_time
    fields = {
        "dialogue_id": dialogue_id,
        "occurred_at": occurred_at,
        "kind": outcome.kind,
        "value": outcome.value,
        "is_synthetic": not has_times,
        "extra": outcome.extra,
    }
    return RawRecord("outcome", fields, line)


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    if not first or not second:
        return first or second
    joined = {**second, **first}
    for name in first.keys() & second.keys():
        if isinstance(first[name], list) and isinstance(second[name], list):
            joined[name] = first[name] + [item for item in second[name] if item not in first[name]]
    return joined
