"""Pseudonyms of customers: a keyed hash, and where its keys live.

Here: one pseudonym per customer id, the same wherever the id occurs; the key in use and the one before it. Not here:
scrubbing of text (`rl.encoders.scrubbing`), when keys change (`personal_data.rekey`). A pseudonym is still
personal data; the key is what has to be guarded.

Keys lie in the home folder's `secrets/`, each readable by its owner only::

    pseudonym.key                       of every workspace of the home
    pseudonym.<workspace>.key           of one workspace that was re-keyed since; wins
    pseudonym.<workspace>.previous.key  the one before it, kept for one more window

or come as 64 hex digits from TALKTRACK_PSEUDONYM_KEY and TALKTRACK_PSEUDONYM_KEY_PREVIOUS.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rl.errors import SettingsError
from rl.files import replaced_file

KEY_VARIABLE = "TALKTRACK_PSEUDONYM_KEY"
PREVIOUS_KEY_VARIABLE = "TALKTRACK_PSEUDONYM_KEY_PREVIOUS"
KEY_FILE = "pseudonym.key"
KEY_BYTES = 32

_PERSON = b"subject-v1"
_KEY_ID_PERSON = b"key-id-v1"
_CACHE_LIMIT = 1_000_000
_EXAMPLES = (bytes(range(32)), b"0123456789abcdef" * 2, b"talktrack-example-key-do-not-use")


@dataclass(frozen=True)
class PseudonymKey:
    """A secret of 32 random bytes. `key_id` names it in every pseudonym and betrays nothing about it."""

    secret: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        """8 hex digits."""
        return hashlib.blake2b(key=self.secret, digest_size=4, person=_KEY_ID_PERSON).hexdigest()


class Pseudonymizer:
    """Customer id → `<key_id>:<32 hex>`, remembered per id: an id occurs once per turn."""

    def __init__(self, key: PseudonymKey) -> None:
        self._secret = key.secret
        self._prefix = key.key_id + ":"
        self._known: dict[str, str] = {}

    def __call__(self, customer_id: str) -> str:
        found = self._known.get(customer_id)
        if found is None:
            found = self._prefix + self._digest(customer_id)
            if len(self._known) >= _CACHE_LIMIT:
                self._known.clear()
            self._known[customer_id] = found
        return found

    def _digest(self, customer_id: str) -> str:
        raw = customer_id.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(raw, key=self._secret, digest_size=16, person=_PERSON).hexdigest()


class LostKeyError(SettingsError):
    """The landing holds pseudonyms of a key that is not here."""


@dataclass(frozen=True)
class PseudonymKeys:
    """The keys that are live in a workspace."""

    current: PseudonymKey
    previous: PseudonymKey | None = None
    """The one that was in use before; pseudonyms that could not be re-keyed carry its id."""

    @property
    def live(self) -> tuple[PseudonymKey, ...]:
        """Both, the current one first."""
        return (self.current,) if self.previous is None else (self.current, self.previous)

    @property
    def key_ids(self) -> tuple[str, ...]:
        return tuple(key.key_id for key in self.live)

    def pseudonyms(self, customer_id: str) -> list[str]:
        """The customer's pseudonym under every live key."""
        return [Pseudonymizer(key)(customer_id) for key in self.live]


def load_key(secrets_folder: Path, environment: Mapping[str, str] | None = None) -> PseudonymKey:
    """The key from TALKTRACK_PSEUDONYM_KEY (64 hex digits), else from `<secrets_folder>/pseudonym.key`.

    The file is made on first use, readable by its owner only. Raises SettingsError when a key has the wrong length,
    is a known example, or lies in a file that others may read.
    """
    return load_keys(secrets_folder, environment=environment).current


