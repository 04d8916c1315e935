"""What the dbt project says of itself: grain, owner, privacy class, zone, keys, contracts, and where its border is."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestration import marts, warehouse
from tests.transforms import landing_builder as logs
from tests.transforms.conftest import Workspace, dbt_command

PRIVACY_CLASSES = {"individual_text", "individual", "exact_aggregate", "noisy_aggregate", "public"}
RELEASABLE = {"noisy_aggregate", "public"}
DUCKDB_ONLY = (r"\blist\(", r"\barg_max\b", r"\bstruct_pack\b", r"\bunnest\(", r"::", r"\bqualify\b", r"\bhash\(")
DUCKDB_ONLY += (
    r"\blist_(?:transform|filter|aggregate|sort|value|contains)\(",
    r"\bstrftime\b",
    r"\bepoch\w*\(",
    r"\bsha256\(",
    r"\basof\b",
    r"\bread_parquet\b",
)


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `make docs` writes: it needs no warehouse and reads no data."""
    scratch = tmp_path_factory.mktemp("docs")
    environment = {**os.environ, "DBT_PROFILES_DIR": str(warehouse.TRANSFORMS), "TALKTRACK_WAREHOUSE": ":memory:"}
    environment |= {"DBT_TARGET_PATH": str(scratch), "DBT_LOG_PATH": str(scratch)}
    command = [dbt_command(), "docs", "generate", "--static"]
    subprocess.run(command, cwd=warehouse.TRANSFORMS, env=environment, check=True, capture_output=True)
    return scratch


