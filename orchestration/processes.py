"""Child processes that end with the run that started them, also when it is killed.

Here: the tie between a child and its parent. Not here: what children do (`rl` jobs, readers of log files).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

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
