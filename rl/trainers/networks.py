"""Networks of many members at once: parameters carry a leading axis M, and one batched product serves them all.

Here: shapes of networks, their initial weights, the forward pass over (M, B, D), the way to a stored network. Not here:
what the outputs mean (`rl.trainers.heads`), losses (the algorithms' modules), the update (`rl.trainers.learner`),
sequence encoders (`rl.trainers.sasrec`).

A shape is a description without weights: weights are dictionaries of tensors, so that an update is a function of
tensors that can be compiled or captured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.errors import TrainingError
from rl.policies.networks import LAYER_NORM_EPSILON, MLP, ScoreNetwork, Standardizer

Parameters = Mapping[str, Tensor]
"""Tensors (M, …) by name."""


class NetworkShape(Protocol):
    """A network without its weights."""

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The initial weights of one member, float32, without the member axis."""
        ...

    def __call__(self, parameters: Parameters, inputs: Any) -> Tensor:
        """Inputs of M members and B rows (`rl.trainers.batches.Inputs`) → (M, B, outputs)."""
        ...

    def stored(
        self, parameters: Mapping[str, NDArray[Any]], standardizer: Standardizer, scale: float = 1.0
    ) -> ScoreNetwork:
        """One member's weights as a network that acts in numpy, its output multiplied by `scale`."""
        ...


def linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(M, B, in) @ (M, in, out) + (M, out) → (M, B, out).

    One member takes the plain product, which is faster than a batched one of a single matrix.
    """
    if weight.shape[0] == 1:
        return torch.addmm(bias.squeeze(0), inputs.squeeze(0), weight.squeeze(0)).unsqueeze(0)
    return torch.baddbmm(bias.unsqueeze(1), inputs, weight)


def normalised(inputs: Tensor, norm: Tensor) -> Tensor:
    """(M, B, H) layer norm over the last axis, then `norm` (M, 2, H): scale and shift."""
    centred = torch.nn.functional.layer_norm(inputs, inputs.shape[-1:], eps=LAYER_NORM_EPSILON)
    return centred * norm[:, :1] + norm[:, 1:]


def initial_linear(n_in: int, n_out: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(in, out) weight and (out,) bias, uniform within 1/√in, as torch's own linear layer starts."""
    bound = 1.0 / math.sqrt(n_in)
    weight = torch.empty(n_out, n_in).uniform_(-bound, bound, generator=generator)
    return weight.T.contiguous(), torch.empty(n_out).uniform_(-bound, bound, generator=generator)


@dataclass(frozen=True)
class MLPShape:
    """Linear layers with ReLU, and layer norm before it where wanted, over the standardised state.

    With `is_dueling` the outputs are a state's value and each action's advantage. With `n_quantiles` above 1 they are
    that many quantiles of each action, and the stored network gives their mean.
    """

    n_inputs: int
    hidden_units: tuple[int, ...]
    n_outputs: int
    layer_norm: bool
    is_dueling: bool = False
    n_quantiles: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths from input to output."""
        return (self.n_inputs, *self.hidden_units, self.n_outputs)

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for layer, (n_in, n_out) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            found[f"weight_{layer}"], found[f"bias_{layer}"] = initial_linear(n_in, n_out, generator)
            if self.layer_norm and layer < len(self.hidden_units):
                found[f"norm_{layer}"] = torch.stack([torch.ones(n_out), torch.zeros(n_out)])
        return found

    def __call__(self, parameters: Parameters, inputs: Any) -> Tensor:
        hidden: Tensor = inputs.state
        for layer in range(len(self.hidden_units)):
            hidden = linear(hidden, parameters[f"weight_{layer}"], parameters[f"bias_{layer}"])
            if self.layer_norm:
                hidden = normalised(hidden, parameters[f"norm_{layer}"])
            hidden = torch.relu(hidden)
        last = len(self.hidden_units)
        return linear(hidden, parameters[f"weight_{last}"], parameters[f"bias_{last}"])

    def stored(self, parameters: Mapping[str, NDArray[Any]], standardizer: Standardizer, scale: float = 1.0) -> MLP:
        n_layers = len(self.sizes) - 1
        parameters = self._folded(parameters)
        weights = tuple(np.ascontiguousarray(parameters[f"weight_{layer}"].T) for layer in range(n_layers))
        biases = tuple(parameters[f"bias_{layer}"].copy() for layer in range(n_layers))
        norms = tuple(parameters[f"norm_{layer}"].copy() for layer in range(n_layers - 1)) if self.layer_norm else ()
        if not all(np.isfinite(array).all() for array in (*weights, *biases, *norms)):
            raise TrainingError("The network has weights that are not finite: it diverged. Lower `learning_rate`.")
        return MLP(standardizer, weights, biases, norms, self.is_dueling).scaled(scale)

    def _folded(self, parameters: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """The last layer with one output per action: a mean of linear functions is a linear function."""
        if self.n_quantiles == 1:
            return parameters
        names = (f"{kind}_{len(self.hidden_units)}" for kind in ("weight", "bias"))
        shape = (self.n_outputs // self.n_quantiles, self.n_quantiles)
        return {**parameters, **{n: parameters[n].reshape(*parameters[n].shape[:-1], *shape).mean(-1) for n in names}}


@dataclass(frozen=True)
class ScalarShape:
    """One learned number per member, whatever the inputs; 0 at first. Not a network that acts."""

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"value": torch.zeros(1)}

    def __call__(self, parameters: Parameters, inputs: Any) -> Tensor:
        return parameters["value"].unsqueeze(-1)

    def stored(
        self, parameters: Mapping[str, NDArray[Any]], standardizer: Standardizer, scale: float = 1.0
    ) -> ScoreNetwork:
        raise TrainingError("A number is no policy. Set `decision_network` to a network that scores actions.")
