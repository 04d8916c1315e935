"""The canonical log: JSON Lines (plain, gzip, zstd) or Parquet, one record per line or row.

Here: telling turns, outcomes and decisions apart. Not here: what a valid record is (`schema`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from orchestration.ingest.readers.files import CUT_OFF, TextLines, open_bytes
from orchestration.ingest.records import Fault, RawRecord, Reader, ReaderOptions, RecordKind

_KINDS: dict[str, RecordKind] = {"turn": "turn", "outcome": "outcome", "decision": "decision"}
_BATCH = 8192
# A line that is no JSON may still tell which dialogue it damaged.
_DIALOGUE_ID = re.compile(r'"dialogue_id"\s*:\s*"([^"\\]{1,200})"')


def read(path: str, options: ReaderOptions) -> Iterator[RawRecord | Fault]:
    """Records by their field `record`, else by the fields they have, else by the file's name."""
    rows = _parquet_rows(path) if ".parquet" in path.lower() else _json_rows(path)
    for line, row in rows:
        if isinstance(row, Fault):
            yield row
        elif kind := _kind(row, path):
            yield RawRecord(kind, row, line)
        else:
            reason = f"must be one of {', '.join(_KINDS)}, or the fields of one of them must be there"
            value = row.get("record")
            yield Fault(line, "record", reason, value if isinstance(value, str) else None, _dialogue_id(row))


def _json_rows(path: str) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    lines = TextLines(path)
    for line in lines:
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            found = _DIALOGUE_ID.search(line)
            reason = "the line is not valid JSON"
            yield lines.n_lines, Fault(lines.n_lines, "line", reason, dialogue_id=found[1] if found else None)
            continue
        if isinstance(row, dict):
            yield lines.n_lines, row
        else:
            yield lines.n_lines, Fault(lines.n_lines, "line", "the line is not a JSON object")
    if lines.fault:
        yield lines.fault.line, lines.fault


def _parquet_rows(path: str) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    line = 0
    try:
        with open_bytes(path) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(_BATCH):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except (pa.ArrowInvalid, OSError):
        yield line + 1, Fault(line + 1, "file", CUT_OFF, is_whole_file=True)


def _kind(row: dict[str, Any], path: str) -> RecordKind | None:
    named = row.get("record")
    if named is not None:
        return _KINDS.get(named) if isinstance(named, str) else None
    if row.get("decision_id") is not None:
        return "decision"
    if any(row.get(name) is not None for name in ("turn_index", "speaker", "text")):
        return "turn"
    if row.get("kind") is not None:
        return "outcome"
    file_name = path.rsplit("/", 1)[-1]
    return next((kind for name, kind in _KINDS.items() if name in file_name), None)


def _dialogue_id(row: dict[str, Any]) -> str | None:
    value = row.get("dialogue_id")
    return value if isinstance(value, str) and value else None


CANONICAL = Reader(
    "canonical",
    ("*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.ndjson", "*.ndjson.gz", "*.ndjson.zst", "*.parquet"),
    read,
)
