"""Noise: exact integers in, integers with certified discrete Gaussian noise out.

Here: the only two calls in the project that add noise for privacy. Not here: what a release costs (`accounting`),
what it holds (`plan`, `release`), how contributions are bounded (SQL).

Both are OpenDP's core measurements over integers (exact samplers, randomness of the operating system, no seed), and
its own `.map()` certifies what one customer can lose before anything is drawn. Its Polars layer and noisy max are
not used: opendp issues 2949 and 2911 found bounds there that are too small.

What `.map()` certifies rests on the sensitivity that the caller states. That proof is the bounding SQL's: a
customer adds to at most L0 cells, at most L∞ to each, so that two neighbouring tables differ by at most
√L0 · L∞ in the L2 norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from registry.errors import CertificationError
from rl.types import Int1D

_LARGEST = 2**62
"""A cell beyond this leaves no room for noise in 64 bits."""

_LARGEST_SCALE = 2.0**50
_LARGEST_THRESHOLD = 2**40

_MARGIN = 1 + 1e-12
"""On σ: without it `.map()`, which rounds upwards, exceeds ρ by one float in 90 of 20,000 random settings."""


@dataclass(frozen=True)
class NoisySums:
    """Sums with noise, in the order in which they came in."""

    values: Int1D
    sigma: float
    """Scale of the discrete Gaussian: standard deviation of each value's noise."""


@dataclass(frozen=True)
class NoisyHistogram:
    """Counts by key, with noise, sorted by key; keys that stayed below `tau` are gone."""

    counts: dict[str, int]
    sigma: float
    tau: int
    """Smallest count that is let out."""


def l2_sensitivity(l0: int, linf: float) -> float:
    """How far one customer can move a table in the L2 norm: at most `linf` in each of at most `l0` cells."""
    if l0 < 1 or not math.isfinite(linf) or linf <= 0:
        raise CertificationError(
            f"A contribution of at most {linf:g} to each of {l0} cells has no sensitivity. "
            "Both bounds must be above zero: see max_cells and max_rows_per_cell under `privacy`."
        )
    return math.sqrt(l0) * linf


