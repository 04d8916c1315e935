"""What readers hand to validation: raw records, faults, and the options of a reader.

Here: types only. Not here: the canonical schema (`schema`), how a format is read (`readers`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any, Literal

RecordKind = Literal["turn", "outcome", "decision"]


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record under canonical field names, before validation. `line` counts from 1 in its file."""

    kind: RecordKind
    fields: dict[str, Any]
    line: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Why something could not be taken over. Never carries text or ids of customers into a message.

    `value` only for enum and numeric fields. `dialogue_id`, where it could be read, makes the dialogue incomplete;
    `is_whole_file` says that the file itself is damaged, so that every dialogue read from it is incomplete.
    """

    line: int
    field: str
    reason: str
    value: str | float | int | None = None
    dialogue_id: str | None = None
    is_whole_file: bool = False


@dataclass(frozen=True)
class ReaderOptions:
    """What a reader is told besides the path."""

    start_date: date = date(2026, 1, 1)
    """First day given to dialogues of a set that carries no times."""

    first_dialogue: int = 0
    """How many dialogues of the source come before this file; moves the made-up times."""

    @property
    def start(self) -> datetime:
        """Midnight UTC of `start_date`."""
        return datetime.combine(self.start_date, time(), UTC)


@dataclass(frozen=True)
class Survey:
    """What a look at a file tells: whether its dialogues carry times of their own and, if not, how many there are."""

    n_dialogues: int
    has_times: bool


@dataclass(frozen=True)
class Reader:
    """One log format."""

    name: str
    patterns: tuple[str, ...]
    """File names it reads, as glob patterns."""

    read: Callable[[str, ReaderOptions], Iterator[RawRecord | Fault]]
    """Path or fsspec URL → records and faults, in file order."""

    survey: Callable[[str], Survey] | None = None
    """For formats whose times may have to be made up; none: records always carry times."""

    companions: tuple[str, ...] = ()
    """Files beside it that belong to it: they count in its content hash."""
