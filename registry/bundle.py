"""A bundle: one folder with everything a policy needs to answer a live dialogue, and nothing that runs.

Here: writing the folder, checking it, deciding with it. Not here: MLflow (`registry.publish`,
`registry.model_code`), the gate, and which bundle is live.

::

    bundle.json      format, policy version, zone, seed, and the hash of every file below
    policy/          policy.json, policy.safetensors, training.json
    encoder/         text encoder and observation layout, as rl.encoders.dialogue.DialogueEncoder reads them
    catalogue.json   strategies in the order of their ids
    manifest.json    the data set it was trained on
    settings.json    the settings it was trained and judged with
    evidence.json    what the evaluation found
    card.html        the policy card, where there is one

A bundle holds JSON, safetensors and text only. Opening one executes none of its content.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import ValidationError

from rl.catalogue import ActionCatalogue
from rl.encoders.dialogue import DialogueContext, DialogueEncoder
from rl.errors import PolicyError
from rl.evaluation.evidence import Evidence
from rl.files import content_hash, replaced_folder, write_json
from rl.policies import load_policy
from rl.settings import Settings
from rl.types import Bool2D, Float1D, Float2D, Int1D, Observations, Policy

BUNDLE_FORMAT = 1
DESCRIPTION_FILE = "bundle.json"
CARD_FILE = "card.html"
_TIMED_FILES = (CARD_FILE, "policy/training.json")
ALLOWED_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".html"})
"""File types that cannot carry code into the process that opens them."""

_LARGEST_SUM_ERROR = 1e-6
_DECIDING = ("policy/policy.", "encoder/", "catalogue.json")
"""Beginnings of the paths that determine what the policy answers; their hash names the policy version."""


class BundleDescription(Settings):
    """The content of bundle.json."""

    format: int
    policy_name: str
    policy_version: str
    """`<policy name>-<12 hex>` of the files that decide: equal versions give equal answers."""
    dataset_hash: str
    zone: Literal["restricted", "released"]
    privacy_mode: Literal["individual", "aggregate"]
    may_export: bool
    """Whether the bundle may leave the restricted zone. False for a policy trained on individual
    dialogues."""
    seed: int
    """Seed of the draws between strategies."""
    files: dict[str, str]
    """BLAKE2b of each file, by path inside the bundle."""

    @property
    def bundle_hash(self) -> str:
        """Names the bundle's content but for what says when and how long: training the same policy again is no news."""
        return content_hash({path: found for path, found in self.files.items() if path not in _TIMED_FILES})


class Decision(Settings):
    """What the policy chose for one dialogue."""

    strategy: str
    strategy_id: int
    probability: float
    """Probability with which this strategy was drawn, in (0, 1]: the propensity to log."""
    probabilities: dict[str, float]
    """Probability of each eligible strategy; they sum to 1."""
    eligible: list[str]
    """What could be chosen, in the order of the catalogue."""
    fallback: bool
    """True when the catalogue's fallback was all that was left to choose."""
    policy_version: str


