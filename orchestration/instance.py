"""Dagster's instance for this home folder: the root dagster.yaml with its paths under `.talktrack` moved to the home.

With the default home the result is the instance that plain `dg dev` opens from the repository root.
"""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from orchestration.settings import PROJECT_ROOT, TalktrackSettings
from rl.files import replaced_file

NIGHT_TAG = "talktrack/night"


def prepare_instance(settings: TalktrackSettings) -> Path:
    """Write `<home>/dagster/dagster.yaml` with absolute paths and return its folder (a DAGSTER_HOME)."""
    folder = settings.paths.home / "dagster"
    text = (PROJECT_ROOT / "dagster.yaml").read_text()
    with replaced_file(folder / "dagster.yaml") as temporary:
        temporary.write_text(text.replace(" .talktrack/", f" {settings.paths.home}/"))
    return folder


def open_instance(settings: TalktrackSettings) -> dg.DagsterInstance:
    """The persistent instance that `make nightly` and `make ui` share."""
    folder = prepare_instance(settings)
    os.environ["DAGSTER_HOME"] = str(folder)
    return dg.DagsterInstance.from_config(str(folder))


def night_tags(settings: TalktrackSettings) -> dict[str, str]:
    """Tags of a night in the foreground: whose it is, and that the daemon must not repeat it behind the user's back."""
    return {NIGHT_TAG: settings.workspace, "dagster/max_retries": "0"}


def close_killed_nights(instance: dg.DagsterInstance, settings: TalktrackSettings) -> None:
    """Report nights that were killed as failed; the caller holds the workspace, so none is running.

    Dagster would show them as running for ever, and start no other run (`max_concurrent_runs: 1`).
    """
    running = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    for run in instance.get_runs(dg.RunsFilter(statuses=running, tags={NIGHT_TAG: settings.workspace})):
        instance.report_run_failed(run, "The process of this night was killed. Run the night again.")
        # A pool's slot stays with a killed run, and the next night would wait for it for ever.
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
