"""The privacy ledger: what every window has spent, booked before a figure is drawn.

Here: reservations and commitments in an append-only, hash-chained SQLite file, and the refusal of what would exceed a
window's budget. Not here: what things cost (`plan`, `accounting`), the draw (`release`), how rows are kept
(`registry.hash_chain`).

The order is reserve → draw → keep the output → commit. A reservation is spent whatever happens after it: whoever was
cut off cannot tell whether its figures were seen. Amounts are whole numbers, so that nothing is lost to rounding. A
window keeps the budget of its first reservation: a larger one holds from the next window, a smaller one at once.

The file holds no personal data. It is part of the restricted zone because nobody outside needs it.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from registry.errors import BudgetExceededError, LedgerError
from registry.hash_chain import (
    CHAIN_COLUMNS,
    ChainedRow,
    Seen,
    append,
    append_only,
    open_chain,
    read_rows,
    verify_chain,
)
from registry.privacy.windows import Window

MICRO = 1_000_000
"""Units of ρ: whole millionths."""

DELTA_UNITS = 10**12
"""Units of δ: whole 1e-12."""

TABLES = "tables"
"""Purpose of the released tables. A gate evaluation's is `gate:<candidate>:<id>`."""

COMPROMISED_KEY = "compromised key"
"""Purpose of what a window has left when its customers' pseudonyms are no secret any more: it spends nothing else."""

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS entries ({CHAIN_COLUMNS},
    kind               TEXT NOT NULL CHECK (kind IN ('reservation', 'commitment')),
    workspace          TEXT NOT NULL,
    window_start       TEXT NOT NULL,
    window_end         TEXT NOT NULL,
    purpose            TEXT NOT NULL,
    release_id         TEXT NOT NULL,
    micro_rho          INTEGER NOT NULL CHECK (micro_rho >= 0),
    delta_units        INTEGER NOT NULL CHECK (delta_units >= 0),
    budget_micro_rho   INTEGER NOT NULL,
    budget_delta_units INTEGER NOT NULL,
    output_hash        TEXT,
    UNIQUE (workspace, window_start, purpose, kind)
) STRICT;
{append_only("entries", "privacy ledger")}"""


@dataclass(frozen=True)
class Cost:
    """An amount of privacy in whole units."""

    micro_rho: int
    delta_units: int = 0

    @classmethod
    def of(cls, rho: float, delta: float = 0.0) -> Cost:
        """The whole units in ρ and δ. What is less than a unit is neither booked nor drawn: draw with `rho`."""
        # Rounded to six digits of a unit first, since 0.1 - 0.02 is not quite 0.08.
        return cls(math.floor(round(rho * MICRO, 6)), math.floor(round(delta * DELTA_UNITS, 6)))

    @property
    def rho(self) -> float:
        """ρ that may be drawn with."""
        return self.micro_rho / MICRO

    @property
    def delta(self) -> float:
        """δ that may be drawn with."""
        return self.delta_units / DELTA_UNITS

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.micro_rho + other.micro_rho, self.delta_units + other.delta_units)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.micro_rho - other.micro_rho, self.delta_units - other.delta_units)

    def fits_in(self, other: Cost) -> bool:
        """Whether neither part is above that of `other`."""
        return self.micro_rho <= other.micro_rho and self.delta_units <= other.delta_units

    def __str__(self) -> str:
        return f"ρ {self.rho:g}" + (f" and δ {self.delta:g}" if self.delta_units else "")


@dataclass(frozen=True, kw_only=True)
class Entry(ChainedRow):
    """One row of the ledger."""

    kind: Literal["reservation", "commitment"]
    workspace: str
    window_start: str
    """ISO date."""
    window_end: str
    """ISO date, not part of the window."""
    purpose: str
    release_id: str
    micro_rho: int
    """What is spent; 0 on commitments, whose reservation has spent it."""
    delta_units: int
    budget_micro_rho: int
    """Budget of the window when the row was written."""
    budget_delta_units: int
    output_hash: str | None
    """What came of it; commitments only."""

    @property
    def cost(self) -> Cost:
        """What the row spends."""
        return Cost(self.micro_rho, self.delta_units)

    @property
    def budget(self) -> Cost:
        """The window's budget."""
        return Cost(self.budget_micro_rho, self.budget_delta_units)

    @property
    def window(self) -> Window:
        """The window that it is spent on."""
        return Window(date.fromisoformat(self.window_start), date.fromisoformat(self.window_end))


@dataclass(frozen=True)
class Booking:
    """A purpose of a window: reserved, and committed once its output was kept."""

    reservation: Entry
    commitment: Entry | None = None


