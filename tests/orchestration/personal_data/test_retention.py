"""Retention: what is too old leaves every store, what is not stays, and the next night takes neither for news."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from orchestration.assets.retention import build_retention_assets
from orchestration.personal_data import retention
from orchestration.personal_data.retention import apply_retention, first_kept_day
from orchestration.resources import Workspace
from orchestration.settings import load
from rl.encoders.encode import VectorCache, as_hashes
from rl.errors import SettingsError
from rl.files import content_hash
from tests.orchestration.ingest.examples import turn
from tests.orchestration.personal_data.erasure_worlds import DATA_SET, World, conversation, result

DAYS = 40
OLD_TEXT = "A lamp for the cellar, once more"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Logs whose newest day is 15 February: with 40 days the first day that stays is 7 January."""
    world = World(tmp_path, restricted_days=DAYS)
    world.write(
        "2026-01-06",
        [
            *conversation("old-1", "ann", "2026-01-05", OLD_TEXT),
            turn("old-1", 9, speaker="robot", occurred_at="2026-01-05T11:00:00Z"),
        ],
    )
    world.write(
        "2026-01-08",
        [*conversation("edge-old", "bob", "2026-01-06"), *conversation("edge-kept", "bob", "2026-01-07")],
    )
    world.write("2026-02-15", [*conversation("new-1", "ann", "2026-02-14"), result("old-1", "2026-02-14")])
    world.night()
    return world


def dialogues(world: World, table: str = "turns") -> set[str]:
    return {row["dialogue_id"] for row in world.rows(table)}


def test_the_first_day_that_stays_counts_back_from_the_clock_of_the_data(world: World) -> None:
    assert first_kept_day(world.settings) == date(2026, 1, 7)


def test_old_dialogues_leave_every_store_and_the_others_stay(world: World) -> None:
    report = apply_retention(world.settings)

    assert report.first_kept_day == date(2026, 1, 7)
    assert dialogues(world) == {"edge-kept", "new-1"}
    assert dialogues(world, "outcomes") == dialogues(world, "incomplete") == set()
    assert {row["dialogue_id"] for row in world.mart("fct_dialogues")} == {"edge-kept", "new-1"}
    assert world.query("select distinct dialogue_id from fct_turns order by 1") == [("edge-kept",), ("new-1",)]
    assert world.files("quarantine/**/*.jsonl") == {}
    assert report.rows["landing/turns"] == 4
    assert report.rows["landing/quarantine"] == 1
    assert report.rows["marts/fct_dialogues"] == report.rows["warehouse/fct_dialogues"] == 2


def test_the_bytes_of_the_working_database_hold_no_old_word(world: World) -> None:
    apply_retention(world.settings)

    assert OLD_TEXT.encode() not in world.paths.warehouse.read_bytes()
    cache = VectorCache.open(world.paths.features / "static-8")
    assert not cache.contains(as_hashes([content_hash(OLD_TEXT.encode())])).any()
    assert cache.contains(as_hashes([content_hash(b"This one is bright")])).all()


def test_an_expired_file_is_not_read_again_and_nothing_is_rebuilt(world: World) -> None:
    apply_retention(world.settings)

    assert [mark["arrival_day"] for mark in world.marks() if mark.get("expired")] == ["2026-01-06"]
    assert world.land().n_files_read == 0
    plan = world.plan()
    assert not plan.is_full
    assert "2026-01-06" not in {str(day) for day in plan.days or ()}
    assert dialogues(world) == {"edge-kept", "new-1"}


def test_an_expired_file_stays_out_when_readers_have_changed_since(world: World) -> None:
    apply_retention(world.settings)
    for path in world.paths.landing.glob("_files/*.json"):
        mark = json.loads(path.read_text())
        path.write_text(json.dumps({**mark, "versions": {"schema": "0"}}))

    report = world.land()

    assert report.n_files_read == 2
    assert "old-1" not in dialogues(world)
    assert report.outdated_files == ()


def test_a_second_run_changes_no_byte(world: World) -> None:
    apply_retention(world.settings)
    before = world.files("landing/**/*", "marts/**/*", "warehouse.duckdb", "features/**/*")

    again = apply_retention(world.settings)

    assert again.rows == {}
    assert world.files("landing/**/*", "marts/**/*", "warehouse.duckdb", "features/**/*") == before


def test_a_full_rebuild_afterwards_has_every_day_that_stays(world: World) -> None:
    apply_retention(world.settings)
    marts = [row["dialogue_id"] for row in world.mart("fct_dialogues")]
    (world.paths.root / "warehouse_state.json").unlink()

    world.night()

    assert [row["dialogue_id"] for row in world.mart("fct_dialogues")] == marts


@pytest.mark.parametrize("moment", ["remove_landed", "rewrite_warehouse", "remove_from_marts", "remove_data_sets"])
def test_killed_anywhere_and_run_again_it_finishes(world: World, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    def killed(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retention, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            apply_retention(world.settings)

    apply_retention(world.settings)

    assert dialogues(world) == {row["dialogue_id"] for row in world.mart("fct_dialogues")} == {"edge-kept", "new-1"}
    assert world.query("select count(*) from fct_dialogues") == [(2,)]


def test_a_data_set_goes_when_its_last_day_has(world: World) -> None:
    manifest = world.paths.root / DATA_SET / "manifest.json"
    old = world.paths.datasets / "old"
    old.mkdir()
    (old / "manifest.json").write_text(json.dumps({"window": ["2026-01-01", "2026-01-06"]}))

    report = apply_retention(world.settings)

    assert report.data_sets == ("old",)
    assert not old.exists()
    assert manifest.exists()


def test_without_a_limit_nothing_expires(tmp_path: Path) -> None:
    world = World(tmp_path, restricted_days=None)
    world.write("2026-01-06", conversation("old-1", "ann", "2026-01-05"))
    world.write("2027-01-06", conversation("new-1", "ann", "2027-01-05"))
    world.night()

    assert apply_retention(world.settings).rows == {}
    assert dialogues(world) == {"old-1", "new-1"}


def test_a_limit_below_what_a_window_needs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "talktrack.yaml"
    config.write_text("retention: {restricted_days: 50}\nprivacy: {window_days: 56}\n")

    with pytest.raises(SettingsError, match=r"restricted_days.*64"):
        load(config=config)


def test_old_releases_go_when_they_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(retention, "delete_old_releases", lambda places, before: asked.append(before) or [before])
    world = World(tmp_path, released_days=30)
    world.write("2026-02-15", conversation("new-1", "ann", "2026-02-14"))
    world.land()

    assert apply_retention(world.settings).releases == (date(2026, 1, 17),)
    assert asked == [date(2026, 1, 17)]


def test_the_night_says_what_left_and_shows_no_small_count(world: World) -> None:
    (asset,) = build_retention_assets(world.settings)

    result = dg.materialize([asset], resources={"workspace": Workspace(world.settings)})

    (event,) = result.asset_materializations_for_node(asset.node_def.name)
    assert event.metadata["first_day_kept"].value == "2026-01-07"
    assert event.metadata["rows_removed"].value == {}
    assert dialogues(world) == {"edge-kept", "new-1"}
