"""The rollout ledger: every move of a policy version, in order, in rows that cannot be changed unnoticed.

Here: what a row says, and that one id stands for one move. Not here: how rows are kept (`registry.hash_chain`), what a
move means and whether it is allowed (`registry.rollout`, which also remembers the last row, on the registered model).
"""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path

from registry.errors import LedgerError
from registry.hash_chain import (
    CHAIN_COLUMNS,
    GENESIS,
    ChainedRow,
    Seen,
    append,
    append_only,
    open_chain,
    read_rows,
    verify_chain,
)

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS transitions ({CHAIN_COLUMNS},
    actor         TEXT NOT NULL,
    action        TEXT NOT NULL,
    model         TEXT NOT NULL,
    version       TEXT NOT NULL,
    alias         TEXT NOT NULL,
    from_version  TEXT,
    to_version    TEXT,
    reason        TEXT NOT NULL,
    evidence_hash TEXT,
    transition_id TEXT NOT NULL UNIQUE
) STRICT;
{append_only("transitions", "rollout ledger")}"""


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
class Row(ChainedRow, Transition):
    """A move as recorded."""


class RolloutLedger:
    """The ledger in one SQLite file, which is made when missing. Safe for several processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_chain(self.path) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_SCHEMA)

    def record(self, transition: Transition) -> Row:
        """Append `transition`, or return the row that already has its id.

        Raises LedgerError if that row says something else.
        """
        with open_chain(self.path) as connection:
            # The write lock comes before the read, so that no other writer can take the same place in the
            # chain.
            connection.execute("BEGIN IMMEDIATE")
            known = _with_id(connection, transition.transition_id)
            if known is not None:
                connection.execute("ROLLBACK")
                return self._same(known, transition)
            row = append(connection, "transitions", Row, asdict(transition))
            connection.execute("COMMIT")
            return row

    def find(self, transition_id: str) -> Row | None:
        """The row with that id."""
        with open_chain(self.path) as connection:
            return _with_id(connection, transition_id)

    def rows(self, model: str | None = None) -> list[Row]:
        """All rows, oldest first; of one registered model if `model` is given."""
        with open_chain(self.path) as connection:
            rows = read_rows(connection, "transitions", Row, "ORDER BY seq")
        return [row for row in rows if model is None or row.model == model]

    def verify(self, seen: Seen = (0, GENESIS)) -> int:
        """Check every row against its content and its predecessor; return how many rows there are.

        `seen` is number and hash of a row that was read earlier and has to be there still.
        Raises LedgerError naming the first row that is wrong.
        """
        return verify_chain(self.path, self.rows(), [seen])

    def _same(self, known: Row, transition: Transition) -> Row:
        stated = asdict(transition)
        differing = [name for name, value in stated.items() if getattr(known, name) != value]
        if differing:
            raise LedgerError(
                f"{self.path}: transition id {transition.transition_id!r} is row {known.seq} already, with another "
                f"{', '.join(differing)}. Use a new id for a new move."
            )
        return known


def _with_id(connection: sqlite3.Connection, transition_id: str) -> Row | None:
    return next(iter(read_rows(connection, "transitions", Row, "WHERE transition_id = ?", transition_id)), None)
