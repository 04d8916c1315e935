"""The privacy ledger (T7): never over budget, append-only, replayed, and every kind of tampering found."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import BudgetExceededError, LedgerError
from registry.hash_chain import GENESIS, Seen
from registry.privacy.budget import TABLES, BudgetLedger, Cost, Entry
from registry.privacy.windows import Window

ROOT = Path(__file__).resolve().parents[3]
WINDOW = Window(date(2026, 1, 1), date(2026, 1, 29))
BUDGET = Cost.of(0.1, 1e-6)


@pytest.fixture
def ledger(tmp_path: Path) -> BudgetLedger:
    return BudgetLedger(tmp_path / "ledger" / "privacy_budget.db", "storefront")


def reserve(ledger: BudgetLedger, purpose: str = TABLES, rho: float = 0.08, **changes: Any) -> Entry:
    values: dict[str, Any] = {
        "release_id": f"id of {purpose}",
        "cost": Cost.of(rho, 1e-6 if purpose == TABLES else 0),
        "budget": BUDGET,
    }
    window = changes.pop("window", WINDOW)
    return ledger.reserve(window, purpose, **{**values, **changes})


@pytest.fixture
def booked(ledger: BudgetLedger) -> BudgetLedger:
    """Tables released, one gate evaluation reserved and not finished."""
    ledger.commit(reserve(ledger), "f" * 32)
    reserve(ledger, "gate:cql", 0.005)
    return ledger


def tamper(ledger: BudgetLedger, statement: str) -> None:
    """Change the file as someone would who knows of the triggers."""
    connection = sqlite3.connect(ledger.path)
    connection.executescript(
        "DROP TRIGGER entries_are_never_updated; DROP TRIGGER entries_are_never_deleted;" + statement
    )
    connection.close()


# ---------- booking


def test_a_release_is_reserved_then_committed_and_can_be_found(booked: BudgetLedger) -> None:
    tables, gate = booked.find(WINDOW.start, TABLES), booked.find(WINDOW.start, "gate:cql")
    assert tables is not None
    assert tables.commitment is not None
    assert tables.commitment.output_hash == "f" * 32
    assert gate is not None
    assert gate.commitment is None
    assert booked.find(WINDOW.start, "gate:never") is None
    assert booked.find(WINDOW.end, TABLES) is None
    assert booked.spent(WINDOW.start) == {TABLES: Cost(80_000, 1_000_000), "gate:cql": Cost(5_000)}
    assert [row.seq for row in booked.rows()] == [1, 2, 3]
    assert booked.rows()[0].window == WINDOW
    assert booked.verify() == 3


def test_nothing_is_made_on_disk_by_looking(ledger: BudgetLedger) -> None:
    assert ledger.rows() == []
    assert ledger.verify() == 0
    assert ledger.find(WINDOW.start, TABLES) is None
    assert not ledger.path.parent.exists()


def test_what_would_exceed_the_budget_is_refused_and_the_refusal_explains_itself(booked: BudgetLedger) -> None:
    with pytest.raises(BudgetExceededError) as caught:
        reserve(booked, "gate:dqn", 0.02)
    said = str(caught.value)
    for part in (
        "gate:dqn asks for ρ 0.02",
        "window 2026-01-01 to 2026-01-28 of workspace 'storefront'",
        "ρ 0.015 of ρ 0.1 and δ 1e-06 left",
        "tables ρ 0.08 and δ 1e-06, gate:cql ρ 0.005",
        "Nothing was drawn",
        "privacy.rho",
        "opens on 2026-01-29",
        "talktrack privacy status",
    ):
        assert part in said
    assert booked.verify() == 3


def test_what_is_left_is_never_below_nothing_and_keeps_the_first_budget(booked: BudgetLedger) -> None:
    assert booked.left(WINDOW.start, BUDGET) == Cost(15_000)
    assert booked.left(WINDOW.start, Cost.of(0.5, 1e-5)) == Cost(15_000), "a larger budget is for the next window"
    assert booked.left(WINDOW.start, Cost.of(0.09, 1e-7)) == Cost(5_000)
    assert booked.left(WINDOW.start, Cost.of(0.01, 1e-7)) == Cost(0)
    assert booked.left(WINDOW.end, Cost.of(0.5, 1e-5)) == Cost.of(0.5, 1e-5)
    assert (booked.opened_with(WINDOW.start), booked.opened_with(WINDOW.end)) == (BUDGET, None)


def test_delta_is_booked_too(booked: BudgetLedger) -> None:
    with pytest.raises(BudgetExceededError, match="δ 1e-12"):
        reserve(booked, "more replies", cost=Cost(0, 1))


def test_a_window_can_be_spent_to_the_last_unit_and_no_further(booked: BudgetLedger) -> None:
    reserve(booked, "rest", cost=Cost(15_000))
    with pytest.raises(BudgetExceededError, match=r"ρ 0 of ρ 0\.1"):
        reserve(booked, "one more", cost=Cost(1))
    assert reserve(booked, window=WINDOW.next()).seq == 5


def test_a_purpose_is_drawn_once_in_a_window(booked: BudgetLedger) -> None:
    with pytest.raises(LedgerError, match=r"tables of the window .* is booked already, in row 1"):
        reserve(booked, rho=0.001)


def test_recording_the_same_output_twice_adds_nothing_and_another_output_is_refused(booked: BudgetLedger) -> None:
    row = booked.rows()[0]
    assert booked.commit(row, "f" * 32) == booked.rows()[1]
    with pytest.raises(LedgerError, match="row 2 records another output of tables"):
        booked.commit(row, "a" * 32)
    assert booked.verify() == 3


def test_a_larger_budget_holds_from_the_next_window_and_a_smaller_one_at_once(booked: BudgetLedger) -> None:
    with pytest.raises(BudgetExceededError, match=r"has ρ 0\.015 of ρ 0\.1"):
        reserve(booked, "gate:dqn", 0.02, budget=Cost.of(0.5, 1e-6))
    with pytest.raises(BudgetExceededError, match=r"of ρ 0\.085"):
        reserve(booked, "gate:dqn", 0.005, budget=Cost.of(0.085, 1e-6))
    assert reserve(booked, window=WINDOW.next(), rho=0.4, budget=Cost.of(0.5, 1e-6)).budget.rho == 0.5


def test_windows_of_another_length_give_spent_days_no_second_budget(booked: BudgetLedger) -> None:
    with pytest.raises(
        BudgetExceededError, match=r"2026-01-15 to 2026-01-28 shares days with 2026-01-01 to 2026-01-28"
    ):
        reserve(booked, window=Window(date(2026, 1, 15), date(2026, 1, 29)))
    assert reserve(booked, window=Window(date(2026, 1, 29), date(2026, 2, 12))).seq == 4


def test_workspaces_have_budgets_of_their_own(booked: BudgetLedger) -> None:
    other = BudgetLedger(booked.path, "other")
    assert reserve(other).seq == 4
    assert other.spent(WINDOW.start) == {TABLES: Cost(80_000, 1_000_000)}
    assert booked.verify() == 4


@given(rho=st.floats(0, 10), delta=st.floats(0, 1e-3))
def test_a_cost_is_never_more_than_was_asked_for(rho: float, delta: float) -> None:
    cost = Cost.of(rho, delta)
    assert cost.rho <= rho * (1 + 1e-9)
    assert cost.delta <= delta * (1 + 1e-9)
    assert rho - cost.rho <= 1e-6
    assert delta - cost.delta <= 1e-12


def test_decimal_fractions_lose_no_unit() -> None:
    assert Cost.of(0.1 - 0.02) == Cost(80_000)
    assert Cost.of(0.3 - 0.1) == Cost(200_000)


OPERATIONS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 60_000), st.integers(0, 700_000), st.integers(20_000, 150_000)),
    max_size=25,
)


@given(operations=OPERATIONS)
def test_no_sequence_of_reservations_exceeds_a_budget(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[int, int, int, int]]
) -> None:
    ledger = BudgetLedger(tmp_path_factory.mktemp("ledger") / "privacy_budget.db", "storefront")
    windows = [WINDOW, WINDOW.next(), WINDOW.next().next()]
    for k, (which, micro_rho, delta_units, budget) in enumerate(operations):
        cost, allowed = Cost(micro_rho, delta_units), Cost(budget, 1_000_000)
        spent = sum(ledger.spent(windows[which].start).values(), Cost(0))
        first = next((row.budget for row in ledger.rows() if row.window == windows[which]), allowed)
        fits = (spent + cost).fits_in(first) and (spent + cost).fits_in(allowed)
        try:
            reserve(ledger, f"purpose {k}", window=windows[which], cost=cost, budget=allowed)
            assert fits
        except BudgetExceededError:
            assert not fits
    for window in windows:
        rows = [row for row in ledger.rows() if row.window == window]
        assert sum((row.cost for row in rows), Cost(0)).fits_in(rows[0].budget if rows else Cost(0))
    assert ledger.verify() == len(ledger.rows())


RACER = """
import sys
from datetime import date
from pathlib import Path
from registry.errors import BudgetExceededError
from registry.privacy.budget import BudgetLedger, Cost
from registry.privacy.windows import Window
ledger = BudgetLedger(Path(sys.argv[1]), "storefront")
granted = 0
for k in range(50):
    try:
        ledger.reserve(Window(date(2026, 1, 1), date(2026, 1, 29)), f"{sys.argv[2]}-{k}", release_id="r",
                       cost=Cost(700, 9_000), budget=Cost(100_000, 1_000_000))
        granted += 1
    except BudgetExceededError:
        pass
