"""Fitting a Standardizer by blocks of rows: the same numbers as at once, without the memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from rl.policies.networks import Standardizer


@pytest.mark.parametrize("n_rows", [1, 100, 16_384, 40_000])
def test_blocks_of_rows_give_the_mean_and_deviation_of_all_of_them(n_rows: int) -> None:
    rng = np.random.default_rng(0)
    # A large mean with a small deviation is where sums of squares lose all digits; rows drift from block to block.
    observations = rng.normal([0, 1e4, -3], [1, 0.05, 100], size=(n_rows, 3)).astype(np.float32)
    observations[:, 2] += np.linspace(0, 500, n_rows, dtype=np.float32)
    fitted = Standardizer.fit(observations)
    exact = observations.astype(np.float64)
    deviation = exact.std(axis=0)
    np.testing.assert_allclose(fitted.shift, exact.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(fitted.scale, np.where(deviation > 1e-4, deviation, 1), rtol=1e-6)


def test_a_feature_that_does_not_vary_keeps_scale_one() -> None:
    fitted = Standardizer.fit(np.full((50_000, 2), 0.1, dtype=np.float32))
    np.testing.assert_array_equal(fitted.scale, 1)
    np.testing.assert_array_equal(fitted.shift, np.float32(0.1))


def test_fitting_costs_blocks_and_not_a_copy_in_float64() -> None:
    observations = np.zeros((500_000, 8), dtype=np.float32)
    tracemalloc.start()
    Standardizer.fit(observations)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < observations.nbytes / 2
