"""Draws, gathered batches and n-step rewards; λ-returns are tested in test_returns.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rl.datasets.transitions import TransitionSet
from rl.policies.networks import Standardizer
from rl.trainers import batches
from rl.trainers.batches import Draws, Gatherer, ResidentRows
from rl.trainers.trees import leaves

CPU = torch.device("cpu")


def rows(discounts: tuple[float, ...] = (0.5,), return_steps: int = 1) -> ResidentRows:
    """Two dialogues: rewards 1, 2, 4 and then the end; 8, 16 and then the log stops."""
    dataset = TransitionSet.from_arrays(
        observations=np.arange(10, dtype=np.float32).reshape(5, 2),
        actions=np.array([0, 1, 2, 0, 1]),
        rewards=np.array([1, 2, 4, 8, 16], dtype=np.float32),
        episode_offsets=np.array([0, 3, 5]),
        terminated=np.array([True, False]),
        truncated=np.array([False, True]),
        final_observations=np.array([[0, 0], [90, 91]], dtype=np.float32),
        final_action_mask=np.array([[False] * 3, [True] * 3]),
        n_actions=3,
    )
    as_it_is = Standardizer(np.zeros(2, dtype=np.float32), np.full(2, 0.01, dtype=np.float32))
    return ResidentRows(dataset, as_it_is, 1.0, discounts, return_steps, CPU)


def test_draws_depend_on_seed_and_step_alone() -> None:
    alone, together = Draws((7,), 5).block(3, 100), Draws((1, 7), 5).block(3, 100)
    assert alone.shape == (Draws.PER_BLOCK, 1, 5)
    np.testing.assert_array_equal(alone[:, 0], together[:, 1])
    assert (together[:, 0] != together[:, 1]).any()
    assert (alone != Draws((7,), 5).block(4, 100)).any()


def test_n_step_rewards_by_hand() -> None:
    batch = rows(return_steps=2).batch(torch.arange(5)[None])
    assert batch.rewards.tolist() == [[1 + 0.5 * 2, 2 + 0.5 * 4, 4, 8 + 0.5 * 16, 16]]
    # The second and third rows end with their dialogue; the fourth and fifth go on from where the log stopped.
    assert batch.discounts.tolist() == [[0.25, 0, 0, 0.25, 0.5]]
    assert batch.next_inputs.state[0, 3:, 0].tolist() == pytest.approx([9000.0, 9000.0], abs=9000)
    torch.testing.assert_close(batch.next_inputs.state[0, 3], batch.next_inputs.state[0, 4])


@pytest.mark.parametrize("n_bytes", [1, 2**10, 2**20])
def test_batches_gathered_together_are_those_gathered_alone(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    monkeypatch.setattr(batches, "GATHERED_BYTES", n_bytes)
    source, draws = rows((0.5, 0.9)), Draws((0, 1), 4)
    gather = Gatherer(draws, CPU)
    for step in (0, 1, 5, 63, 64, 130, 3):
        number, at = divmod(step, Draws.PER_BLOCK)
        expected = source.batch(torch.from_numpy(draws.block(number, 5))[at])
        gathered = gather(source, step)
        for found, wanted in zip(gathered.tensors(step), leaves(expected), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        for found, wanted in zip(leaves(gathered.part(step, step + 1)), leaves(expected), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
