"""What an utterance encoder is, and how one is stored, found and loaded.

Here: the protocol, the encoder's identity, loading by kind, making one that is not there yet. Not here: the
encoders themselves (`static`, `minilm`), the cache of vectors (`encode`), the dialogue state (`dialogue`).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from rl.errors import EncoderError
from rl.files import content_hash, replaced_folder
from rl.progress import report_message
from rl.settings import EncoderSettings

ENCODER_FILE = "encoder.json"


class Encoder(Protocol):
    """Turns texts into vectors of unit length (zero for a text without known tokens)."""

    encoder_id: str
    dimensions: int

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n,) texts → (n, d) float32, in order."""
        ...

    def save(self, folder: Path) -> None:
        """Write `encoder.json` and safetensors into an empty or new folder; no pickles."""
        ...


def encoder_id(kind: str, dimensions: int, revision: str, recipe: int) -> str:
    """The name of an encoder: equal where the vectors mean the same.

    `revision` tells the weights of the transformer behind it, `recipe` the way from them to a vector: raise
    it when that changes.
    """
    identity = content_hash({"kind": kind, "dimensions": dimensions, "revision": revision, "recipe": recipe})
    return f"{kind}-{dimensions}-{identity[:12]}"


def load_encoder(folder: Path) -> Encoder:
    """Load a stored encoder. The static one needs neither torch nor transformers.

    Raises EncoderError if the folder holds no encoder, or not the one that its `encoder.json` names.
    """
    kind = read_description(folder).get("kind")
    if kind == "static":
        from rl.encoders.static import StaticEncoder

        return StaticEncoder.load(folder)
    if kind == "minilm":
        from rl.encoders.minilm import MiniLMEncoder

        return MiniLMEncoder.load(folder)
    raise EncoderError(f"{folder / ENCODER_FILE} names the kind {kind!r}; known are static and minilm.")


def encoder_folder(settings: EncoderSettings, encoders: Path) -> Path:
    """Where the encoder of the settings is kept, `<encoders>/<encoder_id>`, made already or not."""
    return encoders / str(_module(settings).identify(settings))


def prepare_encoder(settings: EncoderSettings, encoders: Path) -> tuple[Encoder, Path]:
    """The encoder of the settings and its folder, made first where it is missing.

    Making the static encoder takes a minute; two processes that need it at once make it once.
    """
    folder = encoder_folder(settings, encoders)
    encoders.mkdir(parents=True, exist_ok=True)
    with FileLock(encoders / f".{folder.name}.lock"):
        if not (folder / ENCODER_FILE).exists():
            report_message(f"Making the text encoder {folder.name}: needed once, under a minute on two cores.")
            made: Encoder = _module(settings).make(settings)
            with replaced_folder(folder) as temporary:
                made.save(temporary)
    return load_encoder(folder), folder


def read_description(folder: Path) -> dict[str, Any]:
    """The content of `encoder.json`: kind, encoder_id, dimensions, revision and what the kind adds."""
    path = folder / ENCODER_FILE
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise EncoderError(
            f"There is no encoder in {folder}. Make one with `python -m rl.encoders.encode`, or correct the path."
        ) from None
    except ValueError:
        raise EncoderError(f"{path} is not JSON. Remove {folder}; the next run makes the encoder again.") from None


def _module(settings: EncoderSettings) -> ModuleType:
    """The module of the settings' kind; imported here, since it imports this one."""
    return importlib.import_module(f"rl.encoders.{settings.kind}")
