"""ReDial (Li et al., NeurIPS 2018): movie recommendation with a form on each movie that was mentioned.

Here: both shapes in circulation (separate messages, and messages already merged by sender). Not here: strategies;
the set has none, so its dialogues enter no data set until someone labels them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from orchestration.ingest.readers.jsonlines import objects
from orchestration.ingest.readers.turns import AGENT, CUSTOMER, Outcome, Utterance, dialogue_records
from orchestration.ingest.records import Fault, RawRecord, Reader, ReaderOptions, Survey

_MENTION = re.compile(r"@(\d+)")


def read(path: str, options: ReaderOptions) -> Iterator[RawRecord | Fault]:
    """Turns with the movies mentioned in them; conversion when a suggested, unseen movie was liked, else rejection.

    A dialogue whose seeker filled no form has no outcome. `@id` in a text becomes the movie's title.
    """
    number = 0
    for line, dialogue in objects(path):
        if isinstance(dialogue, Fault):
            yield dialogue
            continue
        try:
            records = _records(line, dialogue, options, number)
        except (KeyError, TypeError, AttributeError):
            yield Fault(line, "dialogue", "lacks conversationId, messages, senderWorkerId or initiatorWorkerId")
            continue
        number += 1
        yield from records


def survey(path: str) -> Survey:
    """Number of dialogues; the time offsets of one shape are no times."""
    return Survey(sum(1 for _, item in objects(path) if isinstance(item, dict)), has_times=False)


def _records(line: int, dialogue: dict[str, Any], options: ReaderOptions, number: int) -> list[RawRecord]:
    seeker = dialogue["initiatorWorkerId"]
    # An empty mapping is written as [].
    titles = dialogue.get("movieMentions") or {}
    utterances = [_utterance(line, message, seeker, titles) for message in dialogue["messages"]]
    outcomes = _outcomes(dialogue.get("initiatorQuestions") or {})
    return list(
        dialogue_records(
            str(dialogue["conversationId"]), str(seeker), utterances, outcomes, options=options, number=number
        )
    )


def _utterance(line: int, message: dict[str, Any], seeker: Any, titles: dict[str, str | None]) -> Utterance:
    movies = list(dict.fromkeys(_MENTION.findall(message["text"])))
    text = _MENTION.sub(lambda found: titles.get(found[1]) or found[0], message["text"])
    speaker = CUSTOMER if message["senderWorkerId"] == seeker else AGENT
    return Utterance(speaker, text, line, fields={"item_ids": movies} if movies else {})


def _outcomes(form: dict[str, dict[str, int]]) -> list[Outcome]:
    if not form:
        return []
    liked = any(a["suggested"] == 1 and a["seen"] == 0 and a["liked"] == 1 for a in form.values())
    return [Outcome("conversion" if liked else "rejection")]


REDIAL = Reader("redial", ("*.jsonl", "*.jsonl.gz"), read, survey)
