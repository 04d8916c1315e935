"""The manifest of a transition set: what its arrays mean and where they came from.

Here: the fields, reading them, and the hashes that tell two sets apart. Not here: the arrays (`rl.datasets.layout`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from rl.catalogue import ActionCatalogue
from rl.datasets.layout import ARRAYS, shape_of
from rl.errors import DataError
from rl.files import content_hash
from rl.settings import RewardDefinition, Settings

MANIFEST_FILE = "manifest.json"


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
    split: Literal["customer", "time"] = "customer"
    """What `validation` follows: a hash of the customer, or the time (then it holds the newest episodes)."""
    counts: dict[str, int] = Field(default_factory=dict)
    """`dialogues`, `steps`, and `excluded_<reason>` for each reason that kept dialogues out."""
    feature_layout: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """Columns [start, stop) of the observation by feature name."""
    code_revision: str = ""
    privacy_mode: Literal["individual", "aggregate"] = "individual"
    schema_hash: str = ""
    """Equal for sets whose observations and actions mean the same; filled when the arrays are checked."""
    dataset_hash: str = ""
    """Hash of the arrays and of what they mean, however they were written; filled when the arrays are checked."""

    @property
    def action_catalogue(self) -> ActionCatalogue:
        """The catalogue as an object."""
        return ActionCatalogue.from_json(self.catalogue)


_NOT_HASHED = {"dataset_hash", "schema_hash", "code_revision", "counts", "split"}
"""What says nothing of the arrays, or, as `split`, only what the arrays say themselves."""


def read_manifest(path: Path) -> Manifest:
    """Read `manifest.json`. Raises DataError if it is missing or does not read."""
    try:
        return Manifest.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise DataError(f"There is no data set at {path.parent}. Build one with rl.datasets.build.") from None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise DataError(f"{path} does not read as a manifest, first at `{where}`. Build the data set again.") from None


def described(manifest: Manifest, sizes: Mapping[str, int], contents: Callable[[str], Iterable[Any]]) -> Manifest:
    """The manifest with the fields that follow from the arrays: counts and hashes.

    `contents(name)` gives the bytes of an array, in order, as buffers of any length.
    """
    meaning = manifest.model_dump(
        mode="json", include={"catalogue", "turn_limit", "encoder_id", "segments", "feature_layout"}
    )
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(manifest.model_dump(mode="json", exclude=_NOT_HASHED), sort_keys=True).encode())
    for name, (dtype, dims) in ARRAYS.items():
        digest.update(f"{name}{dtype}{shape_of(dims, sizes)}".encode())
        for buffer in contents(name):
            digest.update(buffer)
    return manifest.model_copy(
        update={
            "counts": {**manifest.counts, "dialogues": sizes["E"], "steps": sizes["N"]},
            "schema_hash": content_hash({"arrays": ARRAYS, "observation_size": sizes["D"], **meaning}),
            "dataset_hash": digest.hexdigest(),
        }
    )
