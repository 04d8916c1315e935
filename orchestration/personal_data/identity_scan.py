"""Whether any file still holds somebody: their ids, their pseudonyms, their dialogues' ids, their own words.

Here: searching the bytes of every file, and the content of those that are compressed. Not here: removing anything
(`erasure`).
"""

from __future__ import annotations

import contextlib
import gzip
import mmap
import os
import re
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl.errors import DataError, TalktrackError

if TYPE_CHECKING:
    import pyarrow as pa

SHORTEST_IN_BYTES = 6
"""A shorter id is found in any file by chance; it is compared with columns of ids only."""

_CHUNK = 1 << 24
_OVERLAP = 4096


@dataclass(frozen=True)
class Needles:
    """What must not be found."""

    ids: frozenset[str] = field(repr=False)
    """Of customers and dialogues: found where they stand alone."""
    texts: frozenset[str] = field(default=frozenset(), repr=False)
    """Utterances that nobody else said: found anywhere."""

    @property
    def literals(self) -> list[str]:
        """Everything that is long enough to be searched for in bytes and in text."""
        return sorted(name for name in self.ids if len(name) >= SHORTEST_IN_BYTES) + sorted(self.texts)

    def in_bytes(self, content: bytes | mmap.mmap) -> bool:
        """Whether one of them is in the bytes. A search for each: one pattern for all is slower by far."""
        return any(_stands_in(content, text.encode(), alone=text in self.ids) for text in self.literals)

    def in_text(self) -> str:
        """A pattern for RE2 (Arrow, DuckDB); it matches nothing when there is nothing to look for."""
        alone = [
            rf"(?:^|[^0-9A-Za-z]){_escaped(name)}(?:$|[^0-9A-Za-z])" if name in self.ids else _escaped(name)
            for name in self.literals
        ]
        return "|".join(alone) or r"[^\s\S]"


@dataclass(frozen=True)
class ScanReport:
    """What was searched, and where something was found."""

    n_files: int
    n_bytes: int
    found: tuple[Path, ...]
    unreadable: tuple[Path, ...] = ()
    """Files of a known format whose content could not be read; their bytes were searched."""


def scan(roots: Iterable[Path], needles: Needles, *, leave_out: Collection[Path] = ()) -> ScanReport:
    """Search every file under `roots`, but for those in or under `leave_out`."""
    found, unreadable, n_bytes, n_files = [], [], 0, 0
    for path in _files(roots, {folder.resolve() for folder in leave_out}):
        n_files += 1
        n_bytes += path.stat().st_size
        try:
            holds = _bytes_hold(path, needles) or _content_holds(path, needles)
        except DataError:
            holds = False
            unreadable.append(path)
        if holds:
            found.append(path)
    return ScanReport(n_files, n_bytes, tuple(found), tuple(unreadable))


def _files(roots: Iterable[Path], leave_out: set[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if Path(folder, name).resolve() not in leave_out]
            for name in names:
                path = Path(folder, name).resolve()
                if path not in seen and path not in leave_out and path.is_file():
                    seen.add(path)
                    yield path


def _bytes_hold(path: Path, needles: Needles) -> bool:
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return needles.in_bytes(content)


def _stands_in(content: bytes | mmap.mmap, literal: bytes, *, alone: bool) -> bool:
    at = content.find(literal)
    while at >= 0:
        before, after = content[max(at - 1, 0) : at], content[at + len(literal) : at + len(literal) + 1]
        if not alone or not (before.isalnum() or after.isalnum()):
            return True
        at = content.find(literal, at + 1)
    return False


def _content_holds(path: Path, needles: Needles) -> bool:
    """The same question to a file whose bytes do not say it. Raises DataError if it cannot be read."""
    reader = _READERS.get(path.suffix)
    if reader is None:
        return False
    try:
        return reader(path, needles)
    except (OSError, EOFError, ValueError, zlib.error, sqlite3.Error, RuntimeError, TalktrackError) as error:
        raise DataError(f"{path} cannot be searched ({type(error).__name__}).") from None


def _gzip_holds(path: Path, needles: Needles) -> bool:
    tail = b""
    with gzip.open(path) as stream:
        while chunk := stream.read(_CHUNK):
            if needles.in_bytes(tail + chunk):
                return True
            tail = chunk[-_OVERLAP:]
    return False


def _sqlite_holds(path: Path, needles: Needles) -> bool:
    """A long value is spread over pages, so that the bytes of the file do not hold it in one piece."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.text_factory = bytes
        tables = connection.execute("select name from sqlite_master where type = 'table'").fetchall()
        for (table,) in tables:
            for row in connection.execute(f'select * from "{table.decode()}"'):
                if any(isinstance(value, bytes) and needles.in_bytes(value) for value in row):
                    return True
    return False


def _parquet_holds(path: Path, needles: Needles) -> bool:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    return any(
        _column_holds(batch.column(name), name, needles)
        for batch in file.iter_batches(columns=_text_columns(file.schema_arrow))
        for name in batch.schema.names
    )


def _text_columns(schema: pa.Schema) -> list[str]:
    import pyarrow.types as kinds

    def has_text(kind: Any) -> bool:
        return bool(kinds.is_string(kind) or kinds.is_large_string(kind)) or (
            kinds.is_list(kind) and has_text(kind.value_type)
        )

    return [column.name for column in schema if has_text(column.type)]


def _column_holds(column: Any, name: str, needles: Needles) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    values = column.flatten() if isinstance(column, pa.ListArray) else column
    distinct = values.unique()
    if pc.any(pc.is_in(distinct, value_set=pa.array(sorted(needles.ids), distinct.type))).as_py():
        return True
    return not _is_key(name) and bool(pc.any(pc.match_substring_regex(distinct, needles.in_text())).as_py())


def _is_key(column: str) -> bool:
    """Whether a column holds ids and nothing else, so that comparing is enough."""
    return column.endswith("_id")


def _escaped(text: str) -> str:
    """For both dialects: RE2 knows no escaped spaces."""
    return re.sub(r"([\\^$.|?*+()\[\]{}])", r"\\\1", text)


def _duckdb_holds(path: Path, needles: Needles) -> bool:
    from orchestration.working_database import read_only

    with read_only(path) as connection:
        connection.execute("create temp table wanted (id varchar)")
        connection.execute("insert into wanted select unnest(?::varchar[])", [sorted(needles.ids)])
        columns = connection.execute(
            """
            select table_name, column_name
            from duckdb_columns() semi join (from duckdb_tables() where not temporary) using (database_name, table_name)
            where data_type like 'VARCHAR%'
            """
        ).fetchall()
        pattern = needles.in_text()
        return any(_duckdb_column_holds(connection, table, column, pattern) for table, column in columns)


def _duckdb_column_holds(connection: Any, table: str, column: str, pattern: str) -> bool:
    """Lists are searched in the form in which they are written out."""
    distinct = f'(select distinct cast("{column}" as varchar) as v from main."{table}")'
    test = "v in (from wanted)" + ("" if _is_key(column) else " or regexp_matches(v, $pattern)")
    parameters = {} if _is_key(column) else {"pattern": pattern}
    return connection.execute(f"select 1 from {distinct} where {test} limit 1", parameters).fetchone() is not None


_READERS: dict[str, Callable[[Path, Needles], bool]] = {
    ".parquet": _parquet_holds,
    ".duckdb": _duckdb_holds,
    ".gz": _gzip_holds,
    ".db": _sqlite_holds,
}
