"""Reading the days of the marts: Parquet in, Arrow tables and dense ids out.

Here: what every reader of the marts needs. Not here: which dialogues are read (`rl.datasets.window`), what becomes of
them (`rl.datasets.build`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rl.errors import DataError


@dataclass
class Names:
    """Dense ids in order of first appearance; the same tables give the same ids."""

    ids: dict[str, int] = field(default_factory=dict)

    def encode(self, column: pa.ChunkedArray, none: int = -1) -> NDArray[np.int32]:
        """(n,) ids of a column of strings; `none` where it is null."""
        encoded = column.combine_chunks().dictionary_encode()
        known = [self.ids.setdefault(name, len(self.ids)) for name in encoded.dictionary.to_pylist()]
        places = np.array([*known, none], dtype=np.int32)
        return np.asarray(places[encoded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)])

    def names(self) -> tuple[str, ...]:
        """Names by id."""
        return tuple(self.ids)


def days_of(marts: Path, model: str) -> list[date]:
    """The days that a model has, in order. Raises DataError if there is none."""
    folder = marts / model
    days = sorted(date.fromisoformat(path.name.removeprefix("day=")) for path in folder.glob("day=*"))
    if not days:
        raise DataError(f"{folder} has no days. Build and export the warehouse first.")
    return days


def read_day(marts: Path, model: str, day: date, columns: list[str]) -> pa.Table:
    """Columns of one day of a model. Raises DataError if they cannot be read."""
    folder = marts / model / f"day={day.isoformat()}"
    try:
        # ParquetFile reads the file alone: read_table would add the hive column of its folder.
        return pa.concat_tables(
            [pq.ParquetFile(path).read(columns=columns) for path in sorted(folder.glob("*.parquet"))]
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{folder} cannot be read ({type(error).__name__}). Build and export the warehouse again for that day."
        ) from None


def booleans(table: pa.Table, column: str) -> NDArray[np.bool_]:
    """(n,) a column of booleans; null is false."""
    return np.asarray(pc.fill_null(table.column(column), False).to_numpy(zero_copy_only=False), dtype=bool)
