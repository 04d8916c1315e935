"""JSON Lines files with one whole dialogue (or utterance) per line.

Here: objects with their line numbers, faults for the rest. Not here: any one format.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from orchestration.ingest.readers.files import TextLines
from orchestration.ingest.records import Fault


def objects(path: str) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    """(line, object) of each line; a line that is no object, and a damaged end, come as faults."""
    lines = TextLines(path)
    for line in lines:
        if line.strip():
            yield lines.n_lines, _parsed(line, lines.n_lines)
    if lines.fault:
        yield lines.fault.line, lines.fault


def _parsed(line: str, number: int) -> dict[str, Any] | Fault:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return Fault(number, "line", "the line is not valid JSON")
    return value if isinstance(value, dict) else Fault(number, "line", "the line is not a JSON object")
