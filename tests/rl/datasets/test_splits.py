"""The split by customer: known members, and the share it promises."""

from __future__ import annotations

import pytest

from rl.datasets.splits import validation_members


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
