"""The `talktrack` command: parse, call, print. Each verb is a few lines around a function that lives elsewhere.

A TalktrackError becomes one message and exit status 1; anything else keeps its traceback, for it is our fault.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from orchestration.console import console, night_display
from orchestration.processes import put_tools_on_path
from orchestration.settings import PROJECT_ROOT, TalktrackSettings, load
from registry.privacy.settings import GRID_LEVELS
from rl.errors import TalktrackError

DAY = click.DateTime(formats=["%Y-%m-%d"])
STAGES = ("challenger", "shadow", "canary", "champion")


class TalktrackCommand(click.Group):
    """A group whose commands show a TalktrackError as its message."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TalktrackError as error:
            console.print(f"[bold red]Stopped.[/] {escape(click.unstyle(str(error)))}", soft_wrap=True, markup=True)
            ctx.exit(1)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--logs, --format and --config: which workspace a command works on."""
    for option in (
        click.option("--config", type=click.Path(path_type=Path), help="Settings file. Default: talktrack.yaml."),
        click.option("--format", "log_format", help="Format of the logs; also names the workspace."),
        click.option("--logs", help="Folder, file or URL of the logs."),
    ):
        command = option(command)
    return command


def settings_for(logs: str | None, log_format: str | None, config: Path | None) -> TalktrackSettings:
    """The settings of this process; child processes (Dagster, jobs) see the same through the environment."""
    if config:
        os.environ["TALKTRACK_CONFIG"] = str(config.resolve())
    if logs:
        os.environ["TALKTRACK_LOGS"] = logs if "://" in logs else str(Path(logs).resolve())
    if log_format:
        os.environ["TALKTRACK_FORMAT"] = log_format
    os.chdir(PROJECT_ROOT)
    return load()


@click.group(cls=TalktrackCommand, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Logs of conversations in, better dialogue policies out."""
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@main.command()
@source_options
@click.option("--day", type=DAY, help="Newest arrival day to process. Default: the newest there is.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on standard output.")
def nightly(logs: str | None, log_format: str | None, config: Path | None, day: datetime | None, as_json: bool) -> None:
    """Run the night in the foreground."""
    from orchestration.nightly import print_summary, run_night

    night = run_night(settings_for(logs, log_format, config), day.date() if day else None)
    print_summary(night)
    if as_json:
        click.echo(json.dumps(night, sort_keys=True))


@main.command("sample-logs")
@click.option("--dialogues", type=click.IntRange(1), help="Dialogues in all. Default: sample.dialogues.")
@click.option("--days", type=click.IntRange(1), help="Days they are spread over. Default: sample.days.")
@click.option("--seed", type=int, help="Default: sample.seed.")
@click.option("--more-days", type=click.IntRange(1), help="Add days to the logs that are there, and nothing else.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder. Default: sample-logs in the home folder.")
@click.option("--config", type=click.Path(path_type=Path), help="Settings file. Default: talktrack.yaml.")
def sample_logs(
    dialogues: int | None,
    days: int | None,
    seed: int | None,
    more_days: int | None,
    output: Path | None,
    config: Path | None,
) -> None:
    """Write logs of the storefront, the sample world with known truth."""
    from orchestration.sample import add_sample_days, make_sample_logs, sample_folder

    output = output.resolve() if output else None
    settings = settings_for(None, None, config)
    chosen = {"dialogues": dialogues, "days": days, "seed": seed}
    folder = output or sample_folder(settings)
    with night_display():
        if more_days:
            add_sample_days(settings, folder, more_days)
        else:
            make_sample_logs(settings, folder, **{k: v for k, v in chosen.items() if v is not None})
    console.print(f"Sample logs are in {folder}")


@main.command()
@source_options
def status(logs: str | None, log_format: str | None, config: Path | None) -> None:
    """Show which version holds which alias, and whether the ledger agrees."""
    from orchestration.commands import show_status

    show_status(settings_for(logs, log_format, config))


@main.command()
@click.argument("stage", type=click.Choice(STAGES))
@click.option("--version", help="Version to move. Default: the one in the stage before.")
@click.option("--reason", required=True, help="Why; kept in the ledger.")
@click.option("--override", is_flag=True, help="Promote a version whose gate failed; kept in the ledger.")
@source_options
def promote(
    stage: str,
    version: str | None,
    reason: str,
    override: bool,
    logs: str | None,
    log_format: str | None,
    config: Path | None,
) -> None:
    """Move a version to the next STAGE: challenger, shadow, canary, champion."""
    from orchestration.commands import promote_version

    promote_version(settings_for(logs, log_format, config), stage, version, reason, override)


