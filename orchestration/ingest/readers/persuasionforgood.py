"""PersuasionForGood (Wang et al., ACL 2019): a persuader asks for a donation; dollars given are the outcome.

Here: `300_dialog.csv.gz` with `300_info.csv.gz` beside it. Not here: the labels' roles (the catalogue CSV).
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestration.ingest.readers.tables import Row, TableRows, by_dialogue
from orchestration.ingest.readers.turns import AGENT, CUSTOMER, Outcome, Utterance, dialogue_records
from orchestration.ingest.records import Fault, RawRecord, Reader, ReaderOptions, Survey

_INFO = "300_info.csv.gz"
_COLUMNS = ("B2", "B4", "Unit", "er_label_1")
_PERSUADEE = "1"
# Two second labels carry a name that is none of the 27.
_SPELLINGS = {"non-personal-Task-related-inquiry": "task-related-inquiry"}


def read(path: str, options: ReaderOptions) -> Iterator[RawRecord | Fault]:
    """Turns of both sides; conversion with the dollars that the persuadee gave, or rejection."""
    info = TableRows(f"{path.rsplit('/', 1)[0]}/{_INFO}", ("B2", "B3", "B4", "B6"))
    try:
        persuadees = {row["B2"]: row for _, row in info if row["B4"] == _PERSUADEE}
    except FileNotFoundError:
        yield Fault(1, "file", f"{_INFO} is not beside it, and it holds the outcomes", is_whole_file=True)
        persuadees = {}
    if info.fault:
        yield info.fault
    rows = TableRows(path, _COLUMNS)
    for number, (dialogue_id, numbered) in enumerate(by_dialogue(rows, "B2")):
        persuadee = persuadees.get(dialogue_id)
        if persuadee is None:
            yield Fault(numbered[0][0], "outcome", f"the dialogue is not in {_INFO}", dialogue_id=dialogue_id)
        outcomes = [] if persuadee is None else [_outcome(persuadee["B6"])]
        customer = dialogue_id if persuadee is None else persuadee["B3"]
        utterances = [_utterance(line, row) for line, row in numbered]
        yield from dialogue_records(dialogue_id, customer, utterances, outcomes, options=options, number=number)
    if rows.fault:
        yield rows.fault


def survey(path: str) -> Survey:
    """Number of dialogues; the set has no times."""
    return Survey(sum(1 for _ in by_dialogue(TableRows(path, _COLUMNS), "B2")), has_times=False)


def _utterance(line: int, row: Row) -> Utterance:
    if row["B4"] == _PERSUADEE:
        acts = _labels(row, "ee_label_1", "ee_label_2")
        return Utterance(CUSTOMER, row["Unit"], line, extra={"customer_labels": acts} if acts else {})
    return Utterance(AGENT, row["Unit"], line, _labels(row, "er_label_1", "er_label_2"))


def _labels(row: Row, *columns: str) -> list[str]:
    given = [label for column in columns if (label := row.get(column, "").strip())]
    return [_SPELLINGS.get(label, label) for label in given]


def _outcome(dollars: str) -> Outcome:
    """An amount that is no number stays as it is and is quarantined by validation."""
    try:
        value = float(dollars or 0)
    except ValueError:
        return Outcome("conversion", dollars)  # type: ignore[arg-type]
    return Outcome("conversion", value) if value > 0 else Outcome("rejection")


PERSUASIONFORGOOD = Reader("persuasionforgood", ("300_dialog.csv.gz", "300_dialog.csv"), read, survey, (_INFO,))