def gaussian_sums(values: Int1D, *, l2: float, rho: float) -> NoisySums:
    """Add discrete Gaussian noise to sums over public keys.

    Parameters
    ----------
    values : (N,) int64
        One exact, bounded sum per key of a list that does not depend on the log; zeros stay in.
    l2 : float
        L2 sensitivity of the whole vector, in the values' unit (`l2_sensitivity`).
    rho : float
        zCDP that the vector may cost a customer.

    Raises
    ------
    CertificationError
        If OpenDP does not certify ρ for these bounds, or the values are not integers with room for noise. Nothing
        was drawn then.
    """
    sigma = _scale(l2, rho)
    exact = _integers(values)
    dp = _opendp()
    measurement = dp.m.make_gaussian(dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64"), scale=sigma)
    _certify(measurement.map(l2), rho, f"L2 sensitivity {l2:g}")
    return NoisySums(np.array(measurement(exact), dtype=np.int64), sigma)


def gaussian_histogram(counts: Mapping[str, int], *, l0: int, rho: float, delta: float, floor: int) -> NoisyHistogram:
    """Add discrete Gaussian noise to customers per key, for keys that come from the log, and drop rare keys.

    Parameters
    ----------
    counts : mapping of key to count
        Distinct customers per key (so L∞ is 1). Only keys that at least one customer has.
    l0 : int
        Keys that one customer may have.
    rho, delta : float
        zCDP that the table may cost a customer, and the probability with which any key that only one customer has
        may pass the threshold.
    floor : int
        k: the threshold is at least this, whatever δ would allow.

    Raises
    ------
    CertificationError
        If OpenDP does not certify ρ and δ, or a key or count cannot pass through it unchanged. Nothing was drawn then.
    """
    sigma = _scale(l2_sensitivity(l0, 1.0), rho)
    if not 0 < delta < 1 or floor < 1:
        raise CertificationError(
            f"A threshold needs delta between 0 and 1 and a floor of at least 1, not {delta:g} and {floor}. "
            "See delta and minimum_customers under `privacy`."
        )
    exact = _histogram(counts)
    tau = max(_certified_threshold(sigma, l0, rho, delta) + 1, floor)
    noisy = _threshold_measurement(sigma, tau)(exact)
    # Sorted: the order of rows must not carry the order of the log.
    return NoisyHistogram(dict(sorted(noisy.items())), sigma, tau)


def _certified_threshold(sigma: float, l0: int, rho: float, delta: float) -> int:
    """Smallest threshold that OpenDP certifies; the caller applies the next one.

    The certified δ leaves out the probability of landing on the threshold itself, where a key still passes: at σ 1
    keys of one customer came out 4.2 times as often as stated (opendp issue 2922). With one more they do not.
    """
    bounds = (l0, math.sqrt(l0), 1.0)

    def certified_delta(tau: int) -> float:
        return float(_threshold_measurement(sigma, tau).map(bounds)[1])

    low, high = 0, 1
    while certified_delta(high) > delta:
        low, high = high, 2 * high
        if high > _LARGEST_THRESHOLD:
            raise CertificationError(
                f"No threshold up to {_LARGEST_THRESHOLD} is certified for delta {delta:g} at sigma {sigma:g}. "
                "Give the reply table more of the budget (privacy.shares) or raise delta."
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if certified_delta(middle) <= delta else (middle, high)
    _certify(_threshold_measurement(sigma, high).map(bounds)[0], rho, f"{l0} keys per customer")
    return high


def _threshold_measurement(sigma: float, tau: int) -> Any:
    dp = _opendp()
    domain = dp.map_domain(dp.atom_domain(T=str), dp.atom_domain(T="i64"))
    metric = dp.l02inf_distance(dp.absolute_distance(T="f64"))
    return dp.m.make_gaussian_threshold(domain, metric, scale=sigma, threshold=tau)


def _opendp() -> Any:
    """OpenDP, imported late (0.1 to 2.5 s) and with the flag that its noise mechanisms ask for.

    `contrib` means that a component's proof was not vetted by OpenDP's reviewers. All of its noise is behind it, the
    parts with a `proven` mark too; our own answer are the tests of sampler, δ and ε in `audit`.
    """
    import opendp.prelude as dp

    dp.enable_features("contrib")
    return dp


def _scale(l2: float, rho: float) -> float:
    """Standard deviation of the noise: ρ = (l2 / σ)² / 2, rounded away from what would cost more."""
    if not (math.isfinite(l2) and l2 > 0 and math.isfinite(rho) and rho > 0):
        raise CertificationError(
            f"Noise for an L2 sensitivity of {l2:g} at rho {rho:g} is not defined: both must be finite and above zero."
        )
    sigma = l2 / math.sqrt(2 * rho) * _MARGIN
    if sigma > _LARGEST_SCALE:
        raise CertificationError(
            f"Noise of sigma {sigma:.3g} does not fit into 64 bits (L2 sensitivity {l2:g}, rho {rho:g}). "
            "Give the table more of the budget, or tighten reward_low and reward_high."
        )
    return sigma


def _certify(certified_rho: float, rho: float, bound: str) -> None:
    if not certified_rho <= rho:
        raise CertificationError(
            f"OpenDP certifies rho {certified_rho:.17g} for {bound}, which is above the {rho:.17g} that was reserved. "
            "Nothing was drawn. Check the installed opendp version against pyproject.toml."
        )


def _integers(values: Int1D) -> Int1D:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype != np.int64:
        raise CertificationError(
            f"Noise is added to one row of 64-bit integers, not to {array.ndim} dimensions of {array.dtype}. "
            "Sum integers in SQL (rewards in thousandths, as BIGINT): the certified bound does not hold for floats."
        )
    if array.size and (array.max() > _LARGEST or array.min() < -_LARGEST):
        raise CertificationError(
            "A sum leaves no room for noise in 64 bits (beyond 2^62). Check the bounds of rewards under `privacy`."
        )
    return np.ascontiguousarray(array)


def _histogram(counts: Mapping[str, int]) -> dict[str, int]:
    """Plain strings and integers. OpenDP cuts a key at its first NUL, so that two keys would become one."""
    exact: dict[str, int] = {}
    for key, count in counts.items():
        if not isinstance(key, str) or "\0" in key or any("\ud800" <= letter <= "\udfff" for letter in key):
            raise CertificationError(
                f"The key of row {len(exact)} of the histogram is no text, or holds a NUL or half a character. "
                "Clean replies before they are counted."
            )
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 0 <= count <= _LARGEST:
            raise CertificationError(
                f"Row {len(exact)} of the histogram does not count customers: it is of type {type(count).__name__} or "
                "outside 0 to 2^62. Count distinct customers per key in SQL, as BIGINT."
            )
        exact[key] = int(count)
    return exact
