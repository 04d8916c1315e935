"""One night at a time in a workspace.

`talktrack nightly` holds the workspace exclusively; a step that Dagster's UI or daemon started holds it shared
(Dagster serialises its own runs: `max_concurrent_runs: 1`). The kernel releases the lock when a process dies.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl.errors import TalktrackError

_HELD = "TALKTRACK_LOCK_HELD"


class WorkspaceBusyError(TalktrackError):
    """Another run works in this workspace."""


@contextmanager
def workspace_lock(root: Path, *, exclusive: bool, holder: str = "talktrack nightly") -> Iterator[None]:
    """Hold the lock of the workspace folder `root`; nested use in the same process is free. Others are told `holder`.

    Raises WorkspaceBusyError at once if another process holds it.
    """
    if os.environ.get(_HELD) == f"{root}:{os.getpid()}":
        yield
        return
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("a+") as stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            other = stream.read().strip() or "a run started from the Dagster UI"
            raise WorkspaceBusyError(
                f"Workspace {root.name!r} is in use by {other}. Nothing was changed. "
                "Wait until it has finished and run again."
            ) from None
        if exclusive:
            stream.truncate(0)
            stream.write(f"`{holder}`, process {os.getpid()}")
            stream.flush()
            os.environ[_HELD] = f"{root}:{os.getpid()}"
            _clear_leftovers(root)
        try:
            yield
        finally:
            if exclusive:
                os.environ.pop(_HELD, None)
                stream.truncate(0)


def _clear_leftovers(root: Path) -> None:
    """Remove what killed runs had half written (`rl.files`): with the lock held nobody is writing it any more.

    Files directly in `root` are left, since loading the definitions writes the catalogue without the lock.
    """
    for path in list(root.glob("*/**/.*.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
