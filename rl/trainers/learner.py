"""The update, over and over: all members' gradients in one pass, Adam, target copies.

Here: the state of a training and how it advances. Not here: an algorithm's loss (its module), how an update is
compiled or captured (`rl.trainers.execution`), which step is kept (`rl.trainers.fit`).

The weights of all members and networks lie in one flat tensor, as do the moments of Adam and the older copies: an
optimiser step is a handful of operations whatever the number of layers and members, and a checkpoint is four tensors
and a step number. Layers are views into the flat tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.errors import TrainingError
from rl.trainers.algorithm import Algorithm, Knobs, Networks
from rl.trainers.batches import Batch, Draws, Gatherer, ResidentRows
from rl.trainers.execution import Execution, execution, in_precision, matrix_products
from rl.trainers.lambda_returns import renew_lambda_returns
from rl.trainers.settings import MaskedTrainerSettings, Member

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's usual constants (Kingma and Ba, 2015)."""

ALIGNED = 16
"""Numbers to whose multiples the places of tensors in the flat one are rounded up: 64 bytes, as vector instructions and
compiled kernels like them."""

Key = tuple[str, str]
"""Network, and name of one of its tensors."""


@dataclass(frozen=True)
class UpdateTensors:
    """What an update reads and writes beside its batch."""

    weights: dict[Key, Tensor]
    """(M, …)"""
    targets: dict[Key, Tensor]
    first_moments: dict[Key, Tensor]
    second_moments: dict[Key, Tensor]
    rates: dict[Key, Tensor]
    """Learning rates: (1,), or (M, …) as the weights where members differ."""
    knobs: dict[str, Tensor]
    """(M, 1)"""


def bias_corrections(first: int, last: int) -> Tensor:
    """(last − first + 1, 2) what Adam multiplies its first moments and its deviations with in the steps `first` to
    `last`, counted from 1: 1 / (1 − β₁ᵗ) and 1 / √(1 − β₂ᵗ)."""
    steps = range(first, last + 1)
    return torch.tensor([(1 / (1 - BETA_1**step), 1 / math.sqrt(1 - BETA_2**step)) for step in steps])


def descend(
    weights: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
    rates: Tensor,
    corrections: Tensor,
    weight_decay: float,
) -> None:
    """Adam in place, with decoupled weight decay where there is one (Loshchilov and Hutter, 2019)."""
    first.lerp_(gradient, 1 - BETA_1)
    second.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
    deviation = second.sqrt().mul_(corrections[1]).add_(EPSILON)
    if weight_decay:
        weights.mul_(1 - rates * weight_decay)
    weights.sub_(first.div(deviation).mul_(rates * corrections[0]))


@dataclass(frozen=True)
class Place:
    """Where a tensor of all members lies in the flat one."""

    start: int
    shape: tuple[int, ...]

    def of(self, flat: Tensor) -> Tensor:
        """(M, …) view."""
        size = int(np.prod(self.shape))
        return flat[self.start : self.start + size].view(self.shape)


