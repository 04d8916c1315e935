"""Plans, exports and summaries of the warehouse, without dbt: the working database and the marts are made here."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from orchestration import marts, warehouse, working_database
from orchestration.settings import LogsSettings, TalktrackSettings
from rl.catalogue import ActionCatalogue, Strategy
from rl.settings import DatasetSettings, RewardDefinition, RewardPart
from tests.transforms import landing_builder as logs

CLOCK = datetime(2026, 1, 9, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> TalktrackSettings:
    parts = (RewardPart(name="conversion_value", weight=0.5, clip_high=2.0), RewardPart(name="cost", weight=0.1))
    chosen = TalktrackSettings(
        home=tmp_path,
        workspace="tested",
        logs=LogsSettings(attribution_days=7),
        dataset=DatasetSettings(reward=RewardDefinition(parts=parts)),
    )
    logs.empty_landing(chosen.paths.landing)
    logs.write_catalogue(tmp_path / "catalogue.csv")
    return chosen


@pytest.fixture
def catalogue_file(tmp_path: Path) -> Path:
    return tmp_path / "catalogue.csv"


def make_warehouse(path: Path, dialogues: list[tuple[str, str, bool]]) -> Path:
    """A working database with one step and one turn for each (dialogue, day, is_mature)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            """
            create table fct_dialogues (dialogue_id varchar, last_turn_at timestamp, is_mature boolean,
                is_incomplete boolean, is_usable boolean, n_steps integer, n_unlabelled_steps integer,
                episode_return double, dialogue_day date);
            create table fct_transitions (dialogue_id varchar, step_index integer, occurred_at timestamp,
                reward_conversion_value double, reward_conversion double, reward_rating double,
                reward_engagement double, reward_cost double, dialogue_day date);
            create table fct_turns (dialogue_id varchar, turn_index integer, dialogue_day date);
            create table dim_strategies (strategy_id integer);
            create table dim_policies (policy_version varchar);
            insert into dim_strategies values (1), (0);
            """
        )
        for name, day, is_mature in dialogues:
            connection.execute(
                f"""
                insert into fct_dialogues values
                    ('{name}', timestamp '{day} 12:00:00', {is_mature}, false, {is_mature}, 1, 0, 1.5, date '{day}');
                insert into fct_transitions values
                    ('{name}', 0, timestamp '{day} 12:00:00', 2.0, 1.0, 0.0, 1.0, -1.0, date '{day}');
                insert into fct_turns values ('{name}', 0, date '{day}');
                """
            )
    return path


def remember_first_build(settings: TalktrackSettings, catalogue_file: Path) -> None:
    """What a night leaves behind that built the landing as it is now."""
    paths = settings.paths
    plan = warehouse.plan_build(settings, catalogue_file)
    marts.export_marts(make_warehouse(paths.warehouse, []), paths.marts, plan.days)
    warehouse.remember_build(paths.root, plan)


def days(*names: str) -> list[date]:
    return [date.fromisoformat(name) for name in names]


def touched(settings: TalktrackSettings, *sources: str, as_of: datetime | None = None) -> list[date]:
    return warehouse.touched_days(
        settings.paths.landing, settings.paths.marts, sources, as_of=as_of, attribution_days=7
    )


def test_vars_carry_the_reward_and_give_absent_parts_no_weight(settings: TalktrackSettings) -> None:
    variables = warehouse.dbt_vars(settings, date(2026, 1, 1), date(2026, 1, 2), CLOCK)

    assert variables["min_date"] == "2026-01-01"
    assert variables["max_date"] == "2026-01-02"
    assert variables["as_of"] == "2026-01-09 00:00:00.000000"
    assert variables["reward_conversion_value_weight"] == 0.5
    assert variables["reward_conversion_value_clip_high"] == 2.0
    assert variables["reward_cost_weight"] == 0.1
    assert variables["reward_rating_weight"] == 0.0


