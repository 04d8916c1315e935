"""Opening the files of a log: plain, gzip or zstd, local or on an object store, whole or cut off.

Here: bytes → lines, and JSON documents of which the readable part survives. Not here: what the lines mean.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

import fsspec
import orjson
import zstandard

from orchestration.ingest.records import Fault

_CHUNK = 1 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_DECODER = json.JSONDecoder()

CUT_OFF = "the file is cut off or damaged here; what came before it was read. Put the whole file back and run again"


class TextLines:
    """The lines of a file with their ends, decoded as UTF-8. After the loop `fault` says whether the file was damaged.

    A last line without its end is dropped when the compressed stream broke off inside it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.n_lines = 0
        self.fault: Fault | None = None

    def __iter__(self) -> Iterator[str]:
        rest = b""
        try:
            for chunk in _chunks(self.path):
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    self.n_lines += 1
                    yield line.decode("utf-8", "replace") + "\n"
        except _DamagedError:
            self.fault = Fault(self.n_lines + 1, "file", CUT_OFF, is_whole_file=True)
            return
        if rest:
            self.n_lines += 1
            yield rest.decode("utf-8", "replace")


class _DamagedError(Exception):
    """The compressed stream ended early or makes no sense."""


def open_bytes(path: str) -> Any:
    """A binary stream of a path or fsspec URL."""
    return fsspec.open(path, "rb").open()


def read_text(path: str) -> tuple[str, bool]:
    """The text of a file, and whether it is all of it."""
    parts: list[bytes] = []
    try:
        parts.extend(_chunks(path))
    except _DamagedError:
        return b"".join(parts).decode("utf-8", "ignore"), False
    return b"".join(parts).decode("utf-8", "replace"), True


def read_json(path: str) -> Any:
    """One JSON document; None when it is damaged (see `JsonItems` for keeping the readable part)."""
    text, is_whole = read_text(path)
    try:
        return orjson.loads(text) if is_whole else None
    except orjson.JSONDecodeError:
        return None


class JsonItems:
    """The elements of a JSON list that fills a file; the readable ones even when the list is cut off."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fault: Fault | None = None

    def __iter__(self) -> Iterator[Any]:
        text, is_whole = read_text(self.path)
        try:
            document = orjson.loads(text) if is_whole else None
        except orjson.JSONDecodeError:
            document = None
        if isinstance(document, list):
            yield from document
        elif document is not None:
            self.fault = Fault(1, "file", "must hold a JSON list of dialogues", is_whole_file=True)
        else:
            yield from self._readable_part(text)

    def _readable_part(self, text: str) -> Iterator[Any]:
        position = text.find("[") + 1
        while position:
            position = _skip(text, position, " \t\r\n,")
            try:
                item, position = _DECODER.raw_decode(text, position)
            except (ValueError, RecursionError):
                break
            yield item
        line = text.count("\n", 0, position) + 1
        self.fault = Fault(line, "file", CUT_OFF, is_whole_file=True)


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _chunks(path: str) -> Iterator[bytes]:
    with open_bytes(path) as stream:
        first = stream.read(_CHUNK)
        if first.startswith(_GZIP):
            yield from _inflated(first, stream, lambda: zlib.decompressobj(wbits=31))
        elif first.startswith(_ZSTD):
            yield from _inflated(first, stream, lambda: zstandard.ZstdDecompressor().decompressobj())
        else:
            while first:
                yield first
                first = stream.read(_CHUNK)


def _inflated(chunk: bytes, stream: Any, start: Any) -> Iterator[bytes]:
    """Decompress frame after frame; both libraries say by `eof` whether a frame was complete."""
    decompressor = start()
    while chunk:
        try:
            if decompressor.eof:
                decompressor = start()
            yield decompressor.decompress(chunk)
        except (zlib.error, zstandard.ZstdError):
            raise _DamagedError from None
        chunk = (decompressor.unused_data if decompressor.eof else b"") or stream.read(_CHUNK)
    if not decompressor.eof:
        raise _DamagedError
