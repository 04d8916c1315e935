"""Transition sets that are larger than memory: 20 million steps are written, opened and drawn in chunks.

`make bench ONLY=large_sets` at full size takes some minutes and 14 GB of disk in the home folder, removed at the end;
TALKTRACK_BENCH_STEPS=1000000 takes 0.7 GB. Each step is a process of its own whose anonymous memory (RssAnon: what is
not a page of a file, and so cannot be dropped) is watched, every 5 ms. Linux only.

What the rows compare:

- *writing*: checked, hashed and on its way to the disk, beside making the same rows and dropping them.
- *drawing*: one pass over the training episodes in chunks of 1 GiB, beside reading the file once from its beginning to
  its end. Both find in the page cache what the machine has kept of the file.
- *anonymous memory* of each, beside 4 GiB.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestration.console import console
from orchestration.settings import PROJECT_ROOT, load
from rl.errors import DataError
from tests.benchmarks.rows import Row

N_STEPS = int(os.environ.get("TALKTRACK_BENCH_STEPS", "20_000_000"))
CHUNK_BYTES = 2**30
LIMIT_MIB = 4 * 1024
BYTES_PER_STEP = 700
"""Of the set on disk, and a little more."""
FOLDER = "bench-large-sets"
"""In the home folder."""
SECONDS_BETWEEN_LOOKS = 0.005
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """What a step took."""

    seconds: float
    """Without the start of Python."""
    anonymous_bytes: int
    """Highest anonymous resident memory of the process, the start of Python and its libraries included."""


def run(n_steps: int = N_STEPS, chunk_bytes: int = CHUNK_BYTES) -> list[Row]:
    """Steps a second, and MiB."""
    with _folder(n_steps) as folder:
        made, written, used, drawn, read = (
            _measured(step, folder, n_steps, chunk_bytes)
            for step in ("make_rows", "write", "use_opened", "draw_chunks", "read_in_order")
        )
    millions = f"{n_steps / 1e6:.3g} M steps"

    def rate(name: str, ours: Cost, peer: Cost, peer_name: str) -> Row:
        return Row(name, n_steps / ours.seconds, n_steps / peer.seconds, peer_name, "steps/s", "none")

    def memory(name: str, cost: Cost) -> Row:
        mib = cost.anonymous_bytes / MIB
        return Row(name, mib, LIMIT_MIB, "stated limit", "MiB", ">= 1", is_lower_better=True)

    return [
        rate(f"writing {millions}", written, made, "making the rows alone"),
        rate(f"drawing {millions} in chunks", drawn, read, "reading the file in order"),
        memory("memory: writing a large set", written),
        memory("memory: opening a large set", used),
        memory("memory: drawing its chunks", drawn),
    ]


def _measured(step: str, folder: Path, n_steps: int, chunk_bytes: int) -> Cost:
    command = [sys.executable, "-m", "tests.benchmarks.large_sets", step, str(folder), str(n_steps), str(chunk_bytes)]
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _anonymous_bytes(process.pid))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    output, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"The step {step} ended with {process.returncode}:\n{errors[-4000:]}")
    cost = Cost(float(output), peak)
    console.print(f"  {step}: {cost.seconds:,.1f} s, {peak / MIB:,.0f} MiB anonymous")
    return cost


def _anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


@contextmanager
def _folder(n_steps: int) -> Iterator[Path]:
    """Room for the set in the home folder; what a killed run left there is removed first."""
    folder = load().paths.home / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        needed, free = n_steps * BYTES_PER_STEP, shutil.disk_usage(folder).free
        if needed > free:
            raise DataError(
                f"The benchmark needs {needed / 1e9:.1f} GB in {folder}; {free / 1e9:.1f} GB are free. Make room, or "
                "set TALKTRACK_BENCH_STEPS to a smaller number."
            )
        yield folder / "set"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
