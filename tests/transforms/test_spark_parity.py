"""The same models on DuckDB and on Spark give the same marts. Needs Java and dbt-spark: `make test-spark`.

`TALKTRACK_SPARK_DBT` names a dbt command with the spark adapter where it is not the one beside this Python.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import duckdb
import pytest

from orchestration import warehouse
from tests.transforms.conftest import Workspace, dbt_command, first_arrivals, late_arrivals

MARTS = {**warehouse.FACTS, **warehouse.DIMENSIONS}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A DuckDB file and a Spark warehouse folder built from one landing."""
    workspace = Workspace.create(tmp_path_factory.mktemp("parity"))
    paths = workspace.settings.paths
    first_arrivals(paths.landing)
    late_arrivals(paths.landing)
    plan, _ = workspace.night()
    spark = paths.home / "spark-warehouse"
    command = [os.environ.get("TALKTRACK_SPARK_DBT", dbt_command()), *plan.dbt_arguments(workspace.settings)]
    environment = {
        **os.environ,
        **warehouse.dbt_environment(workspace.settings, workspace.catalogue),
        "WAREHOUSE": "spark",
        "TALKTRACK_SPARK_WAREHOUSE": str(spark),
        "DBT_TARGET_PATH": str(paths.home / "spark-target"),
        "DBT_LOG_PATH": str(paths.home / "spark-target"),
    }
    done = subprocess.run(
        command, cwd=warehouse.TRANSFORMS, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return paths.warehouse, spark


@pytest.mark.spark
@pytest.mark.parametrize("model", sorted(MARTS))
def test_every_mart_is_equal_on_both_engines(both: tuple[Path, Path], model: str) -> None:
    database, spark = both
    (folder,) = spark.glob(f"*/{model}")
    order = MARTS[model]
    with duckdb.connect(str(database), read_only=True) as connection:
        connection.execute("set TimeZone = 'UTC'")
        ours = connection.execute(f"from {model} order by {order}")
        columns = [column[0] for column in ours.description]
        expected = ours.fetchall()
        files = f"read_parquet('{folder}/**/*.parquet', hive_partitioning = true)"
        chosen = ", ".join(f"cast({name} as timestamp) as {name}" if name.endswith("_at") else name for name in columns)
        actual = connection.execute(f"select {chosen} from {files} order by {order}").fetchall()

    assert expected
    assert actual == expected
