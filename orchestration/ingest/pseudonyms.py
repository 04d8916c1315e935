"""Pseudonyms of customers: a keyed hash, and where its key lives.

Here: one pseudonym per customer id, the same wherever the id occurs. Not here: scrubbing of text
(`rl.encoders.scrubbing`). A pseudonym is still personal data; the key is what has to be guarded.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rl.errors import SettingsError

KEY_VARIABLE = "TALKTRACK_PSEUDONYM_KEY"
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


def load_key(secrets_folder: Path, environment: Mapping[str, str] | None = None) -> PseudonymKey:
    """The key from TALKTRACK_PSEUDONYM_KEY (64 hex digits), else from `<secrets_folder>/pseudonym.key`.

    The file is made on first use, readable by its owner only. Raises SettingsError when a key has the wrong length,
    is a known example, or lies in a file that others may read.
    """
    given = (os.environ if environment is None else environment).get(KEY_VARIABLE)
    if given:
        return _from_hex(given, KEY_VARIABLE)
    path = secrets_folder / KEY_FILE
    if not path.exists():
        _create(path)
    _refuse_loose_mode(path)
    return _from_hex(path.read_text(), str(path))


def _from_hex(text: str, where: str) -> PseudonymKey:
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