def load_keys(
    secrets_folder: Path,
    workspace: str | None = None,
    *,
    used: Collection[str] = (),
    environment: Mapping[str, str] | None = None,
) -> PseudonymKeys:
    """The live keys of a workspace; without one, and with nothing landed, a new key file of the home.

    `used` are the ids of the keys that the landed pseudonyms were made with. Raises LostKeyError when one of them is
    not here: another key would make every customer a new one in silence.
    """
    given = os.environ if environment is None else environment
    previous = _previous_key(secrets_folder, workspace, given)
    current = _current_key(secrets_folder, workspace, given)
    if current is None:
        if used:
            raise _lost(set(used), "there is no key", secrets_folder)
        path = secrets_folder / KEY_FILE
        _create(path)
        current = key_in_file(path)
    keys = PseudonymKeys(current, previous)
    if missing := set(used) - set(keys.key_ids):
        raise _lost(missing, f"the key that is here is {current.key_id}", secrets_folder)
    return keys


def key_path(secrets_folder: Path, workspace: str | None) -> Path:
    """The file of the key that is in use: the workspace's own, or the home's."""
    own = own_key_path(secrets_folder, workspace)
    return own if own is not None and own.exists() else secrets_folder / KEY_FILE


def own_key_path(secrets_folder: Path, workspace: str | None) -> Path | None:
    """The file of a key of this workspace alone."""
    return None if workspace is None else secrets_folder / f"pseudonym.{workspace}.key"


def previous_key_path(secrets_folder: Path, workspace: str) -> Path:
    """The file of the key before the one in use."""
    return secrets_folder / f"pseudonym.{workspace}.previous.key"


def new_key() -> PseudonymKey:
    """A random key."""
    return PseudonymKey(secrets.token_bytes(KEY_BYTES))


def write_key(path: Path, key: PseudonymKey) -> None:
    """Write a key for its owner only, replacing what is there."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with replaced_file(path, 0o600) as temporary:
        temporary.touch(0o600)
        temporary.write_text(key.secret.hex() + "\n")


def _current_key(folder: Path, workspace: str | None, environment: Mapping[str, str]) -> PseudonymKey | None:
    if given := environment.get(KEY_VARIABLE):
        return key_from_hex(given, KEY_VARIABLE)
    path = key_path(folder, workspace)
    return key_in_file(path) if path.exists() else None


def _previous_key(folder: Path, workspace: str | None, environment: Mapping[str, str]) -> PseudonymKey | None:
    if given := environment.get(PREVIOUS_KEY_VARIABLE):
        return key_from_hex(given, PREVIOUS_KEY_VARIABLE)
    path = None if workspace is None else previous_key_path(folder, workspace)
    return key_in_file(path) if path is not None and path.exists() else None


def _lost(missing: Collection[str], found: str, folder: Path) -> LostKeyError:
    return LostKeyError(
        f"The landing holds pseudonyms made with the key {', '.join(sorted(missing))}, and {found} (looked in "
        f"{KEY_VARIABLE} and {folder}). Nothing was changed. Put the right key back from your backup: with another "
        "one every customer becomes a new one, and nobody can be erased by id. If it is lost for good, run "
        "`talktrack rekey --reason lost`: it makes a new key and reads every source file again."
    )


def key_in_file(path: Path) -> PseudonymKey:
    """The key in a file. Raises SettingsError if others may read it, or it is no key."""
    _refuse_loose_mode(path)
    return key_from_hex(path.read_text(), str(path))


def key_from_hex(text: str, where: str) -> PseudonymKey:
    """The key that 64 hex digits spell; `where` they stand is named in the SettingsError that a faulty one raises."""
    try:
        secret = bytes.fromhex(text.strip())
    except ValueError:
        raise SettingsError(f"{where} is not hexadecimal. Make a key with `openssl rand -hex {KEY_BYTES}`.") from None
    if len(secret) != KEY_BYTES:
        raise SettingsError(
            f"{where} has {len(secret)} bytes; a pseudonym key has {KEY_BYTES}. Restore the right key from your "
            "backup: with another key every customer becomes a new one."
        )
    if secret in _EXAMPLES or len(set(secret)) < KEY_BYTES // 4:
        raise SettingsError(f"{where} is an example key. Make a key with `openssl rand -hex {KEY_BYTES}`.")
    return PseudonymKey(secret)


def _create(path: Path) -> None:
    """Write a new key; of two processes that try at once, one wins and the other reads the winner's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(KEY_BYTES) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_loose_mode(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise SettingsError(f"{path} can be read by others (mode {mode:04o}). Run `chmod 600 {path}`.")
