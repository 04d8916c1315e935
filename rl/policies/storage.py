"""What all policies of this project share: checked inputs, and a folder of JSON and safetensors to live in.

Here: `StoredPolicy`, which a policy inherits to get both, and `load_policy`, which finds the class by the
`kind` in policy.json. Not here: any rule of choosing actions, and the registry's bundle (`registry.bundle`).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from rl.errors import PolicyError
from rl.files import write_json
from rl.types import Bool2D, Float2D, Observations

FORMAT_VERSION = 2
POLICY_FILE = "policy.json"
ARRAYS_FILE = "policy.safetensors"

_KINDS: dict[str, type[StoredPolicy]] = {}


class StoredPolicy(ABC):
    """A policy over A actions that reads D observation features.

    A subclass names its `kind`, computes `_probabilities` from inputs that were already checked, and says
    what of it is stored (`fields`, `arrays`) and how it is rebuilt (`from_state`). It joins `load_policy` by
    being defined.
    """

    kind: ClassVar[str]
    reads_history = False
    """Whether it reads `Observations.history`."""
    reads_past = False
    """Whether it reads `Observations.past`."""

    def __init__(self, name: str, n_actions: int, observation_size: int) -> None:
        self.name = name
        self.n_actions = n_actions
        self.observation_size = observation_size

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _KINDS[cls.kind] = cls

    @abstractmethod
    def _probabilities(self, observations: Observations, action_mask: Bool2D) -> Float2D:
        """B observations, (B, A) → (B, A) float64 of inputs that fit."""

    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """What of the policy is stored as JSON, beside its name and sizes."""

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What of the policy is stored as arrays."""

    @classmethod
    @abstractmethod
    def from_state(cls, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> StoredPolicy:
        """Rebuild the policy from `document()` and `arrays()`."""

    def action_probabilities(self, observations: Observations, action_mask: Bool2D) -> Float2D:
        """(B, D), (B, A) → (B, A) float64; rows sum to 1 and are 0 where masked.

        Raises PolicyError if the observation width or the mask does not fit, or a row has no legal action.
        """
        mask = np.asarray(action_mask, dtype=bool)
        self._check(observations, mask)
        return self._probabilities(observations, mask)

    def document(self) -> dict[str, Any]:
        """The content of policy.json."""
        return {
            "format": FORMAT_VERSION,
            "kind": self.kind,
            "name": self.name,
            "n_actions": self.n_actions,
            "observation_size": self.observation_size,
            **self.fields(),
        }

    def save(self, folder: Path) -> None:
        """Write `policy.json` and `policy.safetensors` into an empty or new folder; no pickles."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays().items()}
        save_file(arrays, folder / ARRAYS_FILE)
        write_json(folder / POLICY_FILE, self.document())

    def _check(self, observations: Observations, mask: Bool2D) -> None:
        state = np.asarray(observations.state)
        for name in ("history", "past"):
            if getattr(self, f"reads_{name}") and getattr(observations, name) is None:
                raise PolicyError(
                    f"Policy '{self.name}' reads the {name} of each dialogue, and the observations lack it. Make them "
                    f"with `batch_observations(rows, with_{name}=True)` or with the dialogue encoder."
                )
        if state.ndim != 2 or state.shape[1] != self.observation_size:
            raise PolicyError(
                f"Policy '{self.name}' reads {self.observation_size} observation features and was given an "
                f"array of shape {state.shape}. Encode with the settings of its training."
            )
        if mask.shape != (len(state), self.n_actions):
            raise PolicyError(
                f"Policy '{self.name}' has {self.n_actions} actions and was given a mask of shape "
                f"{mask.shape} for {len(state)} observations. Use the action catalogue of its training."
            )
        without_action = np.flatnonzero(~mask.any(axis=1))
        if len(without_action):
            raise PolicyError(
                f"{len(without_action)} of {len(mask)} rows have no legal action; the first is row "
                f"{without_action[0]}. Allow the fallback strategy of the catalogue there."
            )


def load_policy(folder: Path) -> StoredPolicy:
    """Read the policy that `StoredPolicy.save` wrote into `folder`.

    Raises PolicyError if a file is missing, unreadable or of an unknown kind or format.
    """
    folder = Path(folder)
    try:
        document = json.loads((folder / POLICY_FILE).read_text())
        arrays = load_file(folder / ARRAYS_FILE)
    except FileNotFoundError as error:
        raise PolicyError(
            f"There is no policy in {folder}: {Path(str(error.filename or ARRAYS_FILE)).name} is missing. "
            "Train it, or correct the path."
        ) from None
    except Exception as error:  # JSON and safetensors each have errors of their own; to the reader they are one fact
        raise PolicyError(
            f"The policy in {folder} cannot be read ({type(error).__name__}: {error}). Train it again."
        ) from None
    return policy_from_state(document, arrays)


def policy_from_state(document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> StoredPolicy:
    """Rebuild a policy from the content of its two files. Raises PolicyError for an unknown kind or
    format."""
    if not isinstance(document, Mapping) or document.get("format") != FORMAT_VERSION:
        found = document.get("format") if isinstance(document, Mapping) else type(document).__name__
        raise PolicyError(
            f"{POLICY_FILE} has format {found!r}; this version reads {FORMAT_VERSION}. Train the policy again."
        )
    kind = _KINDS.get(str(document.get("kind")))
    if kind is None:
        raise PolicyError(
            f"{POLICY_FILE} names the kind {document.get('kind')!r}; known are {', '.join(sorted(_KINDS))}. "
            "Load it with the version of this project that wrote it."
        )
    try:
        return kind.from_state(document, arrays)
    except KeyError as error:
        raise PolicyError(f"{POLICY_FILE} lacks the field {error}. Train the policy again.") from None


def with_prefix(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays under names that begin with `prefix` and a dot, to store one policy inside another."""
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def without_prefix(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inverse of `with_prefix`; arrays under other names are left out."""
    return {name.removeprefix(f"{prefix}."): array for name, array in arrays.items() if name.startswith(f"{prefix}.")}
