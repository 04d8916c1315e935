"""Sampling of training batches: our vectorised gather beside d3rlpy's own loop, on the same transitions."""

from __future__ import annotations

import numpy as np

from rl.datasets.mdp import export_mdp_dataset
from rl.datasets.transitions import TransitionSet
from tests.benchmarks.rows import Row, rates

N_EPISODES, STEPS, FEATURES, ACTIONS = 5_000, 8, 226, 13
BATCH, OUR_BATCHES, PEER_BATCHES = 256, 2_000, 100


def run() -> list[Row]:
    """Transitions a second through each sampler."""
    from rl.trainers.d3rlpy_adapter import TransitionSampler

    data = _random_set()
    ours = TransitionSampler(data, data.action_mask, seed=0, legal_starts_only=False)
    peer = export_mdp_dataset(data)

    def draw(source: object, batches: int) -> None:
        for _ in range(batches):
            source.sample_transition_batch(BATCH)  # type: ignore[attr-defined]

    our_rate, peer_rate = rates(
        lambda: draw(ours, OUR_BATCHES),
        lambda: draw(peer, PEER_BATCHES),
        ours_units=OUR_BATCHES * BATCH,
        peer_units=PEER_BATCHES * BATCH,
    )
    return [Row("sampling of batches of 256", our_rate, peer_rate, "d3rlpy 2.8.1", "transitions/s", ">= 5")]


def _random_set() -> TransitionSet:
    random = np.random.default_rng(0)
    n = N_EPISODES * STEPS
    return TransitionSet.from_arrays(
        observations=random.normal(size=(n, FEATURES)).astype(np.float32),
        actions=random.integers(ACTIONS, size=n),
        rewards=random.normal(size=n).astype(np.float32),
        episode_offsets=np.arange(0, n + 1, STEPS),
        n_actions=ACTIONS,
    )
