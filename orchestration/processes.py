"""Child processes: they end with the run that started them, also when it is killed, and find the tools beside it.

Here: the tie between a child and its parent, the search path. Not here: what children do (`rl` jobs, log readers).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Tie this process to process `parent`, which started it; end at once if that one is gone already.

    A child that outlives a killed night would write beside the next one. Called in the child. Linux has a signal for
    it; elsewhere a child of a killed night runs to its end.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the signal was asked for
        os._exit(1)


def put_tools_on_path() -> None:
    """Let child processes find the commands beside this Python (dbt, uvicorn), activated environment or not."""
    tools = str(Path(sys.executable).parent)
    paths = os.environ.get("PATH", "").split(os.pathsep)
    if paths[0] != tools:
        os.environ["PATH"] = os.pathsep.join([tools, *paths])
