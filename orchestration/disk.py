"""A full disk, recognised wherever in a night it shows, and said in one message.

Here: the recognition and the message. Not here: keeping files whole (`rl.files`): whatever is written is renamed into
place, so that a full disk costs the night and nothing that was there.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from rl.errors import TalktrackError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAYINGS = ("No space left on device", "Disk quota exceeded", "database or disk is full")
"""How the system, DuckDB, Arrow and SQLite put it; a job in a process of its own leaves only its words."""


class DiskFullError(TalktrackError):
    """There is no room to write."""


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that there is no room to write."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(saying in str(error) for saying in _SAYINGS):
            return True
        error = error.__cause__ or error.__context__
    return False


def full_disk(folder: Path) -> DiskFullError:
    """The message for a night whose state lies in `folder`."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e6
    return DiskFullError(
        f"The disk of {folder} is full ({free:,.0f} MB free). What earlier steps and nights wrote is whole: files are "
        "replaced as a whole or not at all, and nothing was released twice. Make room, or move the folder with "
        "TALKTRACK_HOME, and run again: the night goes on where it stopped."
    )