@pytest.fixture(scope="module")
def manifest(documented: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((documented / "manifest.json").read_text())
    return found


def models(manifest: dict[str, Any]) -> dict[str, Any]:
    return {node["name"]: node for node in manifest["nodes"].values() if node["resource_type"] == "model"}


def data_tests(manifest: dict[str, Any]) -> list[Any]:
    return [node for node in manifest["nodes"].values() if node["resource_type"] == "test"]


def undescribed(manifest: dict[str, Any]) -> list[str]:
    """Models that do not say what a row is, who owns it, how private it is, or in which zone it is."""
    found = []
    for name, node in models(manifest).items():
        meta = node["config"]["meta"]
        says = node["description"].strip() and meta.get("grain") and meta.get("owner")
        is_classed = meta.get("privacy_class") in PRIVACY_CLASSES
        is_released = meta.get("zone") == "released"
        if not says or not is_classed or is_released != (meta["privacy_class"] in RELEASABLE):
            found.append(name)
    return found


def crossing_the_border(manifest: dict[str, Any]) -> list[str]:
    """Released models and exposures that read, at any remove, something that is not released."""

    def zone(key: str) -> str:
        node = manifest["nodes"].get(key) or manifest["sources"].get(key) or manifest["exposures"][key]
        return str(node["config"]["meta"].get("zone", "restricted"))

    def reads(key: str) -> set[str]:
        node = manifest["nodes"].get(key) or manifest["exposures"].get(key) or {}
        direct = set(node.get("depends_on", {}).get("nodes", []))
        return direct.union(*(reads(parent) for parent in direct))

    keys = [node["unique_id"] for node in models(manifest).values()] + list(manifest["exposures"])
    return [key for key in keys if zone(key) == "released" and any(zone(read) != "released" for read in reads(key))]


def test_every_model_says_its_grain_owner_privacy_class_and_zone(manifest: dict[str, Any]) -> None:
    assert undescribed(manifest) == []


@pytest.mark.parametrize("left_out", ["grain", "owner", "privacy_class", "zone"])
def test_a_model_that_leaves_one_out_is_named(manifest: dict[str, Any], left_out: str) -> None:
    faulty = copy.deepcopy(manifest)
    del models(faulty)["agg_rewards"]["config"]["meta"][left_out]

    assert undescribed(faulty) == ["agg_rewards"]


def test_the_grain_of_every_mart_and_aggregate_is_tested(manifest: dict[str, Any]) -> None:
    keys = {
        (node["attached_node"] or "").rpartition(".")[2]: node["test_metadata"]["kwargs"]["columns"]
        for node in data_tests(manifest)
        if (node.get("test_metadata") or {}).get("name") == "keyed_by"
    }
    for name, node in models(manifest).items():
        if node["fqn"][1] in {"marts", "aggregates"}:
            assert ", ".join(keys[name]) == node["config"]["meta"]["grain"], name


def test_what_leaves_dbt_has_a_contract_with_every_column_described(manifest: dict[str, Any]) -> None:
    leaving = {name for name, node in models(manifest).items() if node["fqn"][1] in {"marts", "aggregates"}}

    assert leaving >= {*marts.FACTS, *marts.DIMENSIONS, "exact_transitions", "exact_cells", "exact_replies"}
    for name in leaving:
        node = models(manifest)[name]
        assert node["config"]["contract"]["enforced"], name
        assert all(column["description"] for column in node["columns"].values()), name


def test_every_rule_of_marts_and_aggregates_has_a_unit_test(manifest: dict[str, Any]) -> None:
    tested = {test["model"] for test in manifest["unit_tests"].values()}
    plain = {"dim_strategies", "dim_policies", "fct_turns"}  # they rename and count

    assert {
        name for name, node in models(manifest).items() if node["fqn"][1] in {"marts", "aggregates"}
    } - plain <= tested


def test_failing_rows_of_customers_are_never_stored(manifest: dict[str, Any]) -> None:
    assert [node["name"] for node in data_tests(manifest) if node["config"]["store_failures"] is not False] == []


def test_released_models_read_released_tables_only(manifest: dict[str, Any]) -> None:
    assert crossing_the_border(manifest) == []
    released = [name for name, node in models(manifest).items() if "released" in node["config"]["tags"]]
    assert {"agg_transitions", "agg_conversion_rates", "agg_rewards", "agg_frequent_replies"} <= set(released)
    assert all(models(manifest)[name]["config"]["meta"]["zone"] == "released" for name in released)


def test_a_released_model_that_reads_an_exact_table_is_named(manifest: dict[str, Any]) -> None:
    faulty = copy.deepcopy(manifest)
    cells = models(faulty)["int_released_cells_by_segment"]
    cells["depends_on"]["nodes"].append(models(faulty)["exact_cells"]["unique_id"])

    crossing = crossing_the_border(faulty)

    assert "model.talktrack.agg_rewards" in crossing
    assert "exposure.talktrack.aggregate_policies" in crossing


def test_each_policy_family_is_an_exposure_of_type_ml(manifest: dict[str, Any]) -> None:
    exposures = {node["name"]: node for node in manifest["exposures"].values()}

    assert set(exposures) == {"individual_policies", "aggregate_policies"}
    assert all(node["type"] == "ml" and node["depends_on"]["nodes"] for node in exposures.values())


def test_the_documentation_is_one_page_with_every_model(documented: Path, manifest: dict[str, Any]) -> None:
    page = (documented / "static_index.html").read_text()

    assert all(name in page for name in models(manifest))
    assert "Policies trained in the environment that the noisy aggregates describe" in page


def test_models_hold_no_word_that_only_duckdb_knows() -> None:
    for path in sorted((warehouse.TRANSFORMS / "models").rglob("*.sql")):
        found = [word for word in DUCKDB_ONLY if re.search(word, path.read_text())]
        assert not found, f"{path.name}: {found}; give it a macro in macros/compat.sql"


@pytest.mark.parametrize(("age_days", "status"), [(0, "pass"), (30, "error")])
def test_the_freshness_of_the_logs_is_the_age_of_the_newest_arrival_day(
    tmp_path: Path, age_days: int, status: str
) -> None:
    workspace = Workspace.create(tmp_path)
    day = datetime.now(UTC) - timedelta(days=age_days)
    logs.land(workspace.settings.paths.landing, str(day.date()), turns=logs.dialogue("a", day))

    workspace.dbt(["source", "freshness"], may_fail=status == "error")

    (result,) = json.loads((tmp_path / "dbt" / "sources.json").read_text())["results"]
    assert (result["unique_id"], result["status"]) == ("source.talktrack.landing.turns", status)
