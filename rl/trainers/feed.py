"""Which rows are resident at which step: all of them, or, of a set larger than the limit, one chunk after the other.

Here: when the next chunk is loaded. Not here: which episodes a chunk holds (`rl.datasets.chunks`), batches from it
(`rl.trainers.batches`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from rl.datasets.chunks import EpisodeChunks
from rl.datasets.transitions import TransitionSet
from rl.trainers.batches import Draws, ResidentRows

COPIES = 4
"""A chunk's share of the limit: while it becomes resident there are its copy, its standardised observations, these once
more with the final ones behind them, and the rest of its arrays."""


def chunk_bytes(limit_gb: float) -> int:
    """Size of a chunk for a limit in GiB."""
    return int(limit_gb * 2**30 / COPIES)


class Feed:
    """The rows for each step. Chunks follow each other in an order that the seed gives, anew in each pass; each serves
    as many steps as its rows are worth, so that a pass is an epoch, but whole blocks of draws.

    Attributes
    ----------
    number : int
        Of the chunk that is resident, counted over all passes.
    until : int or None
        The step before which the next one is loaded; None where one chunk is all.
    """

    def __init__(
        self, chunks: EpisodeChunks, batch_size: int, resident: Callable[[TransitionSet], ResidentRows]
    ) -> None:
        self.n_chunks = chunks.n_chunks
        self.number = 0
        self.until: int | None = None
        self._chunks, self._batch_size, self._resident = chunks, batch_size, resident
        self._loaded: int | None = None

    def go_on_from(self, number: int, until: int | None) -> None:
        """Continue where a stopped training had come to."""
        self.number, self.until = number, until

    def rows(self, step: int) -> ResidentRows:
        """What step `step` draws from."""
        if self.until is not None and step >= self.until:
            self.number, self.until = self.number + 1, None
        if self._loaded != self.number:
            if self._loaded is not None:
                # First, so that two chunks are never held; by its arrays, because the learner still knows the object.
                self._rows.__dict__.clear()
            self._rows = self._resident(self._chunks.load(self.number))
            self._loaded = self.number
        if self.n_chunks > 1 and self.until is None:
            self.until = step + self._worth(self._rows)
        return self._rows

    def _worth(self, rows: ResidentRows) -> int:
        blocks = max(1, math.floor(len(rows.starts) / (self._batch_size * Draws.PER_BLOCK) + 0.5))
        return blocks * Draws.PER_BLOCK

    _rows: ResidentRows
