"""What Dagster shows: every asset says what it is, the graph is the agreed one, and loading it stays light.

`definitions.json` beside this file is the agreed graph. After a wanted change, write it anew with
`TALKTRACK_UPDATE_SNAPSHOTS=1 pytest tests/orchestration/test_definitions.py` and read the difference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dagster as dg
import pytest
import yaml

from orchestration.definitions import FRESHNESS, build_defs
from orchestration.instance import prepare_instance
from orchestration.settings import PROJECT_ROOT, LogsSettings, PoliciesSettings, TalktrackSettings
from rl.trainers.settings import CQLSettings

pytestmark = pytest.mark.xdist_group("definitions")

SNAPSHOT = Path(__file__).with_name("definitions.json")
DOORS = {"aggregates/private_release", "evaluation/private_policy_value_estimates"}
"""The assets that may look into the restricted zone and publish: both add noise and book it."""
GROUPS = {"logs", "warehouse", "aggregates", "features", "datasets", "policies", "evaluation", "release", "retention"}
HEAVY = ("torch", "mlflow", "transformers", "d3rlpy", "model2vec", "sklearn", "duckdb")


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.Definitions]:
    with patch.dict(os.environ):  # building tells dbt its folders through the environment
        yield build_defs(TalktrackSettings(home=tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def specs(definitions: dg.Definitions) -> list[dg.AssetSpec]:
    return sorted(definitions.resolve_all_asset_specs(), key=lambda spec: spec.key)


def described(definitions: dg.Definitions, specs: list[dg.AssetSpec]) -> dict[str, Any]:
    """The graph in words, as the snapshot keeps it."""
    repository = definitions.get_repository_def()
    names = {spec.key: spec.key.to_user_string() for spec in specs}
    return {
        "assets": {
            names[spec.key]: {
                "group": spec.group_name,
                "needs": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
            }
            for spec in specs
        },
        "checks": sorted(key.to_user_string() for key in definitions.resolve_asset_graph().asset_check_keys),
        "jobs": {
            job.name: sorted(key.to_user_string() for key in job.asset_layer.selected_asset_keys)
            for job in repository.get_all_jobs()
            if not job.name.startswith("__")
        },
        "schedules": {s.name: [s.job_name, s.cron_schedule, s.execution_timezone] for s in repository.schedule_defs},
        "sensors": sorted(sensor.name for sensor in repository.sensor_defs),
    }


def test_assets_checks_jobs_schedules_and_sensors_are_the_agreed_ones(
    definitions: dg.Definitions, specs: list[dg.AssetSpec]
) -> None:
    found = described(definitions, specs)
    if os.environ.get("TALKTRACK_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(SNAPSHOT.read_text())


def test_every_asset_says_what_it_is_whose_it_is_and_how_fresh_it_should_be(specs: list[dg.AssetSpec]) -> None:
    for spec in specs:
        name = spec.key.to_user_string()
        assert spec.kinds, name
        assert spec.owners, name
        assert spec.description, name
        assert spec.tags.get("zone") in ("restricted", "released"), name
        assert spec.freshness_policy == FRESHNESS, name
    assert {spec.group_name for spec in specs} == GROUPS


def test_what_is_released_needs_nothing_restricted_but_through_the_doors(specs: list[dg.AssetSpec]) -> None:
    zones = {spec.key: spec.tags["zone"] for spec in specs}
    crossing = {
        spec.key.to_user_string()
        for spec in specs
        for dep in spec.deps
        if zones[spec.key] == "released" and zones[dep.asset_key] == "restricted"
    }
    assert crossing <= DOORS
    assert "aggregates/private_release" in crossing


def test_every_dbt_model_states_its_zone_and_its_asset_is_tagged_with_it(
    definitions: dg.Definitions, specs: list[dg.AssetSpec]
) -> None:
    manifest = json.loads((PROJECT_ROOT / "transforms" / "target" / "manifest.json").read_text())
    stated = {
        f"warehouse/{node['name']}": node["config"]["meta"]["zone"]
        for node in manifest["nodes"].values()
        if node["resource_type"] == "model"
    }
    tagged = {spec.key.to_user_string(): spec.tags["zone"] for spec in specs}
    assert stated == {name: tagged[name] for name in stated}
    assert {name for name, zone in stated.items() if zone == "released"} >= {
        "warehouse/agg_transitions",
        "warehouse/agg_conversion_rates",
        "warehouse/agg_rewards",
        "warehouse/agg_frequent_replies",
    }


def test_dbt_runs_before_the_release_and_after_it_and_never_mixes_the_two(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    steps = {
        definition.op.name: {key.path[-1] for key in definition.keys}
        for definition in graph.assets_defs
        if definition.op.name in ("dbt_models", "dbt_released")
    }
    assert not steps["dbt_models"] & steps["dbt_released"]
    assert {"exact_transitions", "exact_cells", "exact_replies"} <= steps["dbt_models"]
    assert {"agg_transitions", "agg_frequent_replies"} <= steps["dbt_released"]
    release = dg.AssetKey(["aggregates", "private_release"])
    assert {key.path[-1] for key in graph.get(release).child_keys} >= {"stg_released__cells"}


def test_every_asset_can_be_materialised_and_dbt_reads_what_landing_writes(
    definitions: dg.Definitions, specs: list[dg.AssetSpec]
) -> None:
    graph = definitions.resolve_asset_graph()
    assert {key for key in graph.get_all_asset_keys() if not graph.get(key).is_materializable} == set()
    needs = {spec.key: {dep.asset_key for dep in spec.deps} for spec in specs}
    for table in ("turns", "outcomes"):
        assert needs[dg.AssetKey(["warehouse", f"stg_dialogues__{table}"])] == {dg.AssetKey(["logs", table])}


def test_partitioned_assets_are_backfilled_in_one_run(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    partitioned = [graph.get(key) for key in graph.get_all_asset_keys() if graph.get(key).partitions_def]
    # Of the aggregates the exact tables, which are built with the marts; a release belongs to a window, not to a day.
    assert {node.group_name for node in partitioned} == {"logs", "warehouse", "aggregates"}
    zones = {node.tags["zone"] for node in partitioned if node.group_name == "aggregates"}
    assert zones == {"restricted"}
    assert {node.backfill_policy for node in partitioned} == {dg.BackfillPolicy.single_run()}


def test_one_step_writes_the_warehouse_and_one_holds_the_gpu(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        if node.group_name == "warehouse":
            assert node.pools == {"duckdb_writer"}, key
        if node.group_name == "policies":
            assert node.pools == {"gpu"}, key


def test_steps_that_read_files_or_start_processes_are_tried_again(definitions: dg.Definitions) -> None:
    job = definitions.resolve_job_def("nightly_job")
    retried = {node.name: node.retry_policy for node in job.nodes if getattr(node, "retry_policy", None)}
    retried |= {node.name: node.definition.retry_policy for node in job.nodes if node.definition.retry_policy}
    assert retried["landing"].max_retries == 2
    assert retried["dbt_models"].max_retries == 1


def test_today_is_a_partition_and_the_first_day_is_the_configured_one(tmp_path: Path) -> None:
    from orchestration.partitions import arrival_days

    days = arrival_days(TalktrackSettings(home=tmp_path))
    assert days.get_first_partition_key() == "2026-01-01"
    assert days.get_last_partition_key() == datetime.now(UTC).date().isoformat()


def test_the_night_is_scheduled_at_two_in_the_configured_zone_for_the_utc_day_before(tmp_path: Path) -> None:
    from orchestration.schedules import build_schedules

    logs = LogsSettings(time_zone="America/New_York")
    (schedule,) = build_schedules(TalktrackSettings(home=tmp_path, logs=logs))
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 2 * * *", "America/New_York")
    two_in_new_york = datetime(2026, 3, 5, 7, tzinfo=UTC)

    request = schedule(dg.build_schedule_context(scheduled_execution_time=two_in_new_york))

    assert (request.partition_key, request.run_key) == ("2026-03-04", "2026-03-04")


def test_trainer_settings_can_be_edited_in_the_launchpad_and_start_from_the_configured_ones(tmp_path: Path) -> None:
    from orchestration.assets.policies import build_policies_assets

    trainer = CQLSettings(name="bold", n_steps=77, hidden_units=(32, 16), sweep={"discount": (0.9, 1.0)})
    settings = TalktrackSettings(home=tmp_path, policies=PoliciesSettings(candidates=(trainer,)))
    _, candidate, *_ = build_policies_assets(settings)
    fields = candidate.op.config_schema.config_type.fields

    editable = set(CQLSettings.model_fields) - {"algorithm", "name"}
    assert set(fields) == editable
    stored = trainer.model_dump(mode="json")
    given = {name: fields[name].default_value for name in editable if fields[name].default_provided}
    assert given == {name: stored[name] for name in given}
    assert {name for name in editable if stored[name] is not None} <= set(given)
    assert all(fields[name].description for name in ("n_steps", "divergence_limit"))


def test_runs_wait_for_each_other_and_pools_hold_one(tmp_path: Path) -> None:
    folder = prepare_instance(TalktrackSettings(home=tmp_path))
    written = yaml.safe_load((folder / "dagster.yaml").read_text())
    assert written["concurrency"] == {"pools": {"default_limit": 1}, "runs": {"max_concurrent_runs": 1}}
    assert written["telemetry"] == {"enabled": False}
    assert written["storage"]["sqlite"]["base_dir"] == f"{tmp_path}/dagster/storage"


def test_loading_the_definitions_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from orchestration.definitions import build_defs\n"
        "from orchestration.settings import TalktrackSettings\n"
        f"build_defs(TalktrackSettings(home=Path({str(tmp_path)!r}))).get_repository_def()\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stderr[-2000:]
