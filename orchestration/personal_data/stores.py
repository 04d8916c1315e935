"""Rows that leave what was made of the landing: working database, marts, vectors, data sets, contributions.

Here: how each store loses rows so that their bytes go too. Not here: the landing (`orchestration.ingest.removal`), who
has to go (`erasure`, `retention`).

Everything here may be killed and called again: a store is replaced as a whole, or is rebuilt by the next night.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.ingest.parts import remove_rows, without_any
from orchestration.marts import FACTS
from orchestration.settings import WorkspacePaths
from orchestration.working_database import DUCKDB_CONFIG, wait_until_free

if TYPE_CHECKING:
    import duckdb

EXACT = "exact_"
"""Tables of exact private cells. Nothing in them tells whose they are, and every night builds them anew."""

CONTRIBUTIONS = "contributions.safetensors"
OUT_OF_FOLD = "out_of_fold.safetensors"
MANIFEST = "manifest.json"
EXACT_SUMS = "evaluation_sums"
"""Folder of exact sums that an evaluation removes when it has read them; one that was killed has not."""


@dataclass(frozen=True)
class Leaving:
    """Which rows leave: by dialogue, by customer, and all of the days before one."""

    dialogues: Collection[str] = ()
    customers: Collection[str] = ()
    """Pseudonyms, or dialogue ids of customers whom the log did not name."""
    before: date | None = None

    @property
    def is_erasure(self) -> bool:
        """Whether the rows are somebody's, and not only old."""
        return bool(self.dialogues or self.customers)


# ---------- the working database


def rewrite_warehouse(warehouse: Path, leaving: Leaving, *, always: bool = False) -> Counter[str]:
    """Copy the working database without the rows that leave, and put the copy in its place; rows that left by table.

    DELETE leaves the text in the file, and so do blocks that older builds freed; a file that never held the rows does
    not. Nothing is copied when no row leaves, unless `always`. Raises WarehouseError if another process writes to it.
    """
    gone: Counter[str] = Counter()
    if not warehouse.exists():
        return gone
    wait_until_free(warehouse)  # opening and closing it also brings its log into the file
    copy = warehouse.with_name(f".{warehouse.name}.rewriting.tmp")
    for leftover in (copy, copy.with_name(f"{copy.name}.wal")):
        leftover.unlink(missing_ok=True)
    try:
        with _both_attached(warehouse) as connection:
            conditions = _conditions(connection, leaving)
            gone += {table: n for table, c in conditions.items() if (n := _count(connection, table, c))}
            if not (always or any(not table.startswith(EXACT) for table in gone)):
                return Counter()
            _copy(connection, copy, conditions)
        copy.chmod(0o600)
        _replace(copy, warehouse)
    finally:
        copy.unlink(missing_ok=True)
    return gone


def _both_attached(warehouse: Path) -> duckdb.DuckDBPyConnection:
    import duckdb

    connection = duckdb.connect(config=DUCKDB_CONFIG)
    connection.execute("set TimeZone = 'UTC'")
    connection.execute(f"attach {_quoted(warehouse)} as warehouse (read_only)")
    return connection


def _conditions(connection: duckdb.DuckDBPyConnection, leaving: Leaving) -> dict[str, str]:
    """SQL that is true for the rows of each table that leave."""
    connection.execute("create table leaving_dialogues (id varchar); create table leaving_customers (id varchar)")
    _fill(connection, "leaving_dialogues", leaving.dialogues)
    _fill(connection, "leaving_customers", leaving.customers)
    tables = connection.execute(
        "select table_name from duckdb_tables() where database_name = 'warehouse' and schema_name = 'main'"
    ).fetchall()
    return {table: _condition(connection, table, leaving) for (table,) in tables}


def _fill(connection: duckdb.DuckDBPyConnection, table: str, ids: Iterable[str]) -> None:
    connection.execute(f"insert into {table} select unnest(?::varchar[])", [sorted(ids)])


def _condition(connection: duckdb.DuckDBPyConnection, table: str, leaving: Leaving) -> str:
    described = connection.execute(f'describe warehouse.main."{table}"').fetchall()
    columns = {name for name, *_ in described}
    tests = []
    if table.startswith(EXACT):
        return "true" if leaving.is_erasure else "false"
    if "dialogue_id" in columns:
        tests.append("dialogue_id in (select id from leaving_dialogues)")
    if "customer_id" in columns:
        tests.append("customer_id in (select id from leaving_customers)")
    if "dialogue_day" in columns and leaving.before:
        tests.append(f"dialogue_day < date '{leaving.before}'")
    return " or ".join(f"coalesce({test}, false)" for test in tests) or "false"


