"""The policy that knows nothing: each legal action with equal probability. A floor to compare others with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.policies.storage import StoredPolicy
from rl.types import Bool2D, Float2D, Observations


class UniformPolicy(StoredPolicy):
    """Each legal action with equal probability."""

    kind = "uniform"

    def __init__(self, n_actions: int, observation_size: int, name: str = "uniform") -> None:
        super().__init__(name, n_actions, observation_size)

    def _probabilities(self, observations: Observations, action_mask: Bool2D) -> Float2D:
        return np.asarray(action_mask / action_mask.sum(axis=1, keepdims=True), dtype=np.float64)

    def fields(self) -> dict[str, Any]:
        return {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    @classmethod
    def from_state(cls, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> UniformPolicy:
        return cls(document["n_actions"], document["observation_size"], document["name"])
