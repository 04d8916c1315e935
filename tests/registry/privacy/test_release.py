"""A window is drawn once, whatever is killed, full or tampered with; what was released stays as it was."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from registry.errors import (
    BudgetExceededError,
    CertificationError,
    LedgerError,
    ReleaseError,
    ReleaseLostError,
)
from registry.privacy import release, staging
from registry.privacy.budget import TABLES, BudgetLedger, Cost
from registry.privacy.plan import ReleasePlan
from registry.privacy.release import (
    ReleasePlaces,
    ReleaseRecord,
    delete_old_releases,
    find_release,
    open_budget,
    prepare_released,
    release_tables,
    released_records,
    verify_releases,
)
from registry.privacy.tables import RELEASED_SCHEMAS, ExactTables
from registry.privacy.windows import Window

Call = Callable[..., ReleaseRecord]


class Killed(BaseException):
    """A process that ends here: nothing catches it."""


@pytest.fixture
def call(exact: ExactTables, plan: ReleasePlan, window: Window, places: ReleasePlaces) -> Call:
    """Release the window, with changes."""

    def release_it(**changes: Any) -> ReleaseRecord:
        values: dict[str, Any] = {"plan": plan, "window": window, "places": places, "code_revision": "abc"}
        return release_tables(changes.pop("exact", exact), **{**values, **changes})

    return release_it


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One element per draw."""
    made: list[int] = []
    original = release.draw

    def counted(*arguments: Any) -> Any:
        made.append(1)
        return original(*arguments)

    monkeypatch.setattr(release, "draw", counted)
    return made


def raising(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: Any, **__: Any) -> Any:
        raise error

    return raise_it


def spent(places: ReleasePlaces, window: Window) -> dict[str, Cost]:
    return open_budget(places).spent(window.start)


# ---------- a release


def test_a_release_says_what_it_is_and_its_files_are_what_it_says(
    call: Call, plan: ReleasePlan, places: ReleasePlaces, window: Window
) -> None:
    record = call()
    assert not record.is_replay
    assert record.note == ""
    assert (record.rho, record.delta, record.epsilon_delta) == (0.08, 1e-6, 1e-6)
    assert record.epsilon == pytest.approx(1.90, abs=0.01)
    assert record.unit_of_privacy == "customer"
    assert record.measures["transitions"].sigma == pytest.approx(plan.measure("transitions").sigma)
    assert record.measures["reply_texts"].tau is not None
    assert sum(measure.rho for measure in record.measures.values()) == pytest.approx(0.08)
    folder = places.folder(window.start)
    assert sorted(path.name for path in folder.iterdir()) == [
        "cells.parquet",
        "release.json",
        "replies.parquet",
        "transitions.parquet",
    ]
    for name, schema in RELEASED_SCHEMAS.items():
        table = pq.read_table(folder / f"{name}.parquet")
        assert table.schema == schema
        assert set(table.column("release_id").to_pylist()) == {record.release_id}
    stored = json.loads((folder / "release.json").read_text())
    assert "is_replay" not in stored
    assert "note" not in stored
    booking = open_budget(places).find(window.start, TABLES)
    assert booking is not None
    assert (record.ledger_seq, record.ledger_hash) == (booking.reservation.seq, booking.reservation.hash)
    assert spent(places, window) == {TABLES: Cost(80_000, 1_000_000)}
    assert verify_releases(places) == 1


