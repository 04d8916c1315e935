"""Rows that leave the landing: parts rewritten without them, and the commit marks kept true.

Here: erased and expired dialogues leave every table and the quarantine; customers' pseudonyms are replaced. Not here:
who has to go, new pseudonyms (`orchestration.personal_data`).

A part is replaced as a whole, so at any moment it holds the old rows or the new ones; the mark says how many bytes it
has. Between the two a mark carries `rewriting`: what a killed run left is then right as it is, and only the mark has
to be written again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from orchestration.ingest.landed_file import (
    MARKS,
    PRIVATE,
    Mark,
    mark_path,
    part_path,
    part_sizes,
)
from orchestration.ingest.parts import Keep, remove_rows, without
from orchestration.ingest.schema import SCHEMAS, TABLES
from rl.files import replaced_file, write_json

REWRITING = "rewriting"
_COUNTED = (*TABLES.values(), "incomplete")


@dataclass
class Removal:
    """What left the landing."""

    rows: Counter[str] = field(default_factory=Counter)
    """Rows by table, and lines of `quarantine`."""
    files: list[Path] = field(default_factory=list)
    """Files that were rewritten or removed."""


def landed_marks(landing: Path) -> Iterator[Mark]:
    """Every commit mark."""
    for path in sorted((landing / MARKS).glob("*.json")):
        yield json.loads(path.read_text())


def settle_rewrites(landing: Path) -> None:
    """Write the marks that a killed rewrite left open."""
    for mark in landed_marks(landing):
        if mark.get(REWRITING):
            _commit(landing, mark)


def landed_dialogues(landing: Path, table: str = "turns") -> Iterator[tuple[Path, pa.Table]]:
    """Each part of a table with its id columns: `dialogue_id`, and `customer_id` where the table has it."""
    names = [name for name in ("dialogue_id", "customer_id", "occurred_at") if name in SCHEMAS[table].names]
    for path in sorted((landing / table).glob("arrival_day=*/*.parquet")):
        yield path, pq.ParquetFile(path).read(columns=names)


def remove_dialogues(landing: Path, quarantine: Path, goes: Callable[[str], bool]) -> Removal:
    """Take every dialogue that `goes` out of all tables and the quarantine."""
    dialogues = {name for table in SCHEMAS for name in _dialogue_ids(landing, table) if goes(name)}
    removal = remove_landed(landing, landed_marks(landing), without("dialogue_id", dialogues))
    remove_quarantined(quarantine, landing, dialogues, removal)
    return removal


def remove_landed(landing: Path, marks: Iterable[Mark], keep: Keep, tables: Iterable[str] = SCHEMAS) -> Removal:
    """Rewrite the parts of `marks` without the rows that do not stay."""
    removal = Removal()
    chosen = tuple(tables)
    for mark in marks:
        with rewritten(landing, mark) as begin:
            for table in chosen:
                path = part_path(landing / table, date.fromisoformat(mark["arrival_day"]), mark["source"])
                if path.exists() and (n_removed := remove_rows(path, keep, PRIVATE, before=begin)):
                    removal.rows[table] += n_removed
                    removal.files.append(path)
    return removal


def remove_quarantined(quarantine: Path, landing: Path, dialogues: set[str], removal: Removal) -> None:
    """Take the lines of `dialogues` out of the quarantine. A line that names no dialogue holds no word of one."""
    marks = {mark["source"]: mark for mark in landed_marks(landing)}
    for path in sorted(quarantine.glob("arrival_day=*/*.jsonl")) if dialogues else ():
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line).get("dialogue_id") not in dialogues]
        if len(kept) == len(lines):
            continue
        replace_quarantine(path, kept)
        removal.rows["quarantine"] += len(lines) - len(kept)
        removal.files.append(path)
        if mark := marks.get(path.stem):
            _count_quarantined(landing, mark, kept)


def quarantined_in(path: Path) -> set[str]:
    """Dialogues that a quarantine file names."""
    named = (json.loads(line).get("dialogue_id") for line in path.read_bytes().splitlines())
    return {name for name in named if name is not None}


def replace_quarantine(path: Path, lines: list[bytes]) -> None:
    """The file with these lines; without any it is removed."""
    if not lines:
        path.unlink()
        return
    with replaced_file(path, PRIVATE) as temporary:
        temporary.touch(PRIVATE)
        temporary.write_bytes(b"".join(lines))


@contextmanager
def rewritten(landing: Path, mark: Mark) -> Iterator[Callable[[], None]]:
    """A block that may rewrite parts of `mark`; it calls what it is given before the first one."""
    begun = False

    def begin() -> None:
        nonlocal begun
        if not begun:
            write_json(mark_path(landing, mark["source"]), {**mark, REWRITING: True}, PRIVATE)
            begun = True

    yield begin
    if begun:
        _commit(landing, mark)


def _commit(landing: Path, mark: Mark) -> None:
    """The mark of what is there now: sizes and rows of the parts."""
    day = date.fromisoformat(mark["arrival_day"])
    paths = {table: part_path(landing / table, day, mark["source"]) for table in _COUNTED}
    rows = {f"n_{t}": pq.read_metadata(p).num_rows if p.exists() else 0 for t, p in paths.items()}
    settled = {**mark, **rows, "parts": part_sizes(landing, mark)}
    settled["n_records"] = sum(rows[f"n_{table}"] for table in TABLES.values()) + mark["n_quarantined"]
    settled.pop(REWRITING, None)
    mark.update(settled)
    mark.pop(REWRITING, None)
    write_json(mark_path(landing, mark["source"]), settled, PRIVATE)


def _count_quarantined(landing: Path, mark: Mark, lines: list[bytes]) -> None:
    entries = [json.loads(line) for line in lines]
    reasons = Counter(f"{entry['field']}: {entry['reason']}" for entry in entries)
    n_quarantined = len({entry["line"] for entry in entries})
    n_records = mark["n_records"] - mark["n_quarantined"] + n_quarantined
    counts = {
        "n_quarantined": n_quarantined,
        "n_records": n_records,
        "quarantine_counts": dict(sorted(reasons.items())),
    }
    mark.update(counts)
    write_json(mark_path(landing, mark["source"]), mark, PRIVATE)


def _dialogue_ids(landing: Path, table: str) -> set[str]:
    found: set[str] = set()
    for path in (landing / table).glob("arrival_day=*/*.parquet"):
        found.update(pq.ParquetFile(path).read(columns=["dialogue_id"]).column(0).unique().to_pylist())
    return found


def expire_quarantine(quarantine: Path, landing: Path, mark: Mark) -> int:
    """Remove the quarantine of a source; returns how many lines it had. Its mark counts no bad records any more."""
    path = part_path(quarantine, date.fromisoformat(mark["arrival_day"]), mark["source"], "jsonl")
    if not path.exists():
        return 0
    n_lines = len(path.read_bytes().splitlines())
    path.unlink()
    _count_quarantined(landing, mark, [])
    return n_lines


def mark_expired(landing: Path, mark: Mark) -> None:
    """Note that nothing of a source is left, so that it is never read again."""
    if not mark.get("expired"):
        mark["expired"] = True
        write_json(mark_path(landing, mark["source"]), mark, PRIVATE)
