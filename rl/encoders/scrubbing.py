"""Replacing personal data in text by placeholders: the one scrubber that ingest and the served policy share.

Here: the scrubber of some settings, its version, the loop over its rules. Not here: the rules (`scrub_rules`,
`scrub_names`), the named-entity model (`entity_model`), pseudonyms of ids (`orchestration.ingest.pseudonyms`),
privacy guarantees (`registry.privacy`).

Live text has to be scrubbed exactly as logged text was, so a dialogue encoder carries its scrubber's settings and
version, and the landing records the version with each file. This is hygiene, not anonymisation: some names will
pass, and scrubbed text stays in the restricted zone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rl.encoders.entity_model import EntityModel, copy_model, find_entity_model, load_entity_model
from rl.encoders.scrub_names import ACCOUNT_CUE, CUE, DIGIT_WORD, NAME_WORD, SPELLED, WORD, NameFinder
from rl.encoders.scrub_names import NAME as IS_NAME
from rl.encoders.scrub_rules import rules
from rl.errors import DataError
from rl.files import content_hash
from rl.settings import ScrubbingSettings

SCRUBBER_VERSION = "2"
"""Raised with every change that can alter an output: text scrubbed by two versions is not the same text."""

MODEL_FOLDER = "entity_model"

_CACHED_TEXTS = 65_536


@dataclass(frozen=True)
class ScrubbedText:
    """Text with placeholders, and how many of each kind were put in (`{"EMAIL": 1}`)."""

    text: str
    counts: Mapping[str, int]


_NOTHING: Mapping[str, int] = {}


class Scrubber:
    """Replaces names, addresses of mail and houses, phone, card and account numbers, and what a model finds more.

    The rules are idempotent, and neither they nor the names raise on any string. Make it by `scrubber_for`.
    """

    def __init__(self, settings: ScrubbingSettings) -> None:
        self.settings = settings
        self._names = NameFinder(settings.allow_list, settings.known_words)
        self._cached = functools.lru_cache(maxsize=_CACHED_TEXTS)(self._scrub_by_rules)

    @cached_property
    def version(self) -> str:
        """Version of the rules, and of everything in the settings that decides about an output."""
        deciding = self.settings.model_dump(mode="json", exclude={"entity_model", "entity_revision"})
        deciding["entity_model"] = self._model.revision if self._model else None
        return f"{SCRUBBER_VERSION}-{content_hash(deciding)[:8]}"

    def scrub(self, text: str) -> ScrubbedText:
        """One text with placeholders."""
        if self._model is not None:
            return self.scrub_all([text])[0]
        return self._cached(text)

    def scrub_all(self, texts: Sequence[str]) -> list[ScrubbedText]:
        """Texts with placeholders, in order. With a named-entity model, faster than one by one."""
        scrubbed = [self._cached(text) for text in texts]
        if self._model is None:
            return scrubbed
        replaced = self._model.replace([found.text for found in scrubbed])
        return [
            ScrubbedText(text, _sum(found.counts, counts)) if counts else found
            for found, (text, counts) in zip(scrubbed, replaced, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Settings and version, for the file of a dialogue encoder."""
        return {"settings": self.settings.model_dump(mode="json"), "version": self.version}

    def save_model(self, folder: Path) -> None:
        """Copy the named-entity model, where there is one, so that what is served needs nothing from outside."""
        if self._model is not None:
            copy_model(self._model.folder, folder / MODEL_FOLDER)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None, folder: Path) -> Scrubber:
        """The inverse of `to_json` and `save_model`.

        Raises DataError if this code would scrub otherwise than the code that stored it.
        """
        if stored is not None:
            settings = ScrubbingSettings.model_validate(stored["settings"])
            if settings.entity_model:
                settings = settings.model_copy(
                    update={"entity_model": str(folder / MODEL_FOLDER), "entity_revision": ""}
                )
            scrubber = scrubber_for(settings)
            if scrubber.version == stored["version"]:
                return scrubber
        raise DataError(
            f"{folder}: its texts were scrubbed by version {stored['version'] if stored else '1'}, and this code "
            f"scrubs by version {SCRUBBER_VERSION}-…: a policy would see other words than it learned on. Build the "
            "data set again, or serve it with the code that it was built with."
        )

    @cached_property
    def _model(self) -> EntityModel | None:
        settings = self.settings
        if not settings.entity_model:
            return None
        found = find_entity_model(settings.entity_model, settings.entity_revision)
        return load_entity_model(found, settings.entity_labels, settings.entity_score)

    def _scrub_by_rules(self, text: str) -> ScrubbedText:
        counts: dict[str, int] = {}
        # A replacement can bring two matches next to each other, so the rules run until nothing changes. Each one
        # takes letters or digits away outside the placeholders, or a placeholder, so this ends.
        before = None
        while text != before:
            before = text
            kinds = self._names.glance(text)
            possible = rules(
                text,
                is_spelled=bool(kinds & SPELLED),
                has_digit_words=bool(kinds & DIGIT_WORD),
                has_account_cue=bool(kinds & ACCOUNT_CUE),
            )
            for entity, rule in possible:
                text = rule(text, entity, counts)
            if kinds & CUE:
                text = self._names.replace_cued(text, kinds, counts)
            if kinds & (NAME_WORD | WORD | IS_NAME) or "<NAME>" in text:
                text = self._names.replace_unlisted(text, counts)
        return ScrubbedText(text, counts or _NOTHING)


def scrubber_for(settings: ScrubbingSettings) -> Scrubber:
    """The scrubber of these settings; the same object for equal settings, with its cache."""
    return _made(settings.model_dump_json())


@functools.cache
def _made(settings: str) -> Scrubber:
    return Scrubber(ScrubbingSettings.model_validate_json(settings))


def _sum(first: Mapping[str, int], second: Mapping[str, int]) -> Mapping[str, int]:
    return {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}
