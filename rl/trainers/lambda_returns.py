"""λ-returns of all resident rows, made anew whenever the target networks are.

Here: the backward recursion over the steps of each dialogue. Not here: when it runs (`rl.trainers.learner`), whose
values it bootstraps from (`Algorithm.state_values`). Formula and what the choice costs: rl/README.md.

A λ-return needs the values of every later state of the dialogue, which a batch of single steps does not have. As in
Daley and Amato (2019, arXiv:1810.09967) they are computed for all rows at once and looked up until the target networks
change: one forward pass over the rows per copy, and none over next observations in an update.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from rl.trainers.algorithm import Algorithm, Knobs, Networks
from rl.trainers.batches import ResidentRows

ROWS_PER_BLOCK = 8_192
"""Rows times members that pass through the networks at a time."""


def renew_lambda_returns(
    rows: ResidentRows, trace: float, algorithm: Algorithm, networks: Networks, knobs: Knobs
) -> None:
    """Write Peng's λ-returns into `rows.lambda_returns`, with λ = `trace` and the values of the older networks.

    G(t) = r + γ ((1 − λ) V(s′) + λ G(t + 1)); λ is 0 after the last step, and where the action logged next is illegal
    today: what the log earned through it is out of reach.
    """
    if rows.lambda_returns is None:
        rows.lambda_returns = torch.zeros_like(rows.returns)
    returns = rows.lambda_returns
    older = Networks(networks.shapes, {**networks.online, **networks.targets}, networks.targets)
    with torch.no_grad():
        following = _values(rows, algorithm, older, knobs)[:, rows.next_row]
        traces = trace * (rows.steps_linked > 1)
        returns.copy_(rows.rewards + rows.discounts * rows.continues * (1 - traces) * following)
        for group in _by_steps_left(rows.steps_left)[1:]:
            returns[:, group] += rows.discounts * traces[group] * returns[:, group + 1]


def _by_steps_left(steps_left: Tensor) -> list[Tensor]:
    """Rows with 1 step left, with 2, …: each group needs only the one before it, so all dialogues advance together."""
    order = torch.argsort(steps_left, stable=True)
    ends = torch.bincount(steps_left).cumsum(0).tolist()
    return [order[start:end] for start, end in itertools.pairwise(ends)]


def _values(rows: ResidentRows, algorithm: Algorithm, networks: Networks, knobs: Knobs) -> Tensor:
    """(M, R) V of every state, those after truncated dialogues included."""
    n_members, n_states = len(rows.discounts), len(rows.masks)
    everyone = torch.arange(n_states, device=rows.masks.device).expand(n_members, -1)
    size = max(1, ROWS_PER_BLOCK // n_members)
    blocks = (everyone[:, start : start + size] for start in range(0, n_states, size))
    return torch.cat([algorithm.state_values(networks, rows.inputs(b), rows.masks[b], knobs) for b in blocks], dim=1)
