"""A transition set that no machine should have to hold in memory, and the steps that are measured on it.

`python -m tests.benchmarks.large_sets STEP FOLDER N_STEPS CHUNK_BYTES`, in a process of its own; prints the seconds
that the step itself took. `large_set` makes the set for other benchmarks, too, and reuses it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.catalogue import ActionCatalogue, Strategy
from rl.datasets.chunks import EpisodeChunks
from rl.datasets.layout import ARRAYS_FILE
from rl.datasets.transitions import MANIFEST_FILE, Manifest, TransitionSet
from rl.datasets.writer import TransitionSetWriter
from rl.settings import RewardDefinition, RewardPart

N_FEATURES, N_ACTIONS = 128, 20
LONGEST = 11
"""Steps of an episode: 1 to 11, 6 on average."""
EPISODES_PER_CUSTOMER = 2
HELD_OUT = 0.2
CONVERSION_VALUE = 10.0
EPISODES_PER_RANGE = 8_192
SEED = 0


@dataclass(frozen=True)
class LargeLog:
    """A made-up log: noise for observations, a masked softmax as behavior policy, a conversion at the end.

    Whether a customer converts depends on the last action and observation: there is something to learn.
    """

    n_steps: int

    @cached_property
    def episode_offsets(self) -> NDArray[np.int64]:
        """(E + 1,)"""
        rng = np.random.default_rng(SEED)
        ends = np.cumsum(rng.integers(1, LONGEST + 1, size=self.n_steps // 5 + 10))
        return np.concatenate(([0], ends[ends < self.n_steps], [self.n_steps]))

    @property
    def n_episodes(self) -> int:
        """E."""
        return len(self.episode_offsets) - 1

    @property
    def manifest(self) -> Manifest:
        """What the arrays mean; names the log, so that it is known again."""
        strategies = tuple(Strategy(f"action_{i}", "", i, "selectable") for i in range(N_ACTIONS))
        reward = RewardDefinition(parts=(RewardPart(name="conversion_value"),))
        catalogue = tuple(ActionCatalogue(strategies).to_json())
        name = f"made up: {self.n_steps} steps, {N_FEATURES} features, {N_ACTIONS} actions, seed {SEED}"
        return Manifest(catalogue=catalogue, reward=reward, code_revision=name)

    def ranges(self) -> Iterator[dict[str, NDArray[Any]]]:
        """The arrays, some 50,000 steps at a time."""
        for first in range(0, self.n_episodes, EPISODES_PER_RANGE):
            yield self._range(first, min(first + EPISODES_PER_RANGE, self.n_episodes))

    def _range(self, first: int, stop: int) -> dict[str, NDArray[Any]]:
        rng = np.random.default_rng([SEED, first])
        offsets = self.episode_offsets[first : stop + 1] - self.episode_offsets[first]
        n, n_episodes = int(offsets[-1]), stop - first
        observations = rng.standard_normal((n, N_FEATURES), dtype=np.float32)
        logged_mask = rng.random((n, N_ACTIONS), dtype=np.float32) < 0.7
        logged_mask[:, 0] = True
        actions, propensities = _chosen(observations @ _weights(1), logged_mask, rng)
        rewards = np.zeros(n, dtype=np.float32)
        last = offsets[1:] - 1
        appeal = np.take_along_axis(observations[last] @ _weights(2), actions[last, None], axis=1)[:, 0]
        rewards[last] = CONVERSION_VALUE * (rng.random(n_episodes) < 1 / (1 + np.exp(1 - appeal)))
        return {
            "observations": observations,
            "actions": actions,
            "logged_mask": logged_mask,
            "action_mask": logged_mask,
            "rewards": rewards,
            "reward_parts": rewards[:, None],
            "propensities": propensities,
            **{name: np.zeros(n) for name in ("propensity_source", "policy_version", "segment", "state_bucket")},
            "item_action": np.full(n, -1),
            "episode_offsets": offsets,
            **self._episodes(first, n_episodes),
            "utterance_vectors": np.zeros((0, 0)),
            "utterance_offsets": np.zeros(n + 1),
        }

    def _episodes(self, first: int, n: int) -> dict[str, NDArray[Any]]:
        customers = np.arange(first, first + n) // EPISODES_PER_CUSTOMER
        # The golden ratio spreads the numbers 0, 1, 2, … evenly over [0, 1).
        held_out = customers * 0.6180339887498949 % 1 < HELD_OUT
        return {
            "terminated": np.ones(n),
            "truncated": np.zeros(n),
            "started_at": np.arange(first, first + n) * 1_000_000,
            "customer_index": customers,
            "is_customer_known": np.ones(n),
            "validation": held_out,
            "final_observations": np.zeros((n, N_FEATURES)),
            "final_action_mask": np.zeros((n, N_ACTIONS)),
        }


def large_set(folder: Path, n_steps: int) -> None:
    """Write the set of so many steps to `folder` (13.8 GB for 20 million), unless it is there already."""
    log = LargeLog(n_steps)
    if (folder / MANIFEST_FILE).exists() and _same(TransitionSet.open(folder).manifest, log.manifest):
        return
    sizes = {"n_steps": n_steps, "n_episodes": log.n_episodes, "observation_size": N_FEATURES}
    with TransitionSetWriter.replacing(folder, log.manifest, **sizes) as writer:
        for part in log.ranges():
            writer.add(part)


def _same(found: Manifest, wanted: Manifest) -> bool:
    return found.code_revision == wanted.code_revision


def make_rows(_: Path, n_steps: int, __: int) -> None:
    """Make the rows of the set and drop them: what writing is compared with."""
    for _part in LargeLog(n_steps).ranges():
        pass


def write(folder: Path, n_steps: int, _: int) -> None:
    """Write the set."""
    large_set(folder, n_steps)


def use_opened(folder: Path, n_steps: int, _: int) -> None:
    """Open the set and do what a job does before it trains: returns, the split, a few batches."""
    dataset = TransitionSet.open(folder)
    assert dataset.n_steps == n_steps
    assert dataset.returns.max() == CONVERSION_VALUE
    training, chosen_by = dataset.selection_split(0.1)
    assert training.any()
    assert chosen_by.any()
    rng = np.random.default_rng(SEED)
    for _ in range(100):
        dataset.batch_observations(rng.integers(0, n_steps, size=256))


def draw_chunks(folder: Path, _: int, chunk_bytes: int) -> None:
    """Load every chunk of one pass over the training episodes."""
    dataset = TransitionSet.open(folder)
    training = ~dataset.validation
    chunks = EpisodeChunks(dataset, training, chunk_bytes, SEED)
    drawn = sum(chunks.load(number).n_episodes for number in range(chunks.n_chunks))
    assert drawn == training.sum()


def read_in_order(folder: Path, _: int, __: int) -> None:
    """Read the file from its beginning to its end: what drawing is compared with."""
    buffer = bytearray(4 * 2**20)
    with (folder / ARRAYS_FILE).open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


def _weights(which: int) -> NDArray[np.float32]:
    """(D, A) of the behavior policy (1) or of what customers like (2)."""
    rng = np.random.default_rng([SEED, which, 0])
    return rng.standard_normal((N_FEATURES, N_ACTIONS), dtype=np.float32) / np.float32(np.sqrt(N_FEATURES))


def _chosen(
    logits: NDArray[np.float32], mask: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(n,) drawn actions of a masked softmax, and their probabilities."""
    preference = np.where(mask, np.exp(logits), 0)
    shares = np.cumsum(preference, axis=1, dtype=np.float64)
    drawn = rng.random((len(mask), 1)) * shares[:, -1:]
    actions = (shares <= drawn).sum(axis=1)
    probability = np.take_along_axis(preference, actions[:, None], axis=1)[:, 0] / shares[:, -1]
    return actions, np.minimum(probability, 1).astype(np.float32)


STEPS = {
    "make_rows": make_rows,
    "write": write,
    "use_opened": use_opened,
    "draw_chunks": draw_chunks,
    "read_in_order": read_in_order,
}

if __name__ == "__main__":
    name, target, size, chunk = sys.argv[1:]
    started = time.perf_counter()
    STEPS[name](Path(target), int(size), int(chunk))
    print(time.perf_counter() - started)
