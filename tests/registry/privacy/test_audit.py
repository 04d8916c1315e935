"""Attacks on the noise of a release: they find nothing in ours, and find every fault that is planted.

OpenDP's noise cannot be seeded. Each test of ours therefore says how often it fails for a correct mechanism: at most
once in 10,000 runs, most of them far less. Planted faults are missed less often than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from scipy.special import ndtr

from registry.errors import ReleaseError
from registry.privacy.accounting import epsilon
from registry.privacy.audit import (
    OneRun,
    TwoWorlds,
    gaussian_epsilon,
    measured_epsilon,
    one_run,
    sampler_fit,
    threshold_delta,
    threshold_leaks,
    two_worlds,
)
from registry.privacy.mechanisms import gaussian_histogram, gaussian_sums
from registry.privacy.plan import ReleasePlan
from registry.privacy.settings import PrivacySettings
from rl.errors import SettingsError
from rl.types import Int1D
from tests.registry.privacy.canaries import CanaryAudit
from tests.registry.privacy.faults import (
    half_the_noise,
    one_measure_unbounded,
    planned,
    root_l0_forgotten,
    tables_rho,
    without_the_extra_one,
)

DELTA = 1e-6
SURE = 0.9999
"""Confidence of the audits here: at most once in 10,000 runs do they accuse a correct mechanism."""

TOO_UNLIKELY = 1e-6
N_DRAWS = 400_000


def claim(plan: ReleasePlan) -> float:
    return epsilon(plan.settings.table_rho, DELTA)


# ---------- the sampler


def discrete_gaussian(sigma: float, n: int, seed: int = 0) -> Int1D:
    """Draws by numpy from the exact probabilities."""
    support = np.arange(-math.ceil(12 * sigma), math.ceil(12 * sigma) + 1)
    masses = np.exp(-(support**2) / (2 * sigma**2))
    return np.random.default_rng(seed).choice(support, size=n, p=masses / masses.sum())


@pytest.mark.parametrize("sigma", [3.7, *(pytest.param(sigma, marks=pytest.mark.slow) for sigma in (1.0, 20.0, 150.0))])
def test_noise_is_the_discrete_gaussian_it_says(sigma: float) -> None:
    """Fails about once in a million runs."""
    noisy = gaussian_sums(np.zeros(N_DRAWS, dtype=np.int64), l2=1.0, rho=1 / (2 * sigma**2))

    assert noisy.sigma == pytest.approx(sigma)
    assert sampler_fit(noisy.values, noisy.sigma) > TOO_UNLIKELY


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.7, 20.0, 150.0])
def test_a_correct_sampler_fits_whatever_its_scale(sigma: float) -> None:
    assert sampler_fit(discrete_gaussian(sigma, N_DRAWS), sigma) > 1e-3


@pytest.mark.parametrize("sigma", [1.0, 3.7, 20.0])
def test_a_biased_sampler_is_found(sigma: float) -> None:
    draws = discrete_gaussian(sigma, N_DRAWS)
    rng = np.random.default_rng(1)
    too_often_positive = np.where(rng.random(N_DRAWS) < 0.03, np.abs(draws), draws)
    rounded_float = np.rint(rng.normal(0, 0.98 * sigma, N_DRAWS)).astype(np.int64)

    assert sampler_fit(too_often_positive, sigma) < TOO_UNLIKELY
    assert sampler_fit(rounded_float, sigma) < TOO_UNLIKELY


# ---------- the threshold


@pytest.mark.parametrize(
    ("sigma", "delta", "n_customers"),
    [
        (1.0, 0.023, 30_000),
        *(
            pytest.param(sigma, delta, 400_000, marks=pytest.mark.slow)
            for sigma, delta in [(1.0, 0.05), (3.0, 0.01), (20.0, 0.002)]
        ),
    ],
)
def test_a_key_of_one_customer_comes_out_no_more_often_than_delta(sigma: float, delta: float, n_customers: int) -> None:
    """Fails less than once in 10,000 runs, were the true share as high as δ; it is lower."""
    draw = partial(gaussian_histogram, l0=1, rho=1 / (2 * sigma**2), delta=delta, floor=1)

    leaks = threshold_leaks(draw, l0=1, n_customers=n_customers, confidence=SURE)

    assert leaks.low <= delta
    assert leaks.low <= threshold_delta(sigma, draw({}).tau, 1) <= leaks.high


def test_all_keys_of_a_customer_share_one_delta() -> None:
    draw = partial(gaussian_histogram, l0=4, rho=2.0 / 9, delta=0.05, floor=1)

    leaks = threshold_leaks(draw, l0=4, n_customers=8_000, confidence=SURE)

    assert leaks.low <= threshold_delta(3.0, draw({}).tau, 4) <= min(leaks.high, 0.05)


def test_a_threshold_without_the_extra_one_is_caught_at_sigma_one() -> None:
    """The true share is 0.059: 16 standard errors above."""
    leaks = threshold_leaks(
        partial(without_the_extra_one, sigma=1.0, delta=0.023), l0=1, n_customers=30_000, confidence=SURE
    )

    assert leaks.low > 0.023


@pytest.mark.parametrize("l0", [1, 4, 8])
@pytest.mark.parametrize("sigma", [1.0, 3.0, 10.0, 20.0])
@pytest.mark.parametrize("delta", [0.05, 0.01, 0.002, 1e-6, 1e-9])
def test_the_applied_threshold_keeps_delta_exactly(l0: int, sigma: float, delta: float) -> None:
    """By summing the noise's probabilities: no draw, no error."""
    tau = gaussian_histogram({}, l0=l0, rho=l0 / (2 * sigma**2), delta=delta, floor=1).tau

    assert threshold_delta(sigma, tau, l0) <= delta


