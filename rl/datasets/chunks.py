"""Reading a data set that is larger than memory: one chunk of episodes at a time, drawn anew in each pass.

Here: which episodes are loaded together. Not here: batches of a chunk (`rl.trainers`), the arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rl.datasets.layout import ARRAYS
from rl.datasets.transitions import TransitionSet
from rl.errors import DataError
from rl.types import Bool1D, Int1D

_EPISODES_PER_BLOCK = 256
"""Consecutive episodes that stay together, so that reads are long: 800 KB at 6 steps of 128 features."""

_BLOCKS_PER_CHUNK = 8
"""At least so many, so that chunks of a pass differ little in size, and chunks of different passes mix."""


class EpisodeChunks:
    """Chosen episodes of a data set in chunks of bounded size.

    In each pass every chosen episode is in exactly one chunk. Which one follows from `seed` and the pass alone, so that
    a run that was stopped goes on with the same chunks.
    """

    n_chunks: int
    """Of one pass; 1 where all chosen episodes fit."""

    def __init__(self, dataset: TransitionSet, episodes: Bool1D, max_bytes: int, seed: int) -> None:
        """Of the chosen (E,) episodes of `dataset`, `max_bytes` at a time.

        Raises DataError if none is chosen, or `max_bytes` does not hold eight of the largest episode.
        """
        self._dataset, self._seed = dataset, seed
        self._episodes: NDArray[np.int64] = np.flatnonzero(episodes)
        if len(self._episodes) == 0:
            raise DataError("No episode was chosen to be read in chunks. Use a larger window, or another share.")
        sizes = _episode_bytes(dataset)[self._episodes]
        self._starts = self._block_starts(int(sizes.max()), int(sizes.sum()), max_bytes)
        self._bytes: NDArray[np.int64] = np.add.reduceat(sizes, self._starts)
        total = int(self._bytes.sum())
        # A chunk takes the blocks that begin in its share of a pass, so it exceeds its share by one block at most.
        self.n_chunks = 1 if total <= max_bytes else -(-total // (max_bytes - int(self._bytes.max())))

    def load(self, number: int) -> TransitionSet:
        """The episodes of a chunk as a copy in memory, in the order of the data set.

        `number` counts on across passes: chunk `number % n_chunks` of pass `number // n_chunks`.
        """
        of_pass, chunk = divmod(number, self.n_chunks)
        blocks = self._blocks(of_pass, chunk)
        stops = np.append(self._starts[1:], len(self._episodes))
        places = np.concatenate([np.arange(self._starts[block], stops[block]) for block in blocks])
        return self._dataset.select(self._episodes[places])

    def _block_starts(self, largest: int, total: int, max_bytes: int) -> NDArray[np.int64]:
        """Where blocks begin among the chosen episodes."""
        in_block = max_bytes // (_BLOCKS_PER_CHUNK * largest)
        if in_block < 1 and total > max_bytes:
            raise DataError(
                f"A chunk of {max_bytes:,} bytes does not hold {_BLOCKS_PER_CHUNK} episodes of {largest:,} bytes, as "
                f"the largest one has. Allow chunks of {_BLOCKS_PER_CHUNK * largest:,} bytes; of a trainer, raise "
                "`memory_limit_gb`, of which a chunk is a part."
            )
        return np.arange(0, len(self._episodes), min(max(in_block, 1), _EPISODES_PER_BLOCK))

    def _blocks(self, of_pass: int, chunk: int) -> Int1D:
        """Numbers of the chunk's blocks, rising."""
        order = np.random.default_rng([self._seed, of_pass]).permutation(len(self._starts))
        before = np.cumsum(self._bytes[order]) - self._bytes[order]
        chunks = before * self.n_chunks // int(self._bytes.sum())
        return np.sort(order[chunks == chunk])


def _episode_bytes(dataset: TransitionSet) -> NDArray[np.int64]:
    """(E,) bytes of all arrays' rows of each episode."""
    per_row = {"N": 0, "N+1": 0, "E": 0, "E+1": 0, "U": 0}
    for name, (dtype, dims) in ARRAYS.items():
        per_row[dims[0]] += int(np.dtype(dtype).itemsize * np.prod(getattr(dataset, name).shape[1:], dtype=np.int64))
    n_steps = np.diff(dataset.episode_offsets)
    n_utterances = np.diff(dataset.utterance_offsets[dataset.episode_offsets])
    of_steps, of_episode = per_row["N"] + per_row["N+1"], per_row["E"] + per_row["E+1"]
    return np.asarray(n_steps * of_steps + n_utterances * per_row["U"] + of_episode)
