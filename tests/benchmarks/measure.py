"""What a command costs: wall time, CPU time and peak memory, its children included. Linux only.

Here: running one command and watching it. Not here: what is run, and what the figures are compared with.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class Cost:
    """What one command took."""

    seconds: float
    """Wall time."""

    cpu_seconds: float
    """User and system time of the command and the children it waited for. On a busy machine the fairer figure."""

    peak_bytes: int
    """Highest sum, over the processes alive together, of each one's own highest resident set. Never too low by more
    than what a process allocates in its last tenth of a second."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.peak_bytes, other.peak_bytes),
        )

    def __str__(self) -> str:
        return f"{self.seconds:,.1f} s, {self.cpu_seconds:,.1f} s CPU, {self.peak_bytes / 2**20:,.0f} MiB"


def run_measured(
    command: Sequence[str], *, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> Cost:
    """Run a command to its end.

    Raises RuntimeError with the end of its output if it fails.
    """
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **(environment or {})}, stdout=output, stderr=subprocess.STDOUT
        )
        peak = 0
        while True:
            peak = max(peak, sum(_peak_bytes(pid) for pid in _tree(process.pid)))
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command[:4])} … ended with {process.returncode}:\n{output.read()[-4000:]}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, peak)


def _tree(pid: int) -> list[int]:
    """This process and its descendants that are alive."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *(member for child in children for member in _tree(int(child)))]


def _peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
