"""What the checks after ingest say about bad records and broken files, and when they let a night pass again."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
import pytest

from orchestration.aggregates import OUTCOME_FILE, release_due_window
from orchestration.checks import build_checks
from orchestration.ingest.landing import ingest
from orchestration.ingest.pseudonyms import PseudonymKey
from orchestration.resources import Workspace
from orchestration.settings import LogsSettings, TalktrackSettings
from orchestration.workspace import CATALOGUES
from registry.privacy.settings import PrivacySettings
from rl.catalogue import read_catalogue
from rl.files import write_json
from tests.orchestration.ingest.examples import turn, write_json_lines
from tests.orchestration.test_aggregates import DUE, with_cheaper_row, write_exact

SMALL_WINDOWS = PrivacySettings(window_days=7, grid="turn", segments=())


@pytest.fixture
def settings(tmp_path: Path) -> TalktrackSettings:
    return TalktrackSettings(home=tmp_path)


def arrive(settings: TalktrackSettings, records: list[object], day: int = 3) -> Path:
    """Put the log's only file there, as it is on a day of February, and ingest it."""
    path = write_json_lines(settings.paths.home / "logs" / "log.jsonl.gz", records)
    return read(settings, path, day)


def read(settings: TalktrackSettings, path: Path, day: int = 3) -> Path:
    os.utime(path, (datetime(2026, 2, day, tzinfo=UTC).timestamp(),) * 2)
    ingest(
        str(path.parent),
        "canonical",
        landing=settings.paths.landing,
        quarantine=settings.paths.quarantine,
        catalogue=read_catalogue(CATALOGUES / "conversation.csv"),
        key=PseudonymKey(bytes(32)),
        start_date=date(2026, 1, 1),
        attribution_days=7,
    )
    return path


def check(settings: TalktrackSettings, name: str) -> dg.AssetCheckResult:
    """The result of the check of that name."""
    (found,) = (c for c in build_checks(settings) if next(iter(c.check_keys)).name == name)
    result = found(workspace=Workspace(settings))
    assert isinstance(result, dg.AssetCheckResult)
    return result


def test_too_many_malformed_lines_stop_the_night_with_count_file_and_way_out(settings: TalktrackSettings) -> None:
    path = arrive(settings, [*(turn(f"d{i}", 0) for i in range(19)), "{cut"])

    result = check(settings, "few_records_are_quarantined")

    assert not result.passed
    assert result.description is not None
    assert result.description.startswith("1 of 20 new records (5.00%) are in quarantine; the limit is 1.00%.")
    assert f"Most often (1): line: the line is not valid JSON. Most of them in {path}." in result.description
    assert "run again, or raise logs.max_quarantined_share" in result.description


def test_an_unknown_strategy_is_explained(settings: TalktrackSettings) -> None:
    arrive(settings, [turn("d1", 0), turn("d1", 1, strategy="sing")])

    described = check(settings, "few_records_are_quarantined").description

    assert described is not None
    assert "strategies: is not in the action catalogue; add it to the catalogue CSV" in described


@pytest.mark.parametrize("day", [3, 4], ids=["the same day", "a later day"])
def test_the_night_passes_once_the_file_is_mended(settings: TalktrackSettings, day: int) -> None:
    arrive(settings, [turn("d1", 0), "{cut"])
    arrive(settings, [turn("d1", 0), turn("d1", 1)], day)

    assert check(settings, "few_records_are_quarantined").passed


def test_an_empty_day_passes(settings: TalktrackSettings) -> None:
    arrive(settings, [])

    assert check(settings, "few_records_are_quarantined").passed
    assert check(settings, "source_files_are_whole").passed


def test_a_file_that_is_cut_off_is_named_and_stops_nothing(settings: TalktrackSettings) -> None:
    path = arrive(settings, [turn(f"d{i}", 0) for i in range(200)])
    path.write_bytes(path.read_bytes()[:-20])
    read(settings, path)

    result = check(settings, "source_files_are_whole")

    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert result.metadata["broken_files"].value == [str(path)]
    assert "Put the whole file back" in str(result.description)


# ---------- the border and the release


def test_a_clean_released_zone_passes_and_an_id_in_it_stops_the_night(settings: TalktrackSettings) -> None:
    released, leak = settings.paths.released, "0a1b2c3d:" + "5e" * 16
    released.mkdir(parents=True)
    assert check(settings, "nobody_is_in_the_released_zone").passed

    (released / "note.json").write_text(f'{{"who": "{leak}"}}')
    (settings.paths.root / "nightly.log").write_text(leak)
    result = check(settings, "nobody_is_in_the_released_zone")

    assert not result.passed
    assert "released/note.json: holds 1 id(s) of dialogues or customers" in str(result.description)
    assert "nightly.log: holds 1 pseudonym(s) of customers" in str(result.description)
    assert leak not in str(result.description)


def test_before_a_release_its_checks_pass(settings: TalktrackSettings) -> None:
    for name in (
        "the_privacy_ledger_and_the_releases_are_whole",
        "noise_is_certified_for_what_was_booked",
        "the_window_that_is_due_was_released",
    ):
        assert check(settings, name).passed, name


def test_an_edited_ledger_and_a_replaced_file_fail_the_check_with_their_message(settings: TalktrackSettings) -> None:
    settings = settings.model_copy(update={"logs": LogsSettings(attribution_days=3), "privacy": SMALL_WINDOWS})
    write_exact(settings)
    release_due_window(settings, DUE)
    assert check(settings, "the_privacy_ledger_and_the_releases_are_whole").passed
    assert check(settings, "noise_is_certified_for_what_was_booked").passed

    cells = settings.paths.released / "releases" / "2026-01-01" / "cells.parquet"
    kept = cells.read_bytes()
    cells.write_bytes(kept[:-1])
    said = check(settings, "the_privacy_ledger_and_the_releases_are_whole")
    assert not said.passed
    assert "are not those that were released" in str(said.description)
    cells.write_bytes(kept)

    with_cheaper_row(settings.paths.privacy_budget)
    said = check(settings, "the_privacy_ledger_and_the_releases_are_whole")
    assert not said.passed
    assert "row 1" in str(said.description)


def test_a_refusal_warns_and_names_its_reason(settings: TalktrackSettings) -> None:
    reason = "The window 2026-01-01 to 2026-01-28 is due and was not released. Too small."
    write_json(settings.paths.root / OUTCOME_FILE, {"state": "not_released", "reason": reason})
    result = check(settings, "the_window_that_is_due_was_released")
    assert (result.passed, result.severity, result.description) == (False, dg.AssetCheckSeverity.WARN, reason)
