"""The sequence encoder SASRec before any network's head. Formula and differences: rl/README.md.

Here: the network of all members over utterance vectors and state. Not here: which utterances a row has
(`rl.trainers.batches`), the blocks (`rl.trainers.attention`), the same in numpy (`rl.policies.transformer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.policies.networks import STANDARD_CLIP, Standardizer
from rl.policies.transformer import SASRec
from rl.trainers.attention import blocks, causal, finite, initial_blocks, initial_layer, initial_positions, layer
from rl.trainers.batches import Inputs
from rl.trainers.networks import NetworkShape, Parameters

_HEAD = "head."


@dataclass(frozen=True)
class SASRecShape:
    """Kang and McAuley (2018, arXiv:1808.09781): the newest utterances through causal self-attention; what the last
    position holds, joined with the standardised state, is read by `head`."""

    head: NetworkShape
    """Reads D + H features."""
    utterance_dimensions: int
    """d."""
    length: int
    """L: utterances that are read, the newest ones."""
    width: int
    """H."""
    n_layers: int
    n_heads: int

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        found = initial_layer("embed", self.utterance_dimensions, self.width, generator)
        found |= initial_positions(self.length, self.width, generator)
        found |= initial_blocks(self.n_layers, self.width, generator)
        return found | {_HEAD + name: tensor for name, tensor in self.head.initial(generator).items()}

    def __call__(self, parameters: Parameters, inputs: Inputs) -> Tensor:
        assert inputs.utterances is not None
        assert inputs.said is not None
        heard = self.encoded(parameters, inputs.utterances, inputs.said)
        of_head = {name.removeprefix(_HEAD): each for name, each in parameters.items() if name.startswith(_HEAD)}
        return self.head(of_head, Inputs(torch.cat([inputs.state, heard], dim=-1)))

    def encoded(self, parameters: Parameters, utterances: Tensor, said: Tensor) -> Tensor:
        """(M, B, L, d), (M, B, L) → (M, B, H) of the newest utterance; zeros where nothing was said."""
        hidden = layer(parameters, "embed", utterances) + parameters["positions"].unsqueeze(1)
        # A place where nothing was said reads itself alone, and is read by no other.
        itself = torch.eye(self.length, dtype=torch.bool, device=said.device)
        allowed = causal(self.length, said.device) & (said.unsqueeze(2) | itself)
        newest = blocks(parameters, hidden, allowed, self.n_heads, n_wanted=1)[:, :, 0]
        return (newest * said[..., -1:]).clamp(-STANDARD_CLIP, STANDARD_CLIP)

    def stored(self, parameters: Mapping[str, NDArray[Any]], standardizer: Standardizer, scale: float = 1.0) -> SASRec:
        finite(parameters)
        of_head = {name.removeprefix(_HEAD): each for name, each in parameters.items() if name.startswith(_HEAD)}
        n_joined = len(standardizer.shift) + self.width
        as_it_is = Standardizer(np.zeros(n_joined, dtype=np.float32), np.ones(n_joined, dtype=np.float32))
        return SASRec(
            standardizer,
            {name: each.copy() for name, each in parameters.items() if not name.startswith(_HEAD)},
            self.n_heads,
            self.head.stored(of_head, as_it_is, scale),
        )
