"""A published release, certified again from what its record says of it.

Here: OpenDP's `.map()` on the recorded noise, and the sum of what was spent. Not here: the draw (`mechanisms`), whether
files and ledger are those of the record (`release.verify_releases`).

It shares no code with the draw: what it builds are OpenDP's measurements as anyone would who has only release.json.
"""

from __future__ import annotations

import math

from registry.errors import CertificationError
from registry.privacy.release import MeasureRecord, ReleaseRecord

_ROUNDING = 1e-9


def recertify(record: ReleaseRecord) -> float:
    """ρ that OpenDP certifies for all tables of a release together.

    Raises CertificationError naming the measure whose noise is too small for the ρ or δ that the record states, or
    saying that the measures cost more than was booked.
    """
    total = math.fsum(_certified_rho(name, measure, record) for name, measure in record.measures.items())
    if total > record.rho * (1 + _ROUNDING):
        raise CertificationError(
            f"The measures of the release of {record.window} cost rho {total:.9g} together, and {record.rho:.9g} was "
            "booked. Stop using the release and find out what changed its record."
        )
    return total


def _certified_rho(name: str, measure: MeasureRecord, record: ReleaseRecord) -> float:
    if measure.l2 < math.sqrt(measure.l0) * measure.linf * (1 - _ROUNDING):
        raise _refused(name, record, f"an L2 sensitivity of {measure.l2:g} for {measure.l0} cells of {measure.linf}")
    rho = _by_opendp(measure) if measure.tau is None else _by_opendp_with_threshold(name, measure, record)
    if rho > measure.rho:
        raise _refused(name, record, f"noise of sigma {measure.sigma:g}, which is certified for rho {rho:.9g} only")
    return rho


def _by_opendp(measure: MeasureRecord) -> float:
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    return float(dp.m.make_gaussian(*space, scale=measure.sigma).map(measure.l2))


def _by_opendp_with_threshold(name: str, measure: MeasureRecord, record: ReleaseRecord) -> float:
    import opendp.prelude as dp

    dp.enable_features("contrib")
    assert measure.tau is not None
    domain = dp.map_domain(dp.atom_domain(T=str), dp.atom_domain(T="i64"))
    metric = dp.l02inf_distance(dp.absolute_distance(T="f64"))
    # One below what was applied: the certified δ leaves out the mass at the threshold itself (opendp issue 2922).
    drawn = dp.m.make_gaussian_threshold(domain, metric, scale=measure.sigma, threshold=measure.tau - 1)
    rho, delta = drawn.map((measure.l0, math.sqrt(measure.l0), 1.0))
    if delta > record.delta:
        raise _refused(name, record, f"the threshold {measure.tau}, which is certified for delta {delta:.3g} only")
    return float(rho)


def _refused(name: str, record: ReleaseRecord, fault: str) -> CertificationError:
    return CertificationError(
        f"The record of the release of {record.window} states {fault} ({name}). Stop using the release, and compare "
        "its release.json with the ledger's row and a backup."
    )