def test_what_is_restricted_is_for_the_owner_alone_and_nothing_of_it_stays(
    call: Call, places: ReleasePlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(release, "move_into_place", raising(Killed()))
        with pytest.raises(Killed):
            call()
    staged = [path for path in places.staging.rglob("*") if path.name != "release.lock"]
    assert len(staged) == 5
    assert {path.stat().st_mode & 0o077 for path in (places.staging, *staged)} == {0}
    call()
    assert [path.name for path in places.staging.iterdir()] == ["release.lock"]


def test_released_again_it_is_the_same_release_byte_for_byte(
    call: Call, places: ReleasePlaces, window: Window, draws: list[int]
) -> None:
    first = call()
    before = {path.name: path.read_bytes() for path in places.folder(window.start).iterdir()}
    again = call()
    assert again.is_replay
    assert again.model_copy(update={"is_replay": False}) == first
    assert {path.name: path.read_bytes() for path in places.folder(window.start).iterdir()} == before
    assert len(draws) == 1
    assert open_budget(places).verify() == 2


def test_a_replay_does_not_look_at_the_exact_tables(call: Call, exact: ExactTables) -> None:
    first = call()
    empty = ExactTables(*(table.slice(0, 0) for table in (exact.transitions, exact.cells, exact.replies)))
    assert call(exact=empty).release_id == first.release_id


def test_changed_settings_leave_a_window_as_it_was_and_the_note_says_so(
    call: Call, plan_with: Callable[..., ReleasePlan], draws: list[int]
) -> None:
    first = call()
    again = call(plan=plan_with(rho=0.5, minimum_customers=30))
    assert again.release_id == first.release_id
    assert again.rho == 0.08
    assert "under other settings (rho, minimum_customers)" in again.note
    assert "begins on 2026-01-29" in again.note
    assert len(draws) == 1


def test_a_catalogue_that_grew_is_noted(call: Call, plan: ReleasePlan) -> None:
    call()
    grown = replace(plan, grid=replace(plan.grid, strategies=(*plan.grid.strategies, "praise")))
    assert "the strategies or customer acts of the grid" in call(plan=grown).note


def test_windows_are_released_one_after_another_with_a_budget_each(
    call: Call, places: ReleasePlaces, window: Window
) -> None:
    one, other = call(), call(window=window.next())
    assert one.release_id != other.release_id
    assert [record.window for record in released_records(places.released)] == [window, window.next()]
    assert spent(places, window) == spent(places, window.next())
    assert verify_releases(places) == 2


def test_before_the_first_release_readers_find_empty_tables(places: ReleasePlaces) -> None:
    prepare_released(places.released)
    prepare_released(places.released)
    for name, schema in RELEASED_SCHEMAS.items():
        table = pq.read_table(places.released / "releases" / "none" / f"{name}.parquet")
        assert table.schema == schema
        assert table.num_rows == 0
    assert released_records(places.released) == []


# ---------- killed


BEFORE = ("take_space", "BudgetLedger.reserve")
LOST = ("draw", "write_tables", "write_record")
KEPT = ("BudgetLedger.commit", "move_into_place", "shutil.copyfile", "_require_unchanged")


def kill_at(point: str, patched: pytest.MonkeyPatch) -> None:
    owner, name = (release, point) if "." not in point else (getattr(release, point.split(".")[0]), point.split(".")[1])
    patched.setattr(owner, name, raising(Killed()))


@pytest.mark.parametrize("point", BEFORE)
def test_killed_before_the_reservation_nothing_has_happened(
    call: Call, places: ReleasePlaces, window: Window, draws: list[int], monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    with monkeypatch.context() as patched:
        kill_at(point, patched)
        with pytest.raises(Killed):
            call()
    assert spent(places, window) == {}
    assert draws == []
    assert not call().is_replay
    assert len(draws) == 1


@pytest.mark.parametrize("point", LOST)
def test_killed_between_reservation_and_disk_the_budget_is_spent_and_said_to_be(
    call: Call, places: ReleasePlaces, window: Window, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    with monkeypatch.context() as patched:
        kill_at(point, patched)
        with pytest.raises(Killed):
            call()
    drawn = []
    monkeypatch.setattr(release, "draw", lambda *_: drawn.append(1))
    for _ in range(2):
        with pytest.raises(ReleaseLostError) as caught:
            call()
        said = str(caught.value)
        for part in ("2026-01-01 to 2026-01-28", "count as spent", "stays without tables", "Nothing has to be done"):
            assert part in said
        assert "opens on 2026-01-29" in said
    assert drawn == []
    assert spent(places, window) == {TABLES: Cost(80_000, 1_000_000)}
    assert find_release(places.released, window.start) is None


@pytest.mark.parametrize("point", KEPT)
def test_killed_after_the_figures_were_kept_the_next_call_publishes_those(
    call: Call, places: ReleasePlaces, window: Window, draws: list[int], monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    with monkeypatch.context() as patched:
        kill_at(point, patched)
        with pytest.raises(Killed):
            call()
    stage = places.staging / window.start.isoformat()
    staged = {path.name: path.read_bytes() for path in stage.iterdir()}
    record = call()
    assert record.is_replay
    assert {path.name: path.read_bytes() for path in places.folder(window.start).iterdir()} == staged
    assert len(draws) == 1
    assert not stage.exists()
    assert open_budget(places).verify() == 2
    assert verify_releases(places) == 1


OPERATIONS = (
    (os, "fsync"),
    (Path, "rename"),
    (Path, "replace"),
    (Path, "mkdir"),
    (shutil, "copyfile"),
    (shutil, "rmtree"),
)


def test_killed_before_any_operation_on_disk_a_window_is_drawn_at_most_once(
    call: Call, places: ReleasePlaces, window: Window, draws: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill the first, the second, … operation of a release until one is left in peace."""
    ended: list[str] = []
    for nth in range(1, 100):
        count = 0

        def or_killed(original: Callable[..., Any], nth: int = nth) -> Callable[..., Any]:
            def operation(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == nth:
                    raise Killed
                return original(*arguments, **named)

            return operation

        with monkeypatch.context() as patched:
            for owner, name in OPERATIONS:
                patched.setattr(owner, name, or_killed(getattr(owner, name)))
            try:
                call(window=window)
                break
            except Killed:
                pass
        try:
            ended.append("released before" if call(window=window).is_replay else "released")
        except ReleaseLostError:
            ended.append("lost")
        assert len(draws) <= 1
        draws.clear()
        assert spent(places, window) == {TABLES: Cost(80_000, 1_000_000)}
        window = window.next()
    assert {"released", "lost", "released before"} == set(ended)
    assert verify_releases(places) == len(ended) + 1 - ended.count("lost")


def test_a_release_that_waits_is_published_under_the_settings_it_was_drawn_with(
    call: Call, plan_with: Callable[..., ReleasePlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_at("BudgetLedger.commit", patched)
        with pytest.raises(Killed):
            call()
    record = call(plan=plan_with(minimum_customers=40))
    assert record.settings["minimum_customers"] == 20
    assert "minimum_customers" in record.note


KILLED_PROCESS = """
import os, signal, sys
from datetime import date
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq
from registry.privacy import release, staging
from registry.privacy.plan import plan_release
from registry.privacy.settings import PrivacySettings
from registry.privacy.tables import ExactTables
from registry.privacy.windows import Window
folder, point = Path(sys.argv[1]), sys.argv[2]
plan = plan_release(PrivacySettings(grid="turn"), strategies=("ask", "inform", "offer", "wait"),
                    customer_acts=("accept", "question", "other"), sampling_share=0.6)
exact = ExactTables(*(pq.read_table(folder / f"{name}.parquet") for name in ("transitions", "cells", "replies")))
places = release.ReleasePlaces("storefront", folder / "released", folder / "staging", folder / "ledger" / "p.db")
if point:
    setattr(release, point, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
record = release.release_tables(exact, plan=plan, window=Window(date(2026, 1, 1), date(2026, 1, 29)), places=places,
                                code_revision="abc")
print(record.at.isoformat(), record.is_replay)
"""


@pytest.fixture
def process(exact: ExactTables, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """A process of its own that releases the window, and kills itself when it reaches `point`."""
    for name in ("transitions", "cells", "replies"):
        pq.write_table(getattr(exact, name), tmp_path / f"{name}.parquet")

    def start(point: str = "") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", KILLED_PROCESS, str(tmp_path), point],
            cwd=Path(__file__).resolve().parents[3],
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


def test_a_process_that_is_really_killed_leaves_no_lock_and_its_figures(
    process: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    assert process("move_into_place").wait(60) == -signal.SIGKILL
    staged = (tmp_path / "staging" / "2026-01-01" / "cells.parquet").read_bytes()
    said, _ = process().communicate(timeout=60)
    assert said.split()[1] == "True"
    assert (tmp_path / "released" / "releases" / "2026-01-01" / "cells.parquet").read_bytes() == staged


def test_of_two_processes_at_once_one_draws_and_both_return_its_release(
    process: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    racers = [process() for _ in range(2)]
    said = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert said[0][0] == said[1][0]
    assert sorted(is_replay for _, is_replay in said) == ["False", "True"]
    assert BudgetLedger(tmp_path / "ledger" / "p.db", "storefront").verify() == 2


@pytest.mark.slow
def test_killed_at_any_moment_a_window_has_one_release_or_is_lost(
    call: Call, places: ReleasePlaces, window: Window
) -> None:
    """SIGKILL at 40 moments spread over the time that a release takes, SQLite's own writes included."""
    call()  # what is imported late is there before the clock runs
    begin = time.monotonic()
    call(window=window.next())
    usual = time.monotonic() - begin
    window = window.next().next()
    outcomes: list[str] = []
    for moment in range(40):
        child = os.fork()
        if child == 0:
            call(window=window)
            os._exit(0)
        time.sleep(1.2 * usual * moment / 40)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        before = spent(places, window)
        try:
            outcomes.append("published" if call(window=window).is_replay else "drawn")
        except ReleaseLostError:
            outcomes.append("lost")
        assert (outcomes[-1] == "drawn") == (not before)
        assert spent(places, window) == {TABLES: Cost(80_000, 1_000_000)}
        window = window.next()
    assert verify_releases(places) == 2 + len(outcomes) - outcomes.count("lost")
    assert {"drawn", "published"} <= set(outcomes)


def test_threads_that_release_at_once_draw_once(call: Call, draws: list[int]) -> None:
    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(lambda _: call(), range(4)))
    assert len({record.at for record in records}) == 1
    assert len(draws) == 1


def test_who_waits_too_long_for_another_release_is_told_so(
    call: Call, draws: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "LOCK_TIMEOUT_SECONDS", 0.1)
    original, entered, leave = release.certify, threading.Event(), threading.Event()

    def slow(plan: ReleasePlan) -> None:
        entered.set()
        leave.wait(30)
        original(plan)

    monkeypatch.setattr(release, "certify", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(call)
        entered.wait(30)
        with pytest.raises(
            ReleaseError, match=r"Another process has been releasing in workspace 'storefront' for 0\.1 s"
        ):
            call()
        leave.set()
        assert not first.result().is_replay
    assert len(draws) == 1


# ---------- full disk, folders that cannot be written


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_files_that_may_not_grow_so_far_stop_it_before_anything_is_spent(
    call: Call, places: ReleasePlaces, window: Window
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(ReleaseError, match=r"could not be prepared \(File too large\)"):
            call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert spent(places, window) == {}
    assert not call().is_replay


def test_a_disk_too_full_for_the_release_stops_it_before_anything_is_spent(
    call: Call, places: ReleasePlaces, window: Window, draws: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = staging._overwrite

    def full(path: Path, content: bytes) -> None:
        if path.name == "replies.parquet":
            raise no_space()
        original(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(staging, "_overwrite", full)
        with pytest.raises(ReleaseError, match=r"could not be prepared \(No space left on device\)") as caught:
            call()
    assert "Nothing is lost and nothing was drawn twice" in str(caught.value)
    assert draws == []
    assert spent(places, window) == {}
    assert not call().is_replay


def test_the_space_that_is_taken_first_is_enough_for_the_files(
    call: Call, places: ReleasePlaces, plan_with: Callable[..., ReleasePlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, list[int]] = {}
    original = staging._overwrite

    def noted(path: Path, content: bytes) -> None:
        sizes.setdefault(path.name, []).append(len(content))
        original(path, content)

    monkeypatch.setattr(staging, "_overwrite", noted)
    call(plan=plan_with(grid="turn_segment"))
    assert len(sizes) == 4
    assert all(taken > used for taken, used in sizes.values())


def after_the_draw(patched: pytest.MonkeyPatch, name: str) -> None:
    """From the draw on, a function of the staging folder finds no space."""
    original = release.draw

    def then_fails(*arguments: Any) -> Any:
        patched.setattr(staging, name, raising(no_space()))
        return original(*arguments)

    patched.setattr(release, "draw", then_fails)


def test_a_disk_that_fails_after_the_draw_loses_the_window_and_says_so(
    call: Call, places: ReleasePlaces, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        after_the_draw(patched, "_overwrite")
        with pytest.raises(ReleaseLostError, match=r"could not be kept in .* \(No space left on device\)"):
            call()
    assert spent(places, window) == {TABLES: Cost(80_000, 1_000_000)}
    with pytest.raises(ReleaseLostError, match="count as spent"):
        call()


def test_a_disk_that_fails_when_all_is_written_loses_nothing(
    call: Call, places: ReleasePlaces, draws: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        after_the_draw(patched, "_sync_folder")
        with pytest.raises(ReleaseError, match=r"could not be kept \(No space left on device\)\. Nothing is lost"):
            call()
    assert call().is_replay
    assert len(draws) == 1
    assert verify_releases(places) == 1


@pytest.mark.parametrize("copied", [0, 2])
def test_a_released_zone_that_is_full_gets_the_release_when_there_is_space(
    call: Call, places: ReleasePlaces, window: Window, draws: list[int], monkeypatch: pytest.MonkeyPatch, copied: int
) -> None:
    original, copies = shutil.copyfile, []

    def full(source: Path, target: Path) -> None:
        if len(copies) == copied:
            raise no_space()
        copies.append(1)
        original(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        with pytest.raises(ReleaseError, match=r"could not be published \(No space left on device\)"):
            call()
    assert find_release(places.released, window.start) is None
    assert call().is_replay
    assert len(draws) == 1
    assert verify_releases(places) == 1


def test_a_full_disk_under_the_ledger_draws_nothing(
    call: Call, places: ReleasePlaces, window: Window, draws: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("registry.privacy.budget.append", raising(sqlite3.OperationalError("database or disk is full")))
        with pytest.raises(LedgerError, match=r"database or disk is full.*Nothing was booked"):
            call()
    assert draws == []
    assert spent(places, window) == {}
    assert not call().is_replay


@pytest.mark.parametrize("blocked", ["staging", "released"])
def test_a_folder_that_cannot_be_made_is_one_message(
    call: Call, places: ReleasePlaces, window: Window, draws: list[int], blocked: str
) -> None:
    # A file in its place stops root too, whom permissions do not stop.
    path: Path = getattr(places, blocked)
    path.write_text("")
    with pytest.raises(ReleaseError, match=r"could not be (prepared|published)"):
        call()
    path.unlink()
    call()
    assert len(draws) == 1


# ---------- refusals before the draw


def test_what_no_mechanism_certifies_is_refused_before_the_budget_is_booked(
    call: Call, places: ReleasePlaces, window: Window, plan_with: Callable[..., ReleasePlan]
) -> None:
    with pytest.raises(CertificationError):
        call(plan=plan_with(reward_high=1e17))
    assert spent(places, window) == {}


def test_tables_that_are_not_bounded_sums_cost_nothing(
    call: Call, exact: ExactTables, places: ReleasePlaces, window: Window
) -> None:
    with pytest.raises(ReleaseError, match="no window is due"):
        call(exact=replace(exact, transitions=exact.transitions.slice(0, 0)))
    assert spent(places, window) == {}


def test_a_budget_that_was_spent_elsewhere_refuses_the_tables(
    call: Call, places: ReleasePlaces, window: Window, plan: ReleasePlan, draws: list[int]
) -> None:
    open_budget(places).reserve(window, "gate:cql", release_id="g", cost=Cost(30_000), budget=plan.budget)
    with pytest.raises(BudgetExceededError, match=r"tables asks for ρ 0\.08"):
        call()
    assert draws == []


# ---------- tampering


def test_a_released_file_that_was_changed_is_refused(call: Call, places: ReleasePlaces, window: Window) -> None:
    call()
    path = places.folder(window.start) / "cells.parquet"
    path.write_bytes(path.read_bytes() + b" ")
    for attempt in (call, lambda: verify_releases(places)):
        with pytest.raises(ReleaseError, match=r"are not those that were released \(row 2.*nothing is drawn again"):
            attempt()


def test_a_record_that_was_changed_with_its_hashes_is_refused(
    call: Call, places: ReleasePlaces, window: Window
) -> None:
    call()
    path = places.folder(window.start) / "release.json"
    path.write_text(path.read_text().replace('"minimum_customers": 20', '"minimum_customers": 5'))
    with pytest.raises(ReleaseError, match="are not those that were released"):
        call()


@pytest.mark.parametrize("content", [None, "{}", "half a rec"])
def test_a_release_without_a_readable_record_is_refused(
    call: Call, places: ReleasePlaces, window: Window, content: str | None
) -> None:
    call()
    path = places.folder(window.start) / "release.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ReleaseError, match=r"no readable release\.json.*Restore the folder"):
        call()


def test_a_release_that_was_deleted_is_not_drawn_again(
    call: Call, places: ReleasePlaces, window: Window, draws: list[int]
) -> None:
    call()
    shutil.rmtree(places.folder(window.start))
    with pytest.raises(ReleaseError, match=r"was released \(row 1.*are not in.*not drawn again"):
        call()
    assert len(draws) == 1


def test_a_ledger_that_vanished_while_a_release_is_there_is_refused(
    call: Call, places: ReleasePlaces, window: Window, draws: list[int]
) -> None:
    call()
    shutil.rmtree(places.ledger.parent)
    for attempt in (call, lambda: call(window=window.next())):
        with pytest.raises(LedgerError, match=r"There is no privacy ledger at .* no new ledger is made"):
            attempt()
    assert not places.ledger.exists()
    assert len(draws) == 1


def test_a_ledger_that_vanished_while_a_release_waits_is_refused(
    call: Call, places: ReleasePlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_at("BudgetLedger.commit", patched)
        with pytest.raises(Killed):
            call()
    shutil.rmtree(places.ledger.parent)
    with pytest.raises(LedgerError, match="no new ledger is made"):
        call()


def cut_off(places: ReleasePlaces, from_row: int) -> None:
    connection = sqlite3.connect(places.ledger)
    connection.executescript(f"DROP TRIGGER entries_are_never_deleted; DELETE FROM entries WHERE seq >= {from_row};")
    connection.close()


@pytest.mark.parametrize(("from_row", "message"), [(1, "row 1 was recorded once"), (2, "commitment of the release")])
def test_rows_cut_off_the_ledger_are_missed_by_the_release(
    call: Call, places: ReleasePlaces, from_row: int, message: str
) -> None:
    call()
    cut_off(places, from_row)
    for attempt in (call, lambda: verify_releases(places)):
        with pytest.raises(LedgerError, match=message):
            attempt()


def test_every_draw_that_was_published_guards_its_row(
    call: Call, places: ReleasePlaces, window: Window, plan: ReleasePlan
) -> None:
    call()
    row = open_budget(places).reserve(window, "gate:cql", release_id="g", cost=Cost(5_000), budget=plan.budget)
    drawn = places.released / "evaluations" / "2026-01-01" / "cql.json"
    drawn.parent.mkdir(parents=True)
    drawn.write_text(json.dumps({"ledger_seq": row.seq, "ledger_hash": row.hash}))
    (drawn.parent / "notes.json").write_text("[1]")
    assert verify_releases(places) == 1
    cut_off(places, 3)
    with pytest.raises(LedgerError, match="row 3 was recorded once"):
        verify_releases(places)


def test_staged_figures_of_another_reservation_are_not_published(
    call: Call, places: ReleasePlaces, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_at("BudgetLedger.commit", patched)
        with pytest.raises(Killed):
            call()
    path = places.staging / window.start.isoformat() / "transitions.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ReleaseLostError, match="are not in"):
        call()


# ---------- retention


def test_old_releases_are_deleted_the_newest_stays_and_none_is_drawn_again(
    call: Call, places: ReleasePlaces, window: Window, draws: list[int]
) -> None:
    windows = [window, window.next(), window.next().next()]
    for each in windows:
        call(window=each)
    assert delete_old_releases(places, before=date(2026, 1, 28)) == []
    assert delete_old_releases(places, before=windows[1].end) == [windows[0].start, windows[1].start]
    assert delete_old_releases(places, before=date(2030, 1, 1)) == []
    assert [record.window for record in released_records(places.released)] == windows[2:]
    assert verify_releases(places) == 1
    with pytest.raises(ReleaseError, match="not drawn again"):
        call()
    assert len(draws) == 3


def test_a_release_of_five_thousand_cells_takes_seconds(
    call: Call, exact: ExactTables, plan_with: Callable[..., ReleasePlan]
) -> None:
    plan = plan_with(grid="turn_segment_act_strategy", expected_dialogues=10**7)
    assert plan.grid.n_transitions > 5_000
    begin = time.process_time()  # a loaded machine is no fault of the code
    call(plan=plan, exact=exact)
    assert time.process_time() - begin < 5
