"""Append-only rows in SQLite that cannot be changed unnoticed: what the rollout and the privacy ledger share.

Here: the connection, the chain of hashes and its verification. Not here: what a row says (`registry.ledger`,
`registry.privacy.budget`).

Triggers refuse UPDATE and DELETE. Someone who edits the file itself breaks the chain of hashes, which `verify_chain`
finds. Rows cut off the end, or another file in place of this one, leave a whole chain; they are found by giving it
rows that were seen earlier and are remembered outside the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from registry.errors import LedgerError
from rl.files import content_hash

GENESIS = "0" * 32
"""The previous hash of the first row."""

CHAIN_COLUMNS = """
    seq           INTEGER PRIMARY KEY,
    at            TEXT NOT NULL,
    previous_hash TEXT NOT NULL,
    hash          TEXT NOT NULL UNIQUE"""
"""Columns that every chained table has, for CREATE TABLE."""

Seen = tuple[int, str]
"""Number and hash of a row that was read once and has to be there still; (0, GENESIS) stands for none."""


@dataclass(frozen=True, kw_only=True)
class ChainedRow:
    """What makes a row part of a chain."""

    seq: int
    """1, 2, 3, … without gaps."""
    at: str
    """UTC, ISO 8601 with microseconds."""
    previous_hash: str
    hash: str

    def computed_hash(self) -> str:
        """The hash that this row's content and its predecessor call for."""
        content = asdict(self)
        del content["hash"]
        return content_hash(content)


RowT = TypeVar("RowT", bound=ChainedRow)


def append_only(table: str, ledger: str) -> str:
    """SQL of the triggers that keep a table's rows; `ledger` is named in what they say."""
    return "".join(
        f"CREATE TRIGGER IF NOT EXISTS {table}_are_never_{verb}d BEFORE {verb.upper()} ON {table}\n"
        f"BEGIN SELECT RAISE(ABORT, 'the {ledger} is append-only'); END;\n"
        for verb in ("update", "delete")
    )


@contextmanager
def open_chain(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection in autocommit mode that waits up to 30 s for another writer and is always closed."""
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    connection.row_factory = sqlite3.Row
    # A row that was acknowledged must survive a power cut: WAL alone flushes only at checkpoints.
    connection.execute("PRAGMA synchronous = FULL")
    try:
        yield connection
    finally:
        connection.close()


def append(connection: sqlite3.Connection, table: str, row_type: type[RowT], content: dict[str, Any]) -> RowT:
    """Insert `content` as the successor of the last row. The caller holds the write lock (BEGIN IMMEDIATE)."""
    last = connection.execute(f"SELECT seq, hash FROM {table} ORDER BY seq DESC LIMIT 1").fetchone()
    row = row_type(
        **content,
        seq=1 if last is None else last["seq"] + 1,
        at=datetime.now(UTC).isoformat(timespec="microseconds"),
        previous_hash=GENESIS if last is None else last["hash"],
        hash="",
    )
    row = replace(row, hash=row.computed_hash())
    values = asdict(row)
    names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", values)
    return row


def read_rows(
    connection: sqlite3.Connection, table: str, row_type: type[RowT], clause: str, *values: Any
) -> list[RowT]:
    """Rows of a table; `clause` is everything after its name."""
    found = connection.execute(f"SELECT * FROM {table} {clause}", values).fetchall()
    return [row_type(**dict(row)) for row in found]


def verify_chain(path: Path, rows: Sequence[ChainedRow], seen: Iterable[Seen] = ()) -> int:
    """Check every row against its content and its predecessor, and that all `seen` rows are there.

    Returns how many rows there are. Raises LedgerError naming the first row that is wrong.
    """
    previous = GENESIS
    for expected_seq, row in enumerate(rows, start=1):
        fault = _fault(row, expected_seq, previous)
        if fault:
            raise LedgerError(f"{path}: {fault} Restore the file from a backup, and find out who wrote to it.")
        previous = row.hash
    for seq, known_hash in seen:
        if seq > len(rows) or (seq > 0 and rows[seq - 1].hash != known_hash):
            raise LedgerError(
                f"{path}: row {seq} was recorded once and is missing or different now; the ledger has "
                f"{len(rows)} rows. Restore the file from a backup, and find out who wrote to it."
            )
    return len(rows)


def _fault(row: ChainedRow, expected_seq: int, previous_hash: str) -> str:
    if row.seq != expected_seq:
        return f"row {expected_seq} is missing; after row {expected_seq - 1} comes row {row.seq}."
    if row.previous_hash != previous_hash:
        return f"row {row.seq} does not follow row {row.seq - 1}: it names another hash as its predecessor."
    if row.hash != row.computed_hash():
        return f"row {row.seq} was changed after it was recorded: its content does not match its hash."
    return ""
