"""Drawn figures on disk: space taken before the draw, files written over it, the move into the released zone.

Here: bytes, and when they are safe. Not here: what a release is, the order of its steps (`release`).

The staging folder is restricted: until a release is committed nobody else may read it.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rl.files import content_hash, replaced_file

RECORD_FILE = "release.json"

_BYTES_PER_ROW = 256
"""Space taken per row before the draw. Measured: 16 bytes a row in tables of 700 rows, 2 in tables of 46,000."""

_BYTES_PER_FILE = 64 * 1024


def take_space(stage: Path, n_rows: Mapping[str, int]) -> None:
    """Fill the files of a release with as many bytes as it can need, and put them on disk."""
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(mode=0o700)
    for name, n in n_rows.items():
        # Random: a file system that compresses would take next to nothing for zeros.
        _overwrite(stage / f"{name}.parquet", os.urandom(_BYTES_PER_FILE + n * _BYTES_PER_ROW))
    _overwrite(stage / f"{RECORD_FILE}.part", os.urandom(_BYTES_PER_FILE))
    _sync_folder(stage)


def write_tables(stage: Path, tables: Mapping[str, pa.Table]) -> dict[str, str]:
    """Write tables over the space that was taken for them; returns the hash of each file by its name."""
    hashes = {}
    for name, table in tables.items():
        content = _parquet(table)
        _overwrite(stage / f"{name}.parquet", content)
        hashes[f"{name}.parquet"] = content_hash(content)
    return hashes


def write_record(stage: Path, content: str) -> None:
    """Write the record, which comes last and makes a release whole."""
    part = stage / f"{RECORD_FILE}.part"
    _overwrite(part, content.encode())
    part.rename(stage / RECORD_FILE)
    _sync_folder(stage)


def move_into_place(stage: Path, folder: Path, incoming: Path) -> None:
    """Copy a release beside its place (which may be on another disk) and rename it there."""
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    for source in sorted(stage.iterdir()):
        with replaced_file(incoming / source.name) as temporary:
            shutil.copyfile(source, temporary)
    _sync_folder(incoming)
    folder.parent.mkdir(exist_ok=True)
    incoming.rename(folder)
    _sync_folder(folder.parent)


def _parquet(table: pa.Table) -> bytes:
    content = io.BytesIO()
    pq.write_table(table, content)
    return content.getvalue()


def _overwrite(path: Path, content: bytes) -> None:
    """Write `content` where the file's old bytes are, so that the space is there; readable by the owner alone."""
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as stream:
        stream.write(content)
        stream.truncate()
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