class Encoder(Protocol):
    """What a bundle asks of an encoder; `rl.encoders.dialogue.DialogueEncoder` is the one in use."""

    def observe(self, contexts: Sequence[DialogueContext], *, with_past: bool = False) -> tuple[Observations, Bool2D]:
        """B dialogues → what the policy sees of them, and (B, A) what is eligible."""
        ...


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    description: BundleDescription
    encoder: Encoder
    policy: Policy
    catalogue: ActionCatalogue

    def decide(self, contexts: Sequence[DialogueContext], seed: int | None = None) -> list[Decision]:
        """Choose a strategy for the next agent turn of each dialogue.

        The draw behind a choice is a hash of seed, policy version, dialogue id and number of turns. Over
        dialogues it is uniform, so strategies come with the probabilities that are reported; a request that
        is repeated, alone or in another batch, gets the same answer. A dialogue without id gets a fresh
        draw. `seed` replaces the bundle's own.

        Raises PolicyError if the policy does not fit its encoder, or answers with something that is no
        distribution.
        """
        if not contexts:
            return []
        observations, mask = self.encoder.observe(contexts, with_past=self.policy.reads_past)
        probabilities = self.policy.action_probabilities(observations, mask)
        self._check(probabilities, mask)
        seed = self.description.seed if seed is None else seed
        draws = np.array([_draw(seed, self.description.policy_version, context) for context in contexts])
        return [
            self._decision(row, legal, int(action))
            for row, legal, action in zip(probabilities, mask, _sample(probabilities, draws), strict=True)
        ]

    def _decision(self, row: Float1D, legal: np.ndarray[Any, np.dtype[np.bool_]], action: int) -> Decision:
        eligible = np.flatnonzero(legal)
        names = self.catalogue.names
        return Decision(
            strategy=names[action],
            strategy_id=action,
            probability=float(row[action]),
            probabilities={names[i]: float(row[i]) for i in eligible},
            eligible=[names[i] for i in eligible],
            fallback=eligible.tolist() == [self.catalogue.fallback],
            policy_version=self.description.policy_version,
        )

    def _check(self, probabilities: Float2D, mask: Bool2D) -> None:
        sums = probabilities.sum(axis=1)
        wrong = ~(np.abs(sums - 1) <= _LARGEST_SUM_ERROR) | ((probabilities != 0) & ~mask).any(axis=1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise PolicyError(
                f"Policy version {self.description.policy_version}: {wrong.sum()} of {len(sums)} answers are no "
                f"distribution over what is eligible; the first is row {row}, whose probabilities sum to "
                f"{sums[row]}. Roll back to the previous version and train this one again."
            )


def write_bundle(
    folder: Path,
    *,
    policy: Path,
    encoder: Path,
    manifest: Mapping[str, Any],
    settings: Mapping[str, Any],
    evidence: Evidence,
    card: str | None = None,
    seed: int = 0,
) -> BundleDescription:
    """Write a bundle into `folder`, replacing what was there as a whole.

    Parameters
    ----------
    policy, encoder : folders, as `Policy.save` and `DialogueEncoder.save` wrote them
    manifest : JSON of the data set's manifest, with `catalogue`, `dataset_hash` and `privacy_mode`
    settings : JSON of the settings behind the policy
    card : the policy card as HTML

    Raises PolicyError if a folder is missing, holds a file type that could carry code, or the policy and the
    catalogue do not fit.
    """
    with replaced_folder(folder) as temporary:
        _copy_data(policy, temporary / "policy")
        _copy_data(encoder, temporary / "encoder")
        write_json(temporary / "catalogue.json", list(manifest["catalogue"]))
        write_json(temporary / "manifest.json", dict(manifest))
        write_json(temporary / "settings.json", dict(settings))
        (temporary / "evidence.json").write_text(evidence.model_dump_json(indent=2) + "\n")
        if card is not None:
            (temporary / CARD_FILE).write_text(card, encoding="utf-8")
        loaded = load_policy(temporary / "policy")
        _check_fit(loaded, ActionCatalogue.from_json(manifest["catalogue"]), folder)
        description = _describe(temporary, loaded.name, manifest, seed)
        write_json(temporary / DESCRIPTION_FILE, description.model_dump(mode="json"))
    return description


def read_description(folder: Path) -> BundleDescription:
    """Read bundle.json and check every file against it.

    Raises PolicyError naming the file that is missing, changed or not listed.
    """
    path = folder / DESCRIPTION_FILE
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise PolicyError(f"{folder} is no policy bundle: it has no {DESCRIPTION_FILE}. Check the path.") from None
    except ValueError as error:
        raise PolicyError(f"{path} is not valid JSON ({error}). Fetch or write the bundle again.") from None
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != BUNDLE_FORMAT:
        raise PolicyError(
            f"{path} has format {found!r}; this version reads {BUNDLE_FORMAT}. Open it with the code that it was "
            "registered with."
        )
    try:
        description = BundleDescription.model_validate(raw)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise PolicyError(f"{path}: the field `{field}` is missing or wrong. Write the bundle again.") from None
    _check_files(folder, description.files)
    return description


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle whose files are all as they were written.

    Raises PolicyError naming the file that is missing, changed or not listed.
    """
    description = read_description(folder)
    catalogue = ActionCatalogue.from_json(json.loads((folder / "catalogue.json").read_text()))
    policy = load_policy(folder / "policy")
    _check_fit(policy, catalogue, folder)
    return Bundle(description, DialogueEncoder.load(folder / "encoder"), policy, catalogue)


def _describe(folder: Path, policy_name: str, manifest: Mapping[str, Any], seed: int) -> BundleDescription:
    files = _hashes(folder)
    deciding = {path: found for path, found in files.items() if path.startswith(_DECIDING)}
    identity = content_hash({"seed": seed, "files": deciding})
    privacy_mode = manifest["privacy_mode"]
    return BundleDescription(
        format=BUNDLE_FORMAT,
        policy_name=policy_name,
        policy_version=f"{policy_name}-{identity[:12]}",
        dataset_hash=manifest["dataset_hash"],
        zone="restricted" if privacy_mode == "individual" else "released",
        privacy_mode=privacy_mode,
        may_export=privacy_mode == "aggregate",
        seed=seed,
        files=files,
    )


def _copy_data(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise PolicyError(f"There is no folder {source} to put into the bundle. Train or encode first.")
    for path in sorted(source.rglob("*")):
        if path.is_dir():
            continue
        if path.suffix not in ALLOWED_SUFFIXES:
            raise PolicyError(
                f"{path} cannot go into a bundle: only {', '.join(sorted(ALLOWED_SUFFIXES))} files may, because they "
                "execute nothing when they are read. Store it as safetensors or JSON."
            )
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _hashes(folder: Path) -> dict[str, str]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / DESCRIPTION_FILE)
    return {path.relative_to(folder).as_posix(): _file_hash(path) for path in paths}


def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _check_files(folder: Path, expected: Mapping[str, str]) -> None:
    found = _hashes(folder)
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            fault = f"{path} is missing"
        elif path not in expected:
            fault = f"{path} is not part of the bundle"
        elif found[path] != expected[path]:
            fault = f"{path} was changed after the bundle was written"
        else:
            continue
        raise PolicyError(f"{folder}: {fault}. Fetch the bundle again, or write it again from the policy's folders.")


def _check_fit(policy: Policy, catalogue: ActionCatalogue, folder: Path) -> None:
    if policy.n_actions != len(catalogue):
        raise PolicyError(
            f"{folder}: the policy chooses among {policy.n_actions} strategies and the catalogue has "
            f"{len(catalogue)}. Bundle the policy with the manifest of the data set that it was trained on."
        )


def _draw(seed: int, policy_version: str, context: DialogueContext) -> float:
    """A number in [0, 1) that is the same for the same question; a fresh one where the dialogue has no id."""
    if not context.dialogue_id:
        return random.SystemRandom().random()
    question = json.dumps([seed, policy_version, context.dialogue_id, len(context.turns)]).encode()
    digest = hashlib.blake2b(question, digest_size=8).digest()
    return float((int.from_bytes(digest, "big") >> 11) * 2.0**-53)


def _sample(probabilities: Float2D, draws: Float1D) -> Int1D:
    """(B, A), (B,) → (B,): the action whose stretch of the cumulative probability holds the draw.

    The draw is scaled by the row's sum, so that rounding never leads to an action with probability 0.
    """
    cumulative = np.cumsum(probabilities, axis=1)
    return np.asarray((cumulative > draws[:, None] * cumulative[:, -1:]).argmax(axis=1))
