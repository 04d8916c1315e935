"""Both sides of the benchmark `trainers`, and the arithmetic that neither can avoid.

Here: what takes updates, and what draws batches. Not here: which are set beside which, and the aims
(`bench_trainers`). As a command it takes some updates of one side, for its peak memory:
`python -m tests.benchmarks.trainer_turns compiled 256 50`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rl.datasets.mdp import export_mdp_dataset
from rl.datasets.transitions import TransitionSet
from rl.policies.networks import Standardizer
from rl.trainers.algorithm import Sizes
from rl.trainers.batches import Draws, Gatherer, ResidentRows
from rl.trainers.cql import CQL
from rl.trainers.learner import Learner
from rl.trainers.settings import trainer_settings

FEATURES, ACTIONS, HIDDEN = 64, 50, (256, 256)
WIDTHS = (FEATURES, *HIDDEN, ACTIONS)
N_WEIGHTS = sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(WIDTHS))
N_STEPS = 40_000
DISCOUNT, LEARNING_RATE, TARGET_UPDATE_INTERVAL = 0.99, 3e-4, 200
CPU = torch.device("cpu")

Turn = Callable[[int], object]
"""Takes so many updates, or draws so many batches."""


def random_set() -> TransitionSet:
    """Episodes of 8 steps, every action legal: what d3rlpy can learn from too."""
    random = np.random.default_rng(0)
    return TransitionSet.from_arrays(
        observations=random.normal(size=(N_STEPS, FEATURES)).astype(np.float32),
        actions=random.integers(ACTIONS, size=N_STEPS),
        rewards=random.normal(size=N_STEPS).astype(np.float32),
        episode_offsets=np.arange(0, N_STEPS + 1, 8),
        n_actions=ACTIONS,
    )


def ours(
    dataset: TransitionSet,
    size: int,
    mode: str,
    members: int = 1,
    precision: str = "float32",
    device: torch.device = CPU,
) -> Turn:
    """Updates of our CQL, all members in each."""
    settings: Any = trainer_settings(
        algorithm="cql",
        batch_size=size,
        hidden_units=HIDDEN,
        layer_norm=False,
        learning_rate=LEARNING_RATE,
        conservative_weight=1.0,
        return_steps=1,
        target_update_interval=TARGET_UPDATE_INTERVAL,
        n_members=members,
        mode=mode,
        precision=precision,
    )
    learner = Learner(CQL(settings, Sizes(FEATURES, ACTIONS)), settings.members(DISCOUNT), settings, device)
    discounts = (DISCOUNT,) * members
    rows = learner.algorithm.rows(dataset, Standardizer.fit(dataset.observations), 1.0, discounts, device)
    return lambda n: learner.advance(rows, n)


def peer(dataset: TransitionSet, size: int, device: str = "cpu:0", compile_graph: bool = False) -> Turn:
    """Updates of d3rlpy's DiscreteCQL, on batches that it draws from its own data set."""
    with contextlib.redirect_stderr(io.StringIO()):  # gym says on each import that it is unmaintained
        import d3rlpy
    config = d3rlpy.algos.DiscreteCQLConfig(
        batch_size=size,
        learning_rate=LEARNING_RATE,
        gamma=DISCOUNT,
        target_update_interval=TARGET_UPDATE_INTERVAL,
        alpha=1.0,
        encoder_factory=d3rlpy.models.VectorEncoderFactory(hidden_units=list(HIDDEN)),
        compile_graph=compile_graph,
    )
    algorithm, source = config.create(device=device), export_mdp_dataset(dataset)
    algorithm.create_impl((FEATURES,), ACTIONS)

    def turn(n: int) -> None:
        for _ in range(n):
            algorithm.update(source.sample_transition_batch(size))

    return turn


def our_batches(dataset: TransitionSet, size: int) -> Turn:
    """Batches alone, each to its own tensors."""
    rows = ResidentRows(dataset, Standardizer.fit(dataset.observations), 1.0, (DISCOUNT,), 1, CPU)
    gather, steps = Gatherer(Draws((0,), size), CPU), itertools.count()

    def turn(n: int) -> None:
        for step in itertools.islice(steps, n):
            gather(rows, step).tensors(step)

    return turn


def peer_batches(dataset: TransitionSet, size: int) -> Turn:
    """Batches alone, as d3rlpy gives them to its own updates."""
    source = export_mdp_dataset(dataset)

    def turn(n: int) -> None:
        for _ in range(n):
            source.sample_transition_batch(size)

    return turn


def products(size: int) -> Turn:
    """The matrix products alone: forward of the online network on s and s′ and of the older copy on s′, and the
    backward pass; on numbers that do not matter."""
    weights = [torch.randn(n_in, n_out) for n_in, n_out in itertools.pairwise(WIDTHS)]
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


def operations(size: int) -> int:
    """Floating-point operations of the products of one member's update."""
    layers = [n_in * n_out for n_in, n_out in itertools.pairwise(WIDTHS)]
    return 2 * size * (5 * sum(layers) - layers[0])


def bytes_moved(size: int) -> int:
    """Bytes that one member's update has to read or write if nothing but a batch and one layer stays on the chip:
    weights and both moments in and out, the older copy in, and the batch gathered once (s, s′ and their masks)."""
    return 4 * 7 * N_WEIGHTS + 2 * size * (4 * FEATURES + ACTIONS)


def gpu_rates(device: torch.device) -> tuple[float, float]:
    """(operations a second of a large float32 product, bytes a second of a large copy), best of ten each."""
    left = torch.randn(8192, 8192, device=device)
    out = torch.empty_like(left)
    product = _best_seconds(lambda: torch.mm(left, left, out=out))
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    copied = _best_seconds(lambda: copy.copy_(source))
    return 2 * 8192**3 / product, 2 * 2**30 / copied


def _best_seconds(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(11):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    side, batch_size, n_updates = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    takes = peer(random_set(), batch_size) if side == "d3rlpy" else ours(random_set(), batch_size, side)
    takes(n_updates)
