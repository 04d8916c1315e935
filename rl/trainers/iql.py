"""Implicit Q-learning (IQL). Formula, differences and metrics: rl/README.md."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rl.trainers.algorithm import Algorithm, Knobs, Networks
from rl.trainers.batches import Batch, Inputs
from rl.trainers.masked import at_action, log_probabilities
from rl.trainers.networks import NetworkShape


class IQL(Algorithm):
    """Kostrikov et al. (2021, arXiv:2110.06169) with an actor over the legal actions."""

    decides_by: ClassVar[str] = "actor"
    decision_network: ClassVar[str] = "actor"
    critic_networks: ClassVar[tuple[str, ...]] = ("q",)
    target_networks: ClassVar[tuple[str, ...]] = ("q", "v")

    def shapes(self) -> dict[str, NetworkShape]:
        n_actions = self.sizes.n_actions
        return {"q": self.network(n_actions), "v": self.network(1), "actor": self.network(n_actions)}

    def loss(self, networks: Networks, batch: Batch, knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
        q = at_action(networks("q", batch.inputs), batch.actions)
        td = 0.5 * (q - self.targets(networks, batch, knobs)).square().mean(dim=1)

        v = networks("v", batch.inputs).squeeze(-1)
        advantage = at_action(networks.target("q", batch.inputs), batch.actions) - v
        value = expectile_loss(advantage, knobs["expectile"]).mean(dim=1)

        log_probs = log_probabilities(networks("actor", batch.inputs), batch.mask)
        weight = advantage_weight(advantage, knobs["inverse_temperature"], self.settings.largest_weight)
        actor = -(weight * at_action(log_probs, batch.actions)).mean(dim=1)

        metrics = {"losses/td": td, "losses/value": value, "losses/actor": actor}
        metrics |= {"values/state": v.mean(dim=1), "policy/weight": weight.mean(dim=1)}
        return td + value + actor, metrics

    def state_values(self, networks: Networks, inputs: Inputs, mask: Tensor, knobs: Knobs) -> Tensor:
        """(M, B) V(s): the expectile of Q over the actions of the log."""
        return networks("v", inputs).squeeze(-1)


def expectile_loss(difference: Tensor, expectile: Tensor) -> Tensor:
    """(…) |τ − 1[d < 0]| d² of d = Q − V; with τ above ½ a V that is too low costs more than one that is too high."""
    return torch.where(difference < 0, 1 - expectile, expectile) * difference.square()


def advantage_weight(advantage: Tensor, inverse_temperature: Tensor, largest: float) -> Tensor:
    """(…) exp(β · advantage), cut at `largest`, without a gradient."""
    return (inverse_temperature * advantage.detach()).exp().clamp(max=largest)
