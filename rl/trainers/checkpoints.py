"""The state of a training on disk, so that one that is killed goes on where it was.

Here: one safetensors file, replaced atomically, and when it is worth writing. Not here: what the state is
(`rl.trainers.fit`), how a training goes on from it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rl.datasets.transitions import TransitionSet
from rl.files import content_hash, replaced_file
from rl.policies.storage import StoredPolicy
from rl.trainers.settings import TrainerSettings

FORMAT_VERSION = 1
"""Raised when a state of older code cannot be gone on from."""

LARGEST_SHARE = 0.02
"""Of the time, that writing may take."""

LEAST_SECONDS = 20.0
"""Between two looks, at least so much time passes before the state is written again."""

State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and what else there is, as JSON."""


class Checkpoint:
    """The file of one training. Without a path nothing is read or written.

    `say` hears it when the file there belongs to another training and will be replaced.
    """

    def __init__(self, path: Path | None, key: str, say: Callable[[str], None]) -> None:
        self._path, self._key, self._say = path, key, say
        self._written_at, self._cost = time.monotonic(), 0.0

    def read(self) -> State | None:
        """The state to go on from; None where there is none of this training."""
        if self._path is None or not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="pt") as stream:
                metadata = stream.metadata() or {}
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            self._say(f"The checkpoint {self._path} cannot be read ({error}); the training begins anew.")
            return None
        if metadata.get("key") != self._key:
            self._say(
                f"The checkpoint {self._path} is of other settings, data or behavior model; the training begins anew "
                "and replaces it."
            )
            return None
        return tensors, json.loads(metadata["document"])

    def is_due(self, at_look: bool) -> bool:
        """Whether to write now: at looks, and between them now and then, as far as it costs little."""
        waited = time.monotonic() - self._written_at
        rest = self._cost / LARGEST_SHARE
        return self._path is not None and waited >= (rest if at_look else max(LEAST_SECONDS, rest))

    def write(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Replace the file."""
        assert self._path is not None
        started = time.monotonic()
        metadata = {"key": self._key, "document": json.dumps(document, allow_nan=False)}
        with replaced_file(self._path) as temporary:
            save_file({name: tensor.detach().cpu() for name, tensor in tensors.items()}, temporary, metadata)
        self._written_at = time.monotonic()
        self._cost = self._written_at - started


def training_key(dataset: TransitionSet, settings: TrainerSettings, behavior: StoredPolicy) -> str:
    """Equal for trainings that come to the same policy, but for its name."""
    arrays = {name: content_hash(np.ascontiguousarray(each).tobytes()) for name, each in behavior.arrays().items()}
    return content_hash(
        {
            "format": FORMAT_VERSION,
            "settings": settings.model_dump(mode="json", exclude={"name"}),
            "dataset": [dataset.manifest.dataset_hash, dataset.n_steps, content_hash(dataset.validation.tobytes())],
            "behavior": [behavior.document(), arrays],
        }
    )
