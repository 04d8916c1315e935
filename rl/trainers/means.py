"""Means of metrics between two looks.

Here: the sums, which a checkpoint carries. Not here: the metrics (the algorithms' modules), who hears them
(`rl.trainers.protocol`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Means:
    """Means of the metrics over the updates since the last look."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._n_steps = 0

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Means:
        """The inverse of `document`."""
        means = cls()
        means.seconds, means._n_steps = document["seconds"], document["n_steps"]
        means._sums = {name: np.asarray(values) for name, values in document["sums"].items()}
        return means

    def document(self) -> dict[str, Any]:
        """As JSON, whose decimals are exact."""
        sums = {name: values.tolist() for name, values in self._sums.items()}
        return {"seconds": self.seconds, "n_steps": self._n_steps, "sums": sums}

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / max(1, self._n_steps)

    def add(self, means: Mapping[str, NDArray[np.float64]], n_steps: int) -> None:
        """Count (M,) means by name over `n_steps` more updates."""
        self._n_steps += n_steps
        for name, values in means.items():
            self._sums[name] = self._sums.get(name, 0.0) + values * n_steps

    def taken(self) -> dict[str, NDArray[np.float64]]:
        """(M,) by name."""
        return {name: values / self._n_steps for name, values in self._sums.items()}
