"""Pseudonyms: stable under one key, unrelated under two, and no key that is weak or lies open."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from orchestration.ingest.pseudonyms import KEY_VARIABLE, Pseudonymizer, PseudonymKey, load_key
from rl.errors import SettingsError

KEY = "8f3a" * 12 + "01b2c3d4e5f60718"


def test_a_pseudonym_is_a_key_id_and_32_hex_digits_and_stays_the_same() -> None:
    key = load_key(Path("unused"), {KEY_VARIABLE: KEY})
    pseudonym = Pseudonymizer(key)("customer-1")

    assert re.fullmatch(rf"{key.key_id}:[0-9a-f]{{32}}", pseudonym)
    assert pseudonym == Pseudonymizer(key)("customer-1")
    assert pseudonym != Pseudonymizer(key)("customer-2")


def test_another_key_gives_another_pseudonym() -> None:
    other = PseudonymKey(bytes(range(32, 64)))

    assert Pseudonymizer(other)("customer-1") != Pseudonymizer(PseudonymKey(bytes.fromhex(KEY)))("customer-1")


def test_the_key_never_shows_in_messages() -> None:
    assert KEY not in repr(PseudonymKey(bytes.fromhex(KEY)))


def test_the_first_use_makes_a_key_for_the_owner_only_and_the_next_reads_it(tmp_path: Path) -> None:
    first = load_key(tmp_path / "secrets", {})

    path = tmp_path / "secrets" / "pseudonym.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert load_key(tmp_path / "secrets", {}) == first
    assert [p.name for p in path.parent.iterdir()] == ["pseudonym.key"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("ab" * 16, "16 bytes"),
        ("zz", "not hexadecimal"),
        ("00" * 32, "example key"),
        (bytes(range(32)).hex(), "example"),
    ],
)
def test_weak_keys_are_refused(key: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_key(Path("unused"), {KEY_VARIABLE: key})


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_key(tmp_path, {})
    (tmp_path / "pseudonym.key").chmod(0o644)

    with pytest.raises(SettingsError, match="chmod 600"):
        load_key(tmp_path, {})