class BudgetLedger:
    """The privacy ledger of a workspace in one SQLite file, which the first reservation makes.

    Parameters
    ----------
    path, workspace :
        The file, and whose budget it keeps.
    seen : pairs of row number and hash
        Rows that released files remember (`release.remembered_rows`). If one is missing, the file was cut, swapped or
        deleted: every call but `rows` then raises LedgerError, and nothing is ever booked in an empty new file.
    """

    def __init__(self, path: Path, workspace: str, seen: Iterable[Seen] = ()) -> None:
        self.path = path
        self.workspace = workspace
        self._seen = tuple(seen)

    def reserve(self, window: Window, purpose: str, *, release_id: str, cost: Cost, budget: Cost) -> Entry:
        """Book `cost` for a purpose of a window, before anything is drawn. Safe for several processes.

        Parameters
        ----------
        release_id : str
            Names what will be drawn.
        cost : Cost
            What it spends of the window's budget.
        budget : Cost
            Budget of a window by today's settings; less of it holds if the window began with less.

        Raises
        ------
        BudgetExceededError
            If the window has less left, or some of its days were booked as part of another window. Nothing is booked.
        LedgerError
            If the purpose is booked in this window already (`find` it and use what was drawn then), or the file was
            changed from outside or cannot be written. Nothing is booked.
        """
        self._require_file()
        with self._connection(writable=True) as connection:
            # The write lock comes before the read, so that what is left cannot be spent twice.
            connection.execute("BEGIN IMMEDIATE")
            rows = read_rows(connection, "entries", Entry, "ORDER BY seq")
            verify_chain(self.path, rows, self._seen)
            self._require_own_days(rows, window)
            spent = [row for row in self._of_window(rows, window.start) if row.kind == "reservation"]
            self._require_new(spent, window, purpose)
            allowed = _allowed(spent, budget)
            self._require_affordable(spent, window, purpose, cost, allowed)
            row = append(
                connection,
                "entries",
                Entry,
                self._content("reservation", window, purpose, release_id, cost, allowed),
            )
            connection.execute("COMMIT")
            return row

    def commit(self, reservation: Entry, output_hash: str) -> Entry:
        """Record that the output of a reservation was kept. Recording the same output again adds nothing.

        Raises LedgerError if another output was recorded, or the file cannot be written.
        """
        self._require_file()
        with self._connection(writable=True) as connection:
            connection.execute("BEGIN IMMEDIATE")
            rows = read_rows(connection, "entries", Entry, "ORDER BY seq")
            verify_chain(self.path, rows, (*self._seen, (reservation.seq, reservation.hash)))
            known = self._booking(rows, reservation.window.start, reservation.purpose)
            if known is not None and known.commitment is not None:
                return self._same(known.commitment, output_hash)
            content = self._content(
                "commitment",
                reservation.window,
                reservation.purpose,
                reservation.release_id,
                Cost(0),
                reservation.budget,
                output_hash,
            )
            row = append(connection, "entries", Entry, content)
            connection.execute("COMMIT")
            return row

    def find(self, window_start: date, purpose: str) -> Booking | None:
        """What is booked for a purpose of a window. Verifies the ledger first."""
        rows = self.rows()
        self._verified(rows)
        return self._booking(rows, window_start, purpose)

    def spent(self, window_start: date) -> dict[str, Cost]:
        """What a window has spent, by purpose, in the order of booking."""
        rows = self._of_window(self.rows(), window_start)
        return {row.purpose: row.cost for row in rows if row.kind == "reservation"}

    def opened_with(self, window_start: date) -> Cost | None:
        """Budget of a window's first reservation, which no later setting raises; None while nothing is booked."""
        rows = self._of_window(self.rows(), window_start)
        return rows[0].budget if rows else None

    def left(self, window_start: date, budget: Cost) -> Cost:
        """What a window may still spend where today's settings give it this budget; never below 0."""
        rows = self._of_window(self.rows(), window_start)
        spent = [row for row in rows if row.kind == "reservation"]
        left = _allowed(spent, budget) - _total(spent)
        return Cost(max(left.micro_rho, 0), max(left.delta_units, 0))

    def rows(self) -> list[Entry]:
        """All rows, oldest first, whether or not they can be trusted (`verify`)."""
        if not self.path.exists():
            return []
        with self._connection() as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'entries'").fetchall()
            return read_rows(connection, "entries", Entry, "ORDER BY seq") if tables else []

    def verify(self) -> int:
        """Check every row, and that the remembered ones are there; return how many rows there are.

        Raises LedgerError naming the first row that is wrong.
        """
        return self._verified(self.rows())

    # ---------- inside

    def _verified(self, rows: list[Entry]) -> int:
        self._require_file()
        return verify_chain(self.path, rows, self._seen)

    def _require_file(self) -> None:
        if self._seen and not self.path.exists():
            raise LedgerError(
                f"There is no privacy ledger at {self.path}, though releases were booked in it (the newest in row "
                f"{max(self._seen)[0]}). Without it nobody knows what the windows have left, so nothing is drawn and "
                "no new ledger is made. Restore the file from a backup."
            )

    def _require_own_days(self, rows: list[Entry], window: Window) -> None:
        """Windows of another length would give days that were spent a second budget."""
        for row in rows:
            if row.workspace == self.workspace and row.window.overlaps(window) and row.window != window:
                raise BudgetExceededError(
                    f"The window {window} shares days with {row.window}, which is booked already (row {row.seq} of "
                    f"{self.path}): those days have no second budget. Nothing was drawn. privacy.window_days or "
                    f"logs.start_date was changed; windows that begin on {row.window.end} or later are free, or go "
                    f"back to windows of {row.window.n_days} days."
                )

    def _require_new(self, spent: list[Entry], window: Window, purpose: str) -> None:
        booked = next((row for row in spent if row.purpose == purpose), None)
        if booked is not None:
            raise LedgerError(
                f"{self.path}: {purpose} of the window {window} is booked already, in row {booked.seq}. A window is "
                "drawn once for each purpose; use what was drawn then."
            )

    def _require_affordable(self, spent: list[Entry], window: Window, purpose: str, cost: Cost, allowed: Cost) -> None:
        left = allowed - _total(spent)
        if cost.fits_in(left):
            return
        listed = ", ".join(f"{row.purpose} {row.cost}" for row in spent) or "nothing"
        raise BudgetExceededError(
            f"{purpose} asks for {cost} of the window {window} of workspace {self.workspace!r}, which has {left} of "
            f"{allowed} left. Spent so far: {listed}. Nothing was drawn. What is spent cannot be taken back, and a "
            f"larger budget (privacy.rho, privacy.delta) or another split (privacy.gate_rho, privacy.gate_evaluations) "
            f"holds from the next window, which opens on {window.end}. `talktrack privacy status` shows every window."
        )

    def _content(
        self,
        kind: str,
        window: Window,
        purpose: str,
        release_id: str,
        cost: Cost,
        budget: Cost,
        output_hash: str | None = None,
    ) -> dict[str, object]:
        return {
            "kind": kind,
            "workspace": self.workspace,
            "window_start": window.start.isoformat(),
            "window_end": window.end.isoformat(),
            "purpose": purpose,
            "release_id": release_id,
            **asdict(cost),
            **{f"budget_{name}": value for name, value in asdict(budget).items()},
            "output_hash": output_hash,
        }

    def _same(self, known: Entry, output_hash: str) -> Entry:
        if known.output_hash != output_hash:
            raise LedgerError(
                f"{self.path}: row {known.seq} records another output of {known.purpose} for the window that began on "
                f"{known.window_start}. A window is drawn once; use the files that were released then."
            )
        return known

    def _of_window(self, rows: Iterable[Entry], window_start: date) -> list[Entry]:
        start = window_start.isoformat()
        return [row for row in rows if row.workspace == self.workspace and row.window_start == start]

    def _booking(self, rows: Iterable[Entry], window_start: date, purpose: str) -> Booking | None:
        found = {row.kind: row for row in self._of_window(rows, window_start) if row.purpose == purpose}
        return Booking(found["reservation"], found.get("commitment")) if "reservation" in found else None

    @contextmanager
    def _connection(self, *, writable: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            if writable:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            with open_chain(self.path) as connection:
                if writable:
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.executescript(_SCHEMA)
                yield connection
        except (OSError, sqlite3.DatabaseError) as error:
            raise LedgerError(
                f"{self.path}: the privacy ledger cannot be used ({error}). Nothing was booked. Look at the free space "
                "of the disk, the permissions of the file and other programs that hold it open; if it is damaged, "
                "restore it from a backup."
            ) from None


def _total(rows: Iterable[Entry]) -> Cost:
    return sum((row.cost for row in rows), Cost(0))


def _allowed(spent: list[Entry], budget: Cost) -> Cost:
    """The window's budget: that of its first reservation, or today's where that is smaller."""
    first = spent[0].budget if spent else budget
    return Cost(min(first.micro_rho, budget.micro_rho), min(first.delta_units, budget.delta_units))
