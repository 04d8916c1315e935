"""Sensors: logs that arrived outside the schedule, and failures of runs and of checks in one place."""

import json
import logging
import os
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from orchestration.ingest.landing import committed_files
from orchestration.ingest.sources import find_sources, unread
from orchestration.jobs import NIGHTLY
from orchestration.partitions import range_tags
from orchestration.resources import Workspace
from orchestration.sample import sample_folder
from orchestration.settings import TalktrackSettings
from rl.files import content_hash

ALERT_URL = "TALKTRACK_ALERT_URL"
ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


def build_sensors(settings: TalktrackSettings) -> list[dg.SensorDefinition]:
    """Off by default, as the schedule is."""

    @dg.sensor(
        name="new_logs_sensor",
        job_name=NIGHTLY,
        minimum_interval_seconds=300,
        description="Requests one night for the arrival days of files that are new or changed since they were read.",
    )
    def new_logs_sensor(
        context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]
    ) -> dg.RunRequest | dg.SkipReason:
        current = workspace.settings
        source = current.logs.path or str(sample_folder(current))
        try:
            files = find_sources(
                source,
                current.logs.format,
                start_date=current.logs.start_date,
                attribution_days=current.logs.attribution_days,
            )
        except Exception as error:  # an unreachable store must not kill the daemon's loop
            return dg.SkipReason(f"The logs cannot be listed: {error}")
        new = unread(files, committed_files(current.paths.landing))
        if not new:
            return dg.SkipReason("No new or changed files.")
        days = sorted(file.arrival_day for file in new)
        # The key tells these files as they are: one night for them, and another when one of them changes again.
        state = content_hash(sorted([file.path, file.fingerprint] for file in new))
        return dg.RunRequest(run_key=f"{days[0]}..{days[-1]} {state}", tags=range_tags(days[0], days[-1]))

    @dg.sensor(
        name="failure_sensor",
        minimum_interval_seconds=60,
        description="Reports each failed run and each failed check once: alerts.jsonl, and TALKTRACK_ALERT_URL if set.",
    )
    def failure_sensor(context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]) -> dg.SkipReason:
        since = datetime.fromisoformat(context.cursor) if context.cursor else datetime.now(UTC) - timedelta(days=1)
        alerts, newest = failures_since(context.instance, since)
        for alert in alerts:
            _send(alert, workspace.paths.root / "alerts.jsonl", context.log)
        context.update_cursor(newest.isoformat())
        return dg.SkipReason(f"{len(alerts)} new failure(s).")

    return [new_logs_sensor, failure_sensor]


def failures_since(instance: dg.DagsterInstance, since: datetime) -> tuple[list[dict[str, str]], datetime]:
    """Failures of the runs that ended after `since`, and the end of the newest of those runs.

    A run is looked at once, when it has ended: its own failure and the failed checks (severity ERROR) inside it.
    Its record may be touched later (by tags), so its end decides and not its last update.
    """
    records = instance.get_run_records(
        filters=dg.RunsFilter(statuses=list(ENDED), updated_after=since),
        order_by="update_timestamp",
        ascending=True,
    )
    ended = [
        (datetime.fromtimestamp(record.end_time, UTC), record.dagster_run) for record in records if record.end_time
    ]
    new = [(end, run) for end, run in ended if end > since]
    alerts = [alert for _, run in new for alert in _failures_of(instance, run)]
    return alerts, max((end for end, _ in new), default=since)


def _failures_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[dict[str, str]]:
    what = {"run_id": run.run_id, "job": run.job_name}
    alerts = []
    if run.status is dg.DagsterRunStatus.FAILURE:
        alerts.append({**what, "kind": "run", "message": f"Run {run.run_id} of {run.job_name} failed."})
    evaluations = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    for record in evaluations:
        evaluation = record.event_log_entry.dagster_event.event_specific_data
        if not evaluation.passed and evaluation.severity is dg.AssetCheckSeverity.ERROR:
            name = f"{evaluation.asset_key.to_user_string()}: {evaluation.check_name}"
            alerts.append({**what, "kind": "check", "message": f"{name}: {evaluation.description or 'failed'}"})
    return alerts


def _send(alert: dict[str, str], path: Path, log: logging.Logger) -> None:
    """Append the alert to the file; post it as JSON if an address is configured (one try: the file is the record)."""
    line = json.dumps({"at": datetime.now(UTC).isoformat(), **alert})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(line + "\n")
    log.error(alert["message"])
    if url := os.environ.get(ALERT_URL):
        request = urllib.request.Request(url, line.encode(), {"Content-Type": "application/json"})
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except OSError as error:
            log.warning(f"The alert could not be posted to {ALERT_URL}: {error}")
