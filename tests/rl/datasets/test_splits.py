"""The splits: known members, the shares they promise, and who is left out by time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.datasets.splits import newest_members, selection_positions, validation_members
from rl.errors import DataError


def test_known_customers_are_on_known_sides() -> None:
    # `printf 'validation|zoë' | sha256sum` starts with 1b6e36f6: position 0.10715; alice 0.97838, bob 0.70208
    keys = ["alice", "bob", "zoë"]

    assert validation_members(keys, 0.1).tolist() == [False, False, False]
    assert validation_members(keys, 0.2).tolist() == [False, False, True]
    assert validation_members(keys, 0.702).tolist() == [False, False, True]
    assert validation_members(keys, 0.703).tolist() == [False, True, True]


def test_the_share_is_kept_and_a_larger_share_keeps_all_members() -> None:
    keys = [f"customer-{k}" for k in range(20_000)]

    small, large = validation_members(keys, 0.2), validation_members(keys, 0.4)

    # within 4 standard deviations of a binomial share; the hash is fixed, so this never fails by chance
    assert small.mean() == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 20_000) ** 0.5)
    assert large.mean() == pytest.approx(0.4, abs=4 * (0.4 * 0.6 / 20_000) ** 0.5)
    assert not (small & ~large).any()


def test_the_selection_part_is_another_hash_and_says_nothing_of_the_held_out_part() -> None:
    # `printf 'selection|alice' | sha256sum` starts with 194248c7: position 0.09867; zoë 0.84373, bob 0.92941
    np.testing.assert_allclose(selection_positions(["alice", "bob", "zoë"]), [0.09867, 0.92941, 0.84373], atol=5e-6)
    keys = [f"customer-{k}" for k in range(20_000)]
    held_out, chosen_by = validation_members(keys, 0.4), selection_positions(keys) < 0.2
    # as above, among the 12,000 that train
    assert chosen_by[~held_out].mean() == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / (~held_out).sum()) ** 0.5)


def test_by_time_the_newest_judge_and_their_older_dialogues_are_left_out() -> None:
    validation, left_out = newest_members(np.array([3, 1, 9, 2, 8]), np.array([0, 1, 1, 2, 3]), 0.4)
    assert validation.tolist() == [False, False, True, False, True]
    assert left_out.tolist() == [False, True, False, False, False]


def test_dialogues_that_began_at_the_same_moment_are_on_one_side() -> None:
    validation, _ = newest_members(np.array([1, 5, 5, 5, 0]), np.arange(5), 0.2)
    assert validation.tolist() == [False, True, True, True, False]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 8)), min_size=2, max_size=60), st.floats(0.05, 0.95))
def test_by_time_no_customer_is_on_both_sides_and_all_who_train_began_before(
    episodes: list[tuple[int, int]], share: float
) -> None:
    started_at, customers = np.array(episodes).T
    try:
        validation, left_out = newest_members(started_at, customers, share)
    except DataError:
        return
    training = ~validation & ~left_out
    assert not set(customers[training]) & set(customers[validation])
    assert started_at[~validation].max() < started_at[validation].min()
    assert validation.sum() >= max(1, round(share * len(episodes)))
    assert set(customers[left_out]) <= set(customers[validation])


def test_a_split_by_time_that_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(DataError, match="2 of 3 dialogues judge and the rest is of the same customers"):
        newest_members(np.array([1, 2, 3]), np.array([0, 0, 1]), 0.6)
    with pytest.raises(DataError, match="none is left to train on"):
        newest_members(np.zeros(4), np.arange(4), 0.5)
