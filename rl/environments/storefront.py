"""Storefront, the sample world with known truth: a Gymnasium vector environment, and the value of any policy.

Here: rollouts. Not here: the customers (`storefront_customers`), the words (`storefront_texts`), policies
(`storefront_policies`), logs (`sample_logs`).

The reward of a dialogue is the value of the purchase in EUR, at its end; γ = 1. The simulator also knows the
expected purchase value P(buy) * price, which has the same mean and less noise: values are estimated with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rl.environments.storefront_customers import (
    MAX_UTTERANCES,
    TURN_LIMIT,
    Dialogues,
    Endings,
    start_dialogues,
    take_turns,
)
from rl.environments.storefront_items import N_STRATEGIES, SEGMENTS
from rl.environments.storefront_policies import (
    POLICY_VERSION_SHARES,
    POLICY_VERSIONS,
    DecisionBatch,
    StorefrontPolicy,
    behavior_policy,
    decision_batch,
)
from rl.environments.storefront_texts import utterance_table
from rl.errors import DataError, PolicyError

Observation = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class PolicyValue:
    """Value of a policy in EUR per dialogue, its standard error, and what the dialogues were like."""

    value: float
    standard_error: float
    n_dialogues: int
    n_steps: int
    conversion_rate: float
    mean_turns: float


@dataclass(frozen=True)
class Decisions:
    """One agent turn in each of the dialogues that still run.

    `rows` (B,) which of the dialogues of the rollout; `probabilities` (B, A) the policy's; `dialogues` after
    the turn.
    """

    rows: NDArray[np.intp]
    actions: NDArray[np.intp]
    probabilities: NDArray[np.floating]
    eligible: NDArray[np.bool_]
    dialogues: Dialogues
    endings: Endings


def rollout(dialogues: Dialogues, policy: StorefrontPolicy, rng: np.random.Generator) -> Iterator[Decisions]:
    """Play fresh dialogues to their ends, one agent turn of all at a time; finished ones drop out.

    Raises PolicyError if the policy's rows do not sum to 1 or give probability to what is not eligible.
    """
    rows = np.arange(len(dialogues))
    while rows.size:
        batch = decision_batch(dialogues)
        probabilities = policy(batch)
        _check(probabilities, batch)
        actions = _draw(probabilities, rng)
        endings = take_turns(dialogues, actions, rng)
        yield Decisions(rows, actions, probabilities, batch.eligible, dialogues, endings)
        going = np.flatnonzero(~endings.ended)
        rows, dialogues = rows[going], dialogues.select(going)


def policy_value(
    policy: StorefrontPolicy,
    relative_standard_error: float = 0.005,
    *,
    seed: int = 0,
    batch_size: int = 8192,
    max_dialogues: int = 2_000_000,
    segment: str | None = None,
) -> PolicyValue:
    """The true value of a policy, by rollout until its standard error is small enough.

    Parameters
    ----------
    policy
        Gives (B, A) probabilities for a DecisionBatch; see there for how to wrap one that reads text.
    relative_standard_error
        Standard error over value at which to stop, in (0, 1). Halved: four times the dialogues.
    seed
        Fixes the customers and the draws: equal seed and policy, equal answer.
    batch_size, max_dialogues
        Dialogues played at a time, and where to stop at the latest (a policy that sells nothing).
    segment
        Only customers of this segment; default all, by their shares.

    Raises
    ------
    PolicyError
        If the policy's probabilities are not a distribution over the eligible strategies.
    """
    only = None if segment is None else _segment_number(segment)
    totals = np.zeros(5)  # dialogues, Σ value, Σ value², conversions, steps; value is the expected one
    rng = np.random.default_rng(seed)
    while True:
        totals += _play(policy, batch_size, rng, only)
        n, total, squares, conversions, steps = totals
        value = total / n
        standard_error = math.sqrt(max(squares / n - value**2, 0) / (n - 1))
        if n >= max_dialogues or standard_error <= relative_standard_error * value:
            rates = float(conversions / n), float(steps / n)
            return PolicyValue(float(value), standard_error, int(n), int(steps), *rates)


def behavior_value(relative_standard_error: float = 0.005, seed: int = 0) -> float:
    """The true value of what wrote the logs: both versions, weighted by their share of customers, in EUR."""
    values = [
        policy_value(behavior_policy(version), relative_standard_error, seed=seed).value for version in POLICY_VERSIONS
    ]
    return float(np.dot(values, POLICY_VERSION_SHARES))


class StorefrontEnv(VectorEnv):  # type: ignore[misc]
    """B dialogues as a Gymnasium 1.0 vector environment, all state in arrays.

    Observation (a dict): `segment`, `turn`, `last_strategies` (B, 2; newest first, A for none yet),
    `utterances` (B, 25; ids into `utterance_texts`, -1 after the last) and `eligible` (B, A). Action: a
    strategy id, which must be eligible. Reward: the purchase value in EUR when the dialogue ends, else 0;
    with `expected_rewards=True` its expectation. `info["expected_reward"]` and `info["purchase_value"]`
    always hold both.

    The turn limit is in the observation, so reaching it terminates; nothing is ever truncated. Autoreset is
    gymnasium's NEXT_STEP: the step after a terminated one ignores the action, starts a new dialogue, and
    gives reward 0.
    """

    utterance_texts: tuple[str, ...]

    def __init__(self, num_envs: int, expected_rewards: bool = False) -> None:
        self.num_envs = num_envs
        self.expected_rewards = expected_rewards
        self.utterance_texts = utterance_table().texts
        self.single_action_space = gymnasium.spaces.Discrete(N_STRATEGIES)
        self.single_observation_space = gymnasium.spaces.Dict(
            segment=gymnasium.spaces.Discrete(len(SEGMENTS)),
            turn=gymnasium.spaces.Discrete(TURN_LIMIT + 1),
            last_strategies=gymnasium.spaces.MultiDiscrete([N_STRATEGIES + 1] * 2),
            utterances=gymnasium.spaces.Box(-1, len(self.utterance_texts) - 1, (MAX_UTTERANCES,), np.int32),
            eligible=gymnasium.spaces.MultiBinary(N_STRATEGIES),
        )
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._finished = np.zeros(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start B new dialogues. A seed makes all that follows deterministic."""
        if seed is not None or not hasattr(self, "_rng"):
            self._rng = np.random.default_rng(seed)
        self._dialogues = start_dialogues(self.num_envs, self._rng)
        self._finished[:] = False
        return self._observe(), {
            "expected_reward": np.zeros(self.num_envs),
            "purchase_value": np.zeros(self.num_envs),
        }

    def step(
        self, actions: NDArray[np.integer]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One agent turn and the answer in each running dialogue; a new dialogue where one had ended.

        Raises DataError if an action is not eligible in its dialogue.
        """
        running = np.flatnonzero(~self._finished)
        self._require_eligible(np.asarray(actions), running)
        expected, value = np.zeros(self.num_envs), np.zeros(self.num_envs)
        terminated = np.zeros(self.num_envs, dtype=bool)
        if running.size:
            acting = self._dialogues.select(running)
            endings = take_turns(acting, np.asarray(actions)[running], self._rng)
            self._dialogues.replace(running, acting)
            expected[running], value[running] = endings.expected_value, endings.value
            terminated[running] = endings.ended
        starting = np.flatnonzero(self._finished)
        if starting.size:
            self._dialogues.replace(starting, start_dialogues(starting.size, self._rng))
        self._finished = terminated.copy()
        rewards = expected if self.expected_rewards else value
        info = {"expected_reward": expected, "purchase_value": value}
        return self._observe(), rewards, terminated, np.zeros(self.num_envs, dtype=bool), info

    def decision_batch(self) -> DecisionBatch:
        """The current observations as a policy callback sees them."""
        return decision_batch(self._dialogues)

    def _observe(self) -> Observation:
        d = self._dialogues
        rows, turn = np.arange(self.num_envs), d.turn.astype(np.intp)
        last = np.stack(
            [np.where(turn >= back, d.strategies[rows, np.maximum(turn - back, 0)], N_STRATEGIES) for back in (1, 2)],
            1,
        )
        return {
            "segment": d.segment.astype(np.int64),
            "turn": d.turn.astype(np.int64),
            "last_strategies": last.astype(np.int64),
            "utterances": d.utterances.copy(),
            "eligible": d.eligible().astype(np.int8),
        }

    def _require_eligible(self, actions: NDArray[np.integer], running: NDArray[np.intp]) -> None:
        wrong = ~self._dialogues.eligible()[running, actions[running]]
        if wrong.any():
            raise DataError(
                f"{int(wrong.sum())} of {running.size} actions are not eligible; the first is in dialogue "
                f"{int(running[wrong][0])}. Choose among observation['eligible']."
            )


def _play(policy: StorefrontPolicy, n: int, rng: np.random.Generator, segment: int | None) -> NDArray[np.float64]:
    fresh = start_dialogues(n, rng, None if segment is None else np.full(n, segment))
    totals = np.array([n, 0, 0, 0, 0], dtype=np.float64)
    for decisions in rollout(fresh, policy, rng):
        value = decisions.endings.expected_value
        totals[1:] += value.sum(), (value**2).sum(), (decisions.endings.value > 0).sum(), len(value)
    return totals


def _draw(probabilities: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.intp]:
    """(B,) actions; one with probability 0 is never drawn."""
    cumulative = np.cumsum(probabilities, axis=1)
    drawn = rng.random(len(cumulative)) * cumulative[:, -1]
    actions: NDArray[np.intp] = (cumulative > drawn[:, None]).argmax(axis=1)
    return actions


def _check(probabilities: NDArray[np.floating], batch: DecisionBatch) -> None:
    legal = np.where(batch.eligible, probabilities, 0).sum(axis=1)
    wrong = ~((np.abs(legal - 1) < 1e-5) & (np.abs(probabilities.sum(axis=1) - 1) < 1e-5))
    if wrong.any():
        raise PolicyError(
            f"{int(wrong.sum())} of {len(legal)} rows of the policy's probabilities do not sum to 1 over the "
            f"eligible strategies; the first is row {int(wrong.argmax())}. Mask and renormalise them first."
        )


def _segment_number(segment: str) -> int:
    if segment not in SEGMENTS:
        raise DataError(f"There is no segment {segment!r} in the storefront. Choose one of {', '.join(SEGMENTS)}.")
    return SEGMENTS.index(segment)
