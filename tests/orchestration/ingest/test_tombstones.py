"""Tombstones: they know who was erased, name nobody, and cannot be lost in silence."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from orchestration.ingest.pseudonyms import new_key
from orchestration.ingest.tombstones import KEY_VARIABLE, Tombstones, read_tombstones
from rl.errors import SettingsError


def erased(folder: Path) -> Tombstones:
    """One customer of one dialogue."""
    tombstones = read_tombstones(folder / "erasures", folder / "secrets", {}, to_write=True)
    return tombstones.with_digests(
        customers=[tombstones.digest("customer", "customer-ann")],
        dialogues=[tombstones.digest("dialogue", "dialogue-1")],
    )


def test_an_erased_customer_is_known_again_and_nobody_else(tmp_path: Path) -> None:
    erased(tmp_path)

    read = read_tombstones(tmp_path / "erasures", tmp_path / "secrets", {})

    assert read.has_customer("customer-ann")
    assert read.has_dialogue("dialogue-1")
    assert not read.has_customer("dialogue-1")
    assert not read.has_dialogue("customer-ann")
    assert not read.has_pseudonym("customer-ann")


def test_the_file_names_nobody_and_is_for_the_owner_only(tmp_path: Path) -> None:
    path = erased(tmp_path).path

    assert "ann" not in path.read_text()
    assert "dialogue-1" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "secrets" / "tombstone.key").stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_adding_what_is_there_writes_nothing(tmp_path: Path) -> None:
    tombstones = erased(tmp_path)
    written = tombstones.path.stat().st_mtime_ns

    tombstones.with_digests(customers=tombstones.customers)

    assert tombstones.path.stat().st_mtime_ns == written


def test_where_nobody_was_erased_no_key_is_needed_or_made(tmp_path: Path) -> None:
    assert read_tombstones(tmp_path / "erasures", tmp_path / "secrets", {}).is_empty
    assert not list(tmp_path.iterdir())


def test_without_its_key_or_with_another_the_list_is_refused(tmp_path: Path) -> None:
    erased(tmp_path)

    for environment in ({}, {KEY_VARIABLE: new_key().secret.hex()}):
        (tmp_path / "secrets" / "tombstone.key").unlink(missing_ok=True)
        with pytest.raises(SettingsError, match="Put the key back"):
            read_tombstones(tmp_path / "erasures", tmp_path / "secrets", environment)
