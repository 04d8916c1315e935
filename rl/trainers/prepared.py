"""What of the training rows a policy carries on: how features are standardised, and the unit of its values.

Here: one pass over the rows, by parts, so that a memory-mapped set need not fit into memory. Not here: which rows
train (`rl.trainers.selection`), which are resident (`rl.trainers.feed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.datasets.layout import Range, ranges
from rl.datasets.transitions import TransitionSet
from rl.errors import DataError
from rl.policies.networks import Moments, Standardizer
from rl.trainers.batches import scale_of_deviation, still_to_come
from rl.types import Bool1D


@dataclass(frozen=True)
class Prepared:
    """What of the data the policy carries on: features are standardised, rewards divided by a scale."""

    standardizer: Standardizer
    scale: float
    """Reward units: the deviation of the undiscounted return-to-go over the rows."""
    n_rows: int
    """Rows to learn from."""

    @classmethod
    def of(cls, dataset: TransitionSet, learning: Bool1D, choosing: Bool1D) -> Prepared:
        """Measure the rows of the (E,) episodes to learn from, and check them and those to choose by.

        Raises DataError, naming the array and its first row, if an observation or reward is NaN or infinite.
        """
        features, returns = Moments(dataset.observation_size), Moments(1)
        for part in ranges(dataset.arrays()):
            episodes = slice(part.first_episode, part.first_episode + len(part.arrays["terminated"]))
            read = learning[episodes] | choosing[episodes]
            _check_finite(part, read)
            lengths = np.diff(part.arrays["episode_offsets"])
            rows = np.repeat(learning[episodes], lengths)
            if not rows.any():
                continue
            features.add(part.arrays["observations"][rows])
            to_come = still_to_come(part.arrays["rewards"], part.arrays["episode_offsets"])
            returns.add(to_come[rows, None])
        scale = scale_of_deviation(float(returns.deviation[0]))
        return cls(Standardizer.of_moments(features), scale, features.n_rows)


def _check_finite(part: Range, episodes: Bool1D) -> None:
    arrays: Mapping[str, NDArray[Any]] = part.arrays
    rows = np.repeat(episodes, np.diff(arrays["episode_offsets"]))
    for name, chosen, first in (
        ("observations", rows, part.first_step),
        ("rewards", rows, part.first_step),
        ("final_observations", episodes, part.first_episode),
    ):
        finite = np.isfinite(arrays[name].reshape(len(chosen), -1)).all(axis=1)
        broken = np.flatnonzero(chosen & ~finite)
        if len(broken):
            raise DataError(
                f"{len(broken)} of {len(chosen)} rows of `{name}` hold NaN or infinity; the first is row "
                f"{first + broken[0]}. Build the data set again."
            )
