"""Double deep Q-network (Double DQN) on the log. Formula, differences and metrics: rl/README.md."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rl.trainers.algorithm import Algorithm, Knobs, Networks, Sizes
from rl.trainers.batches import Batch, Inputs
from rl.trainers.heads import Head
from rl.trainers.masked import best_action, best_value
from rl.trainers.networks import NetworkShape
from rl.trainers.settings import DoubleDQNSettings


class DoubleDQN(Algorithm):
    """Van Hasselt et al. (2016, arXiv:1509.06461) over legal actions."""

    decision_network: ClassVar[str] = "q"
    target_networks: ClassVar[tuple[str, ...]] = ("q",)

    def __init__(self, settings: DoubleDQNSettings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.head = Head(settings.head, sizes.n_actions, settings.n_quantiles if settings.head == "quantile" else 1)

    def shapes(self) -> dict[str, NetworkShape]:
        return {"q": self.network(self.head.n_outputs, self.head.kind == "dueling", self.head.n_quantiles)}

    def loss(self, networks: Networks, batch: Batch, knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = networks("q", batch.inputs)
        td = self.td(outputs, networks, batch, knobs)
        greedy = best_value(self.head.values(outputs, batch.mask), batch.mask).mean(dim=1)
        return td, {"losses/td": td, "values/greedy": greedy}

    def td(self, outputs: Tensor, networks: Networks, batch: Batch, knobs: Knobs) -> Tensor:
        """(M,) error of the logged actions' values, or quantiles, against their targets."""
        learned = self.head.of_action(outputs, batch.mask, batch.actions)
        return self.head.error(learned, self.targets(networks, batch, knobs)).mean(dim=1)

    def targets(self, networks: Networks, batch: Batch, knobs: Knobs) -> Tensor:
        """(M, B, K) r + γ times what the next state is worth: a value (K = 1), or quantiles; or the λ-return."""
        if batch.lambda_returns is not None:
            return batch.lambda_returns.unsqueeze(-1)
        following = self._following(networks, batch.next_inputs, batch.next_mask)
        return batch.rewards.unsqueeze(-1) + batch.discounts.unsqueeze(-1) * following

    def state_values(self, networks: Networks, inputs: Inputs, mask: Tensor, knobs: Knobs) -> Tensor:
        return self._following(networks, inputs, mask).mean(dim=-1)

    def _following(self, networks: Networks, inputs: Inputs, mask: Tensor) -> Tensor:
        """(M, B, K): the online network chooses the action, its older copy values it."""
        with torch.no_grad():
            chosen = best_action(self.head.values(networks("q", inputs), mask), mask)
        return self.head.of_action(networks.target("q", inputs), mask, chosen)
