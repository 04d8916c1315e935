"""Steps of the warehouse benchmark that are measured in processes of their own: plan, export, by_hand, pandas.

`python -m tests.benchmarks.warehouse_steps STEP HOME [DAYS]`, on the workspace that the benchmark made in HOME.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from orchestration import marts, warehouse, working_database
from orchestration.settings import TalktrackSettings

PLAN_FILE = "plan.json"
BUILD_RESULTS = "run_results.json"
"""dbt's results of the build that is repeated by hand."""
BY_HAND = "by_hand"
"""Folder of the database that is built by hand."""
MATERIALIZED_AS = {"view": "view", "table": "table", "incremental": "table"}


def bench_settings(home: Path) -> TalktrackSettings:
    """Default settings in a folder of the benchmark's own."""
    return TalktrackSettings(home=home, workspace="benchmark")


def plan(settings: TalktrackSettings) -> None:
    """What the next build has to do, written to the workspace."""
    root = settings.paths.root
    planned = warehouse.plan_build(settings, root / "catalogue.csv")
    (root / PLAN_FILE).write_text(planned.model_dump_json())


def export(settings: TalktrackSettings) -> None:
    """Export the marts of the days that were planned, and commit the build."""
    paths = settings.paths
    planned = warehouse.BuildPlan.model_validate_json((paths.root / PLAN_FILE).read_text())
    marts.export_marts(paths.warehouse, paths.marts, planned.days)
    warehouse.remember_build(paths.root, planned)


def by_hand(settings: TalktrackSettings) -> None:
    """Run what dbt compiled in its last build: every model and test once, in one connection of the same settings."""
    import duckdb

    root = settings.paths.root
    kinds = _materializations(root / "dbt" / "manifest.json")
    results = json.loads((root / BUILD_RESULTS).read_text())["results"]
    folder = root / BY_HAND
    folder.mkdir()
    database = folder / settings.paths.warehouse.name  # dbt's SQL names the database by its file
    with duckdb.connect(str(database), config=working_database.DUCKDB_CONFIG) as connection:
        connection.execute("set TimeZone = 'UTC'")
        for result in results:
            _execute(connection, result, kinds)


def _materializations(manifest: Path) -> dict[str, str]:
    nodes = json.loads(manifest.read_text())["nodes"].items()
    return {name: MATERIALIZED_AS[node["config"]["materialized"]] for name, node in nodes if name.startswith("model.")}


def _execute(connection: Any, result: dict[str, Any], kinds: dict[str, str]) -> None:
    name, query = result["unique_id"], result.get("compiled_code")
    if name in kinds:
        connection.execute(f"create {kinds[name]} {result['relation_name']} as {query}")
    elif name.startswith("test."):
        failures = connection.execute(f"select count(*) from ({query})").fetchone()
        if failures != (0,):
            raise RuntimeError(f"{name} fails by hand and passed in dbt.")


def pandas(settings: TalktrackSettings, n_days: int) -> None:
    """The steps of the warehouse in pandas, for the first days of the landing."""
    from tests.benchmarks.warehouse_in_pandas import build

    build(settings.paths.landing, settings.paths.root / "catalogue.csv", n_days, settings)


def main(step: str, home: str, *more: str) -> None:
    """Run one step."""
    steps = {"plan": plan, "export": export, "by_hand": by_hand, "pandas": pandas}
    steps[step](bench_settings(Path(home)), *(int(argument) for argument in more))


if __name__ == "__main__":
    main(*sys.argv[1:])
