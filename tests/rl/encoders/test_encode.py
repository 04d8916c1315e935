"""The cache of utterance vectors: every utterance once, whatever happens in between."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from rl.encoders import encode
from rl.encoders.encode import EncodeSettings, VectorCache, as_hashes, encode_landing
from rl.errors import DataError
from rl.files import content_hash


class CountingEncoder:
    """A vector of text length and first letter; remembers what it was asked."""

    encoder_id = "counting-2"
    dimensions = 2

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails_after: int | None = None

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self.fails_after is not None and len(self.asked) >= self.fails_after:
            raise KeyboardInterrupt
        self.asked += texts
        return np.array([[len(text), ord(text[0])] for text in texts], dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Nothing to keep."""


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> CountingEncoder:
    made = CountingEncoder()
    monkeypatch.setattr(encode, "prepare_encoder", lambda settings, folder: (made, folder))
    return made


def land(folder: Path, day: str, source: str, texts: Sequence[str]) -> None:
    path = folder / "landing" / "turns" / f"arrival_day={day}" / f"{source}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    hashes = [content_hash(text.encode()) for text in texts]
    schema = pa.schema({"text": pa.string(), "content_hash": pa.string()})
    pq.write_table(pa.table({"text": list(texts), "content_hash": hashes}, schema=schema), path)


def run(folder: Path, shard_size: int = 3) -> dict[str, object]:
    settings = EncodeSettings(shard_size=shard_size, encoder={"batch_size": 2})
    return encode_landing(folder / "landing", folder / "features", settings)


def lookup(folder: Path, texts: Sequence[str]) -> NDArray[np.float16]:
    cache = VectorCache.open(folder / "features" / "counting-2")
    return cache.lookup([content_hash(text.encode()) for text in texts])


def test_each_distinct_utterance_is_encoded_once(tmp_path: Path, encoder: CountingEncoder) -> None:
    land(tmp_path, "1970-01-01", "empty", [])
    land(tmp_path, "2026-03-01", "a", ["hi", "yes", "hi", "no"])
    land(tmp_path, "2026-03-02", "b", ["yes", "maybe", "hi"])

    result = run(tmp_path)

    assert sorted(encoder.asked) == ["hi", "maybe", "no", "yes"]
    assert result["n_encoded"] == 4
    np.testing.assert_array_equal(lookup(tmp_path, ["maybe", "hi", "hi"])[:, 0], [5, 2, 2])


def test_a_second_run_encodes_only_what_is_new(tmp_path: Path, encoder: CountingEncoder) -> None:
    land(tmp_path, "2026-03-01", "a", ["hi", "yes"])
    run(tmp_path)
    land(tmp_path, "2026-03-02", "b", ["yes", "later"])
    encoder.asked.clear()

    assert run(tmp_path)["n_known_before"] == 2
    assert encoder.asked == ["later"]
    assert run(tmp_path)["n_encoded"] == 0


def test_a_killed_run_keeps_its_full_shards_and_goes_on(tmp_path: Path, encoder: CountingEncoder) -> None:
    texts = [f"{i} text" for i in range(10)]
    land(tmp_path, "2026-03-01", "a", texts)
    encoder.fails_after = 6
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    encoder.fails_after = None

    assert run(tmp_path)["n_encoded"] == 4
    assert sorted(set(encoder.asked)) == texts
    np.testing.assert_array_equal(lookup(tmp_path, texts)[:, 1], [ord(text[0]) for text in texts])


def test_keys_that_end_in_zero_bytes_are_kept_apart_and_found(tmp_path: Path) -> None:
    digits = ["00" * 16, "ab" + "00" * 15, "ab" * 16, "ab" * 15 + "00"]
    vectors = np.arange(8, dtype=np.float32).reshape(4, 2)
    encode.write_shard(tmp_path, as_hashes(digits), vectors)
    np.testing.assert_array_equal(VectorCache.open(tmp_path).lookup(digits), vectors)


def test_a_missing_vector_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 2 utterances have no vector .*`python -m rl\.encoders\.encode"):
        VectorCache.open(tmp_path).lookup(["ab" * 16, "cd" * 16])


def test_a_hash_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not 32 hex digits"):
        as_hashes(["hello"])


def test_a_parquet_file_cut_in_the_middle_is_named(tmp_path: Path, encoder: CountingEncoder) -> None:
    land(tmp_path, "2026-03-01", "a", ["hi"])
    path = next(tmp_path.glob("landing/turns/*/a.parquet"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet"):
        run(tmp_path)


def test_an_empty_landing_folder_says_to_ingest(tmp_path: Path, encoder: CountingEncoder) -> None:
    with pytest.raises(DataError, match="Ingest some logs first"):
        run(tmp_path)
