"""Conservative Q-learning (CQL), and the calibrated form. Formulas, differences and metrics: rl/README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.trainers.algorithm import Knobs, Networks, Sizes
from rl.trainers.batches import Batch
from rl.trainers.double_dqn import DoubleDQN
from rl.trainers.masked import at_action, best_value, log_sum_exp
from rl.trainers.networks import NetworkShape, ScalarShape
from rl.trainers.settings import CQLSettings

LARGEST_LOG_FACTOR = 10.0
"""A learned α stays within exp(±10) of where it starts. Its logarithm moves this many times as fast as a weight: at a
learning rate of 3e-4, 4,000 steps at a weight's pace could change α by a factor of 3 only."""


class CQL(DoubleDQN):
    """Kumar et al. (2020, arXiv:2006.04779), CQL(H), over legal actions."""

    def __init__(self, settings: CQLSettings, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.learns_weight = settings.conservative_gap is not None

    def shapes(self) -> dict[str, NetworkShape]:
        return super().shapes() | ({"log_weight": ScalarShape()} if self.learns_weight else {})

    def loss(self, networks: Networks, batch: Batch, knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = networks("q", batch.inputs)
        values = self.head.values(outputs, batch.mask)
        td = self.td(outputs, networks, batch, knobs)
        pushed_up = at_action(values, batch.actions)
        pushed_down = log_sum_exp(self.bounded(values, batch), batch.mask)
        gap = (pushed_down - pushed_up).mean(dim=1)
        metrics = {"losses/td": td, "losses/conservative": gap, **self.bound_metrics(values, batch)}
        metrics["values/greedy"] = best_value(values, batch.mask).mean(dim=1)
        weight = knobs["conservative_weight"][:, 0]
        if not self.learns_weight:
            return td + weight * gap, metrics
        # Networks descend, α ascends on the same product; what each must not move is detached.
        weight = weight * torch.exp(LARGEST_LOG_FACTOR * torch.tanh(networks("log_weight", batch.inputs)[:, 0, 0]))
        excess = gap - self.settings.conservative_gap
        metrics["losses/conservative_weight"] = weight
        return td + weight.detach() * excess - weight * excess.detach(), metrics

    def bounded(self, values: Tensor, batch: Batch) -> Tensor:
        """(M, B, A) the values that are pushed down: all of them."""
        return values

    def bound_metrics(self, values: Tensor, batch: Batch) -> dict[str, Tensor]:
        """(M,) numbers on the bound; there is none."""
        return {}


class CalibratedCQL(CQL):
    """Nakamoto et al. (2023, arXiv:2303.05479), discrete: no value is pushed below what the log earned from here."""

    def bounded(self, values: Tensor, batch: Batch) -> Tensor:
        """(M, B, A) the values where above the logged return-to-go, else that return, which has no gradient."""
        return torch.maximum(values, batch.returns.unsqueeze(-1))

    def bound_metrics(self, values: Tensor, batch: Batch) -> dict[str, Tensor]:
        """(M,) share of legal actions that the bound protects."""
        protected = (values < batch.returns.unsqueeze(-1)) & batch.mask
        return {"losses/protected_share": protected.sum(dim=(1, 2)) / batch.mask.sum(dim=(1, 2))}
