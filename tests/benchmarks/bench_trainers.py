"""Updates a second of our CQL beside d3rlpy's DiscreteCQL: same batch size, same network, one thread, by turns.

Both sides draw their own batches, d3rlpy from its `MDPDataset`. Compiling is not counted. `floor` is the time of the
matrix products alone that an update cannot avoid: forward of the online network on s and s′ and of the target network
on s′, and the backward pass. Peak memory and GPU rows are not measured here yet.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rl.datasets.mdp import export_mdp_dataset
from rl.datasets.transitions import TransitionSet
from rl.policies.networks import Standardizer
from rl.trainers.execution import missing_for_compiling
from tests.benchmarks.rows import Row

FEATURES, ACTIONS, HIDDEN = 64, 50, (256, 256)
BATCHES = (32, 256, 1024, 4096)
AIMS = {32: ">= 5", 256: ">= 3.5", 4096: ">= 2.5"}
REPEATS = 5
ROWS_PER_TURN = 16_000
N_STEPS = 40_000
SWEEP = 8
CPU = torch.device("cpu")

Turn = Callable[[int], object]
"""Takes so many updates."""


def run(batches: tuple[int, ...] = BATCHES, rows_per_turn: int = ROWS_PER_TURN, compiles: bool = True) -> list[Row]:
    """Updates a second by batch size and mode."""
    torch.set_num_threads(1)
    dataset = random_set()
    compiles = compiles and missing_for_compiling(CPU) is None
    rows: list[Row] = []
    for size in batches:
        turns: dict[str, Turn] = {"d3rlpy": peer(dataset, size), "eager": ours(dataset, size, "eager")}
        if compiles:
            turns["compiled"] = ours(dataset, size, "compiled")
            turns["bfloat16"] = ours(dataset, size, "compiled", precision="bfloat16")
        turns["floor"] = floor(size)
        rate = updates_a_second(turns, max(3, rows_per_turn // size))
        for name in ("eager", "compiled", "bfloat16", "floor"):
            if name in rate:
                aim = AIMS.get(size, "none") if name == "compiled" else "none"
                title = f"CQL, batch {size}, {'matrix products alone' if name == 'floor' else name}"
                rows.append(Row(title, rate[name], rate["d3rlpy"], "d3rlpy 2.8.1", "updates/s", aim))
    single, many = ours(dataset, batches[0], "eager"), ours(dataset, batches[0], "eager", members=SWEEP)
    rate = updates_a_second({"single": single, "sweep": many}, max(3, rows_per_turn // batches[0] // SWEEP))
    title = f"sweep of {SWEEP}, batch {batches[0]}, eager"
    rows.append(Row(title, SWEEP * rate["sweep"], rate["single"], "single runs", "members × updates/s", "none"))
    return rows


def updates_a_second(turns: dict[str, Turn], n: int) -> dict[str, float]:
    """Medians of `REPEATS` turns, the sides by turns, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for turn in turns.values():
        turn(2)
    for _ in range(REPEATS):
        for name, turn in turns.items():
            started = time.perf_counter()
            turn(n)
            seconds[name].append(time.perf_counter() - started)
    return {name: n / statistics.median(times) for name, times in seconds.items()}


def ours(dataset: TransitionSet, size: int, mode: str, members: int = 1, precision: str = "float32") -> Turn:
    from rl.trainers.algorithm import Sizes
    from rl.trainers.cql import CQL
    from rl.trainers.learner import Learner
    from rl.trainers.settings import trainer_settings

    settings: Any = trainer_settings(
        algorithm="cql",
        batch_size=size,
        hidden_units=HIDDEN,
        layer_norm=False,
        conservative_weight=1.0,
        n_members=members,
        mode=mode,
        precision=precision,
    )
    learner = Learner(CQL(settings, Sizes(FEATURES, ACTIONS)), settings.members(0.99), settings, CPU)
    rows = learner.algorithm.rows(dataset, Standardizer.fit(dataset.observations), 1.0, (0.99,) * members, CPU)
    return lambda n: learner.advance(rows, n)


def peer(dataset: TransitionSet, size: int) -> Turn:
    with contextlib.redirect_stderr(io.StringIO()):  # gym says on each import that it is unmaintained
        import d3rlpy
    config = d3rlpy.algos.DiscreteCQLConfig(
        batch_size=size,
        learning_rate=3e-4,
        gamma=0.99,
        target_update_interval=200,
        alpha=1.0,
        encoder_factory=d3rlpy.models.VectorEncoderFactory(hidden_units=list(HIDDEN)),
    )
    algorithm, source = config.create(device="cpu:0"), export_mdp_dataset(dataset)
    algorithm.create_impl((FEATURES,), ACTIONS)

    def turn(n: int) -> None:
        for _ in range(n):
            algorithm.update(source.sample_transition_batch(size))

    return turn


def floor(size: int) -> Turn:
    """The products alone, on numbers that do not matter."""
    widths = (FEATURES, *HIDDEN, ACTIONS)
    weights = [torch.randn(n_in, n_out) for n_in, n_out in itertools.pairwise(widths)]
    states = torch.randn(size, FEATURES)

    def turn(n: int) -> None:
        for _ in range(n):
            for _ in range(3):
                hidden = [states]
                for weight in weights:
                    hidden.append(hidden[-1] @ weight)
            gradient = hidden[-1]
            for layer in reversed(range(len(weights))):
                _ = hidden[layer].T @ gradient
                if layer:
                    gradient = gradient @ weights[layer].T

    return turn


def random_set() -> TransitionSet:
    random = np.random.default_rng(0)
    return TransitionSet.from_arrays(
        observations=random.normal(size=(N_STEPS, FEATURES)).astype(np.float32),
        actions=random.integers(ACTIONS, size=N_STEPS),
        rewards=random.normal(size=N_STEPS).astype(np.float32),
        episode_offsets=np.arange(0, N_STEPS + 1, 8),
        n_actions=ACTIONS,
    )
