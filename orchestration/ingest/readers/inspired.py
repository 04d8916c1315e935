"""INSPIRED and INSPIRED2 (Hayati et al., 2020; Manzoor and Jannach, 2022): movie recommendation, sociable strategies.

Here: their tab-separated files. Not here: the strategies' descriptions (the catalogue CSV).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from orchestration.ingest.readers.tables import Row, TableRows, by_dialogue
from orchestration.ingest.readers.turns import AGENT, CUSTOMER, Outcome, Utterance, dialogue_records
from orchestration.ingest.records import Fault, RawRecord, Reader, ReaderOptions, Survey

_COLUMNS = ("dialog_id", "speaker", "text")
_ACCEPTED = "accept_rating_good"
# Column of the first label: INSPIRED2, then INSPIRED.
_FIRST_LABELS = ("expert_label", "first_label")


def read(path: str, options: ReaderOptions) -> Iterator[RawRecord | Fault]:
    """Turns of both sides; conversion only where the trailer was accepted and then rated well, else rejection."""
    rows = _rows(path)
    for number, (dialogue_id, numbered) in enumerate(by_dialogue(rows, "dialog_id")):
        utterances = [_utterance(line, row) for line, row in numbered]
        outcomes = _outcomes(numbered[-1][1])
        yield from dialogue_records(dialogue_id, dialogue_id, utterances, outcomes, options=options, number=number)
    if rows.fault:
        yield rows.fault


def survey(path: str) -> Survey:
    """Number of dialogues; the set has no times."""
    return Survey(sum(1 for _ in by_dialogue(_rows(path), "dialog_id")), has_times=False)


def _rows(path: str) -> TableRows:
    # The files quote nothing; a lone quotation mark in a text would swallow the lines after it.
    return TableRows(path, _COLUMNS, delimiter="\t", quoting=csv.QUOTE_NONE)


def _utterance(line: int, row: Row) -> Utterance:
    text = row["text"].replace("QUOTATION_MARK", '"')
    if row["speaker"] != "RECOMMENDER":
        return Utterance(CUSTOMER, text, line)
    first = next((row[name] for name in _FIRST_LABELS if row.get(name)), "")
    labels = [label for label in (first.strip(), row.get("second_label", "").strip()) if label]
    return Utterance(AGENT, text, line, labels)


def _outcomes(row: Row) -> list[Outcome]:
    fine = row.get("fine_label", "")
    if not fine:
        return []
    extra = {name: row[name] for name in ("fine_label", "coarse_label", "movie_id") if row.get(name)}
    return [Outcome("conversion" if fine == _ACCEPTED else "rejection", extra=extra)]


INSPIRED = Reader("inspired", ("*.tsv", "*.tsv.gz"), read, survey)
