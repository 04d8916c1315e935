"""Sets that are written range by range: the same file however it is cut, bounded memory, and what is refused."""

from __future__ import annotations

import errno
import json
import tempfile
import tracemalloc
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from rl.datasets import writer as writer_module
from rl.datasets.layout import ARRAYS, ARRAYS_FILE, Range, ranges
from rl.datasets.transitions import MANIFEST_FILE, TransitionSet, write_transition_set
from rl.datasets.writer import TransitionSetWriter
from rl.errors import DataError, PropensityError
from tests.rl.datasets.sets import random_set

LENGTHS = (2, 1, 3, 1, 4)


def cut(dataset: TransitionSet, ends: Sequence[int]) -> Iterator[Range]:
    """The set in ranges that end before the given episodes, and the rest."""
    first = 0
    for end in [*ends, dataset.n_episodes]:
        part = dataset.select(np.arange(first, end))
        yield Range(first, int(dataset.episode_offsets[first]), 0, part.arrays())
        first = end


def write(folder: Path, dataset: TransitionSet, parts: Iterator[Range]) -> TransitionSetWriter:
    sizes = {"n_steps": dataset.n_steps, "n_episodes": dataset.n_episodes, "observation_size": 3}
    bare = dataset.manifest.model_copy(update={"counts": {}, "dataset_hash": "", "schema_hash": ""})
    with TransitionSetWriter.replacing(folder, bare, **sizes) as writer:
        for part in parts:
            writer.add(part.arrays)
    return writer


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=9), seed=st.integers(0, 9), data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_cut_into_ranges_gives_the_same_files(lengths: list[int], seed: int, data: Any) -> None:
    ends = sorted(data.draw(st.sets(st.integers(1, len(lengths) - 1)) if len(lengths) > 1 else st.just(set())))
    dataset = random_set(lengths, seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, streamed = Path(folder) / "whole", Path(folder) / "streamed"
        write_transition_set(whole, dataset)
        writer = write(streamed, dataset, cut(dataset, ends))

        assert writer.manifest == dataset.manifest
        for name in (ARRAYS_FILE, MANIFEST_FILE):
            assert (streamed / name).read_bytes() == (whole / name).read_bytes()
        opened = TransitionSet.open(streamed)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(opened, name), getattr(dataset, name), err_msg=name)
            assert getattr(opened, name).flags.aligned
        assert sorted(path.name for path in streamed.iterdir()) == sorted([ARRAYS_FILE, MANIFEST_FILE])


def test_the_file_is_a_safetensors_file_for_others(tmp_path: Path) -> None:
    dataset = random_set(LENGTHS)
    write(tmp_path / "set", dataset, cut(dataset, [2]))
    loaded = load_file(tmp_path / "set" / ARRAYS_FILE)
    assert set(loaded) == set(ARRAYS)
    for name, array in loaded.items():
        np.testing.assert_array_equal(array, getattr(dataset, name), err_msg=name)


@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=30), max_steps=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_ranges_are_whole_episodes_that_follow_each_other(lengths: list[int], max_steps: int) -> None:
    dataset = random_set(lengths)
    parts = list(ranges(dataset.arrays(), max_steps))
    for name in ("observations", "started_at", "utterance_vectors"):
        joined = np.concatenate([part.arrays[name] for part in parts])
        np.testing.assert_array_equal(joined, getattr(dataset, name))
    for part in parts:
        offsets = part.arrays["episode_offsets"]
        assert part.first_step == dataset.episode_offsets[part.first_episode]
        assert offsets[0] == 0
        assert offsets[-1] == len(part.arrays["actions"])
        assert offsets[-1] <= max_steps or len(offsets) == 2


def _from_arrays(changed: dict[str, Any], dataset: TransitionSet, _: Path) -> None:
    TransitionSet.from_arrays(**changed, manifest=dataset.manifest)


def _streamed(changed: dict[str, Any], dataset: TransitionSet, folder: Path) -> None:
    write(folder / "set", dataset, ranges(changed, max_steps=1))


