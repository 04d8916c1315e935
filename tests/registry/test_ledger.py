"""The ledger keeps its order under concurrent writers, and shows every kind of tampering."""

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from registry.errors import LedgerError
from registry.hash_chain import GENESIS
from registry.ledger import RolloutLedger, Row, Transition


def move(number: int, **changes: Any) -> Transition:
    values: dict[str, Any] = {
        "actor": "ada",
        "action": "propose",
        "model": "talktrack-test",
        "version": str(number),
        "alias": "challenger",
        "from_version": str(number - 1) if number > 1 else None,
        "to_version": str(number),
        "reason": "passed the gate",
        "evidence_hash": "e" * 32,
        "transition_id": f"night-{number}",
    }
    return Transition(**{**values, **changes})


@pytest.fixture
def ledger(tmp_path: Path) -> RolloutLedger:
    return RolloutLedger(tmp_path / "ledger" / "rollout.db")


@pytest.fixture
def three_rows(ledger: RolloutLedger) -> RolloutLedger:
    for number in (1, 2, 3):
        ledger.record(move(number))
    return ledger


def tamper(ledger: RolloutLedger, statement: str) -> None:
    """Change the file as someone would who knows of the triggers."""
    connection = sqlite3.connect(ledger.path)
    connection.executescript(
        "DROP TRIGGER transitions_are_never_updated; DROP TRIGGER transitions_are_never_deleted;" + statement
    )
    connection.close()


def test_rows_form_a_chain_from_the_first_on(three_rows: RolloutLedger) -> None:
    rows = three_rows.rows()

    assert [row.seq for row in rows] == [1, 2, 3]
    assert rows[0].previous_hash == GENESIS
    assert [row.previous_hash for row in rows[1:]] == [row.hash for row in rows[:-1]]
    assert three_rows.verify() == 3


def test_the_hash_of_a_row_never_changes_so_that_old_ledgers_verify() -> None:
    row = Row(
        **asdict(move(1)),
        seq=1,
        at="2026-01-01T02:00:00.000000+00:00",
        previous_hash=GENESIS,
        hash="",
    )
    assert row.computed_hash() == "95bba62294940b16efd4dc2881751869"


def test_recording_a_move_twice_adds_nothing(three_rows: RolloutLedger) -> None:
    first = three_rows.rows()[1]

    assert three_rows.record(move(2)) == first
    assert three_rows.verify() == 3


def test_one_id_cannot_stand_for_two_moves(three_rows: RolloutLedger) -> None:
    with pytest.raises(LedgerError, match=r"'night-2' is row 2 already, with another actor, reason"):
        three_rows.record(move(2, actor="bob", reason="because"))


@pytest.mark.parametrize("statement", ["UPDATE transitions SET reason = 'x'", "DELETE FROM transitions"])
def test_the_database_refuses_to_change_or_delete_rows(three_rows: RolloutLedger, statement: str) -> None:
    connection = sqlite3.connect(three_rows.path)
    with pytest.raises(sqlite3.DatabaseError, match="append-only"):
        connection.execute(statement)
    connection.close()

    assert three_rows.verify() == 3


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE transitions SET to_version = '9' WHERE seq = 2", "row 2 was changed"),
        ("UPDATE transitions SET actor = 'eve' WHERE seq = 3", "row 3 was changed"),
        ("DELETE FROM transitions WHERE seq = 2", "row 2 is missing"),
        ("UPDATE transitions SET previous_hash = 'x' WHERE seq = 3", "row 3 does not follow row 2"),
    ],
)
def test_tampering_is_found_and_the_row_is_named(three_rows: RolloutLedger, statement: str, message: str) -> None:
    tamper(three_rows, statement)

    with pytest.raises(LedgerError, match=message):
        three_rows.verify()


def test_rows_cut_off_the_end_are_missed_by_who_saw_them(three_rows: RolloutLedger) -> None:
    last = three_rows.rows()[-1]
    tamper(three_rows, "DELETE FROM transitions WHERE seq = 3")

    assert three_rows.verify() == 2
    with pytest.raises(LedgerError, match="row 3 was recorded once"):
        three_rows.verify(seen=(last.seq, last.hash))


def test_threads_that_write_at_once_lose_and_double_nothing(ledger: RolloutLedger) -> None:
    # Every move is written by two threads, so that both order and idempotence are under load.
    numbers = [number for number in range(1, 31) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: RolloutLedger(ledger.path).record(move(number)), numbers))

    assert ledger.verify() == 30
    assert {row.transition_id for row in ledger.rows()} == {f"night-{number}" for number in range(1, 31)}


WRITER = """
import sys
from pathlib import Path
from registry.ledger import RolloutLedger, Transition
ledger = RolloutLedger(Path(sys.argv[1]))
for k in range(20):
    ledger.record(Transition(actor=sys.argv[2], action="propose", model="m", version=str(k),
    alias="challenger",
        from_version=None, to_version=str(k), reason="r", transition_id=f"{sys.argv[2]}-{k}"))
"""


def test_processes_that_write_at_once_keep_one_chain(ledger: RolloutLedger) -> None:
    root = Path(__file__).resolve().parents[2]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(ledger.path), name], cwd=root) for name in ("one", "two")
    ]

    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert ledger.verify() == 40


def test_rows_of_one_model_can_be_asked_for(three_rows: RolloutLedger) -> None:
    three_rows.record(move(4, model="talktrack-other"))

    assert [row.version for row in three_rows.rows("talktrack-other")] == ["4"]
    assert three_rows.find("night-2") == three_rows.rows()[1]
    assert three_rows.find("never") is None