def _count(connection: duckdb.DuckDBPyConnection, table: str, condition: str) -> int:
    row = connection.execute(f'select count(*) from warehouse.main."{table}" where {condition}').fetchone()
    return int(row[0]) if row else 0


def _copy(connection: duckdb.DuckDBPyConnection, copy: Path, conditions: dict[str, str]) -> None:
    """The schema with its constraints, comments and views, and the rows that stay."""
    connection.execute(f"attach {_quoted(copy)} as rewritten")
    connection.execute("copy from database warehouse to rewritten (schema)")
    for table, condition in conditions.items():
        connection.execute(
            f'insert into rewritten.main."{table}" from warehouse.main."{table}" where not ({condition})'
        )
    connection.execute("detach rewritten")


def _replace(copy: Path, warehouse: Path) -> None:
    with copy.open("rb+") as stream:
        os.fsync(stream.fileno())
    copy.replace(warehouse)
    # The old file's log would be played into the new one.
    warehouse.with_name(f"{warehouse.name}.wal").unlink(missing_ok=True)
    shutil.rmtree(warehouse.with_name(f"{warehouse.name}.tmp"), ignore_errors=True)


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


# ---------- marts


def remove_from_marts(marts: Path, leaving: Leaving) -> Counter[str]:
    """Rewrite the mart files that hold such rows; days before `leaving.before` go as a whole. Rows by model."""
    gone: Counter[str] = Counter()
    keep = without_any({"dialogue_id": leaving.dialogues, "customer_id": leaving.customers})
    for model in FACTS:
        for folder in sorted((marts / model).glob("day=*")):
            if leaving.before and folder.name < f"day={leaving.before}":
                gone[model] += _n_rows(folder)
                shutil.rmtree(folder)
            elif leaving.is_erasure:
                for path in sorted(folder.glob("*.parquet")):
                    gone[model] += remove_rows(path, keep, path.stat().st_mode & 0o777)
                if not any(folder.iterdir()):
                    folder.rmdir()
    return +gone


def _n_rows(folder: Path) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet"))


# ---------- vectors


def remove_unsaid(features: Path, landing: Path) -> int:
    """Take out the vectors of utterances that nobody in the landing says any more; returns how many went."""
    folders = [folder for folder in features.iterdir() if folder.is_dir()] if features.exists() else []
    if not folders:
        return 0
    from rl.encoders.encode import keep_only, landed_keys

    said = landed_keys(landing)
    return sum(keep_only(folder, said) for folder in folders)


# ---------- data sets, and what was computed from them row by row


def remove_data_sets(paths: WorkspacePaths, goes: Callable[[dict[str, Any]], bool]) -> list[Path]:
    """Remove the individual data sets whose manifest says that they go. The next night builds its own anew."""
    removed = []
    for folder in sorted(paths.datasets.iterdir()) if paths.datasets.exists() else ():
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        manifest = _manifest(folder)
        if manifest is None or (manifest.get("privacy_mode", "individual") == "individual" and goes(manifest)):
            _remove_folder(folder)
            _stamp(folder).unlink(missing_ok=True)
            removed.append(folder)
    return removed


def remove_rows_of_models(paths: WorkspacePaths) -> list[Path]:
    """Remove what models and estimates keep per dialogue or step. The next night computes it anew."""
    shutil.rmtree(paths.root / EXACT_SUMS, ignore_errors=True)
    found = [*paths.root.glob(f"evaluation/**/{CONTRIBUTIONS}"), *paths.models.glob(f"*/{OUT_OF_FOLD}")]
    for path in found:
        _stamp(path.parent).unlink(missing_ok=True)  # or the next night would take the rest for finished work
        path.unlink()
    return sorted(found)


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    return json.loads(path.read_text()) if path.exists() else None


def _stamp(output: Path) -> Path:
    """Where `orchestration.resources.JobRunner` notes that a job's output is finished."""
    return output.with_name(f".{output.name}.job.json")


def _remove_folder(folder: Path) -> None:
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")  # a name that the next run clears away
    folder.rename(aside)
    shutil.rmtree(aside)
