"""Conservative actor-critic. Formula, differences and metrics: rl/README.md."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rl.trainers.algorithm import Algorithm, Knobs, Networks
from rl.trainers.batches import Batch, Inputs
from rl.trainers.masked import at_action, expected, log_probabilities, log_sum_exp
from rl.trainers.networks import NetworkShape


class ConservativeActorCritic(Algorithm):
    """Discrete soft actor-critic (Christodoulou, 2019, arXiv:1910.07207) whose critics carry the penalty of CQL(H)."""

    decides_by: ClassVar[str] = "actor"
    decision_network: ClassVar[str] = "actor"
    critic_networks: ClassVar[tuple[str, ...]] = ("q_1", "q_2")
    target_networks: ClassVar[tuple[str, ...]] = ("q_1", "q_2", "actor")

    def shapes(self) -> dict[str, NetworkShape]:
        return {name: self.network(self.sizes.n_actions) for name in ("q_1", "q_2", "actor")}

    def loss(self, networks: Networks, batch: Batch, knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
        critics = torch.stack((networks("q_1", batch.inputs), networks("q_2", batch.inputs)))
        logged = at_action(critics, batch.actions.expand(2, -1, -1))
        td = 0.5 * (logged - self.targets(networks, batch, knobs)).square().mean(dim=2).sum(dim=0)
        conservative = (log_sum_exp(critics, batch.mask) - logged).mean(dim=2).sum(dim=0)

        log_probs = log_probabilities(networks("actor", batch.inputs), batch.mask)
        value = expected(critics.detach().amin(dim=0), log_probs, batch.mask).mean(dim=1)
        entropy = -expected(log_probs, log_probs, batch.mask).mean(dim=1)
        actor = -(value + knobs["entropy_weight"][:, 0] * entropy)

        total = td + knobs["conservative_weight"][:, 0] * conservative + actor
        metrics = {"losses/td": td, "losses/conservative": conservative, "losses/actor": actor}
        return total, metrics | {"values/state": value, "policy/entropy": entropy}

    def state_values(self, networks: Networks, inputs: Inputs, mask: Tensor, knobs: Knobs) -> Tensor:
        """(M, B) Σ π(a|s) min Q̄(s, a): the actor's policy, valued by the lower of the older critics."""
        log_probs = log_probabilities(networks("actor", inputs), mask)
        lower = torch.minimum(networks.target("q_1", inputs), networks.target("q_2", inputs))
        return expected(lower, log_probs, mask)
