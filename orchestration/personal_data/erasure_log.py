"""The erasure log: which requests were carried out, when, by whom and with what result, in rows that stay as written.

Here: the rows and their chain (`registry.hash_chain`). Not here: erasing (`erasure`).

A row names nobody: the customer appears as a keyed digest (`orchestration.ingest.tombstones`). It is readable by the
owner only and holds counts of any size, for it is the record that an auditor asks for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.hash_chain import CHAIN_COLUMNS, ChainedRow, append, append_only, open_chain, read_rows, verify_chain

FILE = "erasures.db"

STARTED = "started"
ERASED = "erased"
NOTHING_LEFT = "nothing left"
NOT_HELD = "not held"
INCOMPLETE = "incomplete"

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS erasures ({CHAIN_COLUMNS},
    request_id TEXT NOT NULL,
    actor      TEXT NOT NULL,
    digests    TEXT NOT NULL,
    outcome    TEXT NOT NULL,
    details    TEXT NOT NULL
) STRICT;
{append_only("erasures", "erasure log")}"""


@dataclass(frozen=True, kw_only=True)
class ErasureRow(ChainedRow):
    """One step of a request."""

    request_id: str
    actor: str
    """Login of whoever ran the command."""
    digests: str
    """JSON list: the customers of the request, as keyed digests."""
    outcome: str
    """started | erased | nothing left | not held | incomplete (something was found afterwards)."""
    details: str
    """JSON: counts, files, dialogue days, models, verification."""

    @property
    def customers(self) -> frozenset[str]:
        return frozenset(json.loads(self.digests))

    @property
    def content(self) -> dict[str, Any]:
        return dict(json.loads(self.details))


class ErasureLog:
    """The log in one SQLite file, made when missing, readable by its owner only."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.path.exists():
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600))
        with open_chain(self.path) as connection:
            connection.executescript(_SCHEMA)

    def record(
        self, *, request_id: str, actor: str, customers: Iterable[str], outcome: str, details: dict[str, Any]
    ) -> ErasureRow:
        """Append a row; it is on disk when this returns."""
        content = {
            "request_id": request_id,
            "actor": actor,
            "digests": json.dumps(sorted(customers)),
            "outcome": outcome,
            "details": json.dumps(details, sort_keys=True),
        }
        with open_chain(self.path) as connection:
            connection.execute("BEGIN IMMEDIATE")
            row = append(connection, "erasures", ErasureRow, content)
            connection.execute("COMMIT")
        return row

    def rows(self) -> list[ErasureRow]:
        """All rows, oldest first."""
        with open_chain(self.path) as connection:
            return read_rows(connection, "erasures", ErasureRow, "ORDER BY seq")

    def about(self, customers: Collection[str]) -> list[ErasureRow]:
        """Rows of requests that concerned one of these digests, oldest first."""
        wanted = frozenset(customers)
        return [row for row in self.rows() if row.customers & wanted]

    def verify(self) -> int:
        """How many rows there are. Raises LedgerError naming the first one that was changed."""
        return verify_chain(self.path, self.rows())
