"""What goes wrong around a night: a full disk, a clock that is off, a source that changed its columns.

Each is one message that says what was kept. Killed nights are in `test_interruptions`, a second writer in
`test_warehouse`, budget and ledger in `test_aggregates`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from orchestration import nightly
from orchestration.disk import full_disk, is_full_disk
from orchestration.ingest.schema import SCHEMAS
from orchestration.marts import export_tables
from orchestration.nightly import days_to_process
from orchestration.resources import Workspace
from orchestration.settings import LogsSettings, TalktrackSettings
from rl.errors import DataError
from rl.files import write_json
from tests.orchestration.ingest.examples import turn, write_json_lines
from tests.orchestration.test_checks import arrive, check

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def settings(tmp_path: Path) -> TalktrackSettings:
    return TalktrackSettings(home=tmp_path)


# ---------- a full disk


@contextmanager
def no_space_at_the_end_of_a_write(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The disk is full when the last bytes of a file are to be kept."""

    def fails(_descriptor: int) -> None:
        raise NO_SPACE

    with monkeypatch.context() as patched:
        patched.setattr("rl.files.os.fsync", fails)
        yield


def test_a_full_disk_leaves_the_file_that_was_there_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "state.json", {"n": 1})
    with no_space_at_the_end_of_a_write(monkeypatch), pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "state.json", {"n": 2})
    assert (tmp_path / "state.json").read_text() == '{\n  "n": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_full_disk_during_an_export_keeps_the_table_of_the_night_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import duckdb

    with duckdb.connect(str(tmp_path / "w.duckdb")) as connection:
        connection.execute("create table t as select 1 as a")
    export_tables(tmp_path / "w.duckdb", tmp_path / "out", {"t": "a"})
    with duckdb.connect(str(tmp_path / "w.duckdb")) as connection:
        connection.execute("update t set a = 2")
    with no_space_at_the_end_of_a_write(monkeypatch), pytest.raises(OSError, match="No space left"):
        export_tables(tmp_path / "w.duckdb", tmp_path / "out", {"t": "a"})
    assert pq.read_table(tmp_path / "out" / "t" / "part-0.parquet")["a"].to_pylist() == [1]
    assert len(list((tmp_path / "out" / "t").iterdir())) == 1


def chained() -> Exception:
    """As a library says it: an error of its own, and the system's behind it."""
    error = RuntimeError("could not write")
    error.__cause__ = NO_SPACE
    return error


@pytest.mark.parametrize(
    "error",
    [
        NO_SPACE,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        chained(),
        RuntimeError("rl.trainers.train ended with status 1. … OSError: [Errno 28] No space left on device"),
        RuntimeError('IO Error: Could not write file "x.duckdb": No space left on device'),
    ],
)
def test_a_full_disk_is_one_message_of_the_step_and_is_not_tried_again(
    error: Exception, settings: TalktrackSettings
) -> None:
    with pytest.raises(dg.Failure) as failure, Workspace(settings).step():
        raise error
    said = failure.value.description or ""
    assert said.startswith(f"The disk of {settings.home} is full (")
    assert "replaced as a whole or not at all, and nothing was released twice" in said
    assert "run again: the night goes on where it stopped" in said
    assert failure.value.allow_retries is False


def test_another_error_of_a_step_keeps_its_trace(settings: TalktrackSettings) -> None:
    assert not is_full_disk(OSError(errno.EACCES, "Permission denied"))
    with pytest.raises(ValueError, match="our fault"), Workspace(settings).step():
        raise ValueError("our fault")