print(granted)
"""


def test_eight_processes_that_race_for_a_budget_never_exceed_it(ledger: BudgetLedger) -> None:
    # 400 requests of 9,000 units of δ race for 1,000,000: 111 fit, whoever is first.
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(ledger.path), str(number)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for number in range(8)
    ]
    granted = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sum(granted) == 111
    assert ledger.verify() == 111
    assert sum(ledger.spent(WINDOW.start).values(), Cost(0)) == Cost(77_700, 999_000)


def test_threads_that_reserve_one_purpose_at_once_book_it_once(ledger: BudgetLedger) -> None:
    def attempt(_: int) -> bool:
        try:
            reserve(BudgetLedger(ledger.path, "storefront"), rho=0.001)
        except LedgerError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 1
    assert ledger.verify() == 1


# ---------- tampering


@pytest.mark.parametrize("statement", ["UPDATE entries SET micro_rho = 0", "DELETE FROM entries"])
def test_the_database_refuses_to_change_or_delete_rows(booked: BudgetLedger, statement: str) -> None:
    connection = sqlite3.connect(booked.path)
    with pytest.raises(sqlite3.DatabaseError, match="the privacy ledger is append-only"):
        connection.execute(statement)
    connection.close()
    assert booked.verify() == 3


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE entries SET micro_rho = 1 WHERE seq = 1", "row 1 was changed"),
        ("UPDATE entries SET output_hash = 'x' WHERE seq = 2", "row 2 was changed"),
        ("UPDATE entries SET window_start = '2025-01-01' WHERE seq = 3", "row 3 was changed"),
        ("DELETE FROM entries WHERE seq = 1", "row 1 is missing"),
        ("UPDATE entries SET previous_hash = 'x' WHERE seq = 3", "row 3 does not follow row 2"),
    ],
)
def test_an_edited_file_is_found_the_row_is_named_and_nothing_more_is_booked(
    booked: BudgetLedger, statement: str, message: str
) -> None:
    tamper(booked, statement)
    with pytest.raises(LedgerError, match=message) as caught:
        booked.verify()
    assert "Restore the file from a backup" in str(caught.value)
    before = len(booked.rows())
    for attempt in (
        lambda: reserve(booked, "gate:dqn", 0.005),
        lambda: booked.find(WINDOW.start, TABLES),
    ):
        with pytest.raises(LedgerError, match=message):
            attempt()
    assert len(booked.rows()) == before


def remembering(ledger: BudgetLedger, seq: int) -> BudgetLedger:
    seen: Seen = (seq, ledger.rows()[seq - 1].hash)
    return BudgetLedger(ledger.path, ledger.workspace, [(0, GENESIS), seen])


def test_rows_cut_off_the_end_are_missed_by_who_remembers_them(booked: BudgetLedger) -> None:
    watched = remembering(booked, 3)
    tamper(booked, "DELETE FROM entries WHERE seq = 3")
    assert booked.verify() == 2
    with pytest.raises(LedgerError, match="row 3 was recorded once"):
        watched.verify()
    with pytest.raises(LedgerError, match="row 3 was recorded once"):
        reserve(watched, "gate:dqn", 0.001)


def test_another_ledger_in_its_place_is_found(booked: BudgetLedger, tmp_path: Path) -> None:
    watched = remembering(booked, 1)
    other = BudgetLedger(tmp_path / "other.db", "storefront")
    reserve(other, rho=0.001)
    other.path.replace(booked.path)
    for leftover in booked.path.parent.glob("*.db-*"):
        leftover.unlink()
    with pytest.raises(LedgerError, match="row 1 was recorded once and is missing or different now"):
        watched.find(WINDOW.start, TABLES)


def test_a_ledger_that_vanished_is_never_made_anew(booked: BudgetLedger) -> None:
    watched = remembering(booked, 2)
    row = booked.rows()[0]
    for path in booked.path.parent.iterdir():
        path.unlink()
    for attempt in (
        lambda: reserve(watched, "gate:dqn", 0.001),
        lambda: watched.commit(row, "f" * 32),
        lambda: watched.find(WINDOW.start, TABLES),
        watched.verify,
    ):
        with pytest.raises(LedgerError, match=r"no privacy ledger at .* no new ledger is made\. Restore"):
            attempt()
    assert not booked.path.exists()


def test_an_emptied_file_is_no_new_ledger_either(booked: BudgetLedger) -> None:
    watched = remembering(booked, 2)
    for path in booked.path.parent.iterdir():
        path.unlink()
    booked.path.touch()
    with pytest.raises(LedgerError, match="row 2 was recorded once"):
        reserve(watched, "gate:dqn", 0.001)


# ---------- faults of the machine


def test_a_file_that_is_no_database_is_one_message(booked: BudgetLedger) -> None:
    for path in booked.path.parent.iterdir():
        path.unlink()
    booked.path.write_bytes(b"not a database, and longer than a header " * 40)
    with pytest.raises(
        LedgerError, match=r"privacy_budget\.db: the privacy ledger cannot be used .*Nothing was booked"
    ):
        booked.verify()


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("a file where the folder should be")
    with pytest.raises(LedgerError, match="Nothing was booked"):
        reserve(BudgetLedger(tmp_path / "ledger" / "privacy_budget.db", "storefront"))


def test_a_full_disk_books_nothing(booked: BudgetLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("registry.privacy.budget.append", full)
        with pytest.raises(LedgerError, match=r"disk is full.*Nothing was booked"):
            reserve(booked, "gate:dqn", 0.001)
    assert booked.verify() == 3
    assert reserve(booked, "gate:dqn", 0.001).seq == 4
