"""What a value network's outputs mean: one value per action, a state's value and advantages, or quantiles.

Here: from outputs to values, and the error of a value or of quantiles against a target. Not here: which network, which
target (the algorithms' modules), the way to a stored network (`rl.trainers.networks`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rl.trainers.masked import at_action, masked

HUBER_KAPPA = 0.3
"""Errors, in deviations of the return-to-go, below which the quantile loss is quadratic.

Rewards are rare and large, and the policy acts on the mean over the quantiles. A reward of 4.6 deviations that comes in
1, 3, 5, 12 % of dialogues is worth 0.05, 0.14, 0.23, 0.55. What minimises the loss, with 32 quantiles: plain quantile
loss (0): 0.00, 0.14, 0.29, 0.57, in steps of 1/32 that hide which of two actions sells more; 0.3: 0.01, 0.16, 0.30,
0.60; 1: 0.05, 0.20, 0.34, 0.68; 3, nearly expectiles: 0.13, 0.32, 0.47, 0.88, far too much."""


@dataclass(frozen=True)
class Head:
    """How the outputs of a network become the values of `n_actions` actions."""

    kind: Literal["mean", "dueling", "quantile"]
    n_actions: int
    n_quantiles: int = 1
    """1 but for `quantile`."""

    @property
    def n_outputs(self) -> int:
        """Outputs that the network needs."""
        return self.n_actions * self.n_quantiles + (self.kind == "dueling")

    def values(self, outputs: Tensor, mask: Tensor) -> Tensor:
        """(…, outputs), (…, A) → (…, A) values; what stands at masked actions means nothing."""
        if self.kind == "dueling":
            return dueling(outputs, mask)
        return self._quantiles(outputs).mean(dim=-1) if self.kind == "quantile" else outputs

    def of_action(self, outputs: Tensor, mask: Tensor, actions: Tensor) -> Tensor:
        """(…, outputs), (…, A), (…) → (…, K) what is learned of each row's action: its value (K = 1), or quantiles."""
        if self.kind == "quantile":
            chosen = actions[..., None, None].expand(*actions.shape, 1, self.n_quantiles)
            return self._quantiles(outputs).gather(-2, chosen).squeeze(-2)
        return at_action(self.values(outputs, mask), actions).unsqueeze(-1)

    def error(self, learned: Tensor, targets: Tensor) -> Tensor:
        """(…, K), (…, K′) → (…): half the squared error, or the quantile loss against every target."""
        if self.kind == "quantile":
            return quantile_huber(learned, targets)
        return 0.5 * (learned - targets).square().squeeze(-1)

    def _quantiles(self, outputs: Tensor) -> Tensor:
        return outputs.reshape(*outputs.shape[:-1], self.n_actions, self.n_quantiles)


def dueling(outputs: Tensor, mask: Tensor) -> Tensor:
    """(…, A + 1) state value and advantages → (…, A) values; the mean advantage of the legal actions is taken off.

    Wang et al. (2016, arXiv:1511.06581, equation 9); difference: the mean is over legal actions only.
    """
    advantages = outputs[..., 1:].masked_fill(~mask, 0.0)
    mean = advantages.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True)
    return masked(outputs[..., :1] + advantages - mean, mask)


def quantile_huber(quantiles: Tensor, targets: Tensor) -> Tensor:
    """(…, K) quantiles, (…, K′) samples of the target → (…) quantile Huber loss, mean over both.

    Dabney et al. (2018, arXiv:1710.10044, equations 9 and 10). Differences: divided by κ, so that a quantile's gradient
    is at most its level, and the mean over the quantiles where they take the sum, so that the gradient of a value has
    the size that squared errors give it.
    """
    n_quantiles = quantiles.shape[-1]
    levels = ((torch.arange(n_quantiles, device=quantiles.device) + 0.5) / n_quantiles).unsqueeze(-1)
    with torch.no_grad():
        errors = targets.unsqueeze(-2) - quantiles.unsqueeze(-1)
        clipped = errors.clamp(-HUBER_KAPPA, HUBER_KAPPA) / HUBER_KAPPA
        slopes = torch.where(errors < 0, 1 - levels, levels) * clipped
        loss = (slopes * (errors - 0.5 * HUBER_KAPPA * clipped)).mean(dim=(-2, -1))
        gradient = -slopes.mean(dim=-1) / n_quantiles
    # The gradient in closed form: keeping four (…, K, K′) tensors for autograd made the loss more than twice as slow.
    return loss + ((quantiles - quantiles.detach()) * gradient).sum(dim=-1)
