"""Tombstones: who was erased, in a form that names nobody, so that no later reading of a log brings them back.

Here: the keyed digests, their file and their key. Not here: erasing (`orchestration.personal_data`), reading logs
(`landed_file`).

A tombstone is a keyed hash of the customer's own id, of their pseudonyms, and of the ids of their dialogues. Its key
is one of its own and never rotates: pseudonyms change with their key, and a tombstone has to outlive that. Lost with
its key, the list could not be read any more; so ingest stops instead of letting erased customers in again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from orchestration.ingest.pseudonyms import PseudonymKey, key_from_hex, key_in_file, new_key, write_key
from rl.errors import SettingsError
from rl.files import write_json

KEY_VARIABLE = "TALKTRACK_TOMBSTONE_KEY"
KEY_FILE = "tombstone.key"
FILE = "tombstones.json"

_PERSON = b"tombstone-v1"

Kind = Literal["customer", "pseudonym", "dialogue"]


@dataclass(frozen=True)
class Tombstones:
    """The erased of one workspace, as keyed digests."""

    path: Path
    key: PseudonymKey = field(repr=False)
    customers: frozenset[str] = frozenset()
    """Of customers' own ids, as the logs write them."""
    pseudonyms: frozenset[str] = frozenset()
    """Of the pseudonyms that they had: what a restored backup still holds."""
    dialogues: frozenset[str] = frozenset()
    """Of their dialogues: outcomes and the agent's turns carry no customer id."""

    def digest(self, kind: Kind, identity: str) -> str:
        """32 hex digits."""
        raw = f"{kind}|{identity}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(raw, key=self.key.secret, digest_size=16, person=_PERSON).hexdigest()

    def has_customer(self, customer_id: str) -> bool:
        """Whether the customer with this id (the log's own) was erased."""
        return bool(self.customers) and self.digest("customer", customer_id) in self.customers

    def has_dialogue(self, dialogue_id: str) -> bool:
        """Whether the dialogue was an erased customer's."""
        return bool(self.dialogues) and self.digest("dialogue", dialogue_id) in self.dialogues

    def has_pseudonym(self, pseudonym: str) -> bool:
        """Whether the pseudonym was an erased customer's."""
        return bool(self.pseudonyms) and self.digest("pseudonym", pseudonym) in self.pseudonyms

    @property
    def is_empty(self) -> bool:
        """Whether nobody was erased yet."""
        return not (self.customers or self.pseudonyms or self.dialogues)

    def with_digests(
        self, *, customers: Iterable[str] = (), pseudonyms: Iterable[str] = (), dialogues: Iterable[str] = ()
    ) -> Tombstones:
        """These and more, on disk before it returns."""
        grown = replace(
            self,
            customers=self.customers | set(customers),
            pseudonyms=self.pseudonyms | set(pseudonyms),
            dialogues=self.dialogues | set(dialogues),
        )
        if grown != self:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_json(self.path, grown._content(), 0o600)
        return grown

    def _content(self) -> dict[str, object]:
        return {
            "key_id": self.key.key_id,
            "customers": sorted(self.customers),
            "pseudonyms": sorted(self.pseudonyms),
            "dialogues": sorted(self.dialogues),
        }


def no_tombstones() -> Tombstones:
    """The list of a landing from which nobody was erased."""
    return Tombstones(Path(FILE), PseudonymKey(bytes(32)))


def read_tombstones(
    erasures: Path, secrets_folder: Path, environment: Mapping[str, str] | None = None, *, to_write: bool = False
) -> Tombstones:
    """The tombstones of a workspace; empty, with no key needed, where nobody was erased.

    `to_write` makes the key when there is none. Raises SettingsError if the key of the list is not here.
    """
    path = erasures / FILE
    content = json.loads(path.read_text()) if path.exists() else None
    if content is None and not to_write:
        return replace(no_tombstones(), path=path)
    key = _key(secrets_folder, os.environ if environment is None else environment)
    if content is None:
        key = key or _made(secrets_folder / KEY_FILE)
        return Tombstones(path, key)
    if key is None or key.key_id != content["key_id"]:
        raise SettingsError(
            f"The list of erased customers ({path}) was made with the key {content['key_id']}, and that key is not "
            f"here (looked in {KEY_VARIABLE} and {secrets_folder / KEY_FILE}). Nothing was changed. Put the key back "
            "from your backup: without it, logs that are read would bring erased customers back."
        )
    lists = {name: frozenset(content[name]) for name in ("customers", "pseudonyms", "dialogues")}
    return Tombstones(path, key, **lists)


def _key(secrets_folder: Path, environment: Mapping[str, str]) -> PseudonymKey | None:
    if given := environment.get(KEY_VARIABLE):
        return key_from_hex(given, KEY_VARIABLE)
    path = secrets_folder / KEY_FILE
    return key_in_file(path) if path.exists() else None


def _made(path: Path) -> PseudonymKey:
    key = new_key()
    write_key(path, key)
    return key
