"""One night in the foreground: lock, run the job in this process, say what came out and what to open next.

Here: the order of a night and its summary. Not here: what the assets do, how the command line is parsed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import warnings
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
from rich.padding import Padding
from rich.table import Table

from orchestration.aggregate_policy import read_private_evidence
from orchestration.aggregates import ReleaseOutcome, last_outcome, places
from orchestration.commands import rollout_of
from orchestration.console import console, night_display, progress
from orchestration.disk import full_disk, is_full_disk
from orchestration.ingest.landing import broken_files, committed_files
from orchestration.ingest.sources import find_sources, unread
from orchestration.instance import close_killed_nights, night_tags, open_instance
from orchestration.jobs import NIGHTLY
from orchestration.lock import workspace_lock
from orchestration.marts import behavior_summary
from orchestration.partitions import range_tags
from orchestration.sample import log_source
from orchestration.settings import TalktrackSettings
from registry.errors import RegistryError
from registry.gates import Verdict
from registry.privacy.accounting import epsilon
from registry.privacy.release import open_budget
from rl.errors import DataError, TalktrackError
from rl.evaluation.evidence import Evidence
from rl.shown_counts import count_text, shown_count

LOG_FILE = "nightly.log"
GATE_WORDS = {
    "passed": "[green]passed[/]",
    "refused": "[yellow]refused[/]",
    "passed_in_dry_run": "[yellow]refused, dry run[/]",
    "unchecked": "unchecked",
}
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
        try:
            result = _execute(settings, first, last)
        except Exception as error:  # Dagster's own files may be what does not fit
            if is_full_disk(error):
                raise full_disk(settings.paths.home) from None
            raise
        if not result.success:
            raise NightFailedError(failure_message(result))
    return summary(settings, _durations(result), time.monotonic() - started)


def days_to_process(settings: TalktrackSettings, day: date | None) -> tuple[date, date]:
    """First and last arrival day of the files that are new or changed; without such files the newest day again.

    Raises DataError if there are no logs up to `day`, or a day lies before `logs.start_date` or in the future.
    """
    files = find_sources(
        log_source(settings),
        settings.logs.format,
        start_date=settings.logs.start_date,
        attribution_days=settings.logs.attribution_days,
        up_to=day,
    )
    days = sorted(file.arrival_day for file in files)
    if not days:
        raise DataError(f"There are no logs up to {day}. Choose a later DAY, or look at logs.path in talktrack.yaml.")
    if days[0] < settings.logs.start_date:
        raise DataError(
            f"The logs begin on {days[0]}, before logs.start_date ({settings.logs.start_date}). "
            "Set logs.start_date in talktrack.yaml to that day or earlier and run again."
        )
    if days[-1] > (today := datetime.now(UTC).date()):
        raise DataError(
            f"The newest logs say that they arrived on {days[-1]}, and here it is {today} (UTC). Whether outcomes are "
            "in and windows are due is judged by these days, so nothing was read. Check this machine's clock and the "
            f"days in the paths of the logs, or process the days up to today with --day {today}."
        )
    new = sorted(file.arrival_day for file in unread(files, committed_files(settings.paths.landing)))
    return (new[0], new[-1]) if new else (days[-1], days[-1])


def _execute(settings: TalktrackSettings, first: date, last: date) -> dg.ExecuteInProcessResult:
    warnings.filterwarnings("ignore")  # previews and deprecations of libraries are for developers, not for the night
    for name in ("dagster", "dagster_dbt"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from orchestration.definitions import build_defs

    instance = open_instance(settings)
    close_killed_nights(instance, settings)
    job = build_defs(settings).resolve_job_def(NIGHTLY)
    # The terminal belongs to the bars and the summary; what dbt and libraries print is kept in the workspace.
    with (
        (settings.paths.root / LOG_FILE).open("w") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        return job.execute_in_process(
            instance=instance,
            tags={**range_tags(first, last), **night_tags(settings)},
            run_config=QUIET_RUN,
            raise_on_error=False,
        )


def failure_message(result: dg.ExecuteInProcessResult) -> str:
    """The first failed step in words: a failed check or a user's mistake as its message, anything else as its trace."""
    for event in result.all_events:
        if event.event_type is dg.DagsterEventType.STEP_FAILURE:
            if failed := _failed_checks(result, event.step_key):
                return "\n".join(failed)
            data = event.event_specific_data
            reason = data.user_failure_data.description if data.user_failure_data else None
            error = data.error.to_string().strip() if data.error else "unknown"
            return f"The night stopped in step `{event.step_key}`.\n{reason or error}"
    return "The night stopped before its first step. Open Dagster (make ui) for the run's log."


