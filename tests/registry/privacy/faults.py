"""Plans of releases to be attacked, and faults to be planted into them. An audit that cannot fail is not a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from registry.privacy.mechanisms import NoisyHistogram
from registry.privacy.plan import Measure, ReleasePlan, plan_release
from registry.privacy.settings import PrivacySettings


def tables_rho(rho: float, base: PrivacySettings | None = None) -> PrivacySettings:
    """The base's settings, or the defaults, with tables that cost this ρ."""
    return (base or PrivacySettings()).model_copy(update={"rho": rho + 0.001, "gate_rho": 0.001})


def planned(settings: PrivacySettings) -> ReleasePlan:
    """The plan of a release with these settings. An audit puts a grid of its own in the place of this one's."""
    coarse = settings.model_copy(update={"grid": "turn", "expected_dialogues": 10**9})
    return plan_release(coarse, strategies=["offer", "inquire"], customer_acts=["thanks"], sampling_share=1.0)


def root_l0_forgotten(plan: ReleasePlan) -> ReleasePlan:
    """Noise for one cell of a customer, not for all of them."""
    return _changed(plan, lambda measure: replace(measure, l2=float(measure.linf)))


def half_the_noise(plan: ReleasePlan) -> ReleasePlan:
    """A quarter of the variance, for the ρ that was booked."""
    return _changed(plan, lambda measure: replace(measure, micro_rho=4 * measure.micro_rho))


def one_measure_unbounded(plan: ReleasePlan) -> ReleasePlan:
    """A customer's rows in one cell of the transitions are cut at four times the bound that the noise is made for."""
    return _changed(plan, lambda m: replace(m, linf=4 * m.linf) if m.name == "transitions" else m)


def without_the_extra_one(counts: Mapping[str, int], *, sigma: float, delta: float) -> NoisyHistogram:
    """Planted fault: the smallest threshold that the library certifies, applied as it is."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    domain = dp.map_domain(dp.atom_domain(T=str), dp.atom_domain(T="i64"))
    metric = dp.l02inf_distance(dp.absolute_distance(T="f64"))

    def measurement(tau: int) -> dp.Measurement:
        return dp.m.make_gaussian_threshold(domain, metric, scale=sigma, threshold=tau)

    tau = next(tau for tau in range(1, 1_000) if measurement(tau).map((1, 1.0, 1.0))[1] <= delta)
    return NoisyHistogram(measurement(tau)(dict(counts)), sigma, tau)


def _changed(plan: ReleasePlan, change: Callable[[Measure], Measure]) -> ReleasePlan:
    return replace(plan, measures=tuple(change(measure) for measure in plan.measures))