def test_the_threshold_the_library_certifies_would_not_keep_delta() -> None:
    tau = gaussian_histogram({}, l0=8, rho=8 / 200, delta=DELTA, floor=1).tau

    assert threshold_delta(10.0, tau, 8) == pytest.approx(6.01e-7, rel=0.01)
    assert threshold_delta(10.0, tau - 1, 8) == pytest.approx(1.03e-6, rel=0.01)


# ---------- two worlds: all measures of a release, one customer at every bound


def test_a_release_shows_no_more_than_it_claims_and_the_audit_would_see_half_of_it() -> None:
    """Each line fails at most once in 10,000 runs."""
    plan = planned(PrivacySettings())

    measured = measured_epsilon(two_worlds(plan, 10_000), claimed=claim(plan), delta=DELTA, confidence=SURE)

    assert measured.holds, measured
    assert measured.bites, measured
    assert measured.assumption_free <= measured.gaussian


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.02, 0.1, 0.5])
def test_releases_of_every_budget_show_no_more_than_they_claim(rho: float) -> None:
    plan = planned(tables_rho(rho))

    measured = measured_epsilon(two_worlds(plan, 40_000), claimed=claim(plan), delta=DELTA, confidence=SURE)

    assert measured.holds, measured
    assert measured.bites, measured


@pytest.mark.parametrize("fault", [root_l0_forgotten, half_the_noise, one_measure_unbounded])
def test_too_little_noise_is_caught(fault: Callable[[ReleasePlan], ReleasePlan]) -> None:
    plan = planned(tables_rho(0.5))

    measured = measured_epsilon(two_worlds(fault(plan), 1_000), claimed=claim(plan), delta=DELTA, confidence=SURE)

    assert not measured.holds, measured


# ---------- one run: canaries through the bounding SQL, alignment and noise


@pytest.fixture(scope="module")
def at_the_bound() -> OneRun:
    """Canaries in eight cells, one row in each; the noise is small enough (ρ 0.5) to tell most of them."""
    return CanaryAudit(plan=planned(tables_rho(0.5))).run(seed=1, confidence=SURE)


def over_contributing(**faults: object) -> CanaryAudit:
    """Canaries in forty cells, with three rows in each."""
    return CanaryAudit(plan=planned(tables_rho(0.5)), n_cells=40, rows_per_cell=3, faults=faults)


def expected_auc(settings: PrivacySettings) -> float:
    """Of canaries at the bound: reply texts, which nobody shares with them, never come out."""
    mu = math.sqrt(2 * settings.table_rho * (1 - settings.shares.reply_texts))
    return float(ndtr(mu / math.sqrt(2)))


def test_canaries_at_the_bound_are_as_visible_as_the_noise_allows(at_the_bound: OneRun) -> None:
    """Lower means that contributions get lost on the way, higher that there is too little noise. Fails once in 90,000
    runs on each side: 4.4 standard errors.
    """
    assert at_the_bound.auc == pytest.approx(expected_auc(tables_rho(0.5)), abs=4.4 * at_the_bound.auc_standard_error)
    assert 0 < at_the_bound.epsilon <= CanaryAudit(plan=planned(tables_rho(0.5))).claimed


def test_canaries_that_contribute_more_are_no_more_visible(at_the_bound: OneRun) -> None:
    """What lies beyond the bounds is cut: their eight cells are hidden among forty. Fails far less than once in
    100,000 runs.
    """
    audit = over_contributing()
    shown = audit.run(seed=2, confidence=SURE)

    assert shown.epsilon <= audit.claimed
    assert shown.auc <= expected_auc(audit.plan.settings) + 4.4 * shown.auc_standard_error


