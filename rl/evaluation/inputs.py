"""What every estimator reads, and what every estimator returns.

Here: the two containers, their checks, and the cumulative importance weights. Not here: the estimators
(`importance_sampling`, `doubly_robust`) and their intervals (`intervals`).

Sizes: N steps, E episodes, T steps of the longest episode, K columns of an estimator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rl.errors import DataError, PropensityError, SupportError
from rl.types import Float1D, Int1D

Array = NDArray[np.float64]


@dataclass(frozen=True)
class EvaluationInput:
    """Logged episodes with the probabilities of both policies; rows of an episode are contiguous, in
    order."""

    rewards: Float1D
    """(N,) in reward units."""
    propensities: Float1D
    """(N,) behavior policy's probability of the logged action, in (0, 1]: logged, or estimated out of
    fold."""
    evaluation_probabilities: Float1D
    """(N,) evaluation policy's probability of the same action, in [0, 1]; 0 outside today's mask."""
    episode_offsets: Int1D
    """(E + 1,) rows of episode i are `episode_offsets[i]:episode_offsets[i + 1]`; no episode is empty."""
    q_values: Float1D | None = None
    """(N,) modelled value-to-go of the logged action under the evaluation policy."""
    state_values: Float1D | None = None
    """(N,) its mean over the evaluation policy's actions."""
    weight_clip: float = float("inf")
    """Largest cumulative weight used by the doubly robust sums; the importance sampling ones are not
    clipped."""

    def __post_init__(self) -> None:
        _check_offsets(self.episode_offsets, len(self.rewards))
        _check_probabilities(self.propensities, "propensities", lowest_is_allowed=False)
        _check_probabilities(self.evaluation_probabilities, "evaluation probabilities", lowest_is_allowed=True)
        arrays = {
            "rewards": self.rewards,
            "propensities": self.propensities,
            "evaluation_probabilities": self.evaluation_probabilities,
            "q_values": self.q_values,
            "state_values": self.state_values,
        }
        for name, array in arrays.items():
            _check_rows(array, name, len(self.rewards))

    @property
    def n_episodes(self) -> int:
        return len(self.episode_offsets) - 1

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(E,) steps of each episode."""
        return np.asarray(np.diff(self.episode_offsets), dtype=np.int64)

    @cached_property
    def is_step(self) -> NDArray[np.bool_]:
        """(E, T) true where the episode has a step."""
        return np.arange(int(self.lengths.max()))[None, :] < self.lengths[:, None]

    @cached_property
    def returns(self) -> Array:
        """(E,) plain sum of rewards."""
        return np.asarray(np.add.reduceat(self.rewards.astype(np.float64), self.episode_offsets[:-1]))

    @cached_property
    def cumulative_weights(self) -> Array:
        """(E, T) product of probability ratios up to and including each step; kept after the end."""
        ratios = self.by_step(self.evaluation_probabilities / self.propensities.astype(np.float64), fill=1.0)
        with np.errstate(over="ignore"):
            weights = np.cumprod(ratios, axis=1)
        if not np.isfinite(weights).all():
            raise PropensityError(
                "An importance weight overflows: the product of probability ratios along one dialogue is "
                "not finite. Raise the floor of the behavior model or leave out dialogues of that length."
            )
        return np.asarray(weights)

    def by_step(self, values: Float1D, fill: float = 0.0) -> Array:
        """(N,) → (E, T), `fill` after the end of an episode."""
        padded = np.full(self.is_step.shape, fill)
        padded[self.is_step] = values
        return padded

    def with_values(self, q_values: Float1D, state_values: Float1D) -> EvaluationInput:
        """The same log with modelled values, for the doubly robust estimators."""
        return replace(self, q_values=q_values, state_values=state_values)


@dataclass(frozen=True)
class Contributions:
    """What each episode adds to an estimate: the estimate is the sum over columns of Σ numerators / Σ
    denominators.

    A plain mean is one column with denominators 1; a self-normalised estimate has weights there. Kept apart,
    because a resample of episodes has to renormalise.
    """

    numerators: Array
    """(E, K)"""
    denominators: Array
    """(E, K)"""

    @classmethod
    def of_mean(cls, values: Float1D) -> Contributions:
        """Contributions (E,) whose plain mean is the estimate."""
        column = np.asarray(values, dtype=np.float64)[:, None]
        return cls(column, np.ones_like(column))

    @property
    def value(self) -> float:
        return float(np.sum(self.numerators.sum(0) / self._denominator_sums()))

    @property
    def per_episode(self) -> Array:
        """(E,) linearised contributions: their mean is the estimate, their spread its standard error."""
        means = self._denominator_sums() / len(self.denominators)
        ratios = self.numerators.mean(0) / means
        return np.asarray(self.value + ((self.numerators - ratios * self.denominators) / means).sum(1))

    def minus(self, other: Contributions) -> Contributions:
        """The paired difference on the same episodes."""
        return Contributions(
            np.hstack([self.numerators, -other.numerators]),
            np.hstack([self.denominators, other.denominators]),
        )

    def _denominator_sums(self) -> Array:
        sums = np.asarray(self.denominators.sum(0))
        if (sums <= 0).any():
            raise SupportError(
                f"The evaluation policy gives no probability to any of the {len(self.denominators)} logged "
                f"dialogues from step {int(np.argmax(sums <= 0))} on, so the log says nothing about it. "
                "Move the policy closer to the behavior policy (divergence_limit), or collect dialogues "
                "that do what it does."
            )
        return sums


def _check_offsets(offsets: Int1D, n_steps: int) -> None:
    lengths = np.diff(offsets)
    if len(lengths) == 0 or offsets[0] != 0 or offsets[-1] != n_steps or (lengths <= 0).any():
        raise DataError(
            f"The episode offsets ({len(offsets)} of them) do not cut {n_steps} steps into episodes of at "
            "least one step. Build the data set again."
        )


def _check_rows(values: Float1D | None, name: str, n_steps: int) -> None:
    if values is None:
        return
    if len(values) != n_steps:
        raise DataError(f"`{name}` has {len(values)} rows, the log has {n_steps}. Compute it on the same rows.")
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise DataError(f"`{name}` is not finite at row {row}. Check the data set, or the model that computed it.")


def _check_probabilities(values: Float1D, name: str, lowest_is_allowed: bool) -> None:
    is_low = values < 0 if lowest_is_allowed else values <= 0
    is_wrong = is_low | (values > 1 + 1e-6) | np.isnan(values)
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        bracket = "[" if lowest_is_allowed else "("
        raise PropensityError(
            f"{int(is_wrong.sum())} of {len(values)} {name} lie outside {bracket}0, 1]; the first is row "
            f"{row} with {float(values[row]):g}. Check the `propensity` column of fct_transitions, or "
            "estimate it with rl.policies.behavior."
        )
