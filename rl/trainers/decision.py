"""From learned networks to the policy that acts by them: which decision head, and its temperature.

Here: the head, set on rows of a data set, and what the policy does on them. Not here: the heads themselves
(`rl.policies`), learning (`rl.trainers`), how good the policy is (`rl.trainers.selection`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl.datasets.transitions import TransitionSet
from rl.policies.networks import masked_softmax
from rl.policies.regularized import (
    RegularizedQPolicy,
    find_temperature,
    greedy_probabilities,
    log_probabilities,
    spread_rows,
    tilted_probabilities,
)
from rl.policies.scores import Scores, Support
from rl.policies.softmax import SoftmaxPolicy
from rl.policies.storage import StoredPolicy
from rl.trainers.settings import TrainerSettings
from rl.types import Bool2D, Float2D, Float3D, Observations

_ROWS_AT_ONCE = 512
"""Rows of one forward pass, whose hidden layers stay in the processor's cache: 20,000 rows of a network with two
hidden layers of 128 took 60 ms in such blocks and 138 ms at once."""


class Situations:
    """Rows of a data set in which policies are asked what they would do, and what the behavior policy does there."""

    def __init__(self, dataset: TransitionSet, behavior: StoredPolicy, rows: NDArray[np.int64]) -> None:
        self.behavior = behavior
        self.mask: Bool2D = np.asarray(dataset.action_mask[rows])
        self._dataset, self._rows = dataset, rows
        self._behavior_probabilities: Float2D | None = None

    def scores(self, scores: Scores, allowed: Bool2D) -> Float3D:
        """(M, B, A) of each member of an ensemble; what stands outside `allowed` means nothing."""
        blocks = self._blocks(scores)
        parts = [scores.of_members(observations, allowed[rows]) for rows, observations in blocks]
        return np.concatenate(parts, axis=1)

    def supported(self, support: Support | None) -> Bool2D:
        """(B, A) the legal actions, of which a `support` leaves some out."""
        if support is None:
            return self.mask
        blocks = self._blocks(support.imitation)
        return np.concatenate([support(observations, self.mask[rows]) for rows, observations in blocks])

    def behavior_probabilities(self, allowed: Bool2D) -> Float2D:
        """(B, A) the behavior policy's, over the allowed actions. Those over `mask` are computed once."""
        if allowed is not self.mask:
            return self._behavior(allowed)
        if self._behavior_probabilities is None:
            self._behavior_probabilities = self._behavior(allowed)
        return self._behavior_probabilities

    def _behavior(self, allowed: Bool2D) -> Float2D:
        blocks = self._blocks(self.behavior)
        return np.concatenate([self.behavior.action_probabilities(each, allowed[rows]) for rows, each in blocks])

    def _blocks(self, reader: Scores | StoredPolicy) -> Iterator[tuple[slice, Observations]]:
        for start in range(0, len(self._rows), _ROWS_AT_ONCE):
            block = slice(start, start + _ROWS_AT_ONCE)
            rows = self._rows[block]
            yield block, self._dataset.batch_observations(rows, reader.reads_history, reader.reads_past)


@dataclass(frozen=True)
class Decided:
    """A policy, and what it does in the situations that its head was set in."""

    policy: StoredPolicy
    """Named as the candidate."""
    probabilities: Float2D
    """(B, A)"""
    member_scores: Float3D
    """(M, B, A) of the ensemble that it acts by."""
    reached: dict[str, float]
    """`policy/temperature` and `policy/divergence`; empty without a limit."""


def decided_in(
    situations: Situations,
    scores: Scores,
    settings: TrainerSettings,
    *,
    is_actor: bool,
    support: Support | None = None,
) -> Decided:
    """The policy that acts by `scores`, and what it does in the situations.

    `scores` are Q-values in reward units or, of an actor, logarithms of preferences. With a `divergence_limit` the
    policy is π ∝ π_b exp(scores / τ), τ such that the mean divergence in the situations is the limit; without one it
    acts as it was learned: greedily on values, by its softmax as an actor. With a `support`, π_b is taken within it.
    """
    name, behavior = settings.candidate_name, situations.behavior
    allowed = situations.supported(support)
    member_scores = situations.scores(scores, allowed)
    combined = scores.combined(member_scores)
    if settings.divergence_limit is None and is_actor:
        return Decided(SoftmaxPolicy(scores, name), masked_softmax(combined, allowed), member_scores, {})
    if settings.divergence_limit is None:
        policy = RegularizedQPolicy(scores, behavior, 0.0, name, support)
        return Decided(policy, greedy_probabilities(combined, allowed), member_scores, {})
    reference = situations.behavior_probabilities(allowed)
    temperature, divergence = find_temperature(reference, combined, allowed, settings.divergence_limit)
    policy = RegularizedQPolicy(scores, behavior, temperature, name, support)
    probabilities = tilted_probabilities(log_probabilities(reference), combined, temperature, allowed)
    reached = {"policy/temperature": temperature, "policy/divergence": divergence}
    return Decided(policy, probabilities, member_scores, reached)


def decided_by(
    scores: Scores,
    settings: TrainerSettings,
    behavior: StoredPolicy,
    training: TransitionSet,
    *,
    is_actor: bool,
    support: Support | None = None,
) -> tuple[StoredPolicy, dict[str, float]]:
    """As `decided_in`, in evenly spread rows of a data set; the policy, and what its head came to."""
    rows = np.arange(training.n_steps)[spread_rows(training.n_steps)]
    decided = decided_in(Situations(training, behavior, rows), scores, settings, is_actor=is_actor, support=support)
    return decided.policy, decided.reached