class Learner:
    """M members of one algorithm, trained together on the same resident rows.

    Attributes
    ----------
    step : int
        Updates done.
    flat, targets, first_moments, second_moments : (P,) float32
        Weights of all members, their older copies, Adam's moments.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        members: Sequence[Member],
        settings: MaskedTrainerSettings,
        device: torch.device,
    ) -> None:
        self.algorithm, self.members, self.settings, self.device = algorithm, tuple(members), settings, device
        self.step = 0
        self._shapes = {
            name: in_precision(shape, settings.precision, device) for name, shape in algorithm.shapes().items()
        }
        self._lay_out()
        self.targets = self.flat.clone()
        self.first_moments, self.second_moments = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self._knobs = {
            name: torch.tensor([[member.knobs[name]] for member in self.members], device=device)
            for name in self.members[0].knobs
        }
        self._rates = self._per_weight(self._knobs["learning_rate"])
        # Leaves that share the flat tensor's memory: the optimiser writes there, the forward pass reads here.
        self._leaves = {key: place.of(self.flat).detach().requires_grad_() for key, place in self._places.items()}
        self.networks = Networks(self._shapes, _nested(self._leaves), _nested(self._views(self.targets)))
        self._gather = Gatherer(Draws(tuple(member.seed for member in self.members), settings.batch_size), device)
        self._execution: Execution | None = None
        self._corrections: tuple[int, Tensor] | None = None
        self._metric_names: tuple[str, ...] = ()

    def advance(self, rows: ResidentRows, n_steps: int) -> dict[str, NDArray[np.float64]]:
        """Take `n_steps` updates; the mean of each metric over them, (M,) per name.

        Raises TrainingError if a loss is not finite, or if updates cannot be run as the settings ask.
        """
        if self._execution is None:
            self._execution = execution(self)
        sums = None
        end = self.step + n_steps
        with matrix_products(self.settings.precision, self.device):
            while self.step < end:
                self._renew_lambda_returns(rows)
                gathered = self._gather(rows, self.step)
                stop = min(end, gathered.first + gathered.n_steps, self._next_copy())
                added = self._execution(gathered, self.step, stop)
                sums = added.clone() if sums is None else sums.add_(added)
                self._arrive(stop)
        assert sums is not None
        means = (sums / n_steps).double().cpu().numpy()
        return self._checked(dict(zip(self._metric_names, means, strict=True)))

    def update(self, batch: Batch) -> Tensor:
        """One gradient step of every member on a batch, by torch's own operations; (metrics, M)."""
        metrics = self.update_eagerly(batch, self.corrections(self.step, self.step + 1)[0])
        self._arrive(self.step + 1)
        return metrics

    def gradients(self, batch: Batch) -> tuple[dict[Key, Tensor], dict[str, Tensor]]:
        """(M, …) gradients of the members' losses by network and tensor, and the metrics, `losses/total` first."""
        return self._gradients(self._leaves, self.networks, batch, self._knobs)

    def update_eagerly(self, batch: Batch, corrections: Tensor) -> Tensor:
        """The gradient step alone: Adam over the flat tensors; (metrics, M)."""
        gradients, metrics = self.gradients(batch)
        with torch.no_grad():
            between = zip(gradients.values(), self._gaps, strict=True)
            descend(
                self.flat,
                self.first_moments,
                self.second_moments,
                torch.cat([part.reshape(-1) for pair in between for part in pair]),
                self._rates,
                corrections,
                self.settings.weight_decay,
            )
        return self._stacked(metrics)

    def update_on(self, tensors: UpdateTensors, batch: Batch, corrections: Tensor) -> Tensor:
        """The same as a function of tensors alone, to be traced: Adam layer by layer, which a compiler joins."""
        leaves = {key: weight.detach().requires_grad_() for key, weight in tensors.weights.items()}
        networks = Networks(self._shapes, _nested(leaves), _nested(tensors.targets))
        gradients, metrics = self._gradients(leaves, networks, batch, tensors.knobs)
        with torch.no_grad():
            for key, gradient in gradients.items():
                descend(
                    tensors.weights[key],
                    tensors.first_moments[key],
                    tensors.second_moments[key],
                    gradient,
                    tensors.rates[key],
                    corrections,
                    self.settings.weight_decay,
                )
        return self._stacked(metrics)

    def update_tensors(self) -> UpdateTensors:
        """Views into the state, for `update_on`."""
        rates = dict.fromkeys(self._places, self._rates) if len(self._rates) == 1 else self._views(self._rates)
        return UpdateTensors(
            self._views(self.flat),
            self._views(self.targets),
            self._views(self.first_moments),
            self._views(self.second_moments),
            rates,
            self._knobs,
        )

    def corrections(self, start: int, stop: int) -> Tensor:
        """(stop − start, 2) Adam's bias corrections of the updates that follow the steps `start` to `stop` − 1."""
        block = start // Draws.PER_BLOCK
        if self._corrections is None or self._corrections[0] != block:
            first = block * Draws.PER_BLOCK
            values = bias_corrections(first + 1, first + Draws.PER_BLOCK)
            if self.device.type == "cuda":
                values = values.pin_memory().to(self.device, non_blocking=True)
            self._corrections = (block, values)
        low = start - block * Draws.PER_BLOCK
        return self._corrections[1][low : low + stop - start]

    def _gradients(
        self, leaves: dict[Key, Tensor], networks: Networks, batch: Batch, knobs: Knobs
    ) -> tuple[dict[Key, Tensor], dict[str, Tensor]]:
        loss, metrics = self.algorithm.loss(networks, batch, knobs)
        found = torch.autograd.grad(loss.sum(), list(leaves.values()))
        reported = {"losses/total": loss, **metrics}
        return dict(zip(leaves, found, strict=True)), {name: value.detach() for name, value in reported.items()}

    def _next_copy(self) -> int:
        """The step after which the older networks are next renewed."""
        interval = getattr(self.settings, "target_update_interval", None)
        return (self.step // interval + 1) * interval if interval else self.step + Draws.PER_BLOCK

    def _arrive(self, step: int) -> None:
        """Note the updates up to `step`, and renew the older networks where that is due."""
        self.step = step
        interval = getattr(self.settings, "target_update_interval", None)
        if interval and step % interval == 0:
            self.targets.copy_(self.flat)

    def _stacked(self, metrics: dict[str, Tensor]) -> Tensor:
        self._metric_names = tuple(metrics)
        return torch.stack(list(metrics.values()))

    def _views(self, flat: Tensor) -> dict[Key, Tensor]:
        return {key: place.of(flat) for key, place in self._places.items()}

    def _renew_lambda_returns(self, rows: ResidentRows) -> None:
        """Where the settings ask for λ-returns: for rows that are new, and after each copy into the targets."""
        trace = getattr(self.settings, "return_lambda", None)
        if trace is None:
            return
        due = (rows, self.step // self.settings.target_update_interval)  # type: ignore[attr-defined]
        if self._lambda_returns_for != due:
            renew_lambda_returns(rows, trace, self.algorithm, self.networks, self._knobs)
            self._lambda_returns_for = due
            self._gather.forget()

    def weights(self, member: int, network: str) -> dict[str, NDArray[Any]]:
        """One member's weights of one network, without the member axis."""
        return {
            name: tensor[member].detach().cpu().numpy().copy() for name, tensor in self.networks.online[network].items()
        }

    def state(self) -> dict[str, Tensor]:
        """All that a resumed training needs beside its settings and data."""
        return {
            "flat": self.flat,
            "targets": self.targets,
            "first_moments": self.first_moments,
            "second_moments": self.second_moments,
            "step": torch.tensor(self.step),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state()`."""
        for name in ("flat", "targets", "first_moments", "second_moments"):
            getattr(self, name).copy_(state[name])
        self.step = int(state["step"])
        self._lambda_returns_for = None
        self._gather.forget()

    def _lay_out(self) -> None:
        """Draw every member's initial weights from its own seed, and put them one tensor after the other."""
        drawn = []
        for member in self.members:
            generator = torch.Generator().manual_seed(member.seed)
            drawn.append({name: shape.initial(generator) for name, shape in self._shapes.items()})
        self._places: dict[Key, Place] = {}
        self._gaps: list[Tensor] = []
        """Zeros between the tensors."""
        blocks, start = [], 0
        for network, parameters in drawn[0].items():
            for name in parameters:
                block = torch.stack([each[network][name] for each in drawn])
                gap = torch.zeros(-block.numel() % ALIGNED)
                self._places[network, name] = Place(start, tuple(block.shape))
                blocks += [block.reshape(-1), gap]
                self._gaps.append(gap.to(self.device))
                start += block.numel() + len(gap)
        self.flat = torch.cat(blocks).to(self.device)

    def _per_weight(self, knob: Tensor) -> Tensor:
        """(M, 1) → (P,) the knob of the member whose weight it is; (1,) where all members share it."""
        if bool((knob == knob[0]).all()):
            return knob[0]
        rates = torch.zeros_like(self.flat)
        for view in self._views(rates).values():
            view.copy_(knob.view(-1, *[1] * (view.dim() - 1)).expand_as(view))
        return rates

    def _checked(self, metrics: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        for name, values in metrics.items():
            if not np.isfinite(values).all():
                which = self.members[int(np.flatnonzero(~np.isfinite(values))[0])]
                raise TrainingError(
                    f"{name} is {values[~np.isfinite(values)][0]} by step {self.step} ({which.setting}): the training "
                    "diverged. Lower `learning_rate`."
                )
        return metrics

    _lambda_returns_for: tuple[ResidentRows, int] | None = None


def _nested(tensors: Mapping[Key, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for (network, name), tensor in tensors.items():
        found.setdefault(network, {})[name] = tensor
    return found