def test_the_catalogue_leaves_with_its_dense_ids(tmp_path: Path) -> None:
    catalogue = ActionCatalogue(
        (Strategy("b", 'Says "well", and so on.', 2, "selectable"), Strategy("a", "", 1, "outcome"))
    )

    path = warehouse.write_catalogue(catalogue, tmp_path / "catalogue.csv")

    assert path.read_text().splitlines() == [
        "strategy_id,strategy,description,priority,role",
        '0,b,"Says ""well"", and so on.",2,selectable',
        "1,a,,1,outcome",
    ]


def test_the_data_is_known_up_to_the_end_of_the_newest_arrival_day(settings: TalktrackSettings) -> None:
    landing = settings.paths.landing
    assert warehouse.data_clock(landing) is None

    logs.land(landing, "2026-01-03", turns=logs.dialogue("a", logs.START))
    logs.land(landing, "2026-01-08", outcomes=[logs.outcome("a", logs.START)])

    assert warehouse.data_clock(landing) == CLOCK


def test_records_of_any_kind_touch_the_day_of_their_dialogue(settings: TalktrackSettings) -> None:
    landing = settings.paths.landing
    first = logs.land(landing, "2026-01-01", turns=logs.dialogue("a", logs.START))
    logs.land(landing, "2026-01-02", turns=logs.dialogue("b", logs.START + timedelta(days=1)))
    result = logs.land(landing, "2026-01-03", outcomes=[logs.outcome("b", logs.START)])
    refused = logs.land(landing, "2026-01-04", incomplete=[{"dialogue_id": "a", "reason": "speaker"}])

    assert touched(settings) == []
    assert touched(settings, first) == days("2026-01-01")
    assert touched(settings, result) == days("2026-01-02")
    assert touched(settings, result, refused) == days("2026-01-01", "2026-01-02")


def test_a_dialogue_that_moves_touches_the_day_it_leaves(settings: TalktrackSettings) -> None:
    paths = settings.paths
    logs.land(paths.landing, "2026-01-02", turns=logs.dialogue("a", logs.START + timedelta(days=1))[2:])
    marts.export_marts(make_warehouse(paths.warehouse, [("a", "2026-01-02", False)]), paths.marts)

    earlier = logs.land(paths.landing, "2026-01-05", turns=[logs.turn("a", 0, logs.START, "greet")])

    assert touched(settings, earlier) == days("2026-01-01", "2026-01-02")


def test_the_last_arrival_of_the_first_turn_decides_the_day(settings: TalktrackSettings) -> None:
    landing = settings.paths.landing
    logs.land(landing, "2026-01-01", turns=logs.dialogue("a", logs.START))

    corrected = logs.land(landing, "2026-01-05", turns=[logs.turn("a", 0, logs.START + timedelta(days=3), "greet")])

    assert touched(settings, corrected) == days("2026-01-04")


def test_days_whose_dialogues_mature_are_touched_without_new_records(settings: TalktrackSettings) -> None:
    paths = settings.paths
    held = [("old", "2026-01-01", True), ("ripe", "2026-01-02", False), ("young", "2026-01-03", False)]
    marts.export_marts(make_warehouse(paths.warehouse, held), paths.marts)

    assert touched(settings, as_of=datetime(2026, 1, 9, 11, 59, tzinfo=UTC)) == []
    assert touched(settings, as_of=datetime(2026, 1, 9, 12, 0, tzinfo=UTC)) == days("2026-01-02")
    assert touched(settings, as_of=datetime(2026, 1, 8, 0, 0, tzinfo=UTC)) == days("2026-01-01")


