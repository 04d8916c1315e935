"""Updates a second of our CQL beside d3rlpy's DiscreteCQL: same batch size, same network, one thread, by turns.

Both sides draw their own batches, d3rlpy from its `MDPDataset`. Compiling and capturing are not counted. What no way of
running an update can avoid stands beside: on a CPU its matrix products; on a GPU, where there is one, the time for its
operations or for its bytes, whichever is longer, at the rates of a large product and a large copy in the same run.

Peak memory is that of a process that takes `MEMORY_UPDATES` updates, with Python, torch, the data and, in the compiled
mode, what compiles.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from orchestration.settings import PROJECT_ROOT
from rl.datasets.transitions import TransitionSet
from rl.trainers.execution import missing_for_compiling
from tests.benchmarks.measure import run_measured
from tests.benchmarks.rows import Row
from tests.benchmarks.tables import OF_TRAINERS
from tests.benchmarks.trainer_turns import (
    CPU,
    Turn,
    bytes_moved,
    gpu_rates,
    operations,
    our_batches,
    ours,
    peer,
    peer_batches,
    products,
    random_set,
)

BATCHES, GPU_BATCHES = (32, 256, 1024, 4096), (256, 1024, 4096, 16_384)
AIMS = {32: ">= 5", 256: ">= 3.5", 4096: ">= 2.5"}
"""Of the compiled mode on a CPU."""
GPU_AIMS = {256: ">= 20"}
"""Of captured graphs."""
REPEATS = 5
ROWS_PER_TURN, GPU_ROWS_PER_TURN = 16_000, 200_000
FEWEST_UPDATES = 8
"""In a turn, however large the batch."""
SAMPLED, SAMPLED_ROWS = 256, 128_000
SWEEP, GPU_SWEEP, GPU_SWEEP_AIM = 8, 32, ">= 15"
MEMORY_BATCHES, MEMORY_UPDATES = (256, 4096), 20
PEER = "d3rlpy 2.8.1"


def run(
    batches: tuple[int, ...] = BATCHES,
    rows_per_turn: int = ROWS_PER_TURN,
    memory_batches: tuple[int, ...] = MEMORY_BATCHES,
    gpu_batches: tuple[int, ...] = GPU_BATCHES,
    compiles: bool = True,
) -> list[Row]:
    """Updates a second by batch size and mode; batches alone; a sweep; memory; and the same on a GPU."""
    torch.set_num_threads(1)
    dataset = random_set()
    modes = ("eager", "compiled") if compiles and missing_for_compiling(CPU) is None else ("eager",)
    rows = [row for size in batches for row in updates(dataset, size, modes, updates_per_turn(rows_per_turn, size))]
    rows += sampling(dataset, updates_per_turn(SAMPLED_ROWS * rows_per_turn // ROWS_PER_TURN, SAMPLED))
    rows += sweep(dataset, batches[0], updates_per_turn(rows_per_turn, batches[0] * SWEEP))
    rows += [row for size in memory_batches for row in memory(size, modes)]
    if gpu_batches and torch.cuda.is_available():
        rows += gpu(dataset, gpu_batches)
    return rows


def updates(dataset: TransitionSet, size: int, modes: tuple[str, ...], n: int) -> list[Row]:
    """Each mode, bfloat16 products in the last of them, and the products alone."""
    turns: dict[str, Turn] = {"d3rlpy": peer(dataset, size)}
    turns |= {mode: ours(dataset, size, mode) for mode in modes}
    turns[f"{modes[-1]}, bfloat16"] = ours(dataset, size, modes[-1], precision="bfloat16")
    turns["matrix products alone"] = products(size)
    rate = a_second(turns, n)
    aims = {"compiled": AIMS.get(size, "none")}
    return [
        Row(f"{OF_TRAINERS}batch {size}, {name}", rate[name], rate["d3rlpy"], PEER, "updates/s", aims.get(name, "none"))
        for name in turns
        if name != "d3rlpy"
    ]


def sampling(dataset: TransitionSet, n: int) -> list[Row]:
    """Batches without updates."""
    rate = a_second({"ours": our_batches(dataset, SAMPLED), "d3rlpy": peer_batches(dataset, SAMPLED)}, n)
    title = f"{OF_TRAINERS}sampling of batches of {SAMPLED}"
    return [Row(title, SAMPLED * rate["ours"], SAMPLED * rate["d3rlpy"], PEER, "transitions/s", ">= 5")]


def sweep(dataset: TransitionSet, size: int, n: int) -> list[Row]:
    """Members trained together, beside the same number one after the other."""
    many, single = ours(dataset, size, "eager", members=SWEEP), ours(dataset, size, "eager")
    rate = a_second({"together": many, "single": single}, n)
    title = f"{OF_TRAINERS}sweep of {SWEEP}, batch {size}, eager"
    return [Row(title, SWEEP * rate["together"], rate["single"], "single runs", "members × updates/s", "none")]


def memory(size: int, modes: tuple[str, ...]) -> list[Row]:
    """Peak memory of whole processes, in MiB."""
    mib = {}
    for side in ("d3rlpy", *modes):
        arguments = ["-m", "tests.benchmarks.trainer_turns", side, str(size), str(MEMORY_UPDATES)]
        mib[side] = run_measured([sys.executable, *arguments], folder=PROJECT_ROOT).peak_bytes / 2**20
    titles = {mode: f"{OF_TRAINERS}peak memory, batch {size}, {mode}" for mode in modes}
    return [Row(titles[mode], mib[mode], mib["d3rlpy"], PEER, "MiB", "none", is_lower_better=True) for mode in modes]


def gpu(dataset: TransitionSet, batches: tuple[int, ...]) -> list[Row]:
    """Every mode beside d3rlpy with and without its own captured graphs, and a sweep beside single runs."""
    device = torch.device("cuda:0")
    prefix = f"{OF_TRAINERS}{torch.cuda.get_device_name(device)}, "
    modes = ("eager", "graph") if missing_for_compiling(device) else ("eager", "compiled", "graph")
    flops, bandwidth = gpu_rates(device)
    rows: list[Row] = []
    for size in batches:
        turns = {
            PEER: peer(dataset, size, "cuda:0"),
            f"{PEER}, compile_graph": peer(dataset, size, "cuda:0", compile_graph=True),
            **{mode: ours(dataset, size, mode, device=device) for mode in modes},
        }
        rate = a_second(turns, updates_per_turn(GPU_ROWS_PER_TURN, size))
        rate["operations or bytes alone"] = 1 / max(operations(size) / flops, bytes_moved(size) / bandwidth)
        for name in (*modes, "operations or bytes alone"):
            aim = GPU_AIMS.get(size, "none") if name == "graph" else "none"
            for other in (PEER, f"{PEER}, compile_graph"):
                title = f"{prefix}batch {size}, {name}" + (", beside compile_graph" if other != PEER else "")
                rows.append(Row(title, rate[name], rate[other], other, "updates/s", aim))
    size = batches[0]
    many, single = (ours(dataset, size, "graph", members=n, device=device) for n in (GPU_SWEEP, 1))
    rate = a_second({"together": many, "single": single}, updates_per_turn(GPU_ROWS_PER_TURN, size))
    rate["alone"] = 1 / max(GPU_SWEEP * operations(size) / flops, GPU_SWEEP * bytes_moved(size) / bandwidth)
    for title, name, aim in (("graph", "together", GPU_SWEEP_AIM), ("operations or bytes alone", "alone", "none")):
        title = f"{prefix}sweep of {GPU_SWEEP}, batch {size}, {title}"
        rows.append(Row(title, GPU_SWEEP * rate[name], rate["single"], "single runs", "members × updates/s", aim))
    return rows


def updates_per_turn(rows_per_turn: int, size: int) -> int:
    return max(FEWEST_UPDATES, rows_per_turn // size)


def a_second(turns: dict[str, Turn], n: int) -> dict[str, float]:
    """Medians of `REPEATS` turns of `n`, the sides by turns, after one of each that is not counted: it compiles and
    captures."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for repeat in range(REPEATS + 1):
        for name, turn in turns.items():
            _finish()
            started = time.perf_counter()
            turn(n)
            _finish()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: n / statistics.median(times) for name, times in seconds.items()}


def _finish() -> None:
    """Wait until a GPU has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
