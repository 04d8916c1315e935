"""Arithmetic over legal actions, in torch: what keeps a masked action out of every target, sum and choice.

Here: functions of (…, A) values and masks. Not here: networks, losses. All work with any leading axes; members (M)
and rows (B) in the trainers.
"""

from __future__ import annotations

import torch
from torch import Tensor

ILLEGAL = -1e9
"""Stands in for minus infinity: finite, so that its gradient is 0 and not NaN; exp of it is 0 in float32."""


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """(…, A) values with `ILLEGAL` where the mask is false."""
    return values.masked_fill(~mask, ILLEGAL)


def at_action(values: Tensor, actions: Tensor) -> Tensor:
    """(…, A), (…) int64 → (…) the value of each row's action."""
    return values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def best_action(values: Tensor, mask: Tensor) -> Tensor:
    """(…, A) → (…) int64 the legal action of the largest value."""
    return masked(values, mask).argmax(dim=-1)


def best_value(values: Tensor, mask: Tensor) -> Tensor:
    """(…, A) → (…) the largest legal value."""
    return masked(values, mask).amax(dim=-1)


def log_sum_exp(values: Tensor, mask: Tensor) -> Tensor:
    """(…, A) → (…) logarithm of the sum of exp over the legal actions."""
    return torch.logsumexp(masked(values, mask), dim=-1)


def log_probabilities(logits: Tensor, mask: Tensor) -> Tensor:
    """(…, A) → (…, A) log-softmax over the legal actions; about `ILLEGAL` where masked."""
    return torch.log_softmax(masked(logits, mask), dim=-1)


def expected(values: Tensor, log_probs: Tensor, mask: Tensor) -> Tensor:
    """(…, A) → (…) mean of the values under the probabilities, legal actions only."""
    return (log_probs.exp() * values.masked_fill(~mask, 0.0)).sum(dim=-1)
