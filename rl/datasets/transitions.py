"""The transition set: logged dialogues as contiguous arrays that trainers and estimators read.

Here: a set as an object: made of one's own arrays, opened as a memory map, indexed and cut. Not here: names and places
of the arrays (`rl.datasets.layout`), their contract (`contract`), what describes them (`manifest`), how rows are made
from the marts (`build`) and written without holding them (`writer`), d3rlpy's format (`mdp`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rl.catalogue import ActionCatalogue, Strategy
from rl.datasets.contract import (
    as_stored,
    check_all_offsets,
    check_propensities,
    check_shapes,
    check_split,
    check_values,
    sizes_of,
)
from rl.datasets.layout import ARRAYS, ARRAYS_FILE, mapped_arrays, ranges
from rl.datasets.manifest import MANIFEST_FILE, Manifest, described, read_manifest
from rl.datasets.splits import selection_positions, validation_members
from rl.datasets.writer import TransitionSetWriter
from rl.errors import DataError
from rl.settings import RewardDefinition, RewardPart
from rl.types import Bool1D, Bool2D, Float1D, History, Int1D, Observations, Past

__all__ = [
    "ARRAYS",
    "MANIFEST_FILE",
    "NO_ITEM",
    "PROPENSITY_ESTIMATED",
    "PROPENSITY_LOGGED",
    "Manifest",
    "TransitionSet",
    "write_transition_set",
]

PROPENSITY_LOGGED = 0
PROPENSITY_ESTIMATED = 1
NO_ITEM = -1
"""`item_action` of a step that recommended nothing."""


@dataclass(frozen=True, eq=False)
class TransitionSet:
    """Logged episodes. Steps of an episode are contiguous and in order; arrays are read-only by convention.

    Attributes
    ----------
    observations : (N, D) float32
        What the policy saw before each agent turn.
    actions : (N,) int64
        Dense id of the logged strategy.
    logged_mask, action_mask : (N, A) bool
        What could be chosen at the time; the same under today's rules.
    rewards, reward_parts : (N,), (N, K) float32
        Reward per step in reward units; its parts, clipped, not weighted, in the order of `manifest.reward`.
    propensities, propensity_source : (N,) float32, int8
        Behavior policy's probability of the logged action, NaN where unknown; 0 logged, 1 estimated.
    policy_version, segment, state_bucket, item_action : (N,) int32
        Ids into the manifest's lists, -1 for none.
    episode_offsets : (E + 1,) int64
        Episode e has the rows `episode_offsets[e]:episode_offsets[e + 1]`.
    terminated, truncated : (E,) bool
        The dialogue ended or reached its turn limit; or only the log stopped it. Exactly one of them holds.
    started_at, customer_index, validation : (E,) int64 microseconds since 1970 UTC, int32, bool
        `validation` marks the episodes that judge policies; a customer is on one side only.
    is_customer_known : (E,) bool
        Whether the log names one customer throughout. Others count as customers of their own, and enter nothing that
        is released.
    final_observations, final_action_mask : (E, D) float32, (E, A) bool
        What followed the last step of a truncated episode; zeros and false otherwise.
    utterance_vectors, utterance_offsets : (U, d) float16, (N + 1,) int64
        `utterance_vectors[utterance_offsets[n]:utterance_offsets[n + 1]]` was said between the step before n
        (of the same episode) and step n; what came before n is all of that since the episode's first step.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.int64]
    logged_mask: Bool2D
    action_mask: Bool2D
    rewards: NDArray[np.float32]
    reward_parts: NDArray[np.float32]
    propensities: NDArray[np.float32]
    propensity_source: NDArray[np.int8]
    policy_version: NDArray[np.int32]
    segment: NDArray[np.int32]
    state_bucket: NDArray[np.int32]
    item_action: NDArray[np.int32]
    episode_offsets: NDArray[np.int64]
    terminated: Bool1D
    truncated: Bool1D
    started_at: NDArray[np.int64]
    customer_index: NDArray[np.int32]
    is_customer_known: Bool1D
    validation: Bool1D
    final_observations: NDArray[np.float32]
    final_action_mask: Bool2D
    utterance_vectors: NDArray[np.float16]
    utterance_offsets: NDArray[np.int64]
    manifest: Manifest = field(repr=False)

    @classmethod
    def from_arrays(
        cls,
        *,
        observations: NDArray[Any],
        actions: NDArray[Any],
        rewards: NDArray[Any],
        episode_offsets: NDArray[Any],
        manifest: Manifest | None = None,
        n_actions: int | None = None,
        validation_share: float = 0.4,
        **others: NDArray[Any] | None,
    ) -> TransitionSet:
        """Check arrays and hold them as a transition set.

        Only the named arrays are needed. The rest default to: all actions legal, propensities unknown, every
        episode terminated and of a customer of its own, `validation` by a stable hash of `customer_index`
        with `validation_share`, no history, and one reward part that is the reward. Without a `manifest`,
        `n_actions` gives actions named "action_0", ....

        Raises DataError (PropensityError for propensities) naming the first rows that break the contract.
        """
        unknown = set(others) - set(ARRAYS)
        if unknown:
            raise DataError(f"No such arrays in a transition set: {', '.join(sorted(unknown))}. Remove them.")
        given = {name: array for name, array in others.items() if array is not None}
        given |= {"observations": observations, "actions": actions, "rewards": rewards}
        given["episode_offsets"] = episode_offsets
        manifest = manifest or _plain_manifest(n_actions, given)
        if "reward_parts" not in given:
            reward = RewardDefinition(unit=manifest.reward.unit, parts=(RewardPart(name="conversion_value"),))
            manifest = manifest.model_copy(update={"reward": reward})
        arrays = _with_defaults(given, len(manifest.catalogue), validation_share)
        sizes = sizes_of(arrays, manifest)
        check_shapes(arrays, sizes)
        check_all_offsets(arrays)
        for part in ranges(arrays):
            check_values(part, manifest)
        check_split(arrays["customer_index"], arrays["validation"])
        manifest = described(manifest, sizes, lambda name: [arrays[name].reshape(-1).data])
        return cls(**arrays, manifest=manifest)

    @classmethod
    def open(cls, folder: Path) -> TransitionSet:
        """Open a stored set as a memory map: immediate, and shared between processes.

        Shapes are checked; values were checked when it was written. Raises DataError if a file is missing,
        unreadable or cut off.
        """
        manifest = read_manifest(folder / MANIFEST_FILE)
        arrays = mapped_arrays(folder / ARRAYS_FILE)
        missing = set(ARRAYS) - set(arrays)
        if missing:
            raise DataError(f"{folder / ARRAYS_FILE} lacks {', '.join(sorted(missing))}. Build the data set again.")
        arrays = {name: arrays[name] for name in ARRAYS}
        check_shapes(arrays, sizes_of(arrays, manifest))
        return cls(**arrays, manifest=manifest)

    def __len__(self) -> int:
        return self.n_steps

    @property
    def n_steps(self) -> int:
        """N."""
        return len(self.actions)

    @property
    def n_episodes(self) -> int:
        """E."""
        return len(self.terminated)

    @property
    def n_actions(self) -> int:
        """A: the whole catalogue, selectable or not."""
        return int(self.logged_mask.shape[1])

    @property
    def observation_size(self) -> int:
        """D."""
        return int(self.observations.shape[1])

    @cached_property
    def episode_index(self) -> NDArray[np.int64]:
        """(N,) episode of each step."""
        return np.repeat(np.arange(self.n_episodes), np.diff(self.episode_offsets))

    @cached_property
    def step_index(self) -> NDArray[np.int64]:
        """(N,) zero-based position of each step in its episode."""
        return np.arange(self.n_steps) - self.episode_offsets[self.episode_index]

    @cached_property
    def is_last(self) -> Bool1D:
        """(N,) whether the step is the last of its episode."""
        last = np.zeros(self.n_steps, dtype=bool)
        last[self.episode_offsets[1:] - 1] = True
        return last

    @cached_property
    def returns(self) -> NDArray[np.float64]:
        """(E,) plain sum of rewards of each episode, in reward units."""
        sums = np.add.reduceat(self.rewards, self.episode_offsets[:-1], dtype=np.float64)
        return cast("NDArray[np.float64]", sums)

    def batch_observations(
        self, rows: Int1D | Bool1D | slice, with_history: bool = False, with_past: bool = False
    ) -> Observations:
        """The observations of some rows, as a view where `rows` is a slice; with `with_history`, also the utterances
        before each of them; with `with_past`, also the decisions before each of them in its episode."""
        history = self._history(_row_numbers(rows, self.n_steps)) if with_history else None
        past = self._past(_row_numbers(rows, self.n_steps)) if with_past else None
        return Observations(np.asarray(self.observations[rows]), history, past)

    def select(self, episodes: Int1D | Bool1D) -> TransitionSet:
        """The chosen episodes in the order given, as a copy; they may repeat. The manifest stays the whole's.

        Raises DataError if none is chosen.
        """
        chosen = np.arange(self.n_episodes)[episodes]
        if len(chosen) == 0:
            raise DataError("No episode was selected. Use a larger window, or another validation_share.")
        lengths = np.diff(self.episode_offsets)[chosen]
        rows = _ragged_rows(self.episode_offsets[chosen], lengths)
        utterance_counts = np.diff(self.utterance_offsets)[rows]
        utterances = _ragged_rows(self.utterance_offsets[rows], utterance_counts)
        axes = {"N": rows, "E": chosen, "U": utterances}
        arrays = {
            name: np.asarray(getattr(self, name)[axes[dims[0]]])
            for name, (_, dims) in ARRAYS.items()
            if dims[0] in axes
        }
        arrays["episode_offsets"] = _offsets(lengths)
        arrays["utterance_offsets"] = _offsets(utterance_counts)
        return TransitionSet(**arrays, manifest=self.manifest)

    def training(self) -> TransitionSet:
        """The episodes that trainers may see, as a copy in memory; `rl.datasets.chunks` copies a part at a time."""
        return self.select(~self.validation)

    def held_out(self) -> TransitionSet:
        """The episodes that judge policies and never train them, as a copy in memory."""
        return self.select(self.validation)

    def selection_split(self, share: float) -> tuple[Bool1D, Bool1D]:
        """(E,) and (E,): the episodes to learn from, and those to choose checkpoints and settings by.

        Customers that train are parted once more by a hash of `customer_index`, so that a choice is made on customers
        that nothing was fitted on and the held-out ones are not touched. `share` is the expected share of training
        customers chosen by.

        Raises DataError if one part would be empty.
        """
        chosen_by = (self._selection_positions < share) & ~self.validation
        training = ~chosen_by & ~self.validation
        if not chosen_by.any() or not training.any():
            raise DataError(
                f"Of {int((~self.validation).sum())} training episodes, a selection share of {share:g} leaves "
                f"{int(training.sum())} to learn from and {int(chosen_by.sum())} to choose by; both are needed. Take "
                "a larger log, a share nearer to 0.5, or of a trainer `selection_share` 0, which chooses nothing."
            )
        return training, chosen_by

    @cached_property
    def _selection_positions(self) -> Float1D:
        """(E,) in [0, 1), the same for a customer's episodes. A million customers take about a second to hash."""
        customers, index = np.unique(self.customer_index, return_inverse=True)
        return selection_positions(map(str, customers))[index]

    def with_propensities(self, estimated: Float1D) -> TransitionSet:
        """This set with (N,) estimated probabilities where the log had none.

        Raises PropensityError if an estimate that is used lies outside (0, 1].
        """
        unknown = np.isnan(self.propensities)
        propensities = np.where(unknown, estimated, self.propensities).astype(np.float32)
        source = np.where(unknown, PROPENSITY_ESTIMATED, self.propensity_source).astype(np.int8)
        check_propensities(propensities)
        arrays = self.arrays() | {"propensities": propensities, "propensity_source": source}
        return TransitionSet(**arrays, manifest=self.manifest)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name, as they are held."""
        return {name: getattr(self, name) for name in ARRAYS}

    def _first_rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of each row's episode. Not by `episode_index`, which is as long as the set: a batch asks for a few rows."""
        return self.episode_offsets[np.searchsorted(self.episode_offsets, rows, side="right") - 1]

    def _past(self, rows: NDArray[np.int64]) -> Past:
        first = self._first_rows(rows)
        before = _ragged_rows(first, rows - first)
        return Past(np.asarray(self.observations[before]), np.asarray(self.actions[before]), _offsets(rows - first))

    def _history(self, rows: NDArray[np.int64]) -> History:
        first = self.utterance_offsets[self._first_rows(rows)]
        counts = self.utterance_offsets[rows + 1] - first
        vectors = np.asarray(self.utterance_vectors[_ragged_rows(first, counts)])
        return History(vectors, _offsets(counts))


