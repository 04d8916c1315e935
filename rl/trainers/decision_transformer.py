"""Decision transformer, discrete and masked. Formula, differences and metrics: rl/README.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.datasets.transitions import TransitionSet
from rl.policies.networks import Standardizer
from rl.policies.transformer import DecisionTransformer as StoredDecisionTransformer
from rl.trainers.algorithm import Algorithm, Knobs, Networks
from rl.trainers.attention import (
    blocks,
    causal,
    finite,
    initial_blocks,
    initial_layer,
    initial_norm,
    initial_positions,
    layer,
    on_rows_normalised,
)
from rl.trainers.batches import ResidentRows
from rl.trainers.masked import at_action, log_probabilities
from rl.trainers.networks import NetworkShape, Parameters
from rl.types import Float1D


class DecisionTransformer(Algorithm):
    """Chen et al. (2021, arXiv:2106.01345): maximum likelihood of the logged actions, given the return that followed
    and the decisions before."""

    uses_logged_mask: ClassVar[bool] = True
    decides_by: ClassVar[str] = "actor"
    decision_network: ClassVar[str] = "actor"

    def prepare(self, returns: Float1D, scale: float) -> None:
        self.wanted = float(np.quantile(returns, self.settings.target_quantile)) / scale

    def rows(
        self,
        dataset: TransitionSet,
        standardizer: Standardizer,
        scale: float,
        discounts: tuple[float, ...],
        device: torch.device,
    ) -> ResidentRows:
        return WindowRows(dataset, standardizer, scale, len(discounts), self.settings.context_steps, device)

    def shapes(self) -> dict[str, NetworkShape]:
        settings, sizes = self.settings, self.sizes
        return {
            "actor": DecisionTransformerShape(
                sizes.n_features,
                sizes.n_actions,
                settings.context_steps,
                settings.hidden_units[0],
                settings.n_layers,
                settings.n_heads,
                self.wanted,
            )
        }

    def loss(self, networks: Networks, batch: Windows, knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        log_probs = log_probabilities(networks("actor", batch.steps), batch.mask)  # type: ignore[arg-type]
        logged = at_action(log_probs, batch.steps.actions)
        imitation = -(logged * batch.weights).sum(dim=2).mean(dim=1)
        return imitation, {"losses/imitation": imitation}


@dataclass(frozen=True)
class Steps:
    """What the network reads: up to K decisions of a dialogue in a row, oldest first, and anything after the last."""

    returns: Tensor
    """(M, B, K): undiscounted sum of the rewards from each decision on, over the reward scale."""
    states: Tensor
    """(M, B, K, D), standardised"""
    actions: Tensor
    """(M, B, K) int64"""


@dataclass(frozen=True)
class Windows:
    """B stretches of dialogues for each of M members."""

    steps: Steps
    mask: Tensor
    """(M, B, K, A) bool"""
    weights: Tensor
    """(M, B, K): 0 after the last decision; else such that every decision of the log counts the same."""


class WindowRows(ResidentRows):
    """The rows of a transition set on a device, and the gather of the decisions that lead to a row."""

    def __init__(
        self,
        dataset: TransitionSet,
        standardizer: Standardizer,
        scale: float,
        n_members: int,
        context_steps: int,
        device: torch.device,
    ) -> None:
        super().__init__(dataset, standardizer, scale, (1.0,) * n_members, 1, device, uses_logged_mask=True)
        self.first_row = self._to(dataset.episode_offsets[:-1][dataset.episode_index], device)
        self._steps = torch.arange(context_steps, device=device)

    def batch(self, positions: Tensor) -> Windows:  # type: ignore[override]
        """(M, B) positions among the rows → the decisions that end there, K at most."""
        last = self.starts[positions].unsqueeze(-1)
        n_steps = len(self._steps)
        rows = torch.maximum(self.first_row[last], last - n_steps + 1) + self._steps
        there = rows <= last
        rows = torch.minimum(rows, last)
        # A decision is in the windows that end at it and at the K − 1 after it, where the dialogue has those.
        weights = there / self.steps_left[rows].clamp(max=n_steps)
        steps = Steps(self.returns[0][rows], self._rows_of(self.states, rows), self.actions[rows])
        return Windows(steps, self._rows_of(self.masks, rows), weights)


@dataclass(frozen=True)
class DecisionTransformerShape:
    """Tokens (wanted return, state, action) of K decisions through causal self-attention; what a state's token comes
    to scores the action there."""

    n_features: int
    n_actions: int
    context_steps: int
    """K."""
    width: int
    """H."""
    n_layers: int
    n_heads: int
    wanted: float
    """Return that is asked for at decision time, over the reward scale."""

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        found = initial_layer("wanted", 1, self.width, generator)
        found |= initial_layer("state", self.n_features, self.width, generator)
        found |= initial_layer("taken", self.n_actions, self.width, generator)
        found |= initial_positions(self.context_steps, self.width, generator) | initial_norm("token", self.width)
        found |= initial_blocks(self.n_layers, self.width, generator)
        return found | initial_layer("score", self.width, self.n_actions, generator)

    def __call__(self, parameters: Parameters, inputs: Any) -> Tensor:
        taken = torch.nn.functional.one_hot(inputs.actions, self.n_actions).to(inputs.states.dtype)
        read = {"wanted": inputs.returns.unsqueeze(-1), "state": inputs.states, "taken": taken}
        tokens = torch.stack([layer(parameters, name, each) for name, each in read.items()], dim=3)
        # All three tokens of a decision have its position. The last action is what is to be predicted: left out.
        tokens = (tokens + parameters["positions"][:, None, :, None]).flatten(2, 3)[:, :, :-1]
        hidden = on_rows_normalised(tokens, parameters["token_norm"])
        length = hidden.shape[2]
        hidden = blocks(parameters, hidden, causal(length, hidden.device), self.n_heads, n_wanted=length)
        return layer(parameters, "score", hidden[:, :, 1::3])

    def stored(
        self, parameters: Mapping[str, NDArray[Any]], standardizer: Standardizer, scale: float = 1.0
    ) -> StoredDecisionTransformer:
        weights = {name: each.copy() for name, each in finite(parameters).items()}
        return StoredDecisionTransformer(standardizer, weights, self.n_heads, self.wanted)
