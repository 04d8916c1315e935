"""What the arrays of a transition set must keep, and the messages for arrays that do not.

Here: shapes, values, offsets, the split. The same checks for arrays in memory and for a set written range by range:
they see whole consecutive episodes, and name rows of the whole set. Not here: what the arrays are
(`rl.datasets.layout`), order within the marts (`rl.datasets.build`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.datasets.layout import ARRAYS, Range, shape_of
from rl.datasets.manifest import Manifest
from rl.errors import DataError, PropensityError
from rl.types import Bool1D, Float1D, Int1D

_FINITE_BY_STEP = ("observations", "rewards", "reward_parts")


def sizes_of(arrays: Mapping[str, NDArray[Any]], manifest: Manifest) -> dict[str, int]:
    """N, E, A, D, K, U and d. Raises DataError if there is no step, or an array has another number of axes."""
    n_steps, n_episodes = len(arrays["actions"]), len(arrays["episode_offsets"]) - 1
    if n_episodes < 1 or n_steps < 1:
        raise DataError(f"The transition set has {n_episodes} episodes and {n_steps} steps; it needs one of each.")
    if arrays["observations"].ndim != 2 or arrays["utterance_vectors"].ndim != 2:
        raise DataError("observations and utterance_vectors must have two axes: rows and features.")
    return {
        "N": n_steps,
        "E": n_episodes,
        "A": len(manifest.catalogue),
        "D": arrays["observations"].shape[1],
        "K": len(manifest.reward.parts),
        "U": len(arrays["utterance_vectors"]),
        "d": arrays["utterance_vectors"].shape[1],
    }


def as_stored(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """The array with its dtype in a set, contiguous. Raises DataError if whole numbers would become others."""
    dtype = np.dtype(ARRAYS[name][0])
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused with its row
        stored = np.ascontiguousarray(array, dtype=dtype)
    if dtype.kind == "i" and np.asarray(array).dtype != dtype:
        changed = stored != array
        if changed.any():
            first = np.flatnonzero(changed.reshape(-1))[0]
            raise DataError(
                f"{int(changed.sum())} of {changed.size} numbers of {name} are no whole numbers that fit {dtype}; the "
                f"first is at {first}. Correct the array."
            )
    return stored


def check_shapes(arrays: Mapping[str, NDArray[Any]], sizes: Mapping[str, int]) -> None:
    """Raise DataError at the first array that has another dtype or shape than its sizes say."""
    for name, (dtype, dims) in ARRAYS.items():
        expected = shape_of(dims, sizes)
        if arrays[name].shape != expected or arrays[name].dtype != dtype:
            raise DataError(
                f"{name} is {arrays[name].dtype} {arrays[name].shape}; it must be {dtype} "
                f"{expected}, that is ({', '.join(dims)}). Correct the array, or the manifest's catalogue "
                "and reward parts."
            )


def check_all_offsets(arrays: Mapping[str, NDArray[Any]], first_episode: int = 0, first_step: int = 0) -> None:
    """Raise DataError if an episode has no step, or offsets fall or do not cover all rows."""
    n_steps, n_utterances = len(arrays["actions"]), len(arrays["utterance_vectors"])
    _check_offsets(arrays["episode_offsets"], n_steps, "episode_offsets", 1, first_episode)
    _check_offsets(arrays["utterance_offsets"], n_utterances, "utterance_offsets", 0, first_step)


def check_values(part: Range, manifest: Manifest) -> None:
    """Raise DataError (PropensityError for propensities) naming the first rows of a range that break the contract.

    The range's shapes must be right.
    """
    arrays, step, episode = part.arrays, part.first_step, part.first_episode
    check_all_offsets(arrays, episode, step)
    for name in _FINITE_BY_STEP:
        _check_finite(arrays[name], name, step)
    _check_finite(arrays["final_observations"], "final_observations", episode)
    _check_finite(arrays["utterance_vectors"], "utterance_vectors", part.first_utterance)
    _check_actions(arrays, step)
    check_propensities(arrays["propensities"], step)
    _refuse_rows(
        ~(arrays["terminated"] ^ arrays["truncated"]),
        "an episode must be either terminated or truncated, not both and not neither",
        episode,
    )
    weights = np.array([term.weight for term in manifest.reward.parts], dtype=np.float64)
    expected = arrays["reward_parts"] @ weights
    _refuse_rows(
        ~np.isclose(arrays["rewards"], expected, rtol=1e-4, atol=1e-4),
        "the reward is not the weighted sum of its parts",
        step,
    )


def check_propensities(propensities: Float1D, first_row: int = 0) -> None:
    """Raise PropensityError if one lies outside (0, 1]; NaN means unknown."""
    bad = ~np.isnan(propensities) & ~((propensities > 0) & (propensities <= 1))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise PropensityError(
            f"{int(bad.sum())} of {_rows(bad, 'propensities', first_row)} lie outside (0, 1]; the first is row "
            f"{first_row + first} with {propensities[first]:g}. Check the `propensity` column of fct_transitions, or "
            "leave it empty: the behavior model then estimates it."
        )


def check_split(customers: Int1D, validation: Bool1D) -> None:
    """Raise DataError if a customer has episodes on both sides; (E,) arrays of the whole set."""
    both = np.intersect1d(customers[validation], customers[~validation])
    _refuse_rows(np.isin(customers, both), "a customer has episodes on both sides of the validation split", 0)


def _check_finite(array: NDArray[Any], name: str, first_row: int) -> None:
    bad = ~np.isfinite(array)
    _refuse_rows(bad.any(axis=1) if bad.ndim == 2 else bad, f"{name} is not finite", first_row)


def _check_actions(arrays: Mapping[str, NDArray[Any]], first_row: int) -> None:
    actions, n_actions = arrays["actions"], arrays["logged_mask"].shape[1]
    _refuse_rows((actions < 0) | (actions >= n_actions), f"the action is no id of the {n_actions} actions", first_row)
    _refuse_rows(~np.asarray(arrays["action_mask"].any(axis=1)), "no action is legal (action_mask)", first_row)
    chosen = np.take_along_axis(arrays["logged_mask"], actions[:, None], axis=1)[:, 0]
    _refuse_rows(~chosen, "the logged action lies outside logged_mask", first_row)


def _check_offsets(offsets: Int1D, total: int, name: str, smallest: int, first_row: int) -> None:
    steps = np.diff(offsets)
    _refuse_rows(steps < np.int64(smallest), f"{name} must grow by at least {smallest} at each entry", first_row)
    if offsets[0] != 0 or offsets[-1] != total:
        raise DataError(f"{name} runs from {offsets[0]} to {offsets[-1]}; it must run from 0 to {total}.")


def _refuse_rows(bad: Bool1D, what: str, first_row: int) -> None:
    if bad.any():
        rows = np.flatnonzero(bad)
        shown = ", ".join(map(str, rows[:3] + first_row))
        raise DataError(
            f"{len(rows)} of {_rows(bad, 'rows', first_row)}: {what}; first at {shown}. Correct the arrays at these "
            "rows."
        )


def _rows(bad: Bool1D, what: str, first_row: int) -> str:
    return f"{len(bad)} {what}" + (f" from row {first_row} on" if first_row else "")
