"""The benchmarks of the warehouse, of releases and of large sets at a tiny size: they run, and both sides do the same
work.

Nothing here is timed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestration import warehouse, working_database
from orchestration.ingest.schema import SCHEMAS
from orchestration.workspace import configured_catalogue
from rl.datasets.transitions import TransitionSet
from tests.benchmarks import bench_large_sets, bench_release, bench_trainers, bench_warehouse, warehouse_in_pandas
from tests.benchmarks.landing_at_scale import LogShape, land_days
from tests.benchmarks.large_sets import large_set
from tests.benchmarks.rows import Row
from tests.benchmarks.warehouse_steps import bench_settings

N_DAYS = 12
SHAPE = LogShape(dialogues_per_day=30, customers=100)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> bench_warehouse.Workspace:
    """Twelve days, built as the benchmark builds its long history; the window of the exact tables is the first four."""
    settings = bench_settings(tmp_path_factory.mktemp("bench"))
    settings.paths.root.mkdir()
    space = bench_warehouse.Workspace(settings, SHAPE, long_history=N_DAYS)
    warehouse.write_catalogue(configured_catalogue(settings), space.catalogue)
    bench_warehouse.whole_build(space)
    return space


def test_the_landing_at_scale_has_the_columns_and_types_that_ingest_writes(space: bench_warehouse.Workspace) -> None:
    for kind, schema in SCHEMAS.items():
        part = next((space.settings.paths.landing / kind).glob("*/*.parquet"))
        written = pq.read_schema(part)
        assert {field.name: field.type for field in written} == {field.name: field.type for field in schema}


def test_a_day_of_the_landing_at_scale_is_the_same_however_it_is_landed(
    space: bench_warehouse.Workspace, tmp_path: Path
) -> None:
    list(land_days(tmp_path, [5], SHAPE, configured_catalogue(space.settings)))
    part = next((tmp_path / "turns").glob("*/*.parquet"))
    other = space.settings.paths.landing / part.relative_to(tmp_path)
    alone, in_order = (pq.read_table(path).drop_columns("source_row") for path in (part, other))
    keys = [("dialogue_id", "ascending"), ("turn_index", "ascending")]
    assert alone.sort_by(keys).equals(in_order.sort_by(keys))


def test_the_sql_that_dbt_compiled_runs_by_hand(space: bench_warehouse.Workspace) -> None:
    cost = bench_warehouse.the_same_by_hand(space)
    assert cost.peak_bytes > 0
    assert cost.cpu_seconds > 0


def test_pandas_does_the_work_of_the_warehouse(space: bench_warehouse.Workspace) -> None:
    settings = space.settings
    built = warehouse_in_pandas.build(settings.paths.landing, space.catalogue, N_DAYS, settings)
    with working_database.read_only(settings.paths.warehouse) as connection:
        ours = {name: connection.execute(f"from {name}").df() for name in built}
    for name in ("fct_turns", "fct_dialogues", "fct_transitions"):
        assert len(built[name]) == len(ours[name]) > 100, name
    assert built["fct_dialogues"]["is_usable"].sum() == ours["fct_dialogues"]["is_usable"].sum() > 0
    by_step = ["dialogue_id", "step_index"]
    same = built["fct_transitions"].merge(ours["fct_transitions"], on=by_step, suffixes=("", "_ours"))
    assert len(same) == len(built["fct_transitions"])
    for column in ("strategy", "state_bucket", "reward", "is_terminated"):
        assert (same[column] == same[f"{column}_ours"]).all(), column


def test_a_ratio_above_one_means_that_ours_is_better_for_times_and_sizes_too() -> None:
    row = Row("night", 200.0, 400.0, "aim", "ms", ">= 2", is_lower_better=True)
    assert row.ratio == 2
    assert row.holds
    assert not replace(row, ours=400.0).holds
    assert replace(row, ours=400.0, aim="none").holds


def test_a_release_of_a_small_grid_is_drawn_and_timed() -> None:
    release, draws = bench_release.run(n_segments=1)
    assert release.unit == "ms"
    assert release.ours > 0
    assert draws.holds


def test_a_large_set_is_written_opened_and_drawn_within_the_limit_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALKTRACK_HOME", str(tmp_path))
    rows = bench_large_sets.run(n_steps=20_000, chunk_bytes=2_000_000)
    assert all(row.holds and row.ours > 0 for row in rows)
    assert not list(tmp_path.iterdir())


def test_a_large_set_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    large_set(tmp_path / "set", 2_000)
    written = (tmp_path / "set").stat().st_ino
    large_set(tmp_path / "set", 2_000)
    assert (tmp_path / "set").stat().st_ino == written
    large_set(tmp_path / "set", 2_001)
    assert TransitionSet.open(tmp_path / "set").n_steps == 2_001


def test_updates_of_both_sides_and_the_floor_are_timed() -> None:
    rows = bench_trainers.run(batches=(8,), rows_per_turn=24, memory_batches=(), gpu_batches=(), compiles=False)
    assert [row.unit for row in rows] == ["updates/s"] * 3 + ["transitions/s", "members × updates/s"]
    assert all(row.ours > 0 and row.peer > 0 for row in rows)
