"""One night in the foreground: lock, run the job in this process, say what came out and what to open next.

Here: the order of a night and its summary. Not here: what the assets do, how the command line is parsed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg

from orchestration.console import console, night_display, progress
from orchestration.ingest.landing import committed_files
from orchestration.ingest.sources import available_days
from orchestration.instance import open_instance
from orchestration.jobs import NIGHTLY
from orchestration.lock import workspace_lock
from orchestration.partitions import range_tags
from orchestration.sample import log_source
from orchestration.settings import TalktrackSettings
from orchestration.warehouse import behavior_summary
from rl.errors import DataError, TalktrackError
from rl.evaluation.evidence import Evidence

LOG_FILE = "nightly.log"
QUIET_RUN = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class NightFailedError(TalktrackError):
    """The night stopped; the message names the step and its reason."""


def run_night(settings: TalktrackSettings, day: date | None = None) -> dict[str, Any]:
    """Run the night up to arrival day `day` (default: the newest there is) and return its summary.

    Raises TalktrackError if another run holds the workspace, the logs cannot be read, or a step fails.
    """
    started = time.monotonic()
    with workspace_lock(settings.paths.root, exclusive=True), night_display():
        progress("look for logs")
        first, last = days_to_process(settings, day)
        progress("load definitions")
        result = _execute(settings, first, last)
        if not result.success:
            raise NightFailedError(_failure_message(result))
    return summary(settings, _durations(result), time.monotonic() - started)


def days_to_process(settings: TalktrackSettings, day: date | None) -> tuple[date, date]:
    """First and last arrival day of tonight: all that were not read yet, or the newest one again.

    Raises DataError if there are no logs up to `day`, or a day lies before `logs.start_date`.
    """
    days = available_days(
        log_source(settings),
        settings.logs.format,
        start_date=settings.logs.start_date,
        attribution_days=settings.logs.attribution_days,
    )
    days = sorted(d for d in days if day is None or d <= day)
    if not days:
        raise DataError(f"There are no logs up to {day}. Choose a later DAY, or look at logs.path in talktrack.yaml.")
    if days[0] < settings.logs.start_date:
        raise DataError(
            f"The logs begin on {days[0]}, before logs.start_date ({settings.logs.start_date}). "
            "Set logs.start_date in talktrack.yaml to that day or earlier and run again."
        )
    known = {date.fromisoformat(mark["arrival_day"]) for mark in committed_files(settings.paths.landing)}
    new = [d for d in days if d not in known]
    return (new[0], new[-1]) if new else (days[-1], days[-1])


def _execute(settings: TalktrackSettings, first: date, last: date) -> dg.ExecuteInProcessResult:
    warnings.filterwarnings("ignore")  # previews and deprecations of libraries are for developers, not for the night
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    from orchestration.definitions import build_defs

    instance = open_instance(settings)
    job = build_defs(settings).get_job_def(NIGHTLY)
    # Standard output belongs to the summary; what dbt and libraries print is kept in the workspace.
    with (settings.paths.root / LOG_FILE).open("w") as log, contextlib.redirect_stdout(log):
        return job.execute_in_process(
            instance=instance, tags=range_tags(first, last), run_config=QUIET_RUN, raise_on_error=False
        )


def _failure_message(result: dg.ExecuteInProcessResult) -> str:
    """The first failed step in words: a user's mistake as its message, anything else with the end of its trace."""
    for event in result.all_events:
        if event.event_type is dg.DagsterEventType.STEP_FAILURE:
            data = event.event_specific_data
            reason = data.user_failure_data.description if data.user_failure_data else None
            error = data.error.to_string().strip() if data.error else "unknown"
            return f"The night stopped in step `{event.step_key}`.\n{reason or error}"
    return "The night stopped before its first step. Open Dagster (make ui) for the run's log."


def _durations(result: dg.ExecuteInProcessResult) -> dict[str, float]:
    """Seconds by step, from Dagster's own events."""
    return {
        event.step_key: round(event.event_specific_data.duration_ms / 1000, 1)
        for event in result.all_events
        if event.step_key and event.event_type is dg.DagsterEventType.STEP_SUCCESS
    }


