"""What the checks after ingest say about bad records and broken files, and when they let a night pass again."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
import pytest

from orchestration.checks import build_checks
from orchestration.ingest.landing import ingest
from orchestration.ingest.pseudonyms import PseudonymKey
from orchestration.resources import Workspace
from orchestration.settings import TalktrackSettings
from orchestration.workspace import CATALOGUES
from rl.catalogue import read_catalogue
from tests.orchestration.ingest.examples import turn, write_json_lines


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
