"""Taking rows out of a Parquet file: read, filter, and the file as a whole replaced or gone.

Here: one file. Not here: which rows have to go, and the commit marks of the landing (`removal`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rl.errors import DataError
from rl.files import replaced_file

Keep = Callable[[pa.Table], pa.ChunkedArray | pa.Array]
"""Id columns of a file's rows → whether each row stays."""

ID_COLUMNS = ("dialogue_id", "customer_id", "dialogue_day")
"""What a filter may look at: read alone, so that a file that stays as it is costs little."""

PRIVATE = 0o600


def remove_rows(path: Path, keep: Keep, mode: int = PRIVATE, before: Callable[[], None] = lambda: None) -> int:
    """Rewrite a Parquet file without the rows that do not stay; returns how many went.

    A file that keeps all its rows is not written; one that keeps none is removed. `before` is called before either.
    Raises DataError if the file cannot be read.
    """
    try:
        file = pq.ParquetFile(path)
        kept = _as_mask(keep(file.read(columns=[name for name in ID_COLUMNS if name in file.schema_arrow.names])))
        n_removed = len(kept) - (pc.sum(kept).as_py() or 0)
        if n_removed == 0:
            return 0
        rows = None if n_removed == len(kept) else file.read().filter(kept)
    except (pa.ArrowException, OSError):
        raise DataError(
            f"{path} cannot be read as Parquet. Run `talktrack nightly`, which reads its source again, and then this "
            "command; without the source, put the file back from a backup."
        ) from None
    before()
    if rows is None:
        path.unlink()
    else:
        with replaced_file(path, mode) as temporary:
            temporary.touch(mode)
            pq.write_table(rows, temporary, compression="zstd")
    return int(n_removed)


def without(column: str, values: Collection[str]) -> Keep:
    """Keep rows whose `column` is none of `values`; all of a table that has no such column."""
    wanted = pa.array(sorted(values), pa.string())

    def keep(rows: pa.Table) -> pa.ChunkedArray | pa.Array:
        if column not in rows.column_names:
            return pa.repeat(pa.scalar(True), rows.num_rows)
        return pc.invert(pc.is_in(rows.column(column), value_set=wanted))

    return keep


def without_any(values: Mapping[str, Collection[str]]) -> Keep:
    """Keep rows of which no column named in `values` holds one of its values."""
    filters = [without(column, wanted) for column, wanted in values.items()]
    return lambda rows: reduce(pc.and_, [_as_mask(keep(rows)) for keep in filters])


def _as_mask(kept: pa.ChunkedArray | pa.Array) -> pa.Array:
    mask = kept.combine_chunks() if isinstance(kept, pa.ChunkedArray) else kept
    return mask.fill_null(True)