def summary(settings: TalktrackSettings, durations: dict[str, float], total_seconds: float) -> dict[str, Any]:
    """The night in numbers: what `--json` prints; its keys are nightly.schema.json."""
    paths = settings.paths
    evidence = Evidence.model_validate_json((paths.root / "evaluation" / "evidence.json").read_text())
    release = json.loads((paths.root / "release.json").read_text())
    counts = behavior_summary(paths.marts)
    verdicts = {v["candidate"]: v for v in release["verdicts"]}
    return {
        "workspace": settings.workspace,
        "logs": counts.model_dump(mode="json"),
        "quarantined": _quarantined(paths.landing),
        "reward_unit": evidence.reward_unit,
        "window": list(evidence.window),
        "behavior": {**_estimate(evidence.behavior), "parts": evidence.behavior_parts},
        "candidates": [
            {
                "name": c.name,
                "algorithm": c.algorithm,
                "estimates": {name: _estimate(e) for name, e in c.estimates.items()},
                "advantage": _estimate(c.advantage),
                "effective_sample_size": c.effective_sample_size,
                "gate": {"passed": verdicts[c.name]["passed"], "reasons": verdicts[c.name]["reasons"]},
            }
            for c in evidence.candidates
        ],
        "registered": release["released"],
        "durations_seconds": durations,
        "total_seconds": round(total_seconds, 1),
        "cards": str(paths.root / "cards"),
    }


def _estimate(estimate: Any) -> dict[str, float]:
    return estimate.model_dump(mode="json")


def _quarantined(landing: Path) -> dict[str, Any]:
    marks = committed_files(landing)
    return {
        "records": sum(m["n_quarantined"] for m in marks),
        "share": sum(m["n_quarantined"] for m in marks) / max(sum(m["n_records"] for m in marks), 1),
    }


def print_summary(night: dict[str, Any]) -> None:
    """The summary for a person, and what to open next."""
    from rich.table import Table

    unit = night["reward_unit"]
    behavior = night["behavior"]
    console.print()
    console.print(f"[bold]{night['workspace']}[/], {night['window'][0]} to {night['window'][1]}")
    for label, value in night["logs"].items():
        if label.startswith("n_"):
            console.print(f"  {label.removeprefix('n_').replace('_', ' '):<26}{value:>12,}")
    quarantined = night["quarantined"]
    console.print(f"  {'quarantined records':<26}{quarantined['records']:>12,}  ({quarantined['share']:.2%})")
    console.print(f"  {'behavior value':<26}{_interval_text(behavior)} {unit} per dialogue")
    for part, value in behavior["parts"].items():
        console.print(f"  {'  mean ' + part:<26}{value:>12.3f}")
    table = Table(title=None, header_style="bold", box=None, padding=(0, 2, 0, 0))
    for column in ("candidate", f"value, {unit} (DR)", "minus behavior", "effective sample", "gate"):
        table.add_column(column)
    for c in night["candidates"]:
        gate = "[green]passed[/]" if c["gate"]["passed"] else "[yellow]refused[/]"
        table.add_row(
            c["name"],
            _interval_text(c["estimates"]["dr"]) if "dr" in c["estimates"] else "no estimate",
            _interval_text(c["advantage"]),
            f"{c['effective_sample_size']:,.0f}",
            gate,
        )
    console.print()
    console.print(table)
    for c in night["candidates"]:
        if not c["gate"]["passed"]:
            console.print(f"  {c['name']}: {'; '.join(c['gate']['reasons'])}", style="yellow")
    released = night["registered"]
    console.print()
    if released:
        console.print(f"[bold green]Registered[/] {released['model']} version {released['version']}, alias challenger.")
    else:
        console.print("[bold yellow]Nothing registered[/]: no candidate passed the gate; the reasons are above.")
    console.print(
        f"{night['total_seconds']:.0f} s. Open next: `make ui` (Dagster), `make mlflow`, and the policy cards in"
    )
    console.print(f"  {night['cards']}")


def _interval_text(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
