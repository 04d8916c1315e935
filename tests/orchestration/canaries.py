"""Planted strings, and the search for them in everything that a home folder holds, whatever its format.

Here: the canaries, log files that carry them, reading every format to its strings. Not here: which canary may be where
(`test_border`). It shares no code with the scans of the product: a fault there must not hide itself.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

WORDS = ("zyxomere", "quibbleplonk", "vortiglass", "mumblethorpe")
"""Made-up words that scrubbing has no reason to touch: whoever finds one has found customer text."""

PERSONAL = {
    "e-mail": "zaphira.quillon@canary-mail.example",
    "phone": "+44 20 7946 0958",
    "name": "Zaphira Quillonby",
}
"""Personal data inside the text. The e-mail and the phone are removed on the way in; a name may stay in the landing."""

CUSTOMERS = tuple(f"canarycust-{n:03d}" for n in range(12))
DIALOGUES = tuple(f"canarydlg-{n:03d}" for n in range(12))
STRATEGIES = ("offer_help", "experience_inquiry", "acknowledgment")


def write_canary_logs(folder: Path, day: str) -> None:
    """Twelve whole dialogues of twelve customers who say the canaries, with an outcome and extra fields."""
    lines = [line for n in range(12) for line in _dialogue(n, day)]
    with gzip.open(folder / "canaries.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def write_faulty_records(folder: Path, day: str) -> None:
    """Records that cannot be read, each in another way, with canaries in the faulty place."""
    turn = {**_turn(0, day, 0, "customer", WORDS[0]), "dialogue_id": "canarydlg-bad", "customer_id": "canarycust-bad"}
    faulty: list[Any] = [
        {**turn, "speaker": f"{WORDS[1]} {PERSONAL['name']}"},
        {**turn, "turn_index": WORDS[2]},
        {**turn, "occurred_at": f"{WORDS[3]} {PERSONAL['e-mail']}"},
        {**turn, "strategies": [WORDS[0]], "speaker": "agent"},
        {**turn, "propensity": PERSONAL["phone"], "speaker": "agent"},
        {**turn, "text": {"said": WORDS[1]}},
        {**turn, "customer_id": [CUSTOMERS[0]]},
    ]
    with (folder / "faulty.jsonl").open("w") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in faulty)
        stream.write(f'{{"record": "turn", "text": "{WORDS[2]} {PERSONAL["e-mail"]}", cut off\n')
        stream.write(f"{WORDS[3]} {PERSONAL['name']} {CUSTOMERS[1]}\n")


def _dialogue(n: int, day: str) -> Iterator[dict[str, Any]]:
    said = (
        f"Hello, I look for a {WORDS[0]}",
        f"my mail is {PERSONAL['e-mail']}, call {PERSONAL['phone']}",
        f"{WORDS[1]} {WORDS[2]}",
        f"this is {PERSONAL['name']} speaking, the {WORDS[3]} please",
    )
    for k, text in enumerate(said):
        yield _turn(n, day, 2 * k, "customer", text)
        if k < len(STRATEGIES):
            agent = _turn(n, day, 2 * k + 1, "agent", f"Would you like the {WORDS[k]}?")
            yield {**agent, "strategies": [STRATEGIES[k]]}
    yield {
        "record": "outcome",
        "dialogue_id": DIALOGUES[n],
        "occurred_at": f"{day}T13:00:00Z",
        "kind": "conversion",
        "value": 20.0,
        "note": f"{WORDS[0]} paid by {PERSONAL['e-mail']}",
    }


def _turn(n: int, day: str, index: int, speaker: str, text: str) -> dict[str, Any]:
    return {
        "record": "turn",
        "dialogue_id": DIALOGUES[n],
        "turn_index": index,
        "occurred_at": f"{day}T12:{index:02d}:00Z",
        "speaker": speaker,
        "text": text,
        "customer_id": CUSTOMERS[n],
        "segment": "gift_buyer",
        "extra": {"note": f"{WORDS[1]} from {PERSONAL['e-mail']}", "agent": {"remark": WORDS[2]}},
        "browser": f"{WORDS[3]}/1.0",
    }


# ---------- the search


@dataclass(frozen=True)
class Find:
    """A planted string in a file."""

    path: str
    """Relative to the home folder."""
    needle: str


def search(home: Path, needles: dict[str, str]) -> list[Find]:
    """Every file of the home folder that holds a needle (name → string), read to its last string."""
    wanted = {name: text.lower().encode() for name, text in needles.items()}
    pattern = re.compile(b"|".join(re.escape(text) for text in sorted(wanted.values())))
    finds = []
    for path in sorted(path for path in home.rglob("*") if path.is_file() and not path.is_symlink()):
        hits = {hit for piece in strings_of(path) for hit in pattern.findall(piece.lower())}
        finds += [Find(str(path.relative_to(home)), name) for name, text in wanted.items() if text in hits]
    return finds


def strings_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and of every known format what is inside it."""
    raw = path.read_bytes()
    yield raw
    if path.suffix == ".parquet":
        table = pq.read_table(path, partitioning=None)
        yield str(table.schema.metadata).encode()
        for column in table.columns:
            yield "\n".join(
                map(str, column.unique().to_pylist() if _has_unique(column) else column.to_pylist())
            ).encode()
    elif raw.startswith(b"SQLite format 3"):
        yield from _sqlite(path)
    elif path.suffix == ".duckdb":
        yield from _duckdb(path)
    elif raw.startswith(b"\x1f\x8b"):
        yield gzip.decompress(raw)


def _has_unique(column: Any) -> bool:
    return not str(column.type).startswith(("list", "struct", "map"))


def _sqlite(path: Path) -> Iterator[bytes]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.text_factory = bytes
        for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
            for row in connection.execute(f'select * from "{table.decode()}"'):
                for value in row:
                    if isinstance(value, bytes):
                        yield from _unpacked(value)


def _unpacked(value: bytes) -> Iterator[bytes]:
    """A value, and what it is the compressed form of (Dagster keeps snapshots so, some of them in base64)."""
    yield value
    for packed in (value, _from_base64(value)):
        if packed[:1] == b"\x78":
            try:
                yield zlib.decompress(packed)
            except zlib.error:
                continue


def _from_base64(value: bytes) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        return b""


def _duckdb(path: Path) -> Iterator[bytes]:
    with duckdb.connect(str(path), read_only=True) as connection:
        tables = connection.execute("select table_name from duckdb_tables()").fetchall()
        for (table,) in tables:
            columns = [row[0] for row in connection.execute(f'describe "{table}"').fetchall()]
            for column in columns:
                rows = connection.execute(f'select distinct cast("{column}" as varchar) from "{table}"').fetchall()
                yield "\n".join(str(row[0]) for row in rows).encode()