def test_a_disk_that_is_full_for_dagster_itself_is_the_same_message(
    settings: TalktrackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("(sqlite3.OperationalError) database or disk is full")

    monkeypatch.setattr(nightly, "_execute", full)
    monkeypatch.setattr(nightly, "days_to_process", lambda *_: (date(2026, 1, 1),) * 2)
    with pytest.raises(type(full_disk(settings.home)), match="is full"):
        nightly.run_night(settings)


# ---------- clocks


def with_log_of(day: date, tmp_path: Path) -> TalktrackSettings:
    write_json_lines(tmp_path / "logs" / f"arrival_day={day}" / "log.jsonl", [turn("d1", 0)])
    return TalktrackSettings(home=tmp_path, logs=LogsSettings(path=str(tmp_path / "logs")))


def test_logs_from_the_future_stop_the_night_before_anything_is_read(tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    settings = with_log_of(today + timedelta(days=2), tmp_path)
    with pytest.raises(
        DataError, match=f"they arrived on {today + timedelta(days=2)}, and here it is {today}"
    ) as error:
        days_to_process(settings, None)
    assert "so nothing was read" in str(error.value)
    assert not settings.paths.landing.exists()


def test_the_days_up_to_today_can_be_processed_without_those_of_the_future(tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    with_log_of(today, tmp_path)
    settings = with_log_of(today + timedelta(days=2), tmp_path)
    assert days_to_process(settings, today) == (today, today)


def test_a_clock_that_went_back_between_two_nights_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = with_log_of(date(2026, 3, 2), tmp_path)

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2026, 3, 1, tzinfo=tz)

    assert days_to_process(settings, None) == (date(2026, 3, 2),) * 2
    monkeypatch.setattr(nightly, "datetime", Earlier)
    with pytest.raises(DataError, match="Check this machine's clock"):
        days_to_process(settings, None)


@pytest.mark.parametrize("year", [1989, 2200])
def test_a_turn_from_an_impossible_year_is_quarantined(year: int, settings: TalktrackSettings) -> None:
    late = {**turn("d1", 0), "occurred_at": f"{year}-01-01T00:00:00Z"}
    arrive(settings, [late])
    said = check(settings, "few_records_are_quarantined").description or ""
    assert "Most often (1): occurred_at: lies outside 1990 to 2200." in said


# ---------- the source changes its columns


@pytest.mark.parametrize("missing", ["speaker", "turn_index", "occurred_at", "text"])
def test_a_column_that_vanished_stops_the_night_before_the_warehouse_and_is_named(
    missing: str, settings: TalktrackSettings
) -> None:
    records = [{name: value for name, value in turn(f"d{i}", 0).items() if name != missing} for i in range(5)]
    arrive(settings, records)
    result = check(settings, "few_records_are_quarantined")
    assert not result.passed
    assert f"Most often (5): {missing}: is missing." in (result.description or "")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("turn_index", "first", "turn_index: must be a whole number of 0 or more"),
        ("text", ["a", "list"], "text: must be a string"),
        ("occurred_at", 1767225600, "occurred_at: must be an ISO 8601 time"),
        ("customer_id", {"id": "c-1"}, "customer_id: must be a string"),
        ("propensity", "high", "propensity: must be a number"),
    ],
)
def test_a_column_that_changed_its_type_is_named_without_its_values(
    column: str, value: Any, said: str, settings: TalktrackSettings
) -> None:
    arrive(settings, [{**turn(f"d{i}", 0), column: value} for i in range(5)])
    result = check(settings, "few_records_are_quarantined")
    assert not result.passed
    assert f"Most often (5): {said}" in (result.description or "")
    assert str(value) not in (result.description or "").replace("first", str(value) if value != "first" else "")


def test_a_landing_of_an_older_version_is_given_the_columns_of_this_one(settings: TalktrackSettings) -> None:
    """dbt reads all files by name: with one that has every column, older files have nulls in the new ones."""
    arrive(settings, [turn("d1", 0)])
    empty = settings.paths.landing / "turns" / "arrival_day=1970-01-01" / "empty.parquet"
    older = SCHEMAS["turns"].remove(SCHEMAS["turns"].get_field_index("customer_act"))
    pq.write_table(older.empty_table(), empty)
    arrive(settings, [turn("d1", 0), turn("d2", 0)], day=4)
    assert pq.read_schema(empty) == SCHEMAS["turns"]
