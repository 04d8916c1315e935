"""Small transition sets with every array in use, made from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rl.datasets.transitions import TransitionSet


def random_set(lengths: Sequence[int], seed: int = 0, **changed: Any) -> TransitionSet:
    """Episodes of the given lengths: 3 features, 4 actions, 0 to 2 utterances of 2 dimensions before each step."""
    rng = np.random.default_rng(seed)
    n, n_episodes = sum(lengths), len(lengths)
    said = rng.integers(0, 3, size=n)
    truncated = rng.random(n_episodes) < 0.5
    actions = rng.integers(0, 4, size=n)
    logged_mask = rng.random((n, 4)) < 0.5
    logged_mask[np.arange(n), actions] = True
    arrays: dict[str, Any] = {
        "observations": rng.normal(size=(n, 3)),
        "actions": actions,
        "logged_mask": logged_mask,
        "action_mask": logged_mask,
        "rewards": rng.normal(size=n),
        "propensities": np.where(rng.random(n) < 0.3, np.nan, rng.uniform(0.01, 1, size=n)),
        "policy_version": rng.integers(0, 3, size=n),
        "segment": rng.integers(-1, 2, size=n),
        "item_action": rng.integers(-1, 5, size=n),
        "episode_offsets": np.concatenate(([0], np.cumsum(lengths))),
        "truncated": truncated,
        "started_at": rng.integers(0, 10**15, size=n_episodes),
        "customer_index": rng.integers(0, n_episodes, size=n_episodes),
        "is_customer_known": rng.random(n_episodes) < 0.8,
        "final_observations": rng.normal(size=(n_episodes, 3)) * truncated[:, None],
        "final_action_mask": np.repeat(truncated[:, None], 4, axis=1),
        "utterance_vectors": rng.normal(size=(said.sum(), 2)),
        "utterance_offsets": np.concatenate(([0], np.cumsum(said))),
        "n_actions": 4,
    }
    return TransitionSet.from_arrays(**(arrays | changed))