def test_a_change_of_meaning_rebuilds_every_day(settings: TalktrackSettings, catalogue_file: Path) -> None:
    paths = settings.paths
    logs.land(paths.landing, "2026-01-01", turns=logs.dialogue("a", logs.START))
    first = warehouse.plan_build(settings, catalogue_file)
    remember_first_build(settings, catalogue_file)

    assert first.is_full
    assert first.n_new_sources == 1
    assert warehouse.plan_build(settings, catalogue_file).days == ()

    other = settings.model_copy(update={"logs": LogsSettings(attribution_days=3)})
    assert "attribution" in warehouse.plan_build(other, catalogue_file).reason
    assert warehouse.plan_build(other, catalogue_file).is_full

    paths.warehouse.unlink()
    assert "missing" in warehouse.plan_build(settings, catalogue_file).reason


def test_a_night_that_was_killed_before_it_was_remembered_is_planned_again(
    settings: TalktrackSettings, catalogue_file: Path
) -> None:
    paths = settings.paths
    remember_first_build(settings, catalogue_file)
    logs.land(paths.landing, "2026-01-01", turns=logs.dialogue("a", logs.START))

    killed = warehouse.plan_build(settings, catalogue_file)
    again = warehouse.plan_build(settings, catalogue_file)

    assert killed.days == again.days == (date(2026, 1, 1),)


def test_a_plan_without_touched_days_never_becomes_a_full_build(
    settings: TalktrackSettings, catalogue_file: Path
) -> None:
    remember_first_build(settings, catalogue_file)

    arguments = warehouse.plan_build(settings, catalogue_file).dbt_arguments(settings)

    assert "--full-refresh" not in arguments
    assert json.loads(arguments[2])["min_date"] == "1970-01-01"


def test_a_plan_names_its_days_one_by_one_and_the_first_arrival_that_can_matter(
    settings: TalktrackSettings, catalogue_file: Path
) -> None:
    landing, start, day = settings.paths.landing, logs.START, timedelta(days=1)
    logs.land(landing, "2026-01-01", turns=logs.dialogue("old", start))
    logs.land(landing, "2026-01-02", turns=logs.dialogue("split", start + 2 * day)[2:])
    logs.land(landing, "2026-01-03", turns=logs.dialogue("split", start + 2 * day)[:2])
    logs.land(landing, "2026-01-09", turns=logs.dialogue("new", start + 8 * day))
    remember_first_build(settings, catalogue_file)
    logs.land(landing, "2026-01-10", outcomes=[logs.outcome("split", start), logs.outcome("new", start)])

    plan = warehouse.plan_build(settings, catalogue_file)

    variables = json.loads(plan.dbt_arguments(settings)[2])
    assert variables["days_to_rebuild"] == ["2026-01-03", "2026-01-09"]
    assert variables["min_arrival_day"] == "2026-01-02"


def test_a_day_without_dialogues_has_no_first_arrival(settings: TalktrackSettings) -> None:
    logs.land(settings.paths.landing, "2026-01-01", turns=logs.dialogue("a", logs.START))

    assert warehouse.first_arrival_day(settings.paths.landing, days("2026-01-02")) is None
    assert warehouse.first_arrival_day(settings.paths.landing, []) is None


def test_an_export_of_more_days_than_one_scan_takes_writes_each(settings: TalktrackSettings) -> None:
    paths = settings.paths
    every = [str(date(2026, 1, 1) + timedelta(days=number)) for number in range(40)]
    make_warehouse(paths.warehouse, [(f"d{day}", day, True) for day in every])

    report = marts.export_marts(paths.warehouse, paths.marts)

    assert report.rows["fct_turns"] == 40
    for day in every:
        rows = pq.read_table(paths.marts / "fct_turns" / f"day={day}" / "part-0.parquet", partitioning=None)
        assert rows["dialogue_id"].to_pylist() == [f"d{day}"]


def test_an_export_writes_only_the_days_it_is_given(settings: TalktrackSettings) -> None:
    paths = settings.paths
    make_warehouse(paths.warehouse, [("a", "2026-01-01", True), ("b", "2026-01-02", True)])

    report = marts.export_marts(paths.warehouse, paths.marts, days("2026-01-02"))

    assert report.rows == {
        "fct_dialogues": 1,
        "fct_transitions": 1,
        "fct_turns": 1,
        "dim_strategies": 2,
        "dim_policies": 0,
    }
    assert [folder.name for folder in (paths.marts / "fct_turns").iterdir()] == ["day=2026-01-02"]
    assert pq.read_table(paths.marts / "dim_strategies" / "part-0.parquet")["strategy_id"].to_pylist() == [0, 1]


