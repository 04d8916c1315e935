"""What a masked algorithm is: its networks, its loss, and which network decides.

Here: the interface. An algorithm's module holds one class whose `loss` is the whole update, to be read on one screen.
Not here: sampling, optimiser, target copies, checkpoints (`rl.trainers.learner`), the choice among checkpoints
(`rl.trainers.fit`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rl.datasets.transitions import TransitionSet
from rl.errors import DataError
from rl.policies.networks import Standardizer
from rl.trainers.batches import Batch, Inputs, ResidentRows
from rl.trainers.masked import best_value
from rl.trainers.networks import MLPShape, NetworkShape, Parameters
from rl.trainers.sasrec import SASRecShape
from rl.trainers.settings import MaskedTrainerSettings
from rl.types import Float1D

Knobs = Mapping[str, Tensor]
"""What a sweep may vary, by name: (M, 1) tensors."""


@dataclass(frozen=True)
class Sizes:
    """What networks need to know of the data."""

    n_features: int
    """D."""
    n_actions: int
    """A."""
    utterance_dimensions: int = 0
    """d; 0 where the set keeps no utterances."""


@dataclass(frozen=True)
class Networks:
    """The networks of an algorithm with the weights of all members."""

    shapes: Mapping[str, NetworkShape]
    online: Mapping[str, Parameters]
    targets: Mapping[str, Parameters]

    def __call__(self, name: str, inputs: Inputs) -> Tensor:
        """(M, B, outputs) of the network that learns."""
        return self.shapes[name](self.online[name], inputs)

    def target(self, name: str, inputs: Inputs) -> Tensor:
        """(M, B, outputs) of its older copy, without a gradient."""
        with torch.no_grad():
            return self.shapes[name](self.targets[name], inputs)


class Algorithm(ABC):
    """A masked, discrete algorithm over M members."""

    uses_logged_mask: ClassVar[bool] = False
    """Imitation: learns from all rows over `logged_mask`. Else from rows legal today, over `action_mask`."""
    decides_by: ClassVar[str] = "values"
    """`values`: `decision_network` gives Q-values. `actor`: logarithms of preferences."""
    decision_network: ClassVar[str]
    """Name of the network that the policy acts by."""
    support_network: ClassVar[str | None] = None
    """Name of the network that imitates the log where the policy is held to its support."""
    critic_networks: ClassVar[tuple[str, ...]] = ()
    """Of an actor: names of the networks whose mean values its actions, when checkpoints are judged."""
    target_networks: ClassVar[tuple[str, ...]] = ()
    """Names of the networks that have an older copy, renewed every `target_update_interval` steps."""

    def __init__(self, settings: MaskedTrainerSettings, sizes: Sizes) -> None:
        self.settings: Any = settings
        self.sizes = sizes

    def prepare(self, returns: Float1D, scale: float) -> None:
        """Look at the returns of all training episodes, before networks are made; rewards are divided by `scale`."""
        return

    def rows(
        self,
        dataset: TransitionSet,
        standardizer: Standardizer,
        scale: float,
        discounts: tuple[float, ...],
        device: torch.device,
    ) -> ResidentRows:
        """What it learns from, on a device; `discounts` of the members."""
        return ResidentRows(
            dataset,
            standardizer,
            scale,
            discounts,
            getattr(self.settings, "return_steps", 1),
            device,
            self.uses_logged_mask,
            self.settings.longest_history if self.settings.encoder == "sasrec" else 0,
        )

    @abstractmethod
    def shapes(self) -> dict[str, NetworkShape]:
        """The networks by name."""

    @abstractmethod
    def loss(self, networks: Networks, batch: Batch, knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
        """(M,) what each member minimises, and (M,) metrics by name, `losses/total` excepted."""

    def state_values(self, networks: Networks, inputs: Inputs, mask: Tensor, knobs: Knobs) -> Tensor:
        """(M, B) V(s) that targets and λ-returns go on with; here the target network's largest legal value.

        Called for the states that follow in a batch, and, with the target weights in the place of the online ones too,
        for all states when λ-returns are made anew. Its gradient is not followed.
        """
        return best_value(networks.target(self.decision_network, inputs), mask)

    def targets(self, networks: Networks, batch: Batch, knobs: Knobs) -> Tensor:
        """(M, B) r + γ V(s′) without a gradient; or the λ-return where the batch has one, and then no V is computed."""
        if batch.lambda_returns is not None:
            return batch.lambda_returns
        with torch.no_grad():
            following = self.state_values(networks, batch.next_inputs, batch.next_mask, knobs)
            return batch.rewards + batch.discounts * following

    def network(self, n_outputs: int, is_dueling: bool = False, n_quantiles: int = 1) -> NetworkShape:
        """A network of the configured kind and widths; the rest as in `MLPShape`."""
        settings, sizes = self.settings, self.sizes
        reads_words = settings.encoder == "sasrec"
        n_inputs = sizes.n_features + (settings.sequence_width if reads_words else 0)
        head = MLPShape(n_inputs, settings.hidden_units, n_outputs, settings.layer_norm, is_dueling, n_quantiles)
        if not reads_words:
            return head
        if sizes.utterance_dimensions == 0:
            raise DataError(
                "`encoder: sasrec` reads the vectors of the utterances, and the data set keeps none. Build it from "
                "dialogues, or give `utterance_vectors` and `utterance_offsets`; `encoder: state` needs neither."
            )
        return SASRecShape(
            head,
            sizes.utterance_dimensions,
            settings.longest_history,
            settings.sequence_width,
            settings.sequence_layers,
            settings.sequence_heads,
        )
