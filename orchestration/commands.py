"""What the registry and data-set commands do: call one function, print what a person wants to know."""

from __future__ import annotations

import getpass
import json
from pathlib import Path

from rich.table import Table

from orchestration.console import console
from orchestration.settings import TalktrackSettings
from orchestration.tracking import Tracking
from registry.rollout import Rollout, open_rollout
from rl.errors import DataError


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


def export_mdp(settings: TalktrackSettings, output: Path) -> None:
    """Write the current transition set as a d3rlpy MDPDataset."""
    from rl.datasets.mdp import export_mdp_dataset
    from rl.datasets.transitions import TransitionSet
    from rl.files import replaced_file

    folder = settings.paths.datasets / "transitions"
    if not folder.exists():
        raise DataError(f"There is no data set at {folder}. Run `talktrack nightly` first.")
    data = TransitionSet.open(folder)
    with replaced_file(output) as temporary, temporary.open("w+b") as stream:
        export_mdp_dataset(data).dump(stream)
    sidecar = output.with_suffix(output.suffix + ".json")
    sidecar.write_text(json.dumps({"n_actions": data.n_actions, "dataset_hash": data.manifest.dataset_hash}) + "\n")
    console.print(
        f"{data.n_steps:,} steps of {data.n_episodes:,} episodes are in {output}; {sidecar.name} says how many actions."
    )
