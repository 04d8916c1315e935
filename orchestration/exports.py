"""What `talktrack export` hands out: the released aggregates, or the bundle of a version of the released zone.

Here: the copy, the scan before it is in place, the list of what was handed out. Not here: which zone a file lies in
(`orchestration.zones`), which version may leave (`registry.export`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from orchestration.settings import TalktrackSettings
from orchestration.tracking import Tracking
from orchestration.workspace import code_revision
from orchestration.zones import RELEASED, BorderError, faults_in_released
from registry.export import export_bundle
from rl.errors import DataError
from rl.files import content_hash, replaced_folder, write_json
from rl.settings import Settings

EXPORT_FILE = "export.json"


class Export(Settings):
    """What was handed out; export.json in the folder says the same."""

    what: str
    zone: str
    files: dict[str, str]
    """BLAKE2b of each file, by path inside the folder."""
    code_revision: str
    exported_at: datetime


def export_aggregates(settings: TalktrackSettings, output: Path) -> Export:
    """Copy every release of this workspace and what was computed from them alone.

    Raises DataError while nothing was released or `output` is there and no export, BorderError if the copy holds an
    id of a customer or dialogue.
    """
    released = settings.paths.released
    if not any(released.glob("releases/*/release.json")):
        raise DataError(
            f"Nothing was released in workspace {settings.workspace!r} yet. `talktrack privacy status` says when the "
            "next window is due."
        )

    def copy(folder: Path) -> None:
        shutil.copytree(released, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))

    return _export(settings, output, f"released aggregates of workspace {settings.workspace}", copy)


def export_version(settings: TalktrackSettings, version: str, output: Path) -> Export:
    """Copy the bundle of a registered version of the released zone.

    Raises ExportRefusedError for a version of the restricted zone, and what `export_aggregates` raises.
    """
    store = Tracking(settings).store()

    def copy(folder: Path) -> None:
        export_bundle(store, settings.model_name, version, folder)

    return _export(settings, output, f"version {version} of {settings.model_name}", copy)


def _export(settings: TalktrackSettings, output: Path, what: str, copy: Callable[[Path], None]) -> Export:
    if output.exists() and not (output / EXPORT_FILE).exists():
        raise DataError(f"{output} is there and is no export; it would be replaced. Name a new folder.")
    with replaced_folder(output) as temporary:
        copy(temporary)
        if faults := faults_in_released(temporary, settings.paths.marts):
            listed = "\n".join(f"  {fault}" for fault in faults)
            raise BorderError(
                f"Nothing was exported: {what} would carry ids out of the restricted zone.\n{listed}\nThis is a fault "
                "of the pipeline: report it, and do not copy these files by hand."
            )
        export = Export(
            what=what,
            zone=RELEASED,
            files=_hashes(temporary),
            code_revision=code_revision(),
            exported_at=datetime.now(UTC),
        )
        write_json(temporary / EXPORT_FILE, export.model_dump(mode="json"))
    return export


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): content_hash(path.read_bytes()) for path in files}
