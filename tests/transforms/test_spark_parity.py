"""The same models on DuckDB and on Spark give the same tables. Needs Java and dbt-spark: `make test-spark`.

`TALKTRACK_SPARK_DBT` names a dbt command with the spark adapter where it is not the one beside this Python.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from orchestration import warehouse
from registry.privacy.windows import Window
from tests.transforms import landing_builder as logs
from tests.transforms.conftest import Workspace, dbt_command, first_arrivals, late_arrivals
from tests.transforms.released_builder import publish

WINDOW = Window(date(2026, 1, 1), date(2026, 1, 29))
PROJECT = warehouse.TRANSFORMS / "models"
TABLES = sorted(
    path.stem for path in PROJECT.rglob("*.sql") if path.parent.name in {"intermediate", "marts", "aggregates"}
)
"""Every model that is a table; staging models are views, read by these."""


@dataclass(frozen=True)
class Both:
    """A DuckDB file and a Spark warehouse folder built from one workspace, and the grain of every model."""

    database: Path
    spark: Path
    grains: dict[str, str]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    workspace = Workspace.create(tmp_path_factory.mktemp("parity"))
    paths = workspace.settings.paths
    first_arrivals(paths.landing)
    late_arrivals(paths.landing)
    returning_customers(paths.landing)
    a_release(paths.released)
    plan = warehouse.plan_build(workspace.settings, workspace.catalogue)
    arguments = plan.dbt_arguments(workspace.settings, WINDOW, "turn_segment_act_strategy")
    workspace.dbt(arguments)
    spark = paths.home / "spark-warehouse"
    environment = {
        **os.environ,
        **warehouse.dbt_environment(workspace.settings, workspace.catalogue),
        "WAREHOUSE": "spark",
        "TALKTRACK_SPARK_WAREHOUSE": str(spark),
        "DBT_TARGET_PATH": str(paths.home / "spark-target"),
        "DBT_LOG_PATH": str(paths.home / "spark-target"),
    }
    command = [os.environ.get("TALKTRACK_SPARK_DBT", dbt_command()), *arguments]
    done = subprocess.run(
        command, cwd=warehouse.TRANSFORMS, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:]
    nodes = json.loads((paths.home / "dbt" / "manifest.json").read_text())["nodes"].values()
    grains = {node["name"]: node["config"]["meta"]["grain"] for node in nodes if node["resource_type"] == "model"}
    return Both(paths.warehouse, spark, grains)


def returning_customers(landing: Path) -> None:
    """Customers of several dialogues, more than the caps let through, with acts, replies and strange rewards."""
    rows, outcomes = [], []
    for number in range(24):
        name, at = f"r{number}", logs.START + timedelta(days=number % 3)
        customer, segment = f"k1:{number % 5:032x}", ["new", "old", None][number % 3]
        rows += logs.dialogue(name, at, 1 + number % 4, customer_id=customer, segment=segment)
        if number % 2:
            outcomes.append(logs.outcome(name, at + timedelta(hours=1), value=[2.5, 1e6, -4.0][number % 3]))
    for number, row in enumerate(row for row in rows if row["speaker"] == "customer"):
        row["customer_act"] = ["ask_price", "other", "unheard_of", None][number % 4]
        row["canonical_reply"] = ["how much", None, "o'hara says ü"][number % 3]
    logs.land(landing, "2026-01-20", turns=rows, outcomes=outcomes)


def a_release(released: Path) -> None:
    """Noisy cells, some negative and some below k, of two segments, two bands and two windows."""
    for start in (date(2026, 1, 1), date(2026, 1, 29)):
        cells, steps, replies = [], [], []
        buckets = [f"{band}|any|{segment}|none" for band in ("1", "2+") for segment in ("new", "other")]
        for number, bucket in enumerate(buckets):
            replies.append({"reply_kind": "act", "aggregate_bucket": bucket, "reply": "accept", "n_customers": 31})
            replies.append({"reply_kind": "act", "aggregate_bucket": bucket, "reply": "other", "n_customers": number})
            for strategy, shift in (("offer", 60), ("inquire", -3)):
                cell = {"aggregate_bucket": bucket, "strategy": strategy}
                figures = {"n_customers": shift + 20 * number, "n_conversions": shift // 3, "reward": 7.25 * number - 3}
                sigmas = {"sigma_customers": 3.1, "sigma_conversions": 3.1, "sigma_reward": 8.7}
                cells.append({**cell, **figures, **sigmas})
                segment = bucket.split("|")[2]
                for offset, following in enumerate((f"2+|any|{segment}|none", "converted", "ended")):
                    n_steps = shift * (offset + 1) - 15 * number
                    steps.append({**cell, "next_bucket": following, "n_steps": n_steps, "sigma_steps": 6.5})
        text = {"reply_kind": "text", "aggregate_bucket": "any|any|any|any", "reply": "how much", "tau": 44.0}
        replies.append({**text, "n_customers": 51})
        publish(released, start, cells=cells, transitions=steps, replies=[{"sigma": 4.2, **row} for row in replies])


def rows_of(connection: duckdb.DuckDBPyConnection, relation: str, columns: list[str], order: str) -> list[Any]:
    chosen = ", ".join(f"cast({name} as timestamp) as {name}" if name.endswith("_at") else name for name in columns)
    return connection.execute(f"select {chosen} from {relation} order by {order}").fetchall()


@pytest.mark.spark
@pytest.mark.parametrize("model", TABLES)
def test_every_table_is_equal_on_both_engines(both: Both, model: str) -> None:
    (folder,) = both.spark.glob(f"*/{model}")
    with duckdb.connect(str(both.database), read_only=True) as connection:
        connection.execute("set TimeZone = 'UTC'")
        columns = [name for name, *_ in connection.execute(f"describe {model}").fetchall()]
        expected = rows_of(connection, model, columns, both.grains[model])
        files = f"read_parquet('{folder}/**/*.parquet', hive_partitioning = true)"
        actual = rows_of(connection, files, columns, both.grains[model])

    assert expected
    assert len(actual) == len(expected)
    for ours, theirs in zip(expected, actual, strict=True):
        for column, value, other in zip(columns, ours, theirs, strict=True):
            close = pytest.approx(value, rel=1e-9, abs=1e-9) if isinstance(value, float) else value
            assert other == close, (column, ours, theirs)
