"""d3rlpy's `MDPDataset`: a format to exchange, never the store.

Here: export and import, in memory and as d3rlpy's HDF5 files. d3rlpy's words `terminals` and `timeouts` appear here
and in the trainers' adapter only. Not here: training with d3rlpy (`rl.trainers`).

What d3rlpy's format cannot hold is lost in an export: masks, propensities, parts of the reward, the split, ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rl.datasets.transitions import Manifest, TransitionSet
from rl.errors import DataError
from rl.files import replaced_file

if TYPE_CHECKING:
    from d3rlpy.dataset import MDPDataset, ReplayBuffer


def export_mdp_dataset(dataset: TransitionSet) -> MDPDataset:
    """The same episodes for d3rlpy, with the catalogue's number of actions whether or not all were logged.

    A dialogue's end is a terminal. d3rlpy never learns from the last row of an episode that timed out, so a
    truncated episode gets one more row, its final observation, with reward 0: no step is lost.
    """
    from d3rlpy.constants import ActionSpace
    from d3rlpy.dataset import MDPDataset

    truncated = np.flatnonzero(dataset.truncated)
    ends = dataset.episode_offsets[1:]
    added_at = ends[truncated]
    terminals, timeouts = np.zeros((2, dataset.n_steps), dtype=np.float32)
    terminals[ends[dataset.terminated] - 1] = 1
    return MDPDataset(
        observations=np.insert(dataset.observations, added_at, dataset.final_observations[truncated], axis=0),
        actions=np.insert(dataset.actions, added_at, dataset.actions[added_at - 1])[:, None],
        rewards=np.insert(dataset.rewards, added_at, 0)[:, None],
        terminals=np.insert(terminals, added_at, 0),
        timeouts=np.insert(timeouts, added_at, 1),
        action_space=ActionSpace.DISCRETE,
        action_size=dataset.n_actions,
    )


def import_mdp_dataset(
    source: ReplayBuffer,
    *,
    manifest: Manifest | None = None,
    n_actions: int | None = None,
    has_final_rows: bool = True,
    **arrays: NDArray[Any],
) -> TransitionSet:
    """A transition set of d3rlpy's episodes.

    Parameters
    ----------
    source
        An `MDPDataset` or any other replay buffer with discrete actions.
    manifest, n_actions
        The action catalogue, or the number of actions. d3rlpy's own count is not used: after a load it is the
        largest logged id plus one.
    has_final_rows
        Whether the last row of a truncated episode is only its final observation, as `export_mdp_dataset` writes it.
        If not, the row is a step, and the final observation is unknown and taken to be the row's own.
    arrays
        Further arrays of `TransitionSet.from_arrays`, such as `propensities` or `logged_mask`.

    Raises
    ------
    DataError
        If actions are not discrete, an episode has no step, or the arrays break the contract.
    """
    parts = [_episode_arrays(episode, has_final_rows) for episode in source.episodes]
    if not parts:
        raise DataError("The MDPDataset has no episode. Give one with at least one.")
    lengths = [len(part["actions"]) for part in parts]
    joined: dict[str, Any] = {
        name: np.concatenate([part[name] for part in parts]) for name in ("observations", "actions", "rewards")
    }
    final = {
        name: np.array([part[name] for part in parts]) for name in ("terminated", "truncated", "final_observations")
    }
    size = len(manifest.catalogue) if manifest else n_actions or 0
    final["final_action_mask"] = np.repeat(final["truncated"][:, None], size, axis=1)
    extra: dict[str, Any] = {**final, **arrays}
    return TransitionSet.from_arrays(
        **joined,
        episode_offsets=np.concatenate(([0], np.cumsum(lengths))),
        manifest=manifest,
        n_actions=n_actions,
        **extra,
    )


def write_mdp_file(path: Path, dataset: TransitionSet) -> None:
    """Export to d3rlpy's HDF5 file, atomically."""
    exported = export_mdp_dataset(dataset)
    with replaced_file(path) as temporary, temporary.open("w+b") as stream:
        exported.dump(stream)


def read_mdp_file(path: Path, **settings: Any) -> TransitionSet:
    """Import d3rlpy's HDF5 file; `settings` are those of `import_mdp_dataset`.

    Raises DataError if the file is missing or not one of d3rlpy's.
    """
    from d3rlpy.dataset import InfiniteBuffer, ReplayBuffer

    try:
        with path.open("rb") as stream:
            loaded = ReplayBuffer.load(stream, InfiniteBuffer())
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} is not an HDF5 file of d3rlpy's MDPDataset ({type(error).__name__}). Write one with `dump`."
        ) from None
    return import_mdp_dataset(loaded, **settings)


def _episode_arrays(episode: Any, has_final_rows: bool) -> dict[str, Any]:
    observations, actions = np.asarray(episode.observations), np.asarray(episode.actions)
    rewards = np.asarray(episode.rewards).reshape(-1)
    if actions.reshape(len(actions), -1).shape[1] != 1 or not np.issubdtype(actions.dtype, np.number):
        raise DataError("The MDPDataset has continuous actions. Dialogue policies need discrete ones.")
    terminated = bool(episode.terminated)
    n_steps = len(actions) - int(has_final_rows and not terminated)
    if n_steps < 1:
        raise DataError("A truncated episode of the MDPDataset has one row only: set has_final_rows to False.")
    final = np.zeros_like(observations[-1]) if terminated else observations[-1]
    return {
        "observations": observations[:n_steps],
        "actions": actions.reshape(-1)[:n_steps],
        "rewards": rewards[:n_steps],
        "terminated": terminated,
        "truncated": not terminated,
        "final_observations": final,
    }
