"""The static encoder: one vector per token, averaged. About 190 times faster than the transformer on a CPU.

Here: distilling the token vectors from MiniLM with model2vec, and encoding with them. Encoding needs numpy
and `tokenizers` only, so that a decision service starts without torch. Not here: MiniLM itself (`minilm`).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from rl.encoders.encoder import ENCODER_FILE, encoder_id, read_description
from rl.encoders.minilm import find_model, load_transformer, unit_length
from rl.errors import EncoderError
from rl.files import write_json
from rl.settings import EncoderSettings

LARGEST_DIMENSIONS = 256
"""Principal components that are computed; an encoder of d dimensions keeps the first d of them."""

RECIPE = 1
"""Raised when the distillation or the pooling changes."""

_TOKEN_LIMIT = 512
_VECTORS = "vectors.safetensors"
_TOKENIZER = "tokenizer.json"


def identify(settings: EncoderSettings) -> str:
    """The encoder_id that `make` would give."""
    return encoder_id("static", _dimensions(settings), find_model(settings.source).revision, RECIPE)


def make(settings: EncoderSettings) -> StaticEncoder:
    """Distil the transformer of the settings: every token of its vocabulary is encoded once.

    Takes under a minute on two CPU cores and needs no network. The method is model2vec's: token outputs,
    principal components, and weights that make frequent tokens count less.
    """
    from model2vec.distill import distill_from_model

    source = find_model(settings.source)
    tokenizer, model = load_transformer(source)
    # model2vec draws a progress bar that cannot be turned off.
    with contextlib.redirect_stderr(io.StringIO()):
        distilled = distill_from_model(model=model, tokenizer=tokenizer, device="cpu", pca_dims=LARGEST_DIMENSIONS)
    vectors = np.asarray(distilled.embedding[:, : _dimensions(settings)], dtype=np.float16)
    return StaticEncoder(vectors, distilled.tokenizer, source.revision)


class StaticEncoder:
    """The mean of the token vectors of a text, of unit length; zero for a text without known tokens."""

    def __init__(self, vectors: NDArray[np.float16], tokenizer: Tokenizer, revision: str) -> None:
        self.dimensions = vectors.shape[1]
        self.revision = revision
        self.encoder_id = encoder_id("static", self.dimensions, revision, RECIPE)
        self._vectors = vectors.astype(np.float32)
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_TOKEN_LIMIT)
        self._unknown = tokenizer.token_to_id("[UNK]")

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n,) texts → (n, d) float32. A text's vector does not depend on the texts around it."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        tokens = np.array([token for encoding in encodings for token in encoding.ids], dtype=np.int64)
        rows = np.repeat(np.arange(len(texts)), [len(encoding.ids) for encoding in encodings])
        known = tokens != self._unknown
        tokens, rows = tokens[known], rows[known]
        sums = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        if len(tokens):
            filled, starts = np.unique(rows, return_index=True)
            sums[filled] = np.add.reduceat(self._vectors[tokens], starts, axis=0)
        return unit_length(sums)

    def save(self, folder: Path) -> None:
        """Write `encoder.json`, `vectors.safetensors` and `tokenizer.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"vectors": self._vectors.astype(np.float16)}, folder / _VECTORS)
        self._tokenizer.save(str(folder / _TOKENIZER))
        write_json(
            folder / ENCODER_FILE,
            {
                "kind": "static",
                "encoder_id": self.encoder_id,
                "dimensions": self.dimensions,
                "revision": self.revision,
                "recipe": RECIPE,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> StaticEncoder:
        """The inverse of `save`. Raises EncoderError if a file is missing or does not fit the others."""
        description = read_description(folder)
        try:
            vectors = load_file(folder / _VECTORS)["vectors"]
            tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
        except Exception as error:  # both libraries raise their own kinds, bare Exception among them
            raise EncoderError(
                f"The static encoder in {folder} cannot be read ({type(error).__name__}). Remove the folder; "
                "the next run makes it again."
            ) from None
        encoder = cls(vectors, tokenizer, description["revision"])
        if encoder.encoder_id != description["encoder_id"]:
            raise EncoderError(
                f"{folder} was saved as {description['encoder_id']}; this version makes {encoder.encoder_id}. "
                "Remove the folder; the next run makes the encoder again."
            )
        return encoder


def _dimensions(settings: EncoderSettings) -> int:
    return min(settings.dimensions, LARGEST_DIMENSIONS)
