"""Pseudonyms: stable under one key, unrelated under two, and no key that is weak or lies open."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from orchestration.ingest.pseudonyms import (
    KEY_VARIABLE,
    PREVIOUS_KEY_VARIABLE,
    LostKeyError,
    Pseudonymizer,
    PseudonymKey,
    load_key,
    load_keys,
    new_key,
    write_key,
)
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


def test_a_key_of_the_workspace_wins_over_the_homes(tmp_path: Path) -> None:
    shared, own = load_key(tmp_path, {}), new_key()
    write_key(tmp_path / "pseudonym.shop.key", own)

    assert load_keys(tmp_path, "shop", environment={}).current == own
    assert load_keys(tmp_path, "other", environment={}).current == shared


def test_the_previous_key_is_live_too(tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    write_key(tmp_path / "pseudonym.shop.key", new)
    write_key(tmp_path / "pseudonym.shop.previous.key", old)
    given = {KEY_VARIABLE: new.secret.hex(), PREVIOUS_KEY_VARIABLE: old.secret.hex()}

    for keys in (load_keys(tmp_path, "shop", environment={}), load_keys(Path("unused"), "shop", environment=given)):
        assert keys.key_ids == (new.key_id, old.key_id)
        assert keys.pseudonyms("customer-1") == [Pseudonymizer(new)("customer-1"), Pseudonymizer(old)("customer-1")]


def test_no_key_is_made_where_pseudonyms_of_another_are_landed(tmp_path: Path) -> None:
    with pytest.raises(LostKeyError, match="made with the key 0badc0de, and there is no key"):
        load_keys(tmp_path, "shop", used={"0badc0de"}, environment={})

    assert not list(tmp_path.iterdir())


def test_another_key_than_the_landings_is_named(tmp_path: Path) -> None:
    here = load_key(tmp_path, {})

    with pytest.raises(LostKeyError, match=f"the key that is here is {here.key_id}") as caught:
        load_keys(tmp_path, "shop", used={"0badc0de", here.key_id}, environment={})
    assert here.secret.hex() not in str(caught.value)


def test_a_key_that_is_written_is_for_the_owner_only(tmp_path: Path) -> None:
    write_key(tmp_path / "secrets" / "some.key", PseudonymKey(bytes.fromhex(KEY)))

    assert stat.S_IMODE((tmp_path / "secrets" / "some.key").stat().st_mode) == 0o600
    assert KEY not in repr(load_keys(tmp_path / "secrets", environment={KEY_VARIABLE: KEY}))
