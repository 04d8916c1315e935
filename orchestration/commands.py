"""What the registry and data-set commands do: call one function, print what a person wants to know."""

from __future__ import annotations

import contextlib
import getpass
import io
import json
from pathlib import Path

from rich.table import Table

from orchestration.console import console
from orchestration.settings import TalktrackSettings
from orchestration.tracking import Tracking
from registry.rollout import Rollout, open_rollout
from rl.errors import DataError
from rl.files import write_json


def rollout_of(settings: TalktrackSettings) -> Rollout:
    """The rollout of this workspace's registered model."""
    return open_rollout(Tracking(settings).store(), settings.paths.ledger, settings.model_name)


def show_status(settings: TalktrackSettings) -> None:
    """Print every alias, the version behind it, and on what MLflow and the ledger differ."""
    status = rollout_of(settings).status()
    table = Table(title=status.model, title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    for column in ("alias", "version", "since", "gate", "value per dialogue", "by", "reason"):
        table.add_column(column)
    for alias in status.aliases:
        since = (alias.since or "")[:16].replace("T", " ")
        columns = (
            alias.alias,
            alias.version or "–",
            since,
            alias.gate,
            alias.value,
            alias.actor,
            alias.reason,
        )
        table.add_row(*(text or "" for text in columns))
    console.print(table)
    for fault in status.faults:
        console.print(f"[yellow]![/] {fault}")
    if status.aliases and all(alias.version is None for alias in status.aliases):
        console.print("No version holds an alias: the behavior policy is live.")


def promote_version(settings: TalktrackSettings, stage: str, version: str | None, reason: str, override: bool) -> None:
    """Move a version one stage up and print where it stands."""
    row = rollout_of(settings).promote(
        stage,  # type: ignore[arg-type]
        version,
        actor=getpass.getuser(),
        reason=reason,
        override=reason if override else None,
    )
    console.print(f"Version {row.version} of {row.model} is now [bold]{row.alias}[/].")


def roll_back(settings: TalktrackSettings, reason: str) -> None:
    """Make the previous champion the champion again."""
    row = rollout_of(settings).rollback(actor=getpass.getuser(), reason=reason)
    target = f"version {row.to_version}" if row.to_version else "the behavior policy"
    console.print(f"Rolled back: {target} is live instead of version {row.version}.")


def show_export(settings: TalktrackSettings, output: Path, version: str | None) -> None:
    """Export the released aggregates, or a version of the released zone, and say what went where."""
    from orchestration.exports import export_aggregates, export_version

    export = export_version(settings, version, output) if version else export_aggregates(settings, output)
    console.print(f"{len(export.files):,} files of the released zone ({export.what}) are in {output}.")


def export_mdp(settings: TalktrackSettings, output: Path) -> None:
    """Write the current transition set as a d3rlpy MDPDataset."""
    from rl.datasets.mdp import write_mdp_file
    from rl.datasets.transitions import TransitionSet

    folder = settings.paths.datasets / "transitions"
    if not folder.exists():
        raise DataError(f"There is no data set at {folder}. Run `talktrack nightly` first.")
    data = TransitionSet.open(folder)
    with _without_chatter():
        write_mdp_file(output, data)
    sidecar = _sidecar(output)
    write_json(sidecar, {"n_actions": data.n_actions, "dataset_hash": data.manifest.dataset_hash})
    console.print(
        f"{data.n_steps:,} steps of {data.n_episodes:,} episodes are in {output}; {sidecar.name} says how many actions."
    )


def import_mdp(source: Path, output: Path, n_actions: int | None) -> None:
    """Write a d3rlpy MDPDataset as a transition set; `n_actions` defaults to what an export put beside the file.

    Raises DataError if neither says how many actions there are, the file breaks the contract, or `output` is there
    and holds something else than a transition set.
    """
    from rl.datasets.mdp import read_mdp_file
    from rl.datasets.transitions import MANIFEST_FILE, write_transition_set

    if output.exists() and not (output / MANIFEST_FILE).exists():
        raise DataError(f"{output} is there and is no transition set; it would be replaced. Name a new folder.")
    if n_actions is None:
        n_actions = _exported_n_actions(source)
    with _without_chatter():
        data = read_mdp_file(source, n_actions=n_actions)
    write_transition_set(output, data)
    console.print(f"{data.n_steps:,} steps of {data.n_episodes:,} episodes are in {output}.")


def _without_chatter() -> contextlib.AbstractContextManager[object]:
    """d3rlpy tells on standard output what it guesses of a data set; it guesses the number of actions wrong."""
    return contextlib.redirect_stdout(io.StringIO())


def _sidecar(path: Path) -> Path:
    """The file beside an exported data set that holds what HDF5 does not."""
    return path.with_name(f"{path.name}.json")


def _exported_n_actions(source: Path) -> int:
    sidecar = _sidecar(source)
    if not sidecar.exists():
        raise DataError(
            f"{source} does not say how many actions there are, and there is no {sidecar.name} beside it. "
            "Give --n-actions."
        )
    return int(json.loads(sidecar.read_text())["n_actions"])
