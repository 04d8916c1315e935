"""Sensors: new and changed files ask for one night, and each failure is reported once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from orchestration.ingest.landing import ingest
from orchestration.ingest.pseudonyms import PseudonymKey
from orchestration.partitions import range_tags
from orchestration.resources import Workspace
from orchestration.sensors import ALERT_URL, build_sensors
from orchestration.settings import LogsSettings, TalktrackSettings
from orchestration.workspace import configured_catalogue

CHECK = "rows_are_good"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    logs = LogsSettings(path=str(tmp_path / "logs"))
    return Workspace(TalktrackSettings(home=tmp_path / "home", logs=logs))


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.delenv(ALERT_URL, raising=False)
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def evaluated(
    name: str, workspace: Workspace, instance: dg.DagsterInstance | None = None, cursor: str | None = None
) -> tuple[list[dg.RunRequest], str, str | None]:
    """What a sensor asks for, what it says otherwise, and its cursor afterwards."""
    sensor = next(s for s in build_sensors(workspace.settings) if s.name == name)
    context = dg.build_sensor_context(
        instance=instance or dg.DagsterInstance.ephemeral(), cursor=cursor, resources={"workspace": workspace}
    )
    tick = sensor.evaluate_tick(context)
    return list(tick.run_requests or []), tick.skip_message or "", tick.cursor


# ---------- new logs


def write_logs(workspace: Workspace, day: int, text: str = "hello") -> None:
    folder = Path(str(workspace.settings.logs.path)) / f"arrival_day=2026-01-{day:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    turn = {"dialogue_id": f"d{day}", "turn_index": 0, "occurred_at": f"2026-01-{day:02d}T09:00:00Z"}
    (folder / "turns.jsonl").write_text(json.dumps({**turn, "speaker": "customer", "text": text}) + "\n")


def read_logs(workspace: Workspace) -> None:
    settings, paths = workspace.settings, workspace.paths
    report = ingest(
        str(settings.logs.path),
        "canonical",
        landing=paths.landing,
        quarantine=paths.quarantine,
        catalogue=configured_catalogue(settings),
        key=PseudonymKey(b"k" * 32),
        start_date=date(2026, 1, 1),
        attribution_days=7,
    )
    assert report.n_quarantined == 0


def test_days_with_new_files_ask_for_one_night_over_their_range(workspace: Workspace) -> None:
    for day in (2, 3, 5):
        write_logs(workspace, day)
    (request,), _, _ = evaluated("new_logs_sensor", workspace)
    assert range_tags(date(2026, 1, 2), date(2026, 1, 5)).items() <= request.tags.items()


def test_without_new_files_nothing_is_asked_for(workspace: Workspace) -> None:
    write_logs(workspace, 2)
    read_logs(workspace)
    requests, said, _ = evaluated("new_logs_sensor", workspace)
    assert requests == []
    assert said == "No new or changed files."


def test_a_repaired_file_of_a_known_day_asks_for_that_day_once_per_repair(workspace: Workspace) -> None:
    for day in (2, 3):
        write_logs(workspace, day)
    read_logs(workspace)
    keys = []
    for text in ("hello again", "hello once more"):
        write_logs(workspace, 2, text)
        (first,), _, _ = evaluated("new_logs_sensor", workspace)
        (again,), _, _ = evaluated("new_logs_sensor", workspace)
        assert range_tags(date(2026, 1, 2), date(2026, 1, 2)).items() <= first.tags.items()
        assert first.run_key == again.run_key  # Dagster starts one run per key
        keys.append(first.run_key)
    assert keys[0] != keys[1]


def test_logs_that_cannot_be_listed_are_said_and_stop_no_daemon(workspace: Workspace) -> None:
    requests, said, _ = evaluated("new_logs_sensor", workspace)
    assert requests == []
    assert said.startswith("The logs cannot be listed: There are no logs at")


# ---------- failures


def run(instance: dg.DagsterInstance, *, fails: bool = False, check: dg.AssetCheckSeverity | None = None) -> str:
    """A run of one asset that fails, or of which a check fails with the given severity; returns its id."""

    @dg.asset
    def rows() -> None:
        if fails:
            raise ValueError("broken")

    @dg.asset_check(asset=rows, name=CHECK)
    def rows_are_good() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(
            passed=check is None, severity=check or dg.AssetCheckSeverity.ERROR, description="3 rows are bad."
        )

    result = dg.materialize([rows, rows_are_good], instance=instance, raise_on_error=False)
    assert result.success is not fails
    return result.run_id


def reported(workspace: Workspace) -> list[dict[str, str]]:
    path = workspace.paths.root / "alerts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_failed_runs_and_failed_error_checks_are_reported_once_and_warnings_never(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    run(instance)
    run(instance, check=dg.AssetCheckSeverity.WARN)
    failed = run(instance, fails=True)
    bad = run(instance, check=dg.AssetCheckSeverity.ERROR)

    _, said, cursor = evaluated("failure_sensor", workspace, instance)

    assert said == "2 new failure(s)."
    assert [(a["kind"], a["run_id"]) for a in reported(workspace)] == [("run", failed), ("check", bad)]
    assert reported(workspace)[1]["message"] == f"rows: {CHECK}: 3 rows are bad."

    # A run that is only tagged later is not news; one that fails later is.
    instance.add_run_tags(failed, {"looked_at": "yes"})
    assert evaluated("failure_sensor", workspace, instance, cursor)[1] == "0 new failure(s)."
    later = run(instance, fails=True)
    assert evaluated("failure_sensor", workspace, instance, cursor)[1] == "1 new failure(s)."
    assert [a["run_id"] for a in reported(workspace)] == [failed, bad, later]


def test_failures_from_before_the_cursor_are_not_reported(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    run(instance, fails=True)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert evaluated("failure_sensor", workspace, instance, tomorrow)[1:] == ("0 new failure(s).", tomorrow)


def test_an_address_that_nobody_answers_leaves_the_alert_in_the_file(
    workspace: Workspace,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ALERT_URL, "http://127.0.0.1:9/alerts")
    run(instance, fails=True)
    assert evaluated("failure_sensor", workspace, instance)[1] == "1 new failure(s)."
    assert len(reported(workspace)) == 1


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Dagster logs every event of a run; the tests read the instance instead."""
    logger = logging.getLogger("dagster")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(before)