def write_transition_set(folder: Path, dataset: TransitionSet) -> None:
    """Write the set as `manifest.json` and `transitions.safetensors`, replacing `folder` as a whole.

    Counts and hashes of the manifest are those of the rows that are written. Raises DataError if they break the
    contract or the disk is full.
    """
    writing = TransitionSetWriter.replacing(
        folder,
        dataset.manifest,
        n_steps=dataset.n_steps,
        n_episodes=dataset.n_episodes,
        observation_size=dataset.observation_size,
    )
    with writing as writer:
        for part in ranges(dataset.arrays()):
            writer.add(part.arrays)


def _plain_manifest(n_actions: int | None, arrays: dict[str, NDArray[Any]]) -> Manifest:
    if n_actions is None:
        if "logged_mask" not in arrays:
            raise DataError("Without a manifest, from_arrays needs n_actions: a log may not show every action.")
        n_actions = arrays["logged_mask"].shape[1]
    catalogue = ActionCatalogue(tuple(Strategy(f"action_{i}", "", i, "selectable") for i in range(n_actions)))
    reward = RewardDefinition(unit="reward", parts=(RewardPart(name="conversion_value"),))
    return Manifest(catalogue=tuple(catalogue.to_json()), reward=reward)


def _with_defaults(given: dict[str, NDArray[Any]], n_actions: int, validation_share: float) -> dict[str, NDArray[Any]]:
    arrays = {name: as_stored(name, given[name]) for name in ARRAYS if name in given}
    n_steps, n_episodes = len(arrays["actions"]), len(arrays["episode_offsets"]) - 1
    defaults: dict[str, Any] = {
        "logged_mask": lambda: np.ones((n_steps, n_actions), dtype=bool),
        "action_mask": lambda: arrays["logged_mask"],
        "reward_parts": lambda: arrays["rewards"][:, None],
        "propensities": lambda: np.full(n_steps, np.nan, dtype=np.float32),
        "propensity_source": lambda: np.full(n_steps, PROPENSITY_LOGGED, dtype=np.int8),
        "policy_version": lambda: np.full(n_steps, -1, dtype=np.int32),
        "segment": lambda: np.full(n_steps, -1, dtype=np.int32),
        "state_bucket": lambda: np.full(n_steps, -1, dtype=np.int32),
        "item_action": lambda: np.full(n_steps, NO_ITEM, dtype=np.int32),
        "truncated": lambda: ~arrays["terminated"] if "terminated" in arrays else np.zeros(n_episodes, dtype=bool),
        "terminated": lambda: ~arrays["truncated"],
        "started_at": lambda: np.zeros(n_episodes, dtype=np.int64),
        "customer_index": lambda: np.arange(n_episodes, dtype=np.int32),
        "is_customer_known": lambda: np.ones(n_episodes, dtype=bool),
        "validation": lambda: validation_members(map(str, arrays["customer_index"]), validation_share),
        "final_observations": lambda: np.zeros((n_episodes, arrays["observations"].shape[-1]), np.float32),
        "final_action_mask": lambda: np.zeros((n_episodes, n_actions), dtype=bool),
        "utterance_vectors": lambda: np.zeros((0, 0), dtype=np.float16),
        "utterance_offsets": lambda: np.zeros(n_steps + 1, dtype=np.int64),
    }
    for name, default in defaults.items():
        if name not in arrays:
            arrays[name] = default()
    return {name: arrays[name] for name in ARRAYS}


def _row_numbers(rows: Int1D | Bool1D | slice, n: int) -> NDArray[np.int64]:
    """The chosen of n rows as numbers from 0; `np.arange(n)[rows]` would take 160 MB of 20 million for any batch."""
    if isinstance(rows, slice):
        return np.arange(*rows.indices(n))
    if rows.dtype == bool:
        return np.flatnonzero(rows)
    return np.where(rows < 0, rows + n, rows)


def _offsets(lengths: Int1D) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def _ragged_rows(starts: Int1D, lengths: Int1D) -> NDArray[np.int64]:
    """Row numbers of the ranges `starts[i]:starts[i] + lengths[i]`, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(np.sum(lengths)))
