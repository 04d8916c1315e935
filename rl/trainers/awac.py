"""Actors that imitate the log's better actions: AWAC, and CRR with the binary filter.

Formulas, differences and metrics: rl/README.md.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from rl.trainers.algorithm import Algorithm, Knobs, Networks
from rl.trainers.batches import Batch, Inputs
from rl.trainers.iql import advantage_weight
from rl.trainers.masked import at_action, expected, log_probabilities
from rl.trainers.networks import NetworkShape


class WeightedImitation(Algorithm):
    """A critic of the actor's own policy, and an actor that imitates with a weight that the advantage decides."""

    decides_by: ClassVar[str] = "actor"
    decision_network: ClassVar[str] = "actor"
    critic_networks: ClassVar[tuple[str, ...]] = ("q",)
    target_networks: ClassVar[tuple[str, ...]] = ("q", "actor")

    def shapes(self) -> dict[str, NetworkShape]:
        return {"q": self.network(self.sizes.n_actions), "actor": self.network(self.sizes.n_actions)}

    def loss(self, networks: Networks, batch: Batch, knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
        q = networks("q", batch.inputs)
        log_probs = log_probabilities(networks("actor", batch.inputs), batch.mask)
        logged = at_action(q, batch.actions)
        td = 0.5 * (logged - self.targets(networks, batch, knobs)).square().mean(dim=1)

        average = expected(q, log_probs, batch.mask).detach()
        weight = self.weight(logged.detach() - average, knobs)
        actor = -(weight * at_action(log_probs, batch.actions)).mean(dim=1)

        metrics = {"losses/td": td, "losses/actor": actor}
        metrics |= {"values/state": average.mean(dim=1), "policy/weight": weight.mean(dim=1)}
        return td + actor, metrics

    @abstractmethod
    def weight(self, advantage: Tensor, knobs: Knobs) -> Tensor:
        """(M, B) of Q(s, a) − Σ π Q → (M, B) weight of the logged action."""

    def state_values(self, networks: Networks, inputs: Inputs, mask: Tensor, knobs: Knobs) -> Tensor:
        """(M, B) Σ π(a|s) Q̄(s, a): the actor's policy, valued by the older critic."""
        log_probs = log_probabilities(networks("actor", inputs), mask)
        return expected(networks.target("q", inputs), log_probs, mask)


class AWAC(WeightedImitation):
    """Nair et al. (2020, arXiv:2006.09359) with exact expectations over the legal actions."""

    def weight(self, advantage: Tensor, knobs: Knobs) -> Tensor:
        return advantage_weight(advantage, knobs["inverse_temperature"], self.settings.largest_weight)


class CRR(WeightedImitation):
    """Wang et al. (2020, arXiv:2006.15134), the binary filter, with exact expectations over the legal actions."""

    def weight(self, advantage: Tensor, knobs: Knobs) -> Tensor:
        return (advantage > 0).to(advantage.dtype)