@main.command()
@click.option("--reason", required=True, help="Why; kept in the ledger.")
@source_options
def rollback(reason: str, logs: str | None, log_format: str | None, config: Path | None) -> None:
    """Make the previous champion the champion again."""
    from orchestration.commands import roll_back

    roll_back(settings_for(logs, log_format, config), reason)


@main.command()
@source_options
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=3000, show_default=True)
def ui(logs: str | None, log_format: str | None, config: Path | None, host: str, port: int) -> None:
    """Open Dagster with the state of `talktrack nightly`."""
    from orchestration.instance import close_killed_nights, open_instance
    from orchestration.lock import WorkspaceBusyError, workspace_lock

    settings = settings_for(logs, log_format, config)
    with (
        open_instance(settings) as instance,
        contextlib.suppress(WorkspaceBusyError),  # a night is running, and shall go on
        workspace_lock(settings.paths.root, exclusive=True),
    ):
        close_killed_nights(instance, settings)
    _replace_process("dg", "dev", "--host", host, "--port", str(port))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5000, show_default=True)
def mlflow(host: str, port: int) -> None:
    """Open MLflow on the store of this home folder."""
    from registry.mlflow_store import open_store

    paths = settings_for(None, None, None).paths
    open_store(paths.mlflow_uri, paths.mlflow_artifacts)
    # Its jobs judge language-model traces, of which there are none; their eight processes hold 240 MB each.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    address = ["--host", host, "--port", str(port), "--workers", "1"]
    store = [
        "--backend-store-uri",
        paths.mlflow_uri,
        "--default-artifact-root",
        paths.mlflow_artifacts.as_uri(),
    ]
    _replace_process("mlflow", "server", *address, *store)


@main.command()
@source_options
@click.option("--alias", default="champion", show_default=True)
@click.option("--port", default=8080, show_default=True)
def serve(logs: str | None, log_format: str | None, config: Path | None, alias: str, port: int) -> None:
    """Serve the version that holds an alias with MLflow's scoring server (POST /invocations)."""
    settings = settings_for(logs, log_format, config)
    os.environ["MLFLOW_TRACKING_URI"] = settings.paths.mlflow_uri
    model = f"models:/{settings.model_name}@{alias}"
    options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    _replace_process("mlflow", "models", "serve", "--model-uri", model, *options)


@main.command()
def check() -> None:
    """Load the Dagster definitions and the settings; say what is wrong, or nothing."""
    from orchestration.instance import prepare_instance

    os.environ["DAGSTER_HOME"] = str(prepare_instance(settings_for(None, None, None)))
    result = subprocess.run([_tool("dg"), "check", "defs"], cwd=PROJECT_ROOT, capture_output=True, text=True)
    if result.returncode:
        click.echo(result.stdout + result.stderr, err=True)
        sys.exit(result.returncode)


@main.command("export")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--version", help="Registered version to export. Default: the released aggregates.")
@source_options
def export_released(
    output: Path, version: str | None, logs: str | None, log_format: str | None, config: Path | None
) -> None:
    """Copy what lies in the released zone to OUTPUT; refuse anything of the restricted one."""
    from orchestration.commands import show_export

    output = output.resolve()
    show_export(settings_for(logs, log_format, config), output, version)


@main.group()
def privacy() -> None:
    """What windows have spent, what the ledger says, what a release would cost."""


@privacy.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@source_options
def privacy_status(as_json: bool, logs: str | None, log_format: str | None, config: Path | None) -> None:
    """Show what every window has spent and has left, and verify ledger and releases."""
    from orchestration.privacy_commands import show_privacy_status

    show_privacy_status(settings_for(logs, log_format, config), as_json=as_json)


@privacy.command("ledger")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON on standard output.")
@source_options
def privacy_ledger(as_json: bool, logs: str | None, log_format: str | None, config: Path | None) -> None:
    """Show every row of the privacy ledger, and verify it."""
    from orchestration.privacy_commands import show_privacy_ledger

    show_privacy_ledger(settings_for(logs, log_format, config), as_json=as_json)


