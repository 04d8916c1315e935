"""The policy of behavior cloning: a network's logits through a masked softmax. Its fit: `rl.trainers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from rl.policies.networks import Network, masked_softmax
from rl.policies.storage import StoredPolicy
from rl.types import Bool2D, Float2D


class ImitationPolicy(StoredPolicy):
    """π(a | s) = softmax of the network's logits over the legal actions."""

    kind = "imitation"

    def __init__(self, network: Network, name: str = "behavior_cloning") -> None:
        super().__init__(name, network.n_actions, network.observation_size)
        self.network = network

    def _probabilities(self, state: Float2D, action_mask: Bool2D) -> Float2D:
        return masked_softmax(self.network(state), action_mask)

    def fields(self) -> dict[str, Any]:
        return {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return self.network.arrays()

    @classmethod
    def from_state(cls, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> ImitationPolicy:
        return cls(Network.from_arrays(arrays), document["name"])