def _failed_checks(result: dg.ExecuteInProcessResult, step_key: str | None) -> list[str]:
    """What the failed checks of a step say, dbt's tests among them; checks that only warn stop no night."""
    events = [e for e in result.all_events if e.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION]
    evaluations = [e.event_specific_data for e in events if e.step_key == step_key]
    failed = [e for e in evaluations if not e.passed and e.severity is dg.AssetCheckSeverity.ERROR]
    return [f"The check `{e.check_name}` of {e.asset_key.to_user_string()} failed.\n{_explained(e)}" for e in failed]


def _explained(evaluation: Any) -> str:
    if evaluation.description:
        return str(evaluation.description)
    facts = [f"{name}: {value.value}" for name, value in evaluation.metadata.items() if hasattr(value, "value")]
    return "; ".join(facts) or "Open Dagster (make ui) for the check's history."


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
    verdicts = {v["candidate"]: Verdict.model_validate(v) for v in release["verdicts"]}
    return {
        "workspace": settings.workspace,
        "logs": _shown(counts.model_dump(mode="json")),
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
                "gate": _gate(verdicts[c.name]),
                "privacy_mode": mode,
            }
            for mode, found in _evidence_by_mode(settings, evidence)
            for c in found.candidates
        ],
        "registered": release["released"],
        "aliases": _aliases(settings),
        "privacy": _privacy(settings),
        "durations_seconds": durations,
        "total_seconds": round(total_seconds, 1),
        "cards": str(paths.root / "cards"),
    }


def _evidence_by_mode(settings: TalktrackSettings, evidence: Evidence) -> list[tuple[str, Evidence]]:
    """The evidence on candidates from single dialogues, and on the one from released aggregates."""
    private = read_private_evidence(settings)
    return [("individual", evidence), *([("aggregate", private)] if private else [])]


def _privacy(settings: TalktrackSettings) -> dict[str, Any]:
    """What the night's private release came to, and what its window has spent."""
    outcome = last_outcome(settings.paths) or ReleaseOutcome(state="not_due", reason="No private release has run yet.")
    start = outcome.window_start
    spent = open_budget(places(settings)).spent(date.fromisoformat(start)) if start else {}
    return {
        "state": outcome.state,
        "reason": outcome.reason,
        "window": [start, outcome.window_end] if start else None,
        "spent": {purpose: cost.rho for purpose, cost in spent.items()},
        "rho": settings.privacy.rho,
        "epsilon": round(epsilon(settings.privacy.rho, settings.privacy.delta), 3),
        "delta": 2 * settings.privacy.delta,
    }


def _shown(counts: dict[str, Any]) -> dict[str, Any]:
    """The counts of dialogues, null where there are fewer than 20."""
    return {name: shown_count(n) if name.startswith("n_") else n for name, n in counts.items()}


def _estimate(estimate: Any) -> dict[str, float]:
    return estimate.model_dump(mode="json")


def _gate(verdict: Verdict) -> dict[str, Any]:
    return {"passed": verdict.passed, "outcome": verdict.outcome, "reasons": list(verdict.reasons)}


def _aliases(settings: TalktrackSettings) -> dict[str, str | None]:
    """The version behind each alias; empty while nothing is registered."""
    try:
        return {alias.alias: alias.version for alias in rollout_of(settings).status().aliases}
    except RegistryError:
        return {}


def _quarantined(landing: Path) -> dict[str, Any]:
    marks = committed_files(landing)
    return {
        "records": sum(m["n_quarantined"] for m in marks),
        "share": sum(m["n_quarantined"] for m in marks) / max(sum(m["n_records"] for m in marks), 1),
        "broken_files": broken_files(landing),
    }


