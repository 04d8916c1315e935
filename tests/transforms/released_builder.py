"""Writes released tables as a private release publishes them, with numbers that a test chooses."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from registry.privacy.tables import RELEASED_SCHEMAS

Row = dict[str, Any]


def released_tables(window_start: date, **tables: Iterable[Row]) -> dict[str, pa.Table]:
    """The tables of one release (transitions=…, cells=…, replies=…); a column that a row leaves out has a default."""
    shared: Row = {
        "release_id": f"release-{window_start}",
        "window_start": window_start,
        "window_end": window_start + timedelta(days=28),
        "unit_of_privacy": "customer",
        "rho": 0.08,
        "delta": 1e-6,
        "minimum_customers": 20,
        "shrinkage": 50.0,
        "reward_low": 0.0,
        "reward_high": 10.0,
    }
    made = {}
    for name, schema in RELEASED_SCHEMAS.items():
        rows = [dict.fromkeys(schema.names) | shared | row for row in tables.get(name, [])]
        made[name] = pa.Table.from_pylist(rows, schema=schema)
    return made


def publish(released: Path, window_start: date, **tables: Iterable[Row]) -> None:
    """Write one release into the released zone of a workspace."""
    folder = released / "releases" / window_start.isoformat()
    folder.mkdir(parents=True)
    for name, table in released_tables(window_start, **tables).items():
        pq.write_table(table, folder / f"{name}.parquet")
