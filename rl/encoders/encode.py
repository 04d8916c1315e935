"""The cache of utterance vectors: each distinct utterance is encoded once.

Here: the job `python -m rl.encoders.encode --input <landing> --output <features> --settings s.json`, and the
reader of what it writes. The cache is one folder per encoder, `<features>/<encoder_id>/`, of shards that are
only ever added, until what was said leaves the landing (`keep_only`). Not here: the encoders.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file, save_file

from rl.encoders.encoder import Encoder, prepare_encoder
from rl.errors import DataError
from rl.files import content_hash, replaced_file
from rl.progress import report_metric, report_progress, report_result, run_job
from rl.settings import EncoderSettings, Settings

HASH_BYTES = 16
"""Of a `content_hash`, which is written as twice as many hex digits."""

Hashes = NDArray[np.bytes_]


class EncodeSettings(Settings):
    """What the encode job is told."""

    encoder: EncoderSettings = EncoderSettings()

    encoders: Path | None = None
    """Where encoders are kept, as `<encoders>/<encoder_id>/`; default: `encoders` beside the features."""

    shard_size: int = Field(65_536, ge=1)
    """Utterances per shard. Raised: fewer files, more to do again after a kill."""


@dataclass(frozen=True, eq=False)
class VectorCache:
    """Vectors by content hash, sorted for binary search."""

    folder: Path
    hashes: Hashes
    vectors: NDArray[np.float16]

    @classmethod
    def open(cls, folder: Path) -> VectorCache:
        """Read all shards of `<features>/<encoder_id>`; an empty cache where the folder does not exist."""
        shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
        if not shards:
            return cls(folder, np.zeros(0, dtype=f"S{HASH_BYTES}"), np.zeros((0, 0), dtype=np.float16))
        hashes = np.concatenate([_as_keys(shard["hashes"]) for shard in shards])
        vectors = np.concatenate([shard["vectors"] for shard in shards])
        hashes, first = np.unique(hashes, return_index=True)
        return cls(folder, hashes, vectors[first])

    def lookup(self, content_hashes: Sequence[str] | pa.Array | pa.ChunkedArray) -> NDArray[np.float16]:
        """(n,) hashes of 32 hex digits → (n, d) float16 vectors.

        Raises DataError if a vector is missing.
        """
        keys = as_hashes(content_hashes)
        places = np.searchsorted(self.hashes, keys)
        found = self.contains(keys)
        if not found.all():
            raise DataError(
                f"{int((~found).sum())} of {len(keys)} utterances have no vector in {self.folder}. Run "
                "`python -m rl.encoders.encode` on the landing folder, then build the data set again."
            )
        return self.vectors[places]

    def contains(self, keys: Hashes) -> NDArray[np.bool_]:
        """(n,) whether each key has a vector."""
        if len(self.hashes) == 0:
            return np.zeros(len(keys), dtype=bool)
        places = np.minimum(np.searchsorted(self.hashes, keys), len(self.hashes) - 1)
        return np.asarray(self.hashes[places] == keys)


def as_hashes(content_hashes: Sequence[str] | pa.Array | pa.ChunkedArray) -> Hashes:
    """Hex digits as (n,) keys of 16 bytes. Raises DataError if one is not 32 hex digits."""
    if isinstance(content_hashes, pa.Array | pa.ChunkedArray):
        content_hashes = content_hashes.to_pylist()
    try:
        raw = bytes.fromhex("".join(content_hashes))
    except (TypeError, ValueError):
        raw = b""
    if len(raw) != HASH_BYTES * len(content_hashes):
        raise DataError("A content_hash is not 32 hex digits. Ingest the logs again.")
    return np.frombuffer(raw, dtype=f"S{HASH_BYTES}")


def encode_landing(landing: Path, features: Path, settings: EncodeSettings) -> dict[str, object]:
    """Encode what the cache lacks; returns the counts that the job reports.

    Shards are written as they fill, so that a killed job loses at most one and goes on where it stopped.
    """
    encoder, encoder_folder = prepare_encoder(settings.encoder, settings.encoders or features.parent / "encoders")
    folder = features / encoder.encoder_id
    known = VectorCache.open(folder)
    files = sorted((landing / "turns").glob("arrival_day=*/*.parquet"))
    if not files:
        raise DataError(f"{landing / 'turns'} has no Parquet files. Ingest some logs first.")
    with_new, n_new = _find_new(files, known)
    started, done = time.monotonic(), 0
    for hashes, texts in _new_utterances(with_new, known, settings.shard_size):
        vectors = _encode(encoder, texts, settings.encoder.batch_size, done, n_new)
        write_shard(folder, hashes, vectors)
        done += len(texts)
    seconds = time.monotonic() - started
    rate = done / seconds if done else 0.0
    report_metric("utterances_per_second", rate)
    return {
        "encoder_id": encoder.encoder_id,
        "encoder_folder": str(encoder_folder),
        "n_encoded": done,
        "n_known_before": len(known.hashes),
        "utterances_per_second": round(rate, 1),
    }


def write_shard(folder: Path, hashes: Hashes, vectors: NDArray[np.floating]) -> None:
    """Add (n,) keys and their (n, d) vectors to a cache. The same utterances again give the same file."""
    raw = np.frombuffer(hashes.tobytes(), dtype=np.uint8).reshape(-1, HASH_BYTES)
    with replaced_file(folder / f"{content_hash(raw.tobytes())[:16]}.safetensors") as temporary:
        save_file({"hashes": raw, "vectors": vectors.astype(np.float16)}, temporary)


def keep_only(folder: Path, wanted: Hashes) -> int:
    """Take every vector out of a cache whose key is not in `wanted`; returns how many went.

    A shard that loses some is written anew before it is removed, so that a killed job loses none that stay.
    """
    n_removed = 0
    for path in sorted(folder.glob("*.safetensors")):
        shard = load_file(path)
        keys = _as_keys(shard["hashes"])
        kept = np.isin(keys, wanted)
        if kept.all():
            continue
        if kept.any():
            write_shard(folder, keys[kept], shard["vectors"][kept])
        path.unlink()
        n_removed += int((~kept).sum())
    return n_removed


def landed_keys(landing: Path) -> Hashes:
    """(n,) keys of every utterance in a landing folder, each once, sorted."""
    files = sorted((landing / "turns").glob("arrival_day=*/*.parquet"))
    keys = [np.unique(as_hashes(_read(path, ["content_hash"]).column("content_hash"))) for path in files]
    return np.unique(np.concatenate(keys)) if keys else np.zeros(0, dtype=f"S{HASH_BYTES}")


def _find_new(files: list[Path], known: VectorCache) -> tuple[list[Path], int]:
    """The files with utterances that the cache lacks, and how many distinct ones there are."""
    new: list[Hashes] = []
    with_new: list[Path] = []
    for path in files:
        keys = np.unique(as_hashes(_read(path, ["content_hash"]).column("content_hash")))
        missing = keys[~known.contains(keys)]
        if len(missing):
            with_new.append(path)
            new.append(missing)
    return with_new, len(np.unique(np.concatenate(new))) if new else 0


def _new_utterances(files: list[Path], known: VectorCache, shard_size: int) -> Iterator[tuple[Hashes, list[str]]]:
    """Shards of utterances that the cache lacks, each once."""
    pending: dict[bytes, str] = {}
    seen: set[bytes] = set()
    for path in files:
        table = _read(path, ["content_hash", "text"])
        keys, rows = np.unique(as_hashes(table.column("content_hash")), return_index=True)
        missing = ~known.contains(keys)
        texts = table.column("text").take(pa.array(rows[missing])).to_pylist()
        for key, text in zip(keys[missing].tolist(), texts, strict=True):
            if key in seen:
                continue
            seen.add(key)
            pending[key] = text
            if len(pending) == shard_size:
                yield _as_shard(pending)
                pending = {}
    if pending:
        yield _as_shard(pending)


def _as_shard(pending: dict[bytes, str]) -> tuple[Hashes, list[str]]:
    return np.array(list(pending), dtype=f"S{HASH_BYTES}"), list(pending.values())


def _as_keys(raw: NDArray[np.uint8]) -> Hashes:
    return np.frombuffer(raw.tobytes(), dtype=f"S{HASH_BYTES}")


def _encode(encoder: Encoder, texts: list[str], batch_size: int, done: int, total: int) -> NDArray[np.float32]:
    vectors = np.zeros((len(texts), encoder.dimensions), dtype=np.float32)
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        vectors[start : start + len(batch)] = encoder.encode(batch)
        report_progress("encode", done + start + len(batch), total)
    return vectors


def _read(path: Path, columns: list[str]) -> pa.Table:
    try:
        # ParquetFile reads the file alone: read_table would add the hive columns of its folders.
        return pq.ParquetFile(path).read(columns=columns)
    except (pa.ArrowException, OSError):
        raise DataError(f"{path} cannot be read as Parquet. Remove it and ingest its source again.") from None


def _main(landing: Path, features: Path, settings: EncodeSettings) -> None:
    report_result(**encode_landing(landing, features, settings))


if __name__ == "__main__":
    sys.exit(run_job(_main, EncodeSettings, "Encode each distinct utterance of the landing folder once."))
