"""The working database, the DuckDB file that dbt writes: who holds it, and connections that read it or Parquet.

Here: opening DuckDB, in this process, and the messages when it cannot be opened. Not here: what is built
(`orchestration.warehouse`), what leaves it (`orchestration.marts`).
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl.errors import TalktrackError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

DUCKDB_CONFIG: dict[str, Any] = {"memory_limit": "4GB"}


class WarehouseError(TalktrackError):
    """The working database or the marts are missing, locked or not what the plan says."""


def wait_until_free(warehouse: Path, seconds: float = 180) -> None:
    """Wait until no other process writes to the working database, such as the dbt of a night that was killed.

    What that one had spilled to disk is removed: DuckDB does so only when it spills again.

    Raises WarehouseError when that takes longer than `seconds`, or the file is damaged.
    """
    import duckdb

    deadline = time.monotonic() + seconds
    while warehouse.exists():
        try:
            with duckdb.connect(str(warehouse), config=DUCKDB_CONFIG):
                shutil.rmtree(warehouse.with_name(f"{warehouse.name}.tmp"), ignore_errors=True)
            return
        except duckdb.IOException as error:
            if "lock" not in str(error):
                raise _damaged(warehouse) from None
            if time.monotonic() > deadline:
                raise WarehouseError(
                    f"{warehouse} has been held by another process for {seconds:.0f} s{_holder(str(error))}. Wait for "
                    "it, or end it, and run again."
                ) from None
            time.sleep(0.5)
        except duckdb.Error:
            raise _damaged(warehouse) from None


def _damaged(warehouse: Path) -> WarehouseError:
    return WarehouseError(
        f"{warehouse} is damaged. Remove it (and {warehouse.name}.wal beside it) and run again: it is rebuilt from the "
        "landing, nothing is lost."
    )


def _holder(error: str) -> str:
    found = re.search(r"PID \d+", error)
    return f" ({found[0]})" if found else ""


@contextmanager
def in_memory() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database of no file, in UTC, to query Parquet with."""
    import duckdb

    with duckdb.connect(config=DUCKDB_CONFIG) as connection:
        connection.execute("set TimeZone = 'UTC'")
        yield connection


@contextmanager
def read_only(warehouse: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that reads the working database and writes nothing, in UTC.

    Raises WarehouseError if the file is missing or another process writes to it.
    """
    import duckdb

    if not warehouse.exists():
        raise WarehouseError(f"There is no working database at {warehouse}. Run `talktrack nightly` to build it.")
    try:
        connection = duckdb.connect(str(warehouse), read_only=True, config=DUCKDB_CONFIG)
    except duckdb.IOException:
        raise WarehouseError(
            f"{warehouse} cannot be opened for reading: another process writes to it, or it is no DuckDB "
            "file. Wait for the other run (or close the program that holds it) and run again."
        ) from None
    with connection:
        connection.execute("set TimeZone = 'UTC'")
        yield connection


def parquet_table(files: Iterable[Path]) -> str:
    """These files as a table. A view takes no parameters, so the names are written out."""
    names = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
    return f"read_parquet([{names}], hive_partitioning = false)"


def dialogue_days(connection: duckdb.DuckDBPyConnection, query: str, **parameters: Any) -> set[date]:
    """Every `dialogue_day` that a query yields."""
    rows = connection.execute(f"select distinct dialogue_day from ({query})", parameters).fetchall()
    return {row[0] for row in rows}
