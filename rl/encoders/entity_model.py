"""A named-entity model as a second pass over text that the rules have scrubbed.

Here: finding a token-classification model and what its weights are, running it in batches, replacing what it finds.
Not here: the rules, which run first (`scrub_rules`, `scrub_names`).

No model is shipped: none that is good comes with a package. A folder in Hugging Face's layout, or a hub id with the
commit that is meant, is named in the settings; its weights' hash goes into the scrubber's version and so into every
mark of the landing.
"""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.errors import EncoderError

_WEIGHTS = "model.safetensors"
_MODEL_FILES = (
    "config.json",
    _WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "added_tokens.json",
)
_BATCH = 32
_REVISION_LENGTH = 12
_PLACEHOLDER = re.compile(r"<[A-Z]+>")


@dataclass(frozen=True)
class FoundModel:
    """A folder with a token-classification model, and the sha256 of its weights."""

    folder: Path
    sha256: str


def find_entity_model(source: str, revision: str = "") -> FoundModel:
    """Where the model's files are.

    `source` is a folder, or an id on the Hugging Face hub. `revision` pins it: for a folder the first digits of the
    sha256 of its weights, for the hub a commit, which is then needed.

    Raises EncoderError if there is no such model, or it is another one than the pinned.
    """
    folder = Path(source)
    if not folder.is_dir():
        return _described(_downloaded(source, revision))
    found = _described(folder)
    if not found.sha256.startswith(revision):
        raise EncoderError(
            f"The weights in {folder} have sha256 {found.sha256[:_REVISION_LENGTH]}…; `scrubbing.entity_revision` is "
            f"{revision[:_REVISION_LENGTH]!r}. Put the pinned model back, or check the new one and set its revision."
        )
    return found


def load_entity_model(found: FoundModel, labels: Mapping[str, str], score: float) -> EntityModel:
    """The model, ready to run. Raises EncoderError if transformers cannot load it or it knows none of the labels."""
    return _loaded(found, tuple(sorted(labels.items())), score)


def copy_model(folder: Path, target: Path) -> None:
    """The model's files without anything else that lies beside them."""
    target.mkdir(parents=True, exist_ok=True)
    for name in _MODEL_FILES:
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)


class EntityModel:
    """A token-classification pipeline, and the placeholder for each of its labels."""

    def __init__(self, folder: Path, revision: str, pipeline: Any, labels: Mapping[str, str], score: float) -> None:
        self.folder = folder
        self.revision = revision
        """First digits of the sha256 of the weights."""
        self._pipeline = pipeline
        self._labels = labels
        self._score = score

    def replace(self, texts: Sequence[str]) -> list[tuple[str, dict[str, int]]]:
        """Texts with placeholders for the entities found, and how many of each kind; placeholders stay as they are."""
        spoken = [i for i, text in enumerate(texts) if any(c.isalpha() for c in _PLACEHOLDER.sub("", text))]
        # Texts of similar length share a batch, so that little is padding.
        spoken.sort(key=lambda i: len(texts[i]))
        entities = self._pipeline([texts[i] for i in spoken], batch_size=_BATCH) if spoken else []
        replaced: list[tuple[str, dict[str, int]]] = [(text, {}) for text in texts]
        for i, found in zip(spoken, entities, strict=True):
            replaced[i] = self._replaced(texts[i], found)
        return replaced

    def _replaced(self, text: str, entities: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, int]]:
        counts: dict[str, int] = {}
        kept = [match.span() for match in _PLACEHOLDER.finditer(text)]
        pieces: list[str] = []
        end = 0
        for entity in entities:
            placeholder = self._labels.get(entity["entity_group"])
            start, stop = int(entity["start"]), int(entity["end"])
            if placeholder is None or entity["score"] < self._score or not text[start:stop].strip() or start < end:
                continue
            if any(start < last and first < stop for first, last in kept):
                continue
            is_continued = bool(pieces) and pieces[-1] == f"<{placeholder}>" and text[end:start].isspace()
            if not is_continued:
                pieces += [text[end:start], f"<{placeholder}>"]
                counts[placeholder] = counts.get(placeholder, 0) + 1
            end = stop
        return "".join([*pieces, text[end:]]), counts


@functools.lru_cache(maxsize=4)
def _loaded(found: FoundModel, labels: tuple[tuple[str, str], ...], score: float) -> EntityModel:
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(found.folder), local_files_only=True)
        model = AutoModelForTokenClassification.from_pretrained(str(found.folder), local_files_only=True).eval()
    except (OSError, ValueError, KeyError) as error:
        raise EncoderError(
            f"transformers cannot load {found.folder} as a token-classification model ({type(error).__name__}). Set "
            "`scrubbing.entity_model` to another folder or hub id, or leave it empty to scrub by rules alone."
        ) from None
    known = {re.sub(r"^[BIES]-", "", str(label)) for label in model.config.id2label.values()}
    if not known & {label for label, _ in labels}:
        raise EncoderError(
            f"The model in {found.folder} tells {', '.join(sorted(known))}; `scrubbing.entity_labels` names none of "
            "them. Map those that are personal data to placeholders."
        )
    run = pipeline(
        "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple", device="cpu"
    )
    return EntityModel(found.folder, found.sha256[:_REVISION_LENGTH], run, dict(labels), score)


def _described(folder: Path) -> FoundModel:
    weights = folder / _WEIGHTS
    if not weights.exists():
        raise EncoderError(
            f"{folder} has no {_WEIGHTS}. Set `scrubbing.entity_model` to the folder of a token-classification model "
            "saved by transformers, or leave it empty to scrub by rules alone."
        )
    with weights.open("rb") as stream:
        return FoundModel(folder, hashlib.file_digest(stream, "sha256").hexdigest())


def _downloaded(model_id: str, revision: str) -> Path:
    if not revision:
        raise EncoderError(
            f"`scrubbing.entity_model` is {model_id!r}, which is no folder. A model from the hub needs "
            "`scrubbing.entity_revision`, the commit that is meant: texts scrubbed by different weights do not match."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=list(_MODEL_FILES)))
    except Exception as error:
        raise EncoderError(
            f"`scrubbing.entity_model` is {model_id!r}: neither a folder nor a model that the hub could give "
            f"({type(error).__name__}). Give a folder, or leave it empty to scrub by rules alone."
        ) from None