@privacy.command("plan")
@click.option("--level", type=click.Choice(GRID_LEVELS), help="Grid to plan with. Default: privacy.grid.")
@click.option("--rho", type=float, help="Budget of a window to plan with. Default: privacy.rho.")
@click.option("--epsilon", type=float, help="The same as ε at privacy.delta.")
@click.option("--dialogues", type=click.IntRange(1), help="Dialogues of a window. Default: privacy.expected_dialogues.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON on standard output.")
@source_options
def privacy_plan(
    level: str | None,
    rho: float | None,
    epsilon: float | None,
    dialogues: int | None,
    as_json: bool,
    logs: str | None,
    log_format: str | None,
    config: Path | None,
) -> None:
    """Show what a release would cost and how accurate it would be, before anything is spent."""
    from orchestration.privacy_commands import explored, show_privacy_plan

    if rho is not None and epsilon is not None:
        raise click.UsageError("Give --rho or --epsilon, not both.")
    configured = settings_for(logs, log_format, config)
    settings = explored(configured, level=level, rho=rho, epsilon=epsilon, dialogues=dialogues)
    show_privacy_plan(settings, as_json=as_json)


@main.command()
@click.option("--customer-id", help="The customer's id, as the logs write it. Shells remember it; see --from-file.")
@click.option("--from-file", help="File with one customer id a line; - for standard input.")
@click.option("--request-id", help="Your own number of the request. Default: one is made.")
@click.option("--reapply", is_flag=True, help="Erase everyone again who was erased before: after restoring a backup.")
@source_options
def erase(
    customer_id: str | None,
    from_file: str | None,
    request_id: str | None,
    reapply: bool,
    logs: str | None,
    log_format: str | None,
    config: Path | None,
) -> None:
    """Erase customers from the workspace, search every file for them, and keep a record that names nobody."""
    from orchestration.personal_data.commands import erase_customers

    source = from_file if from_file in (None, "-") else str(Path(from_file).resolve())
    erase_customers(settings_for(logs, log_format, config), customer_id, source, request_id, reapply)


@main.command()
@click.option("--dry-run", is_flag=True, help="Only say what would leave.")
@source_options
def retention(dry_run: bool, logs: str | None, log_format: str | None, config: Path | None) -> None:
    """Remove what is older than `retention` allows; every night does."""
    from orchestration.personal_data.commands import remove_expired

    remove_expired(settings_for(logs, log_format, config), dry_run=dry_run)


@main.command()
@click.option("--reason", required=True, help="Why; kept on record.")
@click.option("--compromised", is_flag=True, help="The key is in wrong hands: at any time, destroying the old one.")
@source_options
def rekey(reason: str, compromised: bool, logs: str | None, log_format: str | None, config: Path | None) -> None:
    """Change the pseudonym key: read the sources again under a new one, and map what cannot be read."""
    from orchestration.personal_data.commands import change_key

    change_key(settings_for(logs, log_format, config), reason, compromised=compromised)


@main.group()
def dataset() -> None:
    """Exchange transition sets with d3rlpy."""


@dataset.command("export")
@click.argument("output", type=click.Path(path_type=Path))
@source_options
def export_dataset(output: Path, logs: str | None, log_format: str | None, config: Path | None) -> None:
    """Write the current transition set as a d3rlpy MDPDataset (HDF5) to OUTPUT."""
    from orchestration.commands import export_mdp

    output = output.resolve()
    export_mdp(settings_for(logs, log_format, config), output)


@dataset.command("import")
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--n-actions", type=click.IntRange(1), help="Actions in all: HDF5 does not say. Default: SOURCE.json, as exported."
)
def import_dataset(source: Path, output: Path, n_actions: int | None) -> None:
    """Turn SOURCE, a d3rlpy MDPDataset (HDF5), into a transition set in the folder OUTPUT."""
    from orchestration.commands import import_mdp

    import_mdp(source.resolve(), output.resolve(), n_actions)


def _tool(name: str) -> str:
    """A command of the environment that runs this process, whether or not it is on PATH."""
    return str(Path(sys.executable).with_name(name))


def _replace_process(tool: str, *arguments: str) -> None:
    put_tools_on_path()
    os.execv(_tool(tool), [tool, *arguments])


if __name__ == "__main__":
    main()
