"""The two zones of a workspace, and what must not be found outside its place.

Here: which zone a file lies in, the scan for ids outside the stores that hold them, the scan of what is released.
Not here: noise and budget (`registry.privacy`), copies for the world outside (`orchestration.exports`).

A file is restricted unless this module says otherwise: what nobody thought of does not leave. Faults name a file and
a count, never what was found in it.
"""

from __future__ import annotations

import gzip
import mmap
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rl.errors import TalktrackError

if TYPE_CHECKING:
    import pyarrow as pa

Zone = Literal["restricted", "released"]
RESTRICTED: Zone = "restricted"
RELEASED: Zone = "released"
ZONE_TAG = "zone"

RELEASED_PATHS = ("released", "catalogue.json", "catalogue.csv", "marts/dim_strategies")
"""Paths in a workspace that are released: noisy aggregates with what is computed from them alone, and the action
catalogue in its three forms, which comes from configuration."""

ID_STORES = ("landing", "quarantine", "warehouse.duckdb", "warehouse.duckdb.wal", "marts", "datasets", "erasures")
"""First part of the paths that may hold pseudonyms and dialogue ids; everything else of a workspace holds none."""

RELEASED_SUFFIXES = frozenset({".parquet", ".json", ".csv", ".safetensors", ".txt", ".html"})
"""File types that the scan of released files can read, and that carry no code."""

PRIVATE_COLUMNS = frozenset({"customer_id", "dialogue_id", "decision_id", "text", "content_hash", "extra", "source"})
"""Columns of single people's records; no released table has one."""

SHORTEST_ID = 6
"""Ids of fewer characters are not looked for: `1` and `yes` are words of any file."""

_PSEUDONYM = re.compile(rb"[0-9a-f]{8}:[0-9a-f]{32}")
_COLON = re.compile(rb":[0-9a-f]{32}")
"""The part of a pseudonym that a search finds fast: random bytes took a fortieth of the whole pattern's time."""
_PUNCTUATION = ".:!?*_-"
_WORD = re.compile(r"[^\s\"'<>{}\[\](),;|]+")


class BorderError(TalktrackError):
    """Something would leave the restricted zone that may not, or has left its place inside it."""


@dataclass(frozen=True)
class BorderFault:
    """A file that holds what it must not."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def zone_of(path: Path, workspace: Path) -> Zone:
    """The zone of a file or folder of a workspace; restricted for anything that is not known to be released."""
    return RELEASED if any(path.is_relative_to(workspace / name) for name in RELEASED_PATHS) else RESTRICTED


def misplaced_ids(workspace: Path) -> list[BorderFault]:
    """Files of the workspace that hold a pseudonym and are no store of ids, in order."""
    files = (p for p in _files(workspace) if p.relative_to(workspace).parts[0] not in ID_STORES)
    return [
        BorderFault(path.relative_to(workspace), f"holds {n} pseudonym(s) of customers")
        for path in files
        if (n := len(_pseudonyms_in(path)))
    ]


def faults_in_released(folder: Path, marts: Path) -> list[BorderFault]:
    """What keeps a folder of the released zone from leaving: file types, columns and ids of people, in order.

    Every string of the folder is compared with all dialogue and customer ids of the marts, so an id is found whatever
    it looks like.
    """
    faults: list[BorderFault] = []
    words: dict[Path, set[str]] = {}
    for path in _files(folder):
        name = path.relative_to(folder)
        if path.suffix not in RELEASED_SUFFIXES:
            faults.append(BorderFault(name, f"is of type {path.suffix or 'none'}, which this check cannot read"))
            continue
        if columns := PRIVATE_COLUMNS & set(_columns(path)):
            faults.append(BorderFault(name, f"has the column(s) {', '.join(sorted(columns))}"))
        words[name] = _words(path)
    known = ids_among(marts, set().union(*words.values()) if words else set())
    for name, found in words.items():
        if n := len(found & known):
            faults.append(BorderFault(name, f"holds {n} id(s) of dialogues or customers"))
    return sorted(faults, key=lambda fault: str(fault.path))


def ids_among(marts: Path, words: Collection[str]) -> set[str]:
    """Those of some words that are a dialogue id or a customer's pseudonym in the marts."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    looked_for = pa.array(sorted(word for word in words if len(word) >= SHORTEST_ID), pa.string())
    found: set[str] = {word for word in words if _PSEUDONYM.fullmatch(word.encode())}
    for path in sorted((marts / "fct_dialogues").glob("day=*/*.parquet")):
        table = pq.read_table(path, columns=["dialogue_id", "customer_id"], partitioning=None)
        for column in table.columns:
            ids = column.combine_chunks().cast(pa.string())
            found.update(ids.filter(pc.is_in(ids, value_set=looked_for)).to_pylist())
    return found


def _pseudonyms_in(path: Path) -> set[bytes]:
    """Distinct pseudonyms in a file, which is mapped and not read: vectors may be gigabytes."""
    found = set()
    for content in _contents(path):
        for match in _COLON.finditer(content):
            pseudonym = content[max(0, match.start() - 8) : match.end()]
            if _PSEUDONYM.fullmatch(pseudonym):
                found.add(pseudonym)
    return found


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def _contents(path: Path) -> Iterator[bytes | mmap.mmap]:
    """The bytes of a file; of a compressed one, and of Parquet, those inside."""
    if path.suffix == ".parquet":
        table = _table(path)
        metadata = table.schema.metadata or {}
        yield b"\n".join(part for item in metadata.items() for part in item)
        for column in table.columns:
            yield "\n".join(str(value) for value in column.unique().to_pylist()).encode()
    elif path.suffix == ".gz":
        yield gzip.decompress(path.read_bytes())
    elif path.stat().st_size:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _words(path: Path) -> set[str]:
    """Whole cells of a table and the words of any text, of all strings of a file."""
    words: set[str] = set()
    for content in _contents(path):
        text = content[:].decode("utf-8", "replace")
        words.update(text.splitlines() if path.suffix == ".parquet" else ())
        found = _WORD.findall(text)
        words.update(found, (word.strip(_PUNCTUATION) for word in found))
    return words


def _columns(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return list(pq.read_schema(path).names)
    if path.suffix == ".csv":
        with path.open() as stream:
            return stream.readline().strip().split(",")
    return []


def _table(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(path, partitioning=None)
