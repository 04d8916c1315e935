"""A causal transformer block over many members at once: what the sequence encoder and the decision transformer share.

Here: initial weights of a block, and its forward pass over (M, B, T, H). Not here: what the tokens are
(`rl.trainers.sasrec`, `rl.trainers.decision_transformer`); the same block in numpy (`rl.policies.transformer`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.errors import TrainingError
from rl.trainers.networks import Parameters, initial_linear, linear, normalised

_POSITION_DEVIATION = 0.02
"""Of the initial positions: small beside the embedded vectors."""


def initial_layer(name: str, n_in: int, n_out: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weight and bias of one linear layer."""
    weight, bias = initial_linear(n_in, n_out, generator)
    return {f"{name}_weight": weight, f"{name}_bias": bias}


def initial_norm(name: str, width: int) -> dict[str, Tensor]:
    """Scale 1 and shift 0."""
    return {f"{name}_norm": torch.stack([torch.ones(width), torch.zeros(width)])}


def initial_positions(length: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """(T, H) learned positions."""
    return {"positions": torch.empty(length, width).normal_(0.0, _POSITION_DEVIATION, generator=generator)}


def initial_blocks(n_blocks: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """All blocks' weights, by the names `block` reads, and the layer norm after the last."""
    found: dict[str, Tensor] = {}
    for number in range(n_blocks):
        found |= initial_norm(f"attend_{number}", width) | initial_norm(f"inner_{number}", width)
        for name in ("query", "key", "value", "joined", "up", "down"):
            found |= initial_layer(f"{name}_{number}", width, width, generator)
        # A bias of the keys adds the same to all that a query compares: the softmax takes it off.
        del found[f"key_{number}_bias"]
    return found | initial_norm("last", width)


def blocks(parameters: Parameters, hidden: Tensor, allowed: Tensor, n_heads: int, n_wanted: int) -> Tensor:
    """(M, B, T, H) → (M, B, n_wanted, H): all blocks and the last layer norm, for the last `n_wanted` positions.

    `allowed` (M or 1, B or 1, T, T) bool: which position (second last axis) reads which; each reads one at least.
    """
    n_blocks = sum(name.startswith("query_") and name.endswith("_weight") for name in parameters)
    for number in range(n_blocks):
        # The last block computes what is wanted; the ones before it, what that may read.
        n_queries = n_wanted if number == n_blocks - 1 else hidden.shape[2]
        hidden = block(parameters, number, hidden, allowed[:, :, -n_queries:], n_heads)
    return on_rows_normalised(hidden, parameters["last_norm"])


def block(parameters: Parameters, number: int, hidden: Tensor, allowed: Tensor, n_heads: int) -> Tensor:
    """(M, B, T, H), (…, Q, T) → (M, B, Q, H): attention and a two-layer perceptron at the last Q positions, each over
    layer norm and added to what came in."""
    n_queries = allowed.shape[2]
    normed = on_rows_normalised(hidden, parameters[f"attend_{number}_norm"])
    queries = _heads(layer(parameters, f"query_{number}", normed[:, :, -n_queries:]), n_heads)
    keys = _heads(normed @ parameters[f"key_{number}_weight"].unsqueeze(1), n_heads)
    values = _heads(layer(parameters, f"value_{number}", normed), n_heads)
    allowed = allowed.expand(*hidden.shape[:2], -1, -1).flatten(0, 1).unsqueeze(1)
    attended = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed)
    joined = attended.transpose(1, 2).reshape(*hidden.shape[:2], n_queries, -1)
    hidden = hidden[:, :, -n_queries:] + layer(parameters, f"joined_{number}", joined)
    normed = on_rows_normalised(hidden, parameters[f"inner_{number}_norm"])
    return hidden + layer(parameters, f"down_{number}", torch.relu(layer(parameters, f"up_{number}", normed)))


def layer(parameters: Parameters, name: str, inputs: Tensor) -> Tensor:
    """(M, B, T, in) → (M, B, T, out)."""
    rows = linear(inputs.flatten(1, 2), parameters[f"{name}_weight"], parameters[f"{name}_bias"])
    return rows.view(*inputs.shape[:3], -1)


def on_rows_normalised(inputs: Tensor, norm: Tensor) -> Tensor:
    """(M, B, T, H) layer norm over the last axis, then (M, 2, H) scale and shift."""
    return normalised(inputs.flatten(1, 2), norm).view(inputs.shape)


def causal(length: int, device: torch.device) -> Tensor:
    """(1, 1, T, T) bool: each position reads itself and what came before."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def finite(parameters: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The weights; raises TrainingError if one is not finite."""
    if not all(np.isfinite(array).all() for array in parameters.values()):
        raise TrainingError("The network has weights that are not finite: it diverged. Lower `learning_rate`.")
    return dict(parameters)


def _heads(tokens: Tensor, n_heads: int) -> Tensor:
    """(M, B, T, H) → (M B, heads, T, H / heads)."""
    return tokens.reshape(-1, tokens.shape[2], n_heads, tokens.shape[3] // n_heads).transpose(1, 2)
