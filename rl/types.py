"""Array names and the objects that travel between encoders, data sets, policies and evaluation.

Here: types without behavior. Not here: reading or writing (`rl.datasets`), learning (`rl.trainers`).

Sizes used in every docstring of `rl`: N steps, E episodes, B batch, A actions, D observation features,
U utterances, d utterance dimensions, K reward parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Float1D = NDArray[np.floating]
Float2D = NDArray[np.floating]
Float3D = NDArray[np.floating]
Int1D = NDArray[np.integer]
Bool1D = NDArray[np.bool_]
Bool2D = NDArray[np.bool_]


@dataclass(frozen=True)
class History:
    """The utterances before each decision, for sequence encoders.

    `vectors` (U, d) float16; `offsets` (B + 1,) int64: the utterances of row b are
    `vectors[offsets[b]:offsets[b + 1]]`, oldest first.
    """

    vectors: NDArray[np.float16]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Past:
    """The agent's decisions before each one, of the same dialogue, for policies that read them.

    `states` (P, D) float32 and `actions` (P,) int64: those of row b are at `offsets[b]:offsets[b + 1]`, oldest first;
    `offsets` (B + 1,) int64.
    """

    states: NDArray[np.float32]
    actions: NDArray[np.int64]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Observations:
    """What a policy sees before B agent turns: `state` (B, D) float32 and, where kept, `history` and `past`."""

    state: Float2D
    history: History | None = None
    past: Past | None = None

    def __len__(self) -> int:
        return len(self.state)

    def __getitem__(self, rows: slice | Int1D | Bool1D) -> Observations:
        """The chosen rows, without history and past (slices of ragged arrays are taken by the data set)."""
        return Observations(self.state[rows])


@runtime_checkable
class Policy(Protocol):
    """A rule that gives each legal action a probability. Stored as a folder of JSON and safetensors."""

    name: str
    n_actions: int
    reads_history: bool
    """Whether it reads `Observations.history`."""
    reads_past: bool
    """Whether it reads `Observations.past`."""

    def action_probabilities(self, observations: Observations, action_mask: Bool2D) -> Float2D:
        """(B, D), (B, A) → (B, A) float64; rows sum to 1 and are 0 where masked.

        Raises PolicyError if the observation width or the mask width does not fit, or a row has no legal action.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write `policy.json` and `policy.safetensors` into an empty or new folder; no pickles."""
        ...