# Episodes of LENGTHS begin at rows 0, 2, 3, 6 and 7.
@pytest.mark.parametrize("way", [_from_arrays, _streamed])
@pytest.mark.parametrize(
    ("name", "row", "value", "message"),
    [
        ("observations", 6, np.nan, "observations is not finite; first at 6"),
        ("rewards", 8, -np.inf, "rewards is not finite; first at 8"),
        ("reward_parts", 3, np.nan, "reward_parts is not finite; first at 3"),
        ("reward_parts", 3, 1e3, "the reward is not the weighted sum of its parts; first at 3"),
        ("final_observations", 4, np.inf, "final_observations is not finite; first at 4"),
        ("utterance_vectors", 5, np.nan, "utterance_vectors is not finite; first at 5"),
        ("actions", 9, 4, "the action is no id of the 4 actions; first at 9"),
        ("actions", 9, -1, "the action is no id of the 4 actions; first at 9"),
        ("logged_mask", 10, False, "the logged action lies outside logged_mask; first at 10"),
        ("action_mask", 2, False, r"no action is legal \(action_mask\); first at 2"),
        ("propensities", 7, 0, r"lie outside \(0, 1\]; the first is row 7 with 0"),
        ("propensities", 7, 1.25, r"lie outside \(0, 1\]; the first is row 7 with 1\.25"),
        ("propensities", 7, -0.5, r"lie outside \(0, 1\]; the first is row 7 with -0\.5"),
        ("terminated", 3, None, "either terminated or truncated, not both and not neither; first at 3"),
        ("validation", 2, None, "a customer has episodes on both sides of the validation split; first at 2, 4"),
    ],
)  # fmt: skip
def test_broken_rows_are_refused_with_their_numbers_in_the_whole_set(
    way: Callable[..., None], name: str, row: int, value: Any, message: str, tmp_path: Path
) -> None:
    dataset = random_set(LENGTHS, customer_index=np.array([0, 1, 2, 3, 2]), propensities=np.full(11, 0.5))
    changed = {key: np.array(array) for key, array in dataset.arrays().items()}
    changed[name][row] = ~changed[name][row] if value is None else value
    kind = PropensityError if name == "propensities" else DataError
    with pytest.raises(kind, match=message):
        way(changed, dataset, tmp_path)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 2, 2, 6], "episode_offsets must grow by at least 1 at each entry; first at 1"),
        ([0, 2, 5], "episode_offsets runs from 0 to 5; it must run from 0 to 6"),
        ([1, 2, 6], "episode_offsets runs from 1 to 6"),
        ([0, 4, 2, 6], "episode_offsets must grow by at least 1 at each entry; first at 1"),
    ],
)
def test_broken_offsets_of_a_range_are_refused(offsets: list[int], message: str, tmp_path: Path) -> None:
    dataset = random_set((2, 1, 3))
    n_episodes = len(offsets) - 1
    part = {
        name: array[np.minimum(np.arange(n_episodes), 2)] if ARRAYS[name][1][0] == "E" else array
        for name, array in dataset.arrays().items()
    }
    with (
        pytest.raises(DataError, match=message),
        TransitionSetWriter.replacing(
            tmp_path / "set", dataset.manifest, n_steps=6, n_episodes=n_episodes, observation_size=3
        ) as writer,
    ):
        writer.add(part | {"episode_offsets": np.array(offsets)})


@pytest.mark.parametrize(("episodes", "given_steps"), [(4, 6), (6, 14)])
def test_more_or_fewer_rows_than_announced_are_refused_and_the_old_set_stays(
    episodes: int, given_steps: int, tmp_path: Path
) -> None:
    announced = random_set((2, 1, 3, 1, 4))
    before = random_set((1,))
    write_transition_set(tmp_path / "set", before)
    # The last episode given has 3 steps.
    other = random_set((*LENGTHS[: min(episodes - 1, 5)], 3) if episodes > 5 else (1, 1, 1, 3))
    assert other.n_steps == given_steps
    message = f"announced with 11 steps of 5 episodes and is given {given_steps} of {episodes}"
    with pytest.raises(DataError, match=message):
        write(tmp_path / "set", announced, cut(other, []))
    assert TransitionSet.open(tmp_path / "set").manifest == before.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_range_lacks_no_array_and_keeps_the_width_of_the_set(tmp_path: Path) -> None:
    dataset = random_set(LENGTHS)
    arrays = dataset.arrays()
    with pytest.raises(DataError, match=r"all of its arrays and no others\. Look at rewards"):
        write(tmp_path / "set", dataset, iter([Range(0, 0, 0, {k: v for k, v in arrays.items() if k != "rewards"})]))
    wider = arrays | {"observations": np.zeros((11, 4), dtype=np.float32)}
    with pytest.raises(DataError, match=r"observations is float32 \(11, 4\); it must be float32 \(11, 3\)"):
        write(tmp_path / "set", dataset, iter([Range(0, 0, 0, wider)]))


def test_a_disk_that_is_too_full_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda _: usage(100, 99, 1))
    with pytest.raises(DataError, match=r"takes 0\.0 GB without its utterances; the disk of .* has 0\.0 GB free"):
        write_transition_set(tmp_path / "set", random_set(LENGTHS))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_meanwhile_is_one_message_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer_module.shutil, "copyfileobj", full)
    with pytest.raises(DataError, match="is full; the transition set was not finished"):
        write_transition_set(tmp_path / "set", random_set(LENGTHS))
    assert not list(tmp_path.iterdir())


def test_memory_is_that_of_a_range(tmp_path: Path) -> None:
    n_ranges, n_episodes = 40, 500
    part = random_set([4] * n_episodes, customer_index=np.arange(n_episodes), validation=np.zeros(n_episodes)).arrays()
    part_bytes = sum(array.nbytes for array in part.values())
    manifest = random_set((1,)).manifest
    tracemalloc.start()
    with TransitionSetWriter.replacing(
        tmp_path / "set",
        manifest,
        n_steps=n_ranges * n_episodes * 4,
        n_episodes=n_ranges * n_episodes,
        observation_size=3,
    ) as writer:
        for _ in range(n_ranges):
            writer.add(part)
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * part_bytes
    header = json.loads((tmp_path / "set" / ARRAYS_FILE).read_bytes()[8:4096])
    assert header["utterance_vectors"]["shape"] == [n_ranges * len(part["utterance_vectors"]), 2]
