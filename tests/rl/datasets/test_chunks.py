"""Chunks of a set: every episode once a pass, within their size, the same after a restart."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.datasets.chunks import EpisodeChunks
from rl.datasets.layout import ARRAYS
from rl.datasets.transitions import TransitionSet
from rl.errors import DataError
from tests.rl.datasets.sets import random_set


def numbered(lengths: list[int]) -> TransitionSet:
    """A set whose episodes carry their number in `started_at`."""
    return random_set(lengths, started_at=np.arange(len(lengths)))


def set_bytes(dataset: TransitionSet) -> int:
    return sum(array.nbytes for array in dataset.arrays().values())


def of_pass(chunks: EpisodeChunks, number: int) -> list[list[int]]:
    first = number * chunks.n_chunks
    return [chunks.load(first + k).started_at.tolist() for k in range(chunks.n_chunks)]


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=60),
    max_bytes=st.integers(6_000, 40_000),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_every_chosen_episode_is_in_one_chunk_of_each_pass(
    lengths: list[int], max_bytes: int, seed: int, data: st.DataObject
) -> None:
    dataset = numbered(lengths)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    chosen[0] = True
    chunks = EpisodeChunks(dataset, chosen, max_bytes, seed)
    for number in (0, 1, 5):
        loaded = of_pass(chunks, number)
        assert sorted(chain.from_iterable(loaded)) == np.flatnonzero(chosen).tolist()
        assert all(loaded)
    for number in range(chunks.n_chunks):
        # One more offset than rows in each chunk, whose places are counted with the rows.
        assert set_bytes(chunks.load(number)) <= max_bytes + 2 * 8


def test_passes_differ_and_a_new_run_sees_the_same_chunks() -> None:
    dataset = numbered([3] * 200)
    every = np.ones(200, dtype=bool)
    chunks, again = (EpisodeChunks(dataset, every, 12_000, seed=4) for _ in range(2))
    assert chunks.n_chunks > 1
    assert of_pass(chunks, 0) != of_pass(chunks, 1)
    assert of_pass(again, 1) == of_pass(chunks, 1)
    assert of_pass(EpisodeChunks(dataset, every, 12_000, seed=5), 1) != of_pass(chunks, 1)


def test_two_episodes_meet_in_some_passes_and_not_in_others() -> None:
    dataset = numbered([3] * 200)
    chunks = EpisodeChunks(dataset, np.ones(200, dtype=bool), 20_000, seed=0)
    together = [any({0, 199} <= set(chunk) for chunk in of_pass(chunks, number)) for number in range(40)]
    assert True in together
    assert False in together


def test_what_fits_is_one_chunk_the_same_in_every_pass() -> None:
    dataset = numbered([2, 4, 1, 3])
    chosen = np.array([True, False, True, True])
    chunks = EpisodeChunks(dataset, chosen, set_bytes(dataset), seed=0)
    assert chunks.n_chunks == 1
    expected = dataset.select(chosen)
    for number in (0, 7):
        loaded = chunks.load(number)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(loaded, name), getattr(expected, name), err_msg=name)


def test_chunks_that_hold_too_few_episodes_and_no_episodes_are_refused() -> None:
    dataset = numbered([2, 40, 3, 50])
    with pytest.raises(DataError, match=r"does not hold 8 episodes of .* bytes, as the largest one has\. Allow"):
        EpisodeChunks(dataset, np.ones(4, dtype=bool), 5_000, seed=0)
    with pytest.raises(DataError, match="No episode was chosen"):
        EpisodeChunks(dataset, np.zeros(4, dtype=bool), 5_000, seed=0)
