"""The transition set: logged dialogues as contiguous arrays that trainers and estimators read.

Here: the arrays, their contract, the folder format (`manifest.json` and `transitions.safetensors`), opening
it as a memory map. Not here: how rows are made from the marts (`rl.datasets.build`), d3rlpy's format
(`rl.datasets.mdp`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors.numpy import save_file

from rl.catalogue import ActionCatalogue, Strategy
from rl.datasets.splits import validation_members
from rl.errors import DataError, PropensityError
from rl.files import content_hash, replaced_folder, write_json
from rl.settings import RewardDefinition, RewardPart, Settings
from rl.types import Bool1D, Bool2D, Float1D, History, Int1D, Observations

MANIFEST_FILE = "manifest.json"
ARRAYS_FILE = "transitions.safetensors"

PROPENSITY_LOGGED = 0
PROPENSITY_ESTIMATED = 1
NO_ITEM = -1
"""`item_action` of a step that recommended nothing."""

# N steps, E episodes, A actions, D observation features, K reward parts, U utterances of d dimensions.
ARRAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "observations": ("float32", ("N", "D")),
    "actions": ("int64", ("N",)),
    "logged_mask": ("bool", ("N", "A")),
    "action_mask": ("bool", ("N", "A")),
    "rewards": ("float32", ("N",)),
    "reward_parts": ("float32", ("N", "K")),
    "propensities": ("float32", ("N",)),
    "propensity_source": ("int8", ("N",)),
    "policy_version": ("int32", ("N",)),
    "segment": ("int32", ("N",)),
    "state_bucket": ("int32", ("N",)),
    "item_action": ("int32", ("N",)),
    "episode_offsets": ("int64", ("E+1",)),
    "terminated": ("bool", ("E",)),
    "truncated": ("bool", ("E",)),
    "started_at": ("int64", ("E",)),
    "customer_index": ("int32", ("E",)),
    "is_customer_known": ("bool", ("E",)),
    "validation": ("bool", ("E",)),
    "final_observations": ("float32", ("E", "D")),
    "final_action_mask": ("bool", ("E", "A")),
    "utterance_vectors": ("float16", ("U", "d")),
    "utterance_offsets": ("int64", ("N+1",)),
}

_SAFETENSORS_DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
    "BOOL": "bool",
}


class Manifest(Settings):
    """What the arrays mean and where they came from. No customer text, no ids of customers or dialogues."""

    catalogue: tuple[dict[str, Any], ...]
    """Rows of the action catalogue in id order; `rl.catalogue.ActionCatalogue.from_json` reads them."""
    reward: RewardDefinition = RewardDefinition()
    training_discount: float = 0.97
    turn_limit: int = 12
    """Agent turns after which a dialogue is ended."""
    encoder_id: str = ""
    """The text encoder behind the observations; empty where they are not text."""
    segments: tuple[str, ...] = ()
    """Names by `segment` id."""
    policy_versions: tuple[str, ...] = ()
    """Names by `policy_version` id."""
    state_buckets: tuple[str, ...] = ()
    """Names by `state_bucket` id."""
    items: tuple[str, ...] = ()
    """Names by `item_action` id."""
    window: tuple[str, str] = ("", "")
    """First and last dialogue day, ISO dates; empty where the set has no days."""
    counts: dict[str, int] = Field(default_factory=dict)
    """`dialogues`, `steps`, and `excluded_<reason>` for each reason that kept dialogues out."""
    feature_layout: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """Columns [start, stop) of the observation by feature name."""
    code_revision: str = ""
    privacy_mode: Literal["individual", "aggregate"] = "individual"
    schema_hash: str = ""
    """Equal for sets whose observations and actions mean the same; filled by `TransitionSet.from_arrays`."""
    dataset_hash: str = ""
    """Hash of the arrays and of what they mean; filled by `TransitionSet.from_arrays`."""

    @property
    def action_catalogue(self) -> ActionCatalogue:
        """The catalogue as an object."""
        return ActionCatalogue.from_json(self.catalogue)


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
        _check_shapes(arrays, _sizes(arrays, manifest))
        _check_values(arrays, manifest)
        manifest = manifest.model_copy(update=_described(arrays, manifest))
        return cls(**arrays, manifest=manifest)

    @classmethod
    def open(cls, folder: Path) -> TransitionSet:
        """Open a stored set as a memory map: immediate, and shared between processes.

        Shapes are checked; values were checked when it was written. Raises DataError if a file is missing,
        unreadable or cut off.
        """
        manifest = _read_manifest(folder / MANIFEST_FILE)
        arrays = _mapped_arrays(folder / ARRAYS_FILE)
        missing = set(ARRAYS) - set(arrays)
        if missing:
            raise DataError(f"{folder / ARRAYS_FILE} lacks {', '.join(sorted(missing))}. Build the data set again.")
        arrays = {name: arrays[name] for name in ARRAYS}
        _check_shapes(arrays, _sizes(arrays, manifest))
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
        sums = np.add.reduceat(self.rewards.astype(np.float64), self.episode_offsets[:-1])
        return cast("NDArray[np.float64]", sums)

    def batch_observations(self, rows: Int1D | Bool1D | slice, with_history: bool = False) -> Observations:
        """The observations of some rows; with `with_history`, also the utterances before each of them."""
        chosen = np.arange(self.n_steps)[rows]
        history = self._history(chosen) if with_history else None
        return Observations(np.asarray(self.observations[chosen]), history)

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
        """The episodes that trainers may see."""
        return self.select(~self.validation)

    def held_out(self) -> TransitionSet:
        """The episodes that judge policies and never train them."""
        return self.select(self.validation)

    def with_propensities(self, estimated: Float1D) -> TransitionSet:
        """This set with (N,) estimated probabilities where the log had none.

        Raises PropensityError if an estimate that is used lies outside (0, 1].
        """
        unknown = np.isnan(self.propensities)
        propensities = np.where(unknown, estimated, self.propensities).astype(np.float32)
        source = np.where(unknown, PROPENSITY_ESTIMATED, self.propensity_source).astype(np.int8)
        _check_propensities(propensities)
        arrays = self._arrays() | {"propensities": propensities, "propensity_source": source}
        return TransitionSet(**arrays, manifest=self.manifest)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in ARRAYS}

    def _history(self, rows: NDArray[np.int64]) -> History:
        first = self.utterance_offsets[self.episode_offsets[self.episode_index[rows]]]
        counts = self.utterance_offsets[rows + 1] - first
        vectors = np.asarray(self.utterance_vectors[_ragged_rows(first, counts)])
        return History(vectors, _offsets(counts))


def write_transition_set(folder: Path, dataset: TransitionSet, also: Callable[[Path], None] | None = None) -> None:
    """Write the set as `manifest.json` and `transitions.safetensors`, replacing `folder` as a whole.

    `also` may write more into the new folder before it is put in place.
    """
    with replaced_folder(folder) as temporary:
        save_file(
            {name: np.ascontiguousarray(array) for name, array in dataset._arrays().items()},
            temporary / ARRAYS_FILE,
        )
        write_json(temporary / MANIFEST_FILE, dataset.manifest.model_dump(mode="json"))
        if also is not None:
            also(temporary)


def _plain_manifest(n_actions: int | None, arrays: dict[str, NDArray[Any]]) -> Manifest:
    if n_actions is None:
        if "logged_mask" not in arrays:
            raise DataError("Without a manifest, from_arrays needs n_actions: a log may not show every action.")
        n_actions = arrays["logged_mask"].shape[1]
    catalogue = ActionCatalogue(tuple(Strategy(f"action_{i}", "", i, "selectable") for i in range(n_actions)))
    reward = RewardDefinition(unit="reward", parts=(RewardPart(name="conversion_value"),))
    return Manifest(catalogue=tuple(catalogue.to_json()), reward=reward)


def _with_defaults(given: dict[str, NDArray[Any]], n_actions: int, validation_share: float) -> dict[str, NDArray[Any]]:
    arrays = {
        name: np.ascontiguousarray(given[name], dtype=dtype) for name, (dtype, _) in ARRAYS.items() if name in given
    }
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


def _sizes(arrays: dict[str, NDArray[Any]], manifest: Manifest) -> dict[str, int]:
    n_steps, n_episodes = len(arrays["actions"]), len(arrays["episode_offsets"]) - 1
    if n_episodes < 1 or n_steps < 1:
        raise DataError(f"The transition set has {n_episodes} episodes and {n_steps} steps; it needs one of each.")
    if arrays["observations"].ndim != 2 or arrays["utterance_vectors"].ndim != 2:
        raise DataError("observations and utterance_vectors must have two axes: rows and features.")
    return {
        "N": n_steps,
        "N+1": n_steps + 1,
        "E": n_episodes,
        "E+1": n_episodes + 1,
        "A": len(manifest.catalogue),
        "D": arrays["observations"].shape[1],
        "K": len(manifest.reward.parts),
        "U": len(arrays["utterance_vectors"]),
        "d": arrays["utterance_vectors"].shape[1],
    }


def _check_shapes(arrays: dict[str, NDArray[Any]], sizes: dict[str, int]) -> None:
    for name, (dtype, dims) in ARRAYS.items():
        expected = tuple(sizes[dim] for dim in dims)
        if arrays[name].shape != expected or arrays[name].dtype != dtype:
            raise DataError(
                f"{name} is {arrays[name].dtype} {arrays[name].shape}; it must be {dtype} "
                f"{expected}, that is ({', '.join(dims)}). Correct the array, or the manifest's catalogue "
                "and reward parts."
            )


def _check_values(arrays: dict[str, NDArray[Any]], manifest: Manifest) -> None:
    _check_offsets(arrays["episode_offsets"], len(arrays["actions"]), "episode_offsets", smallest=1)
    _check_offsets(arrays["utterance_offsets"], len(arrays["utterance_vectors"]), "utterance_offsets", smallest=0)
    for name in ("observations", "rewards", "reward_parts", "final_observations", "utterance_vectors"):
        bad = ~np.isfinite(arrays[name])
        _refuse_rows(bad.any(axis=1) if bad.ndim == 2 else bad, f"{name} is not finite")
    _check_actions(arrays)
    _check_propensities(arrays["propensities"])
    _refuse_rows(
        ~(arrays["terminated"] ^ arrays["truncated"]),
        "an episode must be either terminated or truncated, not both and not neither",
    )
    weights = np.array([part.weight for part in manifest.reward.parts], dtype=np.float64)
    expected = arrays["reward_parts"] @ weights
    _refuse_rows(
        ~np.isclose(arrays["rewards"], expected, rtol=1e-4, atol=1e-4),
        "the reward is not the weighted sum of its parts",
    )
    _check_split(arrays["customer_index"], arrays["validation"])


def _check_actions(arrays: dict[str, NDArray[Any]]) -> None:
    actions, n_actions = arrays["actions"], arrays["logged_mask"].shape[1]
    _refuse_rows((actions < 0) | (actions >= n_actions), f"the action is no id of the {n_actions} actions")
    _refuse_rows(arrays["action_mask"].sum(axis=1) == 0, "no action is legal (action_mask)")
    chosen = np.take_along_axis(arrays["logged_mask"], actions[:, None], axis=1)[:, 0]
    _refuse_rows(~chosen, "the logged action lies outside logged_mask")


def _check_propensities(propensities: Float1D) -> None:
    bad = ~np.isnan(propensities) & ~((propensities > 0) & (propensities <= 1))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise PropensityError(
            f"{int(bad.sum())} of {len(propensities)} propensities lie outside (0, 1]; the first is row "
            f"{first} with {propensities[first]:g}. Check the `propensity` column of fct_transitions, or "
            "leave it empty: the behavior model then estimates it."
        )


def _check_offsets(offsets: Int1D, total: int, name: str, smallest: int) -> None:
    steps = np.diff(offsets)
    _refuse_rows(steps < np.int64(smallest), f"{name} must grow by at least {smallest} at each entry")
    if offsets[0] != 0 or offsets[-1] != total:
        raise DataError(f"{name} runs from {offsets[0]} to {offsets[-1]}; it must run from 0 to {total}.")


def _check_split(customers: Int1D, validation: Bool1D) -> None:
    both = np.intersect1d(customers[validation], customers[~validation])
    _refuse_rows(np.isin(customers, both), "a customer has episodes on both sides of the validation split")


def _refuse_rows(bad: Bool1D, what: str) -> None:
    if bad.any():
        rows = np.flatnonzero(bad)
        shown = ", ".join(map(str, rows[:3]))
        raise DataError(f"{len(rows)} of {len(bad)} rows: {what}; first at {shown}. Correct the arrays at these rows.")


def _described(arrays: dict[str, NDArray[Any]], manifest: Manifest) -> dict[str, Any]:
    """The fields of the manifest that follow from the arrays."""
    counts = {"dialogues": len(arrays["terminated"]), "steps": len(arrays["actions"])}
    meaning = manifest.model_dump(
        mode="json", include={"catalogue", "turn_limit", "encoder_id", "segments", "feature_layout"}
    )
    schema = content_hash({"arrays": ARRAYS, "observation_size": arrays["observations"].shape[1], **meaning})
    digest = hashlib.blake2b(digest_size=16)
    described = manifest.model_dump(mode="json", exclude={"dataset_hash", "schema_hash", "code_revision", "counts"})
    digest.update(json.dumps(described, sort_keys=True).encode())
    for name, array in arrays.items():
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.reshape(-1).data)
    return {
        "counts": {**manifest.counts, **counts},
        "schema_hash": schema,
        "dataset_hash": digest.hexdigest(),
    }


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise DataError(f"There is no data set at {path.parent}. Build one with rl.datasets.build.") from None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise DataError(f"{path} does not read as a manifest, first at `{where}`. Build the data set again.") from None


def _mapped_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of a safetensors file (8 bytes length, JSON header, data) as views of one memory map."""
    try:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        header_size = int.from_bytes(raw[:8].tobytes(), "little")
        header = json.loads(raw[8 : 8 + header_size].tobytes())
        header.pop("__metadata__", None)
        return {name: _view(raw[8 + header_size :], entry) for name, entry in header.items()}
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Build the data set again.") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is cut off or not a safetensors file. Build the data set again.") from None


def _view(data: NDArray[np.uint8], entry: dict[str, Any]) -> NDArray[Any]:
    start, stop = entry["data_offsets"]
    dtype = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]])
    return np.asarray(data[start:stop]).view(dtype).reshape(entry["shape"])


def _offsets(lengths: Int1D) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)


def _ragged_rows(starts: Int1D, lengths: Int1D) -> NDArray[np.int64]:
    """Row numbers of the ranges `starts[i]:starts[i] + lengths[i]`, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(np.sum(lengths)))
