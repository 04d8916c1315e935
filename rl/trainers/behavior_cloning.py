"""Behavior cloning (BC): the policy that does what the log did. Formula and metrics: rl/README.md."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from rl.trainers.algorithm import Algorithm, Knobs, Networks
from rl.trainers.batches import Batch
from rl.trainers.masked import at_action, log_probabilities
from rl.trainers.networks import NetworkShape


class BehaviorCloning(Algorithm):
    """Maximum likelihood of the logged actions over `logged_mask`."""

    uses_logged_mask: ClassVar[bool] = True
    decides_by: ClassVar[str] = "actor"
    decision_network: ClassVar[str] = "actor"

    def shapes(self) -> dict[str, NetworkShape]:
        return {"actor": self.network(self.sizes.n_actions)}

    def loss(self, networks: Networks, batch: Batch, knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
        log_probs = log_probabilities(networks("actor", batch.inputs), batch.mask)
        imitation = -at_action(log_probs, batch.actions).mean(dim=1)
        return imitation, {"losses/imitation": imitation}
