"""The rollout ledger: every move of a policy version, in order, in rows that cannot be changed unnoticed.

Here: an append-only SQLite table whose rows carry the hash of the row before. Not here: what a move means and
whether it is allowed (`registry.rollout`).

Triggers refuse UPDATE and DELETE. Someone who edits the file itself breaks the chain of hashes, which
`verify` finds. Cutting rows off the end leaves a whole chain; it is found by giving `verify` the last row
that was seen, which `registry.rollout` keeps outside the file, on the registered model.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from registry.errors import LedgerError
from rl.files import content_hash

GENESIS = "0" * 32
"""The previous hash of the first row."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS transitions (
    seq           INTEGER PRIMARY KEY,
    at            TEXT NOT NULL,
    actor         TEXT NOT NULL,
    action        TEXT NOT NULL,
    model         TEXT NOT NULL,
    version       TEXT NOT NULL,
    alias         TEXT NOT NULL,
    from_version  TEXT,
    to_version    TEXT,
    reason        TEXT NOT NULL,
    evidence_hash TEXT,
    transition_id TEXT NOT NULL UNIQUE,
    previous_hash TEXT NOT NULL,
    hash          TEXT NOT NULL UNIQUE
) STRICT;
CREATE TRIGGER IF NOT EXISTS transitions_are_never_updated BEFORE UPDATE ON transitions
BEGIN SELECT RAISE(ABORT, 'the rollout ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS transitions_are_never_deleted BEFORE DELETE ON transitions
BEGIN SELECT RAISE(ABORT, 'the rollout ledger is append-only'); END;
"""


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One move. `alias` is the one that moves; other aliases follow from the action (`registry.rollout`)."""

    actor: str
    """Who: a person's login, or `nightly`."""
    action: str
    model: str
    version: str
    """The version that the move is about."""
    alias: str
    from_version: str | None
    """Where the alias pointed before; None for nowhere."""
    to_version: str | None
    """Where it points afterwards; None when it is taken away."""
    reason: str
    evidence_hash: str | None = None
    transition_id: str
    """Chosen by the caller. Recording the same move twice under one id adds nothing."""


@dataclass(frozen=True, kw_only=True)
class Row(Transition):
    """A move as recorded."""

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


class RolloutLedger:
    """The ledger in one SQLite file, which is made when missing. Safe for several processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connection() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_SCHEMA)

    def record(self, transition: Transition) -> Row:
        """Append `transition`, or return the row that already has its id.

        Raises LedgerError if that row says something else.
        """
        with self._connection() as connection:
            # The write lock comes before the read, so that no other writer can take the same place in the
            # chain.
            connection.execute("BEGIN IMMEDIATE")
            known = _one(connection, "WHERE transition_id = ?", transition.transition_id)
            if known is not None:
                connection.execute("ROLLBACK")
                return self._same(known, transition)
            row = _successor(_one(connection, "ORDER BY seq DESC LIMIT 1"), transition)
            values = asdict(row)
            names = ", ".join(values)
            places = ", ".join(f":{name}" for name in values)
            connection.execute(f"INSERT INTO transitions ({names}) VALUES ({places})", values)
            connection.execute("COMMIT")
            return row

    def find(self, transition_id: str) -> Row | None:
        """The row with that id."""
        with self._connection() as connection:
            return _one(connection, "WHERE transition_id = ?", transition_id)

    def rows(self, model: str | None = None) -> list[Row]:
        """All rows, oldest first; of one registered model if `model` is given."""
        with self._connection() as connection:
            found = connection.execute("SELECT * FROM transitions ORDER BY seq").fetchall()
        return [_row(values) for values in found if model is None or values["model"] == model]

    def verify(self, seen: tuple[int, str] = (0, GENESIS)) -> int:
        """Check every row against its content and its predecessor; return how many rows there are.

        `seen` is number and hash of a row that was read earlier and has to be there still.
        Raises LedgerError naming the first row that is wrong.
        """
        previous, rows = GENESIS, self.rows()
        for expected_seq, row in enumerate(rows, start=1):
            fault = _fault(row, expected_seq, previous)
            if fault:
                raise LedgerError(f"{self.path}: {fault} Restore the file from a backup, and find out who wrote to it.")
            previous = row.hash
        seq, known_hash = seen
        if seq > len(rows) or (seq > 0 and rows[seq - 1].hash != known_hash):
            raise LedgerError(
                f"{self.path}: row {seq} was recorded once and is missing or different now; the ledger has "
                f"{len(rows)} rows. Restore the file from a backup, and find out who wrote to it."
            )
        return len(rows)

    def _same(self, known: Row, transition: Transition) -> Row:
        stated = asdict(transition)
        differing = [name for name, value in stated.items() if getattr(known, name) != value]
        if differing:
            raise LedgerError(
                f"{self.path}: transition id {transition.transition_id!r} is row {known.seq} already, with another "
                f"{', '.join(differing)}. Use a new id for a new move."
            )
        return known

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection in autocommit mode that waits up to 30 s for another writer and is always closed."""
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        connection.row_factory = sqlite3.Row
        # A row that was acknowledged must survive a power cut: WAL alone flushes only at checkpoints.
        connection.execute("PRAGMA synchronous = FULL")
        try:
            yield connection
        finally:
            connection.close()


def _one(connection: sqlite3.Connection, clause: str, *values: str) -> Row | None:
    found = connection.execute(f"SELECT * FROM transitions {clause}", values).fetchone()
    return None if found is None else _row(found)


def _row(values: sqlite3.Row) -> Row:
    return Row(**{name: values[name] for name in values.keys()})  # noqa: SIM118 (iterating a Row gives values)


def _successor(last: Row | None, transition: Transition) -> Row:
    row = Row(
        **asdict(transition),
        seq=1 if last is None else last.seq + 1,
        at=datetime.now(UTC).isoformat(timespec="microseconds"),
        previous_hash=GENESIS if last is None else last.hash,
        hash="",
    )
    return replace(row, hash=row.computed_hash())


def _fault(row: Row, expected_seq: int, previous_hash: str) -> str:
    if row.seq != expected_seq:
        return f"row {expected_seq} is missing; after row {expected_seq - 1} comes row {row.seq}."
    if row.previous_hash != previous_hash:
        return f"row {row.seq} does not follow row {row.seq - 1}: it names another hash as its predecessor."
    if row.hash != row.computed_hash():
        return f"row {row.seq} was changed after it was recorded: its content does not match its hash."
    return ""
