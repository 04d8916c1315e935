"""Delimited text files whose rows are sentences of dialogues, dialogue after dialogue.

Here: rows as mappings, grouped by dialogue, damaged files included. Not here: which column means what.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from typing import Any

from orchestration.ingest.readers.files import TextLines
from orchestration.ingest.records import Fault

Row = dict[str, str]


class TableRows:
    """(line, row) of a table with a header. After the loop `fault` says whether the file was damaged."""

    def __init__(self, path: str, columns: tuple[str, ...], **dialect: Any) -> None:
        self._lines = TextLines(path)
        self._columns = columns
        self._dialect = dialect
        self.fault: Fault | None = None

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        reader = csv.DictReader(self._lines, strict=False, **self._dialect)
        missing = [name for name in self._columns if name not in (reader.fieldnames or ())]
        if missing:
            reason = f"lacks the column(s) {', '.join(missing)}; is this a file of the format that was named?"
            self.fault = self._lines.fault or Fault(1, "file", reason, is_whole_file=True)
            return
        try:
            for row in reader:
                yield reader.line_num, {name: value or "" for name, value in row.items() if isinstance(name, str)}
        except csv.Error as error:
            self.fault = Fault(reader.line_num + 1, "file", f"the table cannot be read on: {error}", is_whole_file=True)
        self.fault = self.fault or self._lines.fault


def by_dialogue(rows: TableRows, column: str) -> Iterator[tuple[str, list[tuple[int, Row]]]]:
    """Consecutive rows with the same dialogue id."""
    for dialogue_id, group in itertools.groupby(rows, key=lambda numbered: numbered[1][column]):
        yield dialogue_id, list(group)
