"""Batches and networks with chosen numbers, so that a loss and its gradient can be computed by hand.

States are one-hot and networks have no hidden layer: a network is then a table (states, outputs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl.environments.tabular import TabularMDP
from rl.policies import UniformPolicy
from rl.trainers import trainer, trainer_settings
from rl.trainers.algorithm import Algorithm, Networks, Sizes
from rl.trainers.batches import Batch, Inputs
from rl.trainers.networks import MLPShape

Tables = Mapping[str, Any]
"""(M, S, outputs) by network."""


def algorithm(name: str, n_states: int, n_actions: int, **settings: Any) -> Algorithm:
    """An algorithm whose networks are tables."""
    chosen = trainer_settings(algorithm=name, hidden_units=(), layer_norm=False, **settings)
    made: Algorithm = trainer(name).algorithm(chosen, Sizes(n_states, n_actions))  # type: ignore[attr-defined]
    return made


def networks(algorithm: Algorithm, online: Tables, targets: Tables) -> Networks:
    """The algorithm's networks with these tables; the online ones are leaves, and what is no table keeps its start."""
    shapes = algorithm.shapes()
    n_members = len(next(iter(online.values())))
    start = {
        name: {key: each.expand(n_members, *each.shape) for key, each in shape.initial(torch.Generator()).items()}
        for name, shape in shapes.items()
    }
    untouched = {name: {key: each.clone().requires_grad_() for key, each in start[name].items()} for name in shapes}
    learned = untouched | {name: _leaves(table) for name, table in online.items()}
    return Networks(shapes, learned, start | {name: _leaves(table) for name, table in targets.items()})


def batch(
    actions: Any,
    mask: Any,
    next_mask: Any,
    rewards: Any,
    discounts: Any,
    returns: Any = None,
    n_members: int = 1,
) -> Batch:
    """Row b starts in state b and leads to state B + b, of 2 B states; the same rows for each member."""
    n_rows = len(actions)
    states = torch.eye(2 * n_rows).expand(n_members, -1, -1)

    def shared(values: Any, dtype: torch.dtype) -> Tensor:
        each = torch.as_tensor(np.asarray(values)).to(dtype)
        return each.expand(n_members, *each.shape)

    return Batch(
        inputs=Inputs(states[:, :n_rows]),
        actions=shared(actions, torch.int64),
        mask=shared(mask, torch.bool),
        rewards=shared(rewards, torch.float32),
        discounts=shared(discounts, torch.float32),
        next_inputs=Inputs(states[:, n_rows:]),
        next_mask=shared(next_mask, torch.bool),
        returns=shared(np.zeros(n_rows) if returns is None else returns, torch.float32),
    )


def loss_and_gradients(
    algorithm: Algorithm, networks: Networks, batch: Batch, **knobs: float
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """(M,) loss, metrics, and (M, S, outputs) gradient of the summed loss by each table."""
    n_members = len(batch.actions)
    loss, metrics = algorithm.loss(networks, batch, {name: torch.full((n_members, 1), k) for name, k in knobs.items()})
    leaves = {name: next(iter(each.values())) for name, each in networks.online.items()}
    found = torch.autograd.grad(loss.sum(), list(leaves.values()))
    return loss, metrics, dict(zip(leaves, found, strict=True))


def assert_masked_outputs_change_nothing(algorithm: Algorithm, **knobs: float) -> None:
    """1e6 at every masked output, of all networks and their copies, leaves loss, metrics and gradients as they were,
    and has no gradient."""
    random = np.random.default_rng(0)
    n_rows, n_actions = 16, algorithm.sizes.n_actions
    mask = random.random((2 * n_rows, n_actions)) < 0.6
    actions = random.integers(n_actions, size=2 * n_rows)
    mask[np.arange(2 * n_rows), actions] = True
    rows = batch(
        actions[:n_rows], mask[:n_rows], mask[n_rows:], random.normal(size=n_rows), np.full(n_rows, 0.9),
        random.normal(size=n_rows), n_members=2,
    )  # fmt: skip
    clean = {name: random.normal(size=(2, 2 * n_rows, shape.n_outputs)) for name, shape in _tables(algorithm).items()}
    older = {name: random.normal(size=table.shape) for name, table in clean.items()}

    masked = {name: _of_masked(mask, table.shape[2]) for name, table in clean.items()}
    poisoned = {name: np.where(masked[name], 1e6, table) for name, table in clean.items()}
    poisoned_older = {name: np.where(masked[name], 1e6, table) for name, table in older.items()}

    expected = loss_and_gradients(algorithm, networks(algorithm, clean, older), rows, **knobs)
    found = loss_and_gradients(algorithm, networks(algorithm, poisoned, poisoned_older), rows, **knobs)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for name in clean:
        assert not found[2][name][:, masked[name]].any()
        assert found[2][name].any()


def _tables(algorithm: Algorithm) -> dict[str, MLPShape]:
    return {name: shape for name, shape in algorithm.shapes().items() if isinstance(shape, MLPShape)}


def _of_masked(mask: Any, n_outputs: int) -> Any:
    """(S, A) → (S, outputs): outputs of masked actions; a single one, or a first one too many, is a state's value."""
    n_actions = mask.shape[1]
    if n_outputs == 1:
        return np.zeros((len(mask), 1), dtype=bool)
    if n_outputs == n_actions + 1:
        return np.concatenate((np.zeros((len(mask), 1), dtype=bool), ~mask), axis=1)
    return np.repeat(~mask, n_outputs // n_actions, axis=1)


def learned_value(process: TabularMDP, behavior: Any, **settings: Any) -> tuple[float, Any]:
    """Exact value of the greedy policy that an algorithm learns from 2,000 episodes of `behavior`, and the policy."""
    dataset = process.sample(behavior, n_episodes=2000, seed=0)
    small = {"n_steps": 300, "batch_size": 128, "hidden_units": (16,), "learning_rate": 0.01, "n_members": 1}
    small |= {"target_update_interval": 25, "divergence_limit": None, "mode": "eager", "selection_share": 0.0}
    chosen = trainer_settings(**(small | settings))
    policy = trainer(chosen.algorithm).fit(dataset, chosen, UniformPolicy(process.n_actions, process.observation_size))
    return process.value(process.policy_table(policy)), policy


def _leaves(table: Any) -> dict[str, Tensor]:
    weight = torch.as_tensor(np.asarray(table), dtype=torch.float32).clone().requires_grad_()
    return {"weight_0": weight, "bias_0": torch.zeros(weight.shape[0], weight.shape[2])}
