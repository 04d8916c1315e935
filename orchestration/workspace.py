"""Small facts that several assets and commands need: the workspace's catalogue, the code's revision."""

from __future__ import annotations

import subprocess
from pathlib import Path

from orchestration.settings import PROJECT_ROOT, TalktrackSettings
from rl.catalogue import ActionCatalogue, read_catalogue, remembered_catalogue
from rl.environments.storefront_items import read_storefront_catalogue

ID_FILE = "catalogue.json"
"""In the workspace's folder: the strategies in the order of their dense ids, append-only."""

CATALOGUES = Path(__file__).parent / "ingest" / "catalogues"


def configured_catalogue(settings: TalktrackSettings) -> ActionCatalogue:
    """The action catalogue with this workspace's append-only ids.

    Raises DataError if `logs.catalogue` is missing or faulty.
    """
    name = settings.logs.catalogue
    if name is None:
        configured = read_storefront_catalogue()
    else:
        shipped = CATALOGUES / name
        configured = read_catalogue(shipped if shipped.exists() else PROJECT_ROOT / name)
    return remembered_catalogue(configured, settings.paths.root / ID_FILE)


def code_revision() -> str:
    """Git commit of the running code, with `-dirty` if files differ from it; `unknown` outside a checkout."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(PROJECT_ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
