"""Batch-constrained Q-learning (BCQ), discrete. Formula, differences and metrics: rl/README.md."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from rl.trainers.algorithm import Algorithm, Knobs, Networks
from rl.trainers.batches import Batch, Inputs
from rl.trainers.masked import at_action, best_action, best_value, log_probabilities
from rl.trainers.networks import NetworkShape


class BCQ(Algorithm):
    """Fujimoto et al. (2019, arXiv:1910.01708): double DQN that chooses among the actions that the log takes."""

    decision_network: ClassVar[str] = "q"
    support_network: ClassVar[str] = "imitation"
    target_networks: ClassVar[tuple[str, ...]] = ("q", "imitation")

    def shapes(self) -> dict[str, NetworkShape]:
        return {"q": self.network(self.sizes.n_actions), "imitation": self.network(self.sizes.n_actions)}

    def loss(self, networks: Networks, batch: Batch, knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
        values = networks("q", batch.inputs)
        errors = at_action(values, batch.actions) - self.targets(networks, batch, knobs)
        td = 0.5 * errors.square().mean(dim=1)
        log_probs = log_probabilities(networks("imitation", batch.inputs), batch.mask)
        imitation = -at_action(log_probs, batch.actions).mean(dim=1)
        support = self.supported(log_probs)
        metrics = {
            "losses/td": td,
            "losses/imitation": imitation,
            "policy/supported_share": support.sum(dim=(1, 2)) / batch.mask.sum(dim=(1, 2)),
            "values/greedy": best_value(values, support).mean(dim=1),
        }
        return td + imitation, metrics

    def supported(self, log_probs: Tensor) -> Tensor:
        """(M, B, A) → bool: the actions at least `support_ratio` times as likely as the likeliest, itself included."""
        least = log_probs.amax(dim=-1, keepdim=True) + math.log(self.settings.support_ratio)
        return log_probs >= least

    def state_values(self, networks: Networks, inputs: Inputs, mask: Tensor, knobs: Knobs) -> Tensor:
        """(M, B): the online networks choose among the supported actions, the older copy values the choice."""
        with torch.no_grad():
            support = self.supported(log_probabilities(networks("imitation", inputs), mask))
            chosen = best_action(networks("q", inputs), support)
        return at_action(networks.target("q", inputs), chosen)
