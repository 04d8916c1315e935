"""Schema-Guided Dialogue (Rastogi et al., 2020): search, offer, buy or book.

Here: the `dialogues_*.json` files. Not here: slots and states, which the platform does not use.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestration.ingest.readers.files import JsonItems
from orchestration.ingest.readers.turns import AGENT, CUSTOMER, Outcome, Utterance, dialogue_records
from orchestration.ingest.records import Fault, RawRecord, Reader, ReaderOptions, Survey


def read(path: str, options: ReaderOptions) -> Iterator[RawRecord | Fault]:
    """Turns with the system's acts; conversion after NOTIFY_SUCCESS, rejection after NOTIFY_FAILURE, else abandonment.

    `line` is the position of the dialogue in its file; `segment` is the first service without its number.
    """
    items = JsonItems(path)
    for number, dialogue in enumerate(items):
        try:
            dialogue_id = dialogue["dialogue_id"]
            utterances = [_utterance(number + 1, turn) for turn in dialogue["turns"]]
            segment = str(dialogue["services"][0]).rsplit("_", 1)[0] if dialogue.get("services") else None
        except (KeyError, TypeError, IndexError, AttributeError):
            yield Fault(number + 1, "dialogue", "lacks dialogue_id, turns, speaker, utterance or frames")
            continue
        yield from dialogue_records(
            dialogue_id,
            dialogue_id,
            utterances,
            [_outcome(utterances)],
            options=options,
            number=number,
            common={"segment": segment},
        )
    if items.fault:
        yield items.fault


def survey(path: str) -> Survey:
    """Number of dialogues; the set has no times."""
    return Survey(sum(1 for _ in JsonItems(path)), has_times=False)


def _utterance(line: int, turn: dict[str, Any]) -> Utterance:
    acts = list(dict.fromkeys(action["act"] for frame in turn["frames"] for action in frame["actions"]))
    if turn["speaker"] == "USER":
        return Utterance(CUSTOMER, turn["utterance"], line, extra={"customer_labels": acts} if acts else {})
    return Utterance(AGENT, turn["utterance"], line, acts)


def _outcome(utterances: list[Utterance]) -> Outcome:
    acts = {act for utterance in utterances for act in utterance.labels}
    if "NOTIFY_SUCCESS" in acts:
        return Outcome("conversion")
    return Outcome("rejection" if "NOTIFY_FAILURE" in acts else "abandonment")


SGD = Reader("sgd", ("dialogues_*.json", "dialogues_*.json.gz"), read, survey)
