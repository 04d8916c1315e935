"""The border inside a workspace: what is released, what must not be found outside its store, what an export takes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestration.exports import EXPORT_FILE, export_aggregates
from orchestration.settings import TalktrackSettings
from orchestration.zones import (
    RELEASED,
    RESTRICTED,
    BorderError,
    faults_in_released,
    ids_among,
    misplaced_ids,
    zone_of,
)
from rl.errors import DataError
from rl.shown_counts import count_text, shown_count, without_small

PSEUDONYM = "0a1b2c3d:" + "5e" * 16
DIALOGUE = "dialogue-4711"


@pytest.fixture
def settings(tmp_path: Path) -> TalktrackSettings:
    """A workspace with one dialogue in its marts and one release."""
    settings = TalktrackSettings(home=tmp_path)
    table = pa.table({"dialogue_id": [DIALOGUE], "customer_id": [PSEUDONYM]})
    write_table(settings.paths.marts / "fct_dialogues" / "day=2026-01-01" / "part-0.parquet", table)
    release = settings.paths.released / "releases" / "2026-01-01"
    write_table(release / "cells.parquet", pa.table({"aggregate_bucket": ["1|any|any|any"], "n_customers": [123]}))
    (release / "release.json").write_text(json.dumps({"release_id": "r-1"}))
    return settings


def write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


# ---------- zones


@pytest.mark.parametrize(
    "name", ["released/releases/x/cells.parquet", "released/aggregates", "catalogue.json", "marts/dim_strategies"]
)
def test_aggregates_and_the_catalogue_are_released(name: str, tmp_path: Path) -> None:
    assert zone_of(tmp_path / name, tmp_path) == RELEASED


@pytest.mark.parametrize(
    "name",
    ["landing/turns", "marts/fct_turns", "bundle/bundle.json", "something_new", "released_copy/x", "../released"],
)
def test_everything_else_is_restricted(name: str, tmp_path: Path) -> None:
    assert zone_of(tmp_path / name, tmp_path) == RESTRICTED


# ---------- inside the restricted zone


def test_pseudonyms_in_their_stores_are_no_fault(settings: TalktrackSettings) -> None:
    assert misplaced_ids(settings.paths.root) == []


def test_a_pseudonym_in_a_log_a_compressed_file_or_a_table_is_found_and_not_repeated(
    settings: TalktrackSettings,
) -> None:
    root = settings.paths.root
    (root / "nightly.log").write_text(f"failed for {PSEUDONYM} twice: {PSEUDONYM}\n")
    (root / "old.gz").write_bytes(gzip.compress(PSEUDONYM.encode()))
    write_table(root / "evaluation" / "rows.parquet", pa.table({"who": [PSEUDONYM, "nobody"]}))

    faults = [str(fault) for fault in misplaced_ids(root)]

    assert faults == [
        "evaluation/rows.parquet: holds 1 pseudonym(s) of customers",
        "nightly.log: holds 1 pseudonym(s) of customers",
        "old.gz: holds 1 pseudonym(s) of customers",
    ]


# ---------- the released zone


def test_a_clean_release_has_no_fault(settings: TalktrackSettings) -> None:
    assert faults_in_released(settings.paths.released, settings.paths.marts) == []


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("customer_id", "somebody", "has the column(s) customer_id"),
        ("reply", PSEUDONYM, "holds 1 id(s) of dialogues or customers"),
        ("reply", DIALOGUE, "holds 1 id(s) of dialogues or customers"),
        ("reply", f"yes, see x{DIALOGUE}", None),
        ("reply", f"yes, see {DIALOGUE}.", "holds 1 id(s) of dialogues or customers"),
    ],
)
def test_an_id_or_a_column_of_single_people_is_a_fault(
    column: str, value: str, reason: str | None, settings: TalktrackSettings
) -> None:
    """The limit of the search is part of the test: an id that is glued to other characters is not found."""
    write_table(settings.paths.released / "leak.parquet", pa.table({column: [value]}))
    found = [str(fault) for fault in faults_in_released(settings.paths.released, settings.paths.marts)]
    assert found == ([] if reason is None else [f"leak.parquet: {reason}"])


def test_a_file_that_cannot_be_read_is_a_fault(settings: TalktrackSettings) -> None:
    (settings.paths.released / "warehouse.duckdb").write_bytes(b"x")
    (fault,) = faults_in_released(settings.paths.released, settings.paths.marts)
    assert "is of type .duckdb, which this check cannot read" in str(fault)


def test_short_ids_are_not_looked_for(settings: TalktrackSettings) -> None:
    table = pa.table({"dialogue_id": ["7", "long-enough"], "customer_id": ["x", "y"]})
    write_table(settings.paths.marts / "fct_dialogues" / "day=2026-01-02" / "part-0.parquet", table)
    assert ids_among(settings.paths.marts, {"7", "x", "long-enough", "unknown"}) == {"long-enough"}


# ---------- export


def test_the_released_aggregates_are_exported_with_a_list_of_their_hashes(
    settings: TalktrackSettings, tmp_path: Path
) -> None:
    export = export_aggregates(settings, tmp_path / "out")

    assert set(export.files) == {"releases/2026-01-01/cells.parquet", "releases/2026-01-01/release.json"}
    listed = json.loads((tmp_path / "out" / EXPORT_FILE).read_text())
    assert (listed["zone"], listed["files"]) == ("released", export.files)
    assert export_aggregates(settings, tmp_path / "out").files == export.files  # an export may be renewed


def test_an_export_with_an_id_in_it_leaves_nothing_behind(settings: TalktrackSettings, tmp_path: Path) -> None:
    (settings.paths.released / "note.txt").write_text(f"ask {PSEUDONYM}")
    with pytest.raises(BorderError, match=r"note\.txt: holds 1 id\(s\)") as error:
        export_aggregates(settings, tmp_path / "out")
    assert PSEUDONYM not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_export_replaces_no_folder_of_somebody_else(settings: TalktrackSettings, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="is there and is no export"):
        export_aggregates(settings, tmp_path / "mine")


def test_without_a_release_there_is_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Nothing was released in workspace 'storefront' yet"):
        export_aggregates(TalktrackSettings(home=tmp_path), tmp_path / "out")


# ---------- counts


@pytest.mark.parametrize(("n", "shown", "text"), [(0, 0, "0"), (1, None, "< 20"), (19, None, "< 20"), (20, 20, "20")])
def test_counts_of_fewer_than_twenty_are_not_shown(n: int, shown: int | None, text: str) -> None:
    assert shown_count(n) == shown
    assert count_text(n) == count_text(shown) == text
    assert without_small({"n": n}) == ({} if shown is None else {"n": n})
