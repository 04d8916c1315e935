"""The shape of a study's result, and what it remembers of finished pieces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl.files import content_hash, write_json
from rl.settings import Settings


class StudyRow(Settings):
    """One check of a study."""

    check: str
    value: float
    low: float | None = None
    high: float | None = None
    aim: str
    holds: bool
    seeds: tuple[int, ...] = (0,)


class Memory:
    """Finished pieces by the hash of what they depend on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pieces: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def knows(self, key: Any) -> bool:
        """Whether the piece of this key is there."""
        return content_hash(key) in self._pieces

    def remembered(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The piece of this key: from disk, or computed now and kept."""
        name = content_hash(key)
        if name not in self._pieces:
            self._pieces[name] = compute()
            write_json(self._path, self._pieces)
        return self._pieces[name]
