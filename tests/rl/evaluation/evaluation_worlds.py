"""Small worlds with known policy values, and logs of them as the estimators read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rl.datasets.transitions import TransitionSet
from rl.environments.tabular import Policy3D, TabularMDP
from rl.evaluation.inputs import Array, EvaluationInput
from rl.types import Bool2D, Float2D, Observations


@dataclass(frozen=True)
class World:
    """A tabular process with a stochastic behavior policy and another one to be judged, both with full support."""

    process: TabularMDP
    behavior: Policy3D
    evaluation: Policy3D

    @property
    def truth(self) -> float:
        return self.process.value(self.evaluation)

    @property
    def true_advantage(self) -> float:
        return self.truth - self.process.value(self.behavior)

    def log(self, n_episodes: int, seed: int, model_error: float = 0.0, estimated: bool = False) -> EvaluationInput:
        """A log with value predictions that are exact, or off by `model_error` (relative) per action."""
        dataset = self.process.sample(self.behavior, n_episodes, seed)
        return self.as_input(dataset, model_error, estimated)

    def as_input(self, dataset: TransitionSet, model_error: float, estimated: bool) -> EvaluationInput:
        states, steps, actions = dataset.state_bucket, dataset.step_index, dataset.actions
        q_values = self.process.q_values(self.evaluation)[steps, states]
        factors = np.random.default_rng(7).normal(1.0 + model_error, model_error, size=self.process.n_actions)
        q_values = q_values * factors
        probabilities = np.asarray(self.evaluation)[steps, states]
        rows = np.arange(len(actions))
        return EvaluationInput(
            rewards=dataset.rewards,
            propensities=counted_propensities(dataset) if estimated else dataset.propensities,
            evaluation_probabilities=probabilities[rows, actions],
            episode_offsets=dataset.episode_offsets,
            q_values=q_values[rows, actions],
            state_values=(q_values * probabilities).sum(1),
        )


def world(seed: int, horizon: int = 5, distance: float = 0.4, masked_share: float = 0.0) -> World:
    """Two soft rules drawn from `seed`; `distance` (in logits) moves the judged one away from the log."""
    process = TabularMDP.random(5, 3, horizon, seed, masked_share=masked_share, ending_rate=0.3, reward_noise=0.3)
    noise = np.random.default_rng(seed).normal(size=(2, *process.rewards.shape))
    behavior = process.softmax_policy(np.broadcast_to(noise[0], (horizon, *noise[0].shape)), 2.0)
    moved = noise[0] / 2.0 + distance * noise[1]
    evaluation = process.softmax_policy(np.broadcast_to(moved, (horizon, *moved.shape)), 1.0)
    return World(process, behavior, evaluation)


def counted_propensities(dataset: TransitionSet) -> Array:
    """(N,) share of the logged action among all decisions in its state."""
    counts = np.zeros((int(dataset.state_bucket.max()) + 1, dataset.n_actions))
    np.add.at(counts, (dataset.state_bucket, dataset.actions), 1.0)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return shares[dataset.state_bucket, dataset.actions]


class TablePolicy:
    """A table (H, S, A) that acts on the one-hot observations of a `TabularMDP`."""

    kind = "table"
    reads_history = reads_past = False

    def __init__(self, table: Policy3D, name: str = "table") -> None:
        self.table, self.name = np.asarray(table), name
        self.n_actions = self.table.shape[-1]

    def action_probabilities(self, observations: Observations, action_mask: Bool2D) -> Float2D:
        n_states = self.table.shape[1]
        state = observations.state[:, :n_states].argmax(1)
        step = observations.state[:, n_states:].argmax(1)
        probabilities = self.table[step, state] * action_mask
        return probabilities / probabilities.sum(1, keepdims=True)

    def save(self, folder: object) -> None:
        raise NotImplementedError("tables are only judged")
