"""Dagster's instance for this home folder: the root dagster.yaml with its paths under `.talktrack` moved to the home.

With the default home the result is the instance that plain `dg dev` opens from the repository root.
"""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from orchestration.settings import PROJECT_ROOT, TalktrackSettings
from rl.files import replaced_file


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