def test_a_missing_bound_on_cells_is_seen_by_canaries() -> None:
    audit = over_contributing(privacy_max_cells=1_000_000)
    shown = audit.run(seed=3, confidence=SURE)

    assert shown.auc > expected_auc(audit.plan.settings) + 4.4 * shown.auc_standard_error


def test_a_missing_bound_on_rows_proves_more_than_the_claim() -> None:
    plan = planned(PrivacySettings())
    audit = CanaryAudit(plan=plan, rows_per_cell=60, faults={"privacy_max_rows_per_cell": 1_000_000})

    assert audit.run(seed=4, confidence=SURE).epsilon > audit.claimed


def test_a_missing_bound_on_rewards_is_refused_before_a_draw() -> None:
    audit = CanaryAudit(plan=planned(PrivacySettings()), n_canaries=10, faults={"privacy_reward_high": 1e9})

    with pytest.raises(ReleaseError, match=r"rewards beyond privacy\.reward_low"):
        audit.run(seed=5, confidence=SURE)


# ---------- the statistics


def worlds_apart(mu: float, n: int = 100_000, seed: int = 0) -> TwoWorlds:
    rng = np.random.default_rng(seed)
    return TwoWorlds(rng.normal(0, mu, n), rng.normal(mu**2, mu, n), mu**2 / 2)


@pytest.mark.parametrize("mu", [0.2, 0.4, 1.0, 2.0])
def test_the_gaussian_form_comes_close_to_the_true_epsilon_from_below(mu: float) -> None:
    measured = measured_epsilon(worlds_apart(mu), claimed=epsilon(mu**2 / 2, DELTA), delta=DELTA)
    true = gaussian_epsilon(mu, DELTA)

    assert measured.holds
    assert measured.bites
    assert measured.assumption_free < measured.gaussian < true
    assert measured.gaussian > 0.8 * true


def test_worlds_that_are_the_same_show_nothing() -> None:
    same = worlds_apart(1.0)
    measured = measured_epsilon(TwoWorlds(same.without, same.without[::-1], 0.0), claimed=1.0, delta=DELTA)

    assert measured.gaussian == measured.assumption_free == 0.0
    assert measured.holds
    assert not measured.bites


def test_worlds_that_never_overlap_show_as_much_as_the_runs_can() -> None:
    apart = TwoWorlds(np.zeros(4_000), np.ones(4_000), 0.5)
    measured = measured_epsilon(apart, claimed=1.0, delta=DELTA)

    # No false alarm in 2,000 runs: at most 1 - 0.0005 ** (1 / 2000) of them, at this confidence.
    assert measured.assumption_free == pytest.approx(math.log(1 / (1 - 0.0005 ** (1 / 2_000))), abs=0.01)
    assert not measured.holds


@pytest.mark.parametrize(("mu", "known"), [(0.0, 0.0), (0.2, 0.834), (1.0, 4.887)])
def test_epsilon_of_two_gaussians_is_the_known_one(mu: float, known: float) -> None:
    """0.834 is also what dp-accounting's privacy loss distribution gives for σ 5."""
    assert gaussian_epsilon(mu, DELTA) == pytest.approx(known, abs=1e-3)


def test_a_canary_audit_of_perfect_guesses_shows_what_their_number_allows() -> None:
    is_in = np.arange(1_000) % 2 == 0
    audit = one_run(is_in.astype(float), is_in, delta=1e-9)

    assert audit.auc == 1.0
    assert 4 < audit.epsilon < math.log(1_000)


def test_a_canary_audit_of_blind_guesses_shows_nothing() -> None:
    rng = np.random.default_rng(0)
    audit = one_run(rng.normal(size=2_000), rng.random(2_000) < 0.5, delta=1e-9)

    assert audit.epsilon == 0.0
    assert audit.auc == pytest.approx(0.5, abs=4 * audit.auc_standard_error)


def test_equal_scores_count_half() -> None:
    assert one_run(np.zeros(100), np.arange(100) < 50, delta=1e-9).auc == 0.5


def test_a_canary_audit_never_shows_more_than_the_truth() -> None:
    """200 audits of canaries that differ by exactly ε: at 99.9 % none is expected above it."""
    rng = np.random.default_rng(0)
    true = 1.0
    above = 0
    for _ in range(200):
        is_in = rng.random(1_000) < 0.5
        told = np.where(rng.random(1_000) < 1 / (1 + math.exp(-true)), is_in, ~is_in)  # randomised response
        above += one_run(told + rng.random(1_000) / 10, is_in, delta=0.0).epsilon > true

    assert above <= 2


def test_a_canary_audit_that_cannot_show_anything_is_refused() -> None:
    with pytest.raises(SettingsError, match="smaller delta"):
        one_run(np.zeros(3_000), np.arange(3_000) < 1_500, delta=1e-6)