def print_summary(night: dict[str, Any]) -> None:
    """The summary for a person, and what to open next."""
    unit, behavior, quarantined = night["reward_unit"], night["behavior"], night["quarantined"]
    console.print()
    console.print(f"[bold]{night['workspace']}[/], {night['window'][0]} to {night['window'][1]}")
    for label, value in night["logs"].items():
        if label.startswith("n_"):
            console.print(f"  {label.removeprefix('n_').replace('_', ' '):<26}{count_text(value):>12}")
    console.print(f"  {'quarantined records':<26}{quarantined['records']:>12,}  ({quarantined['share']:.2%})")
    for path in quarantined["broken_files"]:
        console.print(
            f"  {path} is cut off or damaged; its dialogues count as incomplete. Put it back whole and run again.",
            style="yellow",
            soft_wrap=True,
        )
    console.print(f"  {'behavior value':<26}{_number(behavior['value']):>12}  {_range(behavior)} {unit} per dialogue")
    for part, value in behavior["parts"].items():
        console.print(f"  {'mean ' + part.replace('_', ' '):<26}{_number(value):>12}")
    _print_privacy(night["privacy"])
    console.print()
    console.print(_candidates_table(night["candidates"], unit))
    _print_refusals(night["candidates"])
    console.print()
    if released := night["registered"]:
        held = [alias for alias, version in night["aliases"].items() if version == released["version"]]
        alias = f"alias {', '.join(held)}" if held else "no alias"
        console.print(f"[bold green]Registered[/] {released['model']} version {released['version']}, {alias}.")
    else:
        console.print("[bold yellow]Nothing registered[/]: no candidate passed the gate; the reasons are above.")
    console.print()
    console.print(f"{night['total_seconds']:.0f} s. Open next:")
    for what, where in (
        ("Dagster", "make ui"),
        ("MLflow", "make mlflow"),
        ("policy cards", night["cards"]),
    ):
        console.print(f"  {what:<14}{where}", soft_wrap=True)


def _print_privacy(privacy: dict[str, Any]) -> None:
    spent = sum(privacy["spent"].values())
    if privacy["window"]:
        budget = f"ε {privacy['epsilon']:g} at δ {privacy['delta']:g}"
        console.print(
            f"  {'privacy spent':<26}{spent:>12.3g}  of ρ {privacy['rho']:g} ({budget}) a customer and window"
        )
    style = "yellow" if privacy["state"] == "not_released" else None
    console.print(f"  {privacy['reason']}", style=style, soft_wrap=True)


def _candidates_table(candidates: list[dict[str, Any]], unit: str) -> Table:
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("candidate", no_wrap=True)
    table.add_column(f"{unit} per dialogue")
    table.add_column("minus behavior")
    table.add_column("effective", justify="right")
    table.add_column("gate", no_wrap=True)
    for c in candidates:
        known = "dr" in c["estimates"]
        table.add_row(
            c["name"],
            f"{_number(c['estimates']['dr']['value'])} {_range(c['estimates']['dr'])}" if known else "no estimate",
            f"{_number(c['advantage']['value'], sign='+')} {_range(c['advantage'])}" if known else "–",
            f"{c['effective_sample_size']:,.0f}",
            GATE_WORDS[c["gate"]["outcome"]],
        )
    return table


def _print_refusals(candidates: list[dict[str, Any]]) -> None:
    for c in candidates:
        if c["gate"]["outcome"] in ("refused", "passed_in_dry_run"):
            console.print()
            would = "would be" if c["gate"]["passed"] else "was"
            console.print(f"{c['name']} {would} refused:", style="yellow")
            for reason in c["gate"]["reasons"]:
                console.print(Padding(f"- {reason}", (0, 0, 0, 2)))


def _range(estimate: dict[str, float]) -> str:
    return f"[{_number(estimate['low'])}, {_number(estimate['high'])}]"


def _number(value: float, sign: str = "") -> str:
    """Three significant digits, zeros kept; whole numbers from a thousand on."""
    return f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}#.3g}".rstrip(".")