@pytest.mark.parametrize("chosen", [days("2026-01-01"), None], ids=["that_day", "all_days"])
def test_a_day_that_became_empty_loses_its_folder(settings: TalktrackSettings, chosen: list[date] | None) -> None:
    paths = settings.paths
    marts.export_marts(make_warehouse(paths.warehouse, [("a", "2026-01-01", True)]), paths.marts)

    marts.export_marts(make_warehouse(paths.warehouse, []), paths.marts, chosen)

    assert not list(paths.marts.glob("fct_*/day=*"))


def test_an_export_of_a_database_someone_writes_to_says_so(settings: TalktrackSettings, tmp_path: Path) -> None:
    with pytest.raises(working_database.WarehouseError, match="There is no working database"):
        marts.export_marts(tmp_path / "none.duckdb", settings.paths.marts)
    (tmp_path / "broken.duckdb").write_text("no database")
    with pytest.raises(working_database.WarehouseError, match="cannot be opened for reading"):
        marts.export_marts(tmp_path / "broken.duckdb", settings.paths.marts)


def test_the_summary_leaves_out_what_is_not_usable(settings: TalktrackSettings) -> None:
    paths = settings.paths
    held = [("a", "2026-01-01", True), ("b", "2026-01-02", True), ("c", "2026-01-03", False)]
    marts.export_marts(make_warehouse(paths.warehouse, held), paths.marts)

    summary = marts.behavior_summary(paths.marts)
    narrowed = marts.behavior_summary(paths.marts, first_day=date(2026, 1, 2))

    assert (summary.n_dialogues, summary.n_usable, summary.n_immature, summary.n_steps) == (3, 2, 1, 2)
    assert summary.mean_return == 1.5
    assert summary.mean_parts == {
        "conversion_value": 2.0,
        "conversion": 1.0,
        "rating": 0.0,
        "engagement": 1.0,
        "cost": -1.0,
    }
    assert (narrowed.n_dialogues, narrowed.n_usable) == (2, 1)
    assert marts.behavior_summary(paths.root / "nowhere").n_dialogues == 0


HOLDER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_writer_that_outlived_its_night_is_waited_for_and_named(tmp_path: Path) -> None:
    path = make_warehouse(tmp_path / "warehouse.duckdb", [])
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(
            working_database.WarehouseError, match=rf"for 0 s \(PID {holder.pid}\)\. Wait for it, or end it"
        ):
            working_database.wait_until_free(path, seconds=0)
        threading.Timer(0.6, holder.stdin.close).start()
        working_database.wait_until_free(path, seconds=30)
    assert holder.returncode == 0


def test_what_a_killed_writer_spilled_is_removed(tmp_path: Path) -> None:
    path = make_warehouse(tmp_path / "warehouse.duckdb", [])
    spilled = tmp_path / "warehouse.duckdb.tmp" / "duckdb_temp_storage_DEFAULT-0.tmp"
    spilled.parent.mkdir()
    spilled.write_text("what a customer said")

    working_database.wait_until_free(path)

    assert not spilled.parent.exists()


def test_a_damaged_working_database_may_be_removed_and_a_missing_one_is_free(tmp_path: Path) -> None:
    path = make_warehouse(tmp_path / "warehouse.duckdb", [("a", "2026-01-01", True)])
    path.write_bytes(b"x" * 5_000)

    with pytest.raises(
        working_database.WarehouseError, match=r"is damaged\. Remove it .*: it is rebuilt from the landing"
    ):
        working_database.wait_until_free(path)
    working_database.wait_until_free(tmp_path / "none.duckdb")
