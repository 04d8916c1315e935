"""Dialogues of the storefront as a transition set, played in memory: no files, no warehouse, some 5,000 a second.

Here: dialogues of given policies with the observations, masks and propensities of a night's data set. Not here: the
simulator (`rl.environments.storefront`), the features (`rl.encoders.dialogue`), logs as files (`sample_logs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.datasets.transitions import Manifest, TransitionSet
from rl.environments.storefront import rollout
from rl.environments.storefront_customers import TURN_LIMIT, start_dialogues
from rl.environments.storefront_encoded import StorefrontEncoder
from rl.environments.storefront_items import SEGMENTS, read_storefront_catalogue
from rl.environments.storefront_policies import (
    POLICY_VERSION_SHARES,
    POLICY_VERSIONS,
    DecisionBatch,
    StorefrontPolicy,
    behavior_policy,
)
from rl.types import Float2D, Observations

WINDOW = (date(2026, 1, 1), date(2026, 1, 29))
DIALOGUES_PER_CUSTOMER = 1.4


@dataclass(frozen=True)
class _Turn:
    """The n-th decision of all dialogues that get so far, and what came of it."""

    number: int
    episodes: NDArray[Any]
    observations: Observations
    mask: NDArray[np.bool_]
    actions: NDArray[Any]
    propensities: NDArray[Any]
    rewards: NDArray[Any]

    @property
    def new_utterances(self) -> NDArray[np.float16]:
        """(B, 1 or 2, d) what was said since the decision before: the opening; then the agent and the customer."""
        history = self.observations.history
        assert history is not None
        n_new = 1 if self.number == 0 else 2
        return history.vectors[history.offsets[1:, None] - n_new + np.arange(n_new)]


def behavior_policies() -> list[tuple[StorefrontPolicy, float]]:
    """What writes the logs: each version and its share of the customers."""
    return [
        (behavior_policy(version), share) for version, share in zip(POLICY_VERSIONS, POLICY_VERSION_SHARES, strict=True)
    ]


def played_set(
    n_dialogues: int,
    seed: int | Sequence[int],
    encoder: StorefrontEncoder,
    policies: Sequence[tuple[StorefrontPolicy, float]] | None = None,
    *,
    expected_rewards: bool = False,
    validation_share: float = 0.4,
) -> TransitionSet:
    """Dialogues in a window of 28 days, some customers with several of them.

    Parameters
    ----------
    n_dialogues, seed
        Equal arguments give an equal set.
    policies
        Who talks, and in which share of the dialogues; `policy_version` counts them. Default: the logs' versions.
    expected_rewards
        The last step's reward is P(buy) · price instead of the value of what was bought: the same mean, less noise.
        No log has it.
    validation_share
        Share of customers that are held out; 0 for none.
    """
    rng = np.random.default_rng(seed)
    turns: list[_Turn] = []
    version = np.zeros(0, dtype=np.int32)
    for number, (policy, share) in enumerate(policies or behavior_policies()):
        n = round(n_dialogues * share)
        turns += _played(policy, n, len(version), encoder, rng, expected_rewards)
        version = np.append(version, np.full(n, number, dtype=np.int32))
    lengths = np.bincount(np.concatenate([turn.episodes for turn in turns]), minlength=len(version))
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    customers = rng.integers(round(len(version) / DIALOGUES_PER_CUSTOMER), size=len(version))
    steps = _in_order(turns, offsets)
    return TransitionSet.from_arrays(
        **steps,
        logged_mask=steps["action_mask"],
        policy_version=np.repeat(version, lengths),
        episode_offsets=offsets,
        customer_index=customers,
        started_at=_times(len(version), rng),
        validation=None if validation_share else np.zeros(len(version), dtype=bool),
        validation_share=validation_share,
        manifest=_manifest(encoder, len(policies or POLICY_VERSIONS)),
    )


def _played(
    policy: StorefrontPolicy,
    n: int,
    first_episode: int,
    encoder: StorefrontEncoder,
    rng: np.random.Generator,
    expected_rewards: bool,
) -> list[_Turn]:
    seen: list[tuple[Observations, NDArray[np.bool_]]] = []

    def watched(batch: DecisionBatch) -> Float2D:
        seen.append(encoder.observe(batch))
        return policy(batch)

    turns = []
    for number, decisions in enumerate(rollout(start_dialogues(n, rng), watched, rng)):
        observations, mask = seen.pop()
        actions, endings = decisions.actions, decisions.endings
        turns.append(
            _Turn(
                number=number,
                episodes=first_episode + decisions.rows,
                observations=observations,
                mask=mask,
                actions=encoder.actions[actions],
                propensities=decisions.probabilities[np.arange(len(actions)), actions],
                rewards=endings.expected_value if expected_rewards else endings.value,
            )
        )
    return turns


def _in_order(turns: list[_Turn], offsets: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The arrays of the steps, one dialogue after the other; empties `turns`, since observations are large."""
    n_steps, first = int(offsets[-1]), turns[0]
    n_new = np.full(n_steps, 2)
    n_new[offsets[:-1]] = 1
    utterance_offsets = np.concatenate(([0], np.cumsum(n_new)))
    arrays = {
        "observations": np.zeros((n_steps, first.observations.state.shape[1]), dtype=np.float32),
        "action_mask": np.zeros((n_steps, first.mask.shape[1]), dtype=bool),
        "actions": np.zeros(n_steps, dtype=np.int64),
        "propensities": np.zeros(n_steps, dtype=np.float32),
        "rewards": np.zeros(n_steps, dtype=np.float32),
        "utterance_vectors": np.zeros((utterance_offsets[-1], first.new_utterances.shape[2]), dtype=np.float16),
    }
    while turns:
        turn = turns.pop()
        rows = offsets[turn.episodes] + turn.number
        arrays["observations"][rows] = turn.observations.state
        arrays["action_mask"][rows] = turn.mask
        arrays["actions"][rows] = turn.actions
        arrays["propensities"][rows] = turn.propensities
        arrays["rewards"][rows] = turn.rewards
        new = turn.new_utterances
        arrays["utterance_vectors"][utterance_offsets[rows][:, None] + np.arange(new.shape[1])] = new
    return arrays | {"utterance_offsets": utterance_offsets}


def _manifest(encoder: StorefrontEncoder, n_versions: int) -> Manifest:
    return Manifest(
        catalogue=tuple(read_storefront_catalogue().to_json()),
        segments=tuple(SEGMENTS),
        policy_versions=tuple(f"policy-{number}" for number in range(n_versions)),
        turn_limit=TURN_LIMIT,
        feature_layout=encoder.layout.columns,
        window=(WINDOW[0].isoformat(), WINDOW[1].isoformat()),
    )


def _times(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    start = np.datetime64(WINDOW[0], "us").astype(np.int64)
    return np.asarray(start + rng.integers(28 * 86_400_000_000, size=n))
