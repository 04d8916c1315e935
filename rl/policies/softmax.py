"""Policies that choose in proportion to what their networks prefer: of behavior cloning and of actors.

Here: the masked softmax of stored scores. Not here: their fit (`rl.trainers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from rl.policies.networks import masked_softmax
from rl.policies.scores import Scores
from rl.policies.storage import StoredPolicy
from rl.types import Bool2D, Float2D, Observations


class SoftmaxPolicy(StoredPolicy):
    """π(a | s) = softmax of the scores over the legal actions. Several members: of the mean of their scores."""

    kind = "softmax"

    def __init__(self, scores: Scores, name: str) -> None:
        super().__init__(name, scores.n_actions, scores.observation_size)
        self.scores = scores
        self.reads_history = scores.reads_history
        self.reads_past = scores.reads_past

    def _probabilities(self, observations: Observations, action_mask: Bool2D) -> Float2D:
        return masked_softmax(self.scores(observations, action_mask), action_mask)

    def fields(self) -> dict[str, Any]:
        return {"scores": self.scores.fields()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return self.scores.arrays()

    @classmethod
    def from_state(cls, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SoftmaxPolicy:
        return cls(Scores.from_state(document["scores"], arrays), document["name"])
