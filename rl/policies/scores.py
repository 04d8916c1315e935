"""What a learned policy ranks actions by: the scores of one network, or of an ensemble with pessimism.

Here: scores from stored networks, and the set of actions that an imitation supports (BCQ). Not here: how scores become
probabilities (`rl.policies.regularized`, `rl.policies.softmax`), the networks (`rl.policies.networks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.errors import PolicyError
from rl.policies.networks import ScoreNetwork, masked_softmax, network_from_state
from rl.policies.storage import with_prefix, without_prefix
from rl.types import Bool2D, Float2D, Float3D, Observations


@dataclass(frozen=True)
class Scores:
    """The mean over an ensemble's members minus `pessimism` times their standard deviation.

    With values as scores this is a lower bound of the value where the members disagree (An et al., 2021,
    arXiv:2110.01548, take the least of many; difference: mean minus spread needs few members).
    """

    members: tuple[ScoreNetwork, ...]
    pessimism: float = 0.0

    def __post_init__(self) -> None:
        sizes = {(member.observation_size, member.n_actions) for member in self.members}
        if len(sizes) != 1:
            raise PolicyError(
                f"An ensemble needs members that read and score the same; there are {len(self.members)} with the sizes "
                f"(features, actions) {sorted(sizes)}. Train them on one data set."
            )

    @classmethod
    def of(cls, *networks: ScoreNetwork, pessimism: float = 0.0) -> Scores:
        """Scores of one network or more."""
        return cls(tuple(networks), pessimism)

    @property
    def observation_size(self) -> int:
        """D."""
        return self.members[0].observation_size

    @property
    def n_actions(self) -> int:
        """A."""
        return self.members[0].n_actions

    @property
    def reads_history(self) -> bool:
        """Whether a member reads `Observations.history`."""
        return any(member.reads_history for member in self.members)

    @property
    def reads_past(self) -> bool:
        """Whether a member reads `Observations.past`."""
        return any(member.reads_past for member in self.members)

    def of_members(self, observations: Observations, action_mask: Bool2D) -> Float3D:
        """B observations, (B, A) → (M, B, A) float64 of the M members; masked entries mean nothing."""
        return np.stack([member(observations, action_mask).astype(np.float64) for member in self.members])

    def __call__(self, observations: Observations, action_mask: Bool2D) -> Float2D:
        """B observations, (B, A) → (B, A) float64; masked entries mean nothing."""
        return self.combined(self.of_members(observations, action_mask))

    def combined(self, member_scores: Float3D) -> Float2D:
        """(M, B, A) of the members → (B, A) of the ensemble."""
        return np.asarray(member_scores.mean(axis=0) - self.pessimism * spread(member_scores))

    def fields(self) -> dict[str, Any]:
        """What is stored as JSON."""
        return {"pessimism": self.pessimism, "networks": [member.document() for member in self.members]}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is stored as arrays."""
        stored: dict[str, NDArray[Any]] = {}
        for number, member in enumerate(self.members):
            stored |= with_prefix(str(number), member.arrays())
        return stored

    @classmethod
    def from_state(cls, fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Scores:
        """The inverse of `fields` and `arrays`."""
        documents: Sequence[Mapping[str, Any]] = fields["networks"]
        if not documents:
            raise PolicyError("A stored policy has no network. Train it again.")
        members = (network_from_state(each, without_prefix(str(n), arrays)) for n, each in enumerate(documents))
        return cls(tuple(members), float(fields["pessimism"]))


def spread(scores: Float3D) -> Float2D:
    """(M, B, A) → (B, A) standard deviation over the members, with M − 1 in the denominator; 0 for one member."""
    return np.asarray(scores.std(axis=0, ddof=1) if len(scores) > 1 else np.zeros(scores.shape[1:]))


@dataclass(frozen=True)
class Support:
    """The actions that an imitation of the log holds for likely enough (BCQ; Fujimoto et al., 2019)."""

    imitation: Scores
    """Logarithms of preferences; their softmax over the legal actions imitates the log."""
    ratio: float
    """Least probability of an action, as a share of the likeliest legal one's."""

    def __call__(self, observations: Observations, action_mask: Bool2D) -> Bool2D:
        """B observations, (B, A) → (B, A) the legal actions that are supported; one at least."""
        probabilities = masked_softmax(self.imitation(observations, action_mask), action_mask)
        return np.asarray(action_mask & (probabilities >= self.ratio * probabilities.max(axis=1, keepdims=True)))
