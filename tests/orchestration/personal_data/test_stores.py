"""The working database after rows were taken out of it: real dbt builds the next night on the copy."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from orchestration.ingest.parts import remove_rows, without
from orchestration.personal_data.stores import Leaving, remove_from_marts, rewrite_warehouse
from tests.transforms import landing_builder as logs
from tests.transforms.conftest import Workspace


def test_there_is_nothing_to_rewrite_before_the_first_night(tmp_path: Path) -> None:
    assert rewrite_warehouse(tmp_path / "warehouse.duckdb", Leaving({"a"}), always=True) == {}


@pytest.mark.slow
def test_the_next_night_builds_on_the_copy_as_if_they_had_never_been_there(tmp_path: Path) -> None:
    erased, without_them = Workspace.create(tmp_path / "erased"), Workspace.create(tmp_path / "without")
    said = logs.dialogue("gone", logs.START, customer_id="k:gone")
    for workspace in (erased, without_them):
        theirs = said if workspace is erased else []
        stays = logs.dialogue("stays", logs.START, customer_id="k:stays")
        logs.land(workspace.settings.paths.landing, "2026-01-02", turns=[*theirs, *stays])
        workspace.night()
    paths = erased.settings.paths
    assert _dialogues(erased) == {"gone", "stays"}

    for part in paths.landing.glob("*/arrival_day=2026-01-02/*.parquet"):
        remove_rows(part, without("dialogue_id", {"gone"}))
    leaving = Leaving({"gone"}, {"k:gone"})
    gone = rewrite_warehouse(paths.warehouse, leaving)
    remove_from_marts(paths.marts, leaving)
    assert gone["fct_dialogues"] == 1
    assert _dialogues(erased) == {"stays"}

    for workspace in (erased, without_them):
        later = logs.dialogue("later", logs.START + timedelta(days=1), customer_id="k:stays")
        logs.land(workspace.settings.paths.landing, "2026-01-03", turns=later)
    plan, _ = erased.night()
    without_them.night()

    assert not plan.is_full, plan.reason
    assert [str(day) for day in plan.days or ()] == ["2026-01-02"]
    for model in ("fct_dialogues", "fct_turns", "fct_transitions", "dim_policies"):
        assert erased.mart(model).equals(without_them.mart(model)), model


def _dialogues(workspace: Workspace) -> set[str]:
    """Whose rows landing and working database hold."""
    paths = workspace.settings.paths
    found = {
        name for p in paths.landing.glob("*/*/*.parquet") for name in pq.read_table(p, partitioning=None)[0].to_pylist()
    }
    with duckdb.connect(str(paths.warehouse), read_only=True) as connection:
        tables = connection.execute(
            "select table_name from duckdb_columns() where column_name = 'dialogue_id' and not internal"
        ).fetchall()
        for (table,) in tables:
            found |= {name for (name,) in connection.execute(f'select distinct dialogue_id from "{table}"').fetchall()}
    return found
