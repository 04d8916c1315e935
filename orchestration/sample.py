"""Sample logs: made when no logs are configured, so that one command shows the whole loop."""

from __future__ import annotations

from pathlib import Path

from orchestration.console import progress
from orchestration.settings import TalktrackSettings
from rl.environments.sample_logs import LAST_FILE_OF_A_DAY, write_sample_logs
from rl.files import replaced_folder

STAGE = "sample logs"


def sample_folder(settings: TalktrackSettings) -> Path:
    """Where the sample logs of this home folder lie."""
    return settings.paths.home / "sample-logs"


def log_source(settings: TalktrackSettings) -> str:
    """Path or URL of the logs to read; makes the sample logs first if none are configured and none are there."""
    if settings.logs.path:
        return settings.logs.path
    folder = sample_folder(settings)
    if not any(folder.glob("arrival_day=*")):
        with replaced_folder(folder) as temporary:  # all days or none: part of them would pass for the whole world
            make_sample_logs(settings, temporary)
    return str(folder)


def make_sample_logs(settings: TalktrackSettings, folder: Path, **changes: int) -> None:
    """Write the storefront's logs into `folder`; `changes` override `sample` settings (dialogues, days, seed)."""
    sample = settings.sample.model_copy(update=changes)
    _write(settings, folder, sample.dialogues, sample.days, sample.seed, first_day=0)


def add_sample_days(settings: TalktrackSettings, folder: Path, more_days: int) -> None:
    """Go on with the logs in `folder` for some days, as if the shop had stayed open."""
    sample = settings.sample
    there = len(list(folder.glob(f"arrival_day=*/{LAST_FILE_OF_A_DAY}")))
    days = there + more_days
    _write(settings, folder, round(sample.dialogues / sample.days) * days, days, sample.seed, first_day=there)


def _write(settings: TalktrackSettings, folder: Path, dialogues: int, days: int, seed: int, *, first_day: int) -> None:
    progress(STAGE)
    write_sample_logs(
        folder,
        dialogues=dialogues,
        days=days,
        seed=seed,
        start=settings.logs.start_date,
        first_day=first_day,
        on_progress=lambda done, total: progress(STAGE, done, total),
    )
