"""A small finite-horizon decision process whose policy values are computed exactly.

Here: the process, dynamic programming, logs of it with true propensities: the known truth behind the tests of
trainers and estimators. Not here: anything that looks like a dialogue (`rl.environments.storefront`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.catalogue import ActionCatalogue, Strategy
from rl.datasets.transitions import Manifest, TransitionSet
from rl.settings import RewardDefinition, RewardPart
from rl.types import Bool2D, Float1D, Float2D

Float3D = NDArray[np.floating]
Policy3D = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class TabularMDP:
    """S states, A actions, horizon H; every episode ends at H, or earlier with the state's ending rate.

    A policy is a table (H, S, A) of probabilities, or (S, A) for the same rule at every step. Values are sums
    of rewards without discount.
    """

    transitions: Float3D
    """(S, A, S) probability of the next state."""
    rewards: Float2D
    """(S, A) mean reward."""
    initial: Float1D
    """(S,) probability of the first state."""
    legal: Bool2D
    """(S, A) actions that may be chosen; at least one per state."""
    ending_rates: Float2D
    """(S, A) probability that the episode ends after the action, in [0, 1)."""
    horizon: int
    reward_noise: float = 0.0
    """Standard deviation of normal noise on logged rewards; does not change values."""

    @classmethod
    def random(
        cls,
        n_states: int,
        n_actions: int,
        horizon: int,
        seed: int,
        masked_share: float = 0.0,
        ending_rate: float = 0.0,
        reward_noise: float = 0.0,
    ) -> TabularMDP:
        """A process drawn from `seed`: uneven transitions, rewards in [0, 1], some illegal pairs."""
        rng = np.random.default_rng(seed)
        legal = rng.random((n_states, n_actions)) >= masked_share
        legal[np.arange(n_states), rng.integers(n_actions, size=n_states)] = True
        return cls(
            transitions=rng.dirichlet(np.full(n_states, 0.5), size=(n_states, n_actions)),
            rewards=rng.random((n_states, n_actions)),
            initial=rng.dirichlet(np.ones(n_states)),
            legal=legal,
            ending_rates=ending_rate * rng.random((n_states, n_actions)),
            horizon=horizon,
            reward_noise=reward_noise,
        )

    @property
    def n_states(self) -> int:
        """S."""
        return int(self.rewards.shape[0])

    @property
    def n_actions(self) -> int:
        """A."""
        return int(self.rewards.shape[1])

    @property
    def observation_size(self) -> int:
        """D = S + H: the state and the step, one-hot each."""
        return self.n_states + self.horizon

    def uniform_policy(self) -> Policy3D:
        """(H, S, A) equal probabilities over the legal actions."""
        table = self.legal / self.legal.sum(axis=1, keepdims=True)
        return np.broadcast_to(table, (self.horizon, *table.shape))

    def softmax_policy(self, q_values: Float3D, temperature: float) -> Policy3D:
        """(H, S, A) probabilities proportional to exp(Q / temperature) over the legal actions."""
        logits = np.where(self.legal, q_values / temperature, -np.inf)
        odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=-1, keepdims=True))

    def q_values(self, policy: Policy3D) -> Float3D:
        """(H, S, A) exact value-to-go of each action, the policy acting afterwards."""
        table = self._table(policy)
        return self._backward(lambda step, q: np.sum(table[step] * q, axis=1))

    def optimal_q_values(self) -> Float3D:
        """(H, S, A) exact value-to-go of each action under the best policy afterwards."""
        return self._backward(lambda _, q: np.max(np.where(self.legal, q, -np.inf), axis=1))

    def value(self, policy: Policy3D) -> float:
        """The exact expected return of a policy table."""
        return float(self.initial @ np.sum(self._table(policy)[0] * self.q_values(policy)[0], axis=1))

    def optimal_value(self) -> float:
        """The largest expected return that any policy on the legal actions reaches."""
        return float(self.initial @ np.max(np.where(self.legal, self.optimal_q_values()[0], -np.inf), axis=1))

    def optimal_policy(self) -> Policy3D:
        """(H, S, A) the greedy table of the optimal Q-values."""
        best = np.argmax(np.where(self.legal, self.optimal_q_values(), -np.inf), axis=-1)
        return np.asarray(np.eye(self.n_actions)[best])

    def observations(self) -> NDArray[np.float32]:
        """(H, S, D) the observation of each state at each step."""
        step, state = np.meshgrid(np.arange(self.horizon), np.arange(self.n_states), indexing="ij")
        return self._observe(state, step)

    def policy_table(self, policy: Any) -> Policy3D:
        """(H, S, A) the table of an `rl.types.Policy`, read off at every state and step."""
        from rl.types import Observations

        states = self.observations().reshape(-1, self.observation_size)
        mask = np.tile(self.legal, (self.horizon, 1))
        probabilities = policy.action_probabilities(Observations(states), mask)
        return np.asarray(probabilities).reshape(self.horizon, self.n_states, self.n_actions)

    def sample(self, policy: Policy3D, n_episodes: int, seed: int, **arrays: NDArray[Any]) -> TransitionSet:
        """Episodes of the policy as a transition set with true propensities and one-hot observations.

        `arrays` replaces arrays of `TransitionSet.from_arrays`, for example `propensities` with NaN.
        """
        rng = np.random.default_rng(seed)
        table = self._table(policy)
        shape = (n_episodes, self.horizon)
        states, actions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        alive = np.ones(shape, dtype=bool)
        state = _draw(rng, np.broadcast_to(self.initial, (n_episodes, self.n_states)))
        for step in range(self.horizon):
            states[:, step] = state
            actions[:, step] = action = _draw(rng, table[step, state])
            state = _draw(rng, self.transitions[state, action])
            if step + 1 < self.horizon:
                ends = rng.random(n_episodes) < self.ending_rates[states[:, step], action]
                alive[:, step + 1] = alive[:, step] & ~ends
        steps = np.broadcast_to(np.arange(self.horizon), shape)[alive]
        states, actions = states[alive], actions[alive]
        rewards = self.rewards[states, actions] + self.reward_noise * rng.normal(size=len(states))
        known: dict[str, Any] = {
            "logged_mask": self.legal[states],
            "propensities": table[steps, states, actions],
            "state_bucket": states,
        }
        return TransitionSet.from_arrays(
            observations=self._observe(states, steps),
            actions=actions,
            rewards=rewards,
            episode_offsets=np.concatenate(([0], np.cumsum(alive.sum(axis=1)))),
            manifest=self._manifest(),
            **(known | arrays),
        )

    def _backward(self, state_value: Any) -> Float3D:
        q_values = np.zeros((self.horizon, self.n_states, self.n_actions))
        following = np.zeros(self.n_states)
        for step in reversed(range(self.horizon)):
            goes_on = 0.0 if step + 1 == self.horizon else 1.0 - self.ending_rates
            q_values[step] = self.rewards + goes_on * (self.transitions @ following)
            following = state_value(step, q_values[step])
        return q_values

    def _table(self, policy: Policy3D) -> Policy3D:
        return np.broadcast_to(policy, (self.horizon, self.n_states, self.n_actions))

    def _observe(self, states: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.float32]:
        one_hot = (np.eye(self.n_states)[states], np.eye(self.horizon)[steps])
        return np.concatenate(one_hot, axis=-1).astype(np.float32)

    def _manifest(self) -> Manifest:
        names = [Strategy(f"action_{i}", "", i, "selectable") for i in range(self.n_actions)]
        return Manifest(
            catalogue=tuple(ActionCatalogue(tuple(names)).to_json()),
            reward=RewardDefinition(unit="reward", parts=(RewardPart(name="conversion_value"),)),
            training_discount=1.0,
            turn_limit=self.horizon,
            state_buckets=tuple(f"state_{i}" for i in range(self.n_states)),
            feature_layout={
                "state": (0, self.n_states),
                "step": (self.n_states, self.observation_size),
            },
        )


def _draw(rng: np.random.Generator, probabilities: Float2D) -> NDArray[np.int64]:
    """One index per row, by inverse transform of the cumulated probabilities."""
    cumulated = np.cumsum(probabilities, axis=1)
    uniform = rng.random((len(cumulated), 1)) * cumulated[:, -1:]
    return np.asarray(np.sum(uniform >= cumulated, axis=1), dtype=np.int64)
