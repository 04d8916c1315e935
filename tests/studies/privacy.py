"""What privacy is claimed, what attacks can measure of it, and what it costs in accuracy.

Needs no night: attacks bring their own canaries, and the logs of the price are drawn. The noise itself cannot be
seeded; a seed here is that of who is in, or of the log. Each check of a correct mechanism fails at most once in a
thousand runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from scipy.special import ndtr

from orchestration.console import progress
from orchestration.plots import ACCENT, INK, PALE, SHADES
from orchestration.settings import TalktrackSettings
from registry.privacy.accounting import epsilon
from registry.privacy.audit import CONFIDENCE, measured_epsilon, sampler_fit, threshold_leaks, two_worlds
from registry.privacy.mechanisms import gaussian_histogram, gaussian_sums
from registry.privacy.membership import Release, membership_auc
from registry.privacy.plan import ReleasePlan, plan_release
from registry.privacy.settings import PrivacySettings
from tests.registry.privacy import faults
from tests.registry.privacy.canaries import CanaryAudit
from tests.registry.privacy.price import SIZES, KnownLog, prices
from tests.studies.memory import Memory, StudyRow

RHOS = (0.02, 0.1, 0.5)
DELTA = 1e-6

N_RUNS = 40_000
"""Releases of each of the two worlds; a planted fault shows in a quarter of them."""

N_DRAWS = 400_000
SIGMAS = (1.0, 3.7, 20.0, 150.0)
THRESHOLDS = ((1.0, 0.05), (3.0, 0.01), (20.0, 0.002))
"""σ, and a δ that is large enough to be counted."""

N_CANARIES = 3_000
SMALL_RHO = 0.02
"""Canaries can prove an ε of at most about the logarithm of their number: a larger claim would be out of reach."""

ROWS_PER_CELL = (5, 20, 100)
MEMBERSHIP_RELEASES: dict[Release, str] = {
    "individual": "exact counts",
    "suppressed": "exact counts of ten and more",
    "aggregate": "a release",
}
MEMBERSHIP_REPEATS = 12

N_CUSTOMERS = 20_000
"""Of the logs whose rates are known; six dialogues each on average."""

LARGE_CELL_ERROR = 0.02
"""Two percentage points, in cells of 1,000 rows and more, at ρ 0.1 and above."""

STRATEGY_RATE = "of the strategy's exact rate"

STRATEGIES = tuple(f"strategy {number:02d}" for number in range(30))
LOG_SEEDS = (1, 2, 3)

Part = Callable[[PrivacySettings, Memory], list[StudyRow]]


def run(settings: TalktrackSettings, memory: Memory) -> tuple[list[StudyRow], Any]:
    """Attacks on releases with the workspace's privacy settings at three budgets, and the error of released rates."""
    parts: list[Part] = [
        _sampler,
        _threshold,
        *(partial(_two_worlds, rho=rho) for rho in RHOS),
        _planted_faults,
        *(partial(_canaries, rho=rho) for rho in RHOS),
        _canary_faults,
        _membership,
        *(partial(_price, rho=rho) for rho in RHOS),
    ]
    rows: list[StudyRow] = []
    for done, part in enumerate(parts):
        progress("attacks and prices", done, len(parts))
        rows += part(settings.privacy, memory)
    progress("attacks and prices", len(parts), len(parts))
    return rows, _figure(rows)


# ---------- attacks


def _sampler(_: PrivacySettings, memory: Memory) -> list[StudyRow]:
    def fit(sigma: float) -> float:
        noisy = gaussian_sums(np.zeros(N_DRAWS, dtype=np.int64), l2=1.0, rho=1 / (2 * sigma**2))
        return sampler_fit(noisy.values, noisy.sigma)

    found = {sigma: memory.remembered(["sampler", sigma, N_DRAWS], partial(fit, sigma)) for sigma in SIGMAS}
    return [
        StudyRow(check=f"sampler/p at σ {sigma:g}", value=p, aim=">= 1e-6", holds=p >= 1e-6, seeds=())
        for sigma, p in found.items()
    ]


def _threshold(_: PrivacySettings, memory: Memory) -> list[StudyRow]:
    def leaks(sigma: float, delta: float, *, faulty: bool) -> dict[str, float]:
        ours = partial(gaussian_histogram, l0=1, rho=1 / (2 * sigma**2), delta=delta, floor=1)
        draw = partial(faults.without_the_extra_one, sigma=sigma, delta=delta) if faulty else ours
        return asdict(threshold_leaks(draw, l0=1, n_customers=N_DRAWS))

    rows = []
    for sigma, delta in THRESHOLDS:
        share = memory.remembered(["threshold", sigma, delta, N_DRAWS], partial(leaks, sigma, delta, faulty=False))
        check = f"delta/keys of one customer let out at σ {sigma:g}"
        rows.append(StudyRow(check=check, **share, aim=f"<= {delta:g}", holds=share["low"] <= delta, seeds=()))
    sigma, delta = THRESHOLDS[0]
    share = memory.remembered(["threshold fault", sigma, delta, N_DRAWS], partial(leaks, sigma, delta, faulty=True))
    aim, caught = f"> {delta:g} (planted fault)", share["low"] > delta
    return [*rows, StudyRow(check="delta/threshold without the extra one", **share, aim=aim, holds=caught, seeds=())]


def _two_worlds(base: PrivacySettings, memory: Memory, rho: float) -> list[StudyRow]:
    plan = faults.planned(faults.tables_rho(rho, base))
    found = _measured(memory, "correct", plan, plan, N_RUNS)
    claimed = found["claimed"]
    within = claimed / 2 < found["gaussian"] <= claimed
    return [
        StudyRow(
            check=f"two worlds/ε at ρ {rho:g}",
            value=found["gaussian"],
            low=claimed / 2,
            high=claimed,
            aim="above half of the claim, not above it",
            holds=within,
            seeds=(),
        ),
        StudyRow(
            check=f"two worlds/ε at ρ {rho:g}, no assumption",
            value=found["assumption_free"],
            aim=f"<= {claimed:.3f}",
            holds=found["assumption_free"] <= claimed,
            seeds=(),
        ),
    ]


def _planted_faults(base: PrivacySettings, memory: Memory) -> list[StudyRow]:
    planted = [(faults.root_l0_forgotten, rho) for rho in RHOS]
    planted += [(faults.half_the_noise, RHOS[-1]), (faults.one_measure_unbounded, RHOS[-1])]
    rows = []
    for fault, rho in planted:
        plan = faults.planned(faults.tables_rho(rho, base))
        found = _measured(memory, fault.__name__, fault(plan), plan, N_RUNS // 4)
        shown = max(found["gaussian"], found["assumption_free"])
        rows.append(
            StudyRow(
                check=f"two worlds/{fault.__name__.replace('_', ' ')} at ρ {rho:g}",
                value=shown,
                aim=f"> {found['claimed']:.3f} (planted fault)",
                holds=shown > found["claimed"],
                seeds=(),
            )
        )
    return rows


def _measured(memory: Memory, name: str, attacked: ReleasePlan, honest: ReleasePlan, n_runs: int) -> dict[str, float]:
    """What two worlds of the attacked plan show beside what the honest one claims."""
    claimed = epsilon(honest.settings.table_rho, DELTA)
    key = ["two worlds", name, honest.settings.model_dump(mode="json"), n_runs]
    return memory.remembered(
        key, lambda: asdict(measured_epsilon(two_worlds(attacked, n_runs), claimed=claimed, delta=DELTA))
    )


def _canaries(base: PrivacySettings, memory: Memory, rho: float) -> list[StudyRow]:
    settings = faults.tables_rho(rho, base)
    plan = faults.planned(settings)
    at_bound = CanaryAudit(plan=plan, n_canaries=N_CANARIES, n_cells=settings.max_cells)
    beyond = CanaryAudit(plan=plan, n_canaries=N_CANARIES, n_cells=5 * settings.max_cells, rows_per_cell=3)
    shown, shown_beyond = _shown(memory, at_bound, 1), _shown(memory, beyond, 2)
    expected, margin = _expected_auc(settings), 3.3 * shown["auc_standard_error"]
    highest = expected + 3.1 * shown_beyond["auc_standard_error"]
    return [
        StudyRow(
            check=f"canaries/ε at ρ {rho:g}",
            value=shown["epsilon"],
            aim=f"<= {at_bound.claimed:.3f} (at δ 1e-9)",
            holds=shown["epsilon"] <= at_bound.claimed,
            seeds=(1,),
        ),
        StudyRow(
            check=f"canaries/AUC at ρ {rho:g}",
            value=shown["auc"],
            low=shown["auc"] - margin,
            high=shown["auc"] + margin,
            aim=f"{expected:.3f}, as the noise allows",
            holds=abs(shown["auc"] - expected) <= margin,
            seeds=(1,),
        ),
        StudyRow(
            check=f"canaries/AUC beyond the bounds at ρ {rho:g}",
            value=shown_beyond["auc"],
            aim=f"<= {highest:.3f}, no higher than at the bounds",
            holds=shown_beyond["auc"] <= highest,
            seeds=(2,),
        ),
    ]


def _canary_faults(base: PrivacySettings, memory: Memory) -> list[StudyRow]:
    settings = faults.tables_rho(RHOS[-1], base)
    no_l0 = CanaryAudit(
        plan=faults.planned(settings),
        n_canaries=N_CANARIES,
        n_cells=5 * settings.max_cells,
        rows_per_cell=3,
        faults={"privacy_max_cells": 1_000_000},
    )
    no_linf = CanaryAudit(
        plan=faults.planned(faults.tables_rho(SMALL_RHO, base)),
        n_canaries=N_CANARIES,
        n_cells=settings.max_cells,
        rows_per_cell=60,
        faults={"privacy_max_rows_per_cell": 1_000_000},
    )
    without_l0, without_linf = _shown(memory, no_l0, 3), _shown(memory, no_linf, 4)
    highest = _expected_auc(settings) + 3.1 * without_l0["auc_standard_error"]
    return [
        StudyRow(
            check=f"canaries/AUC without a bound on cells at ρ {RHOS[-1]:g}",
            value=without_l0["auc"],
            aim=f"> {highest:.3f} (planted fault)",
            holds=without_l0["auc"] > highest,
            seeds=(3,),
        ),
        StudyRow(
            check=f"canaries/ε without a bound on rows at ρ {SMALL_RHO:g}",
            value=without_linf["epsilon"],
            aim=f"> {no_linf.claimed:.3f} (planted fault)",
            holds=without_linf["epsilon"] > no_linf.claimed,
            seeds=(4,),
        ),
    ]


def _shown(memory: Memory, audit: CanaryAudit, seed: int) -> dict[str, float]:
    settings = audit.plan.settings.model_dump(mode="json")
    key = ["canaries", settings, audit.n_canaries, audit.n_cells, audit.rows_per_cell, audit.faults, seed]
    return memory.remembered(key, lambda: asdict(audit.run(seed, CONFIDENCE)))


def _expected_auc(settings: PrivacySettings) -> float:
    """Of canaries at the bound: reply texts, which nobody shares with them, never come out."""
    return float(ndtr(np.sqrt(settings.table_rho * (1 - settings.shares.reply_texts))))


def _membership(base: PrivacySettings, memory: Memory) -> list[StudyRow]:
    """Who was in the log, told from a policy: learned from exact counts, from those of ten and more, from a release."""

    def auc(rows_per_cell: int, release: Release) -> float:
        return membership_auc(rows_per_cell, release, settings=base, n_repeats=MEMBERSHIP_REPEATS, seed=0)

    rows = []
    for rows_per_cell in ROWS_PER_CELL:
        for release, name in MEMBERSHIP_RELEASES.items():
            key = ["membership", rows_per_cell, release, base.model_dump(mode="json"), MEMBERSHIP_REPEATS]
            value = memory.remembered(key, partial(auc, rows_per_cell, release))
            is_promised = release == "aggregate" and rows_per_cell >= 20
            rows.append(
                StudyRow(
                    check=_membership_check(name, rows_per_cell),
                    value=value,
                    aim="<= 0.65" if is_promised else "reported",
                    holds=value <= 0.65 or not is_promised,
                )
            )
    return rows


def _membership_check(name: str, rows_per_cell: int) -> str:
    return f"membership/AUC from {name}, {rows_per_cell} rows a cell"


# ---------- the price


def _price(base: PrivacySettings, memory: Memory, rho: float) -> list[StudyRow]:
    """The window's whole budget as the settings split it; cells of turn band, segment and strategy."""
    scale = rho / base.rho
    settings = base.model_copy(
        update={"rho": rho, "gate_rho": scale * base.gate_rho, "grid": "turn_segment", "expected_dialogues": 10**9}
    )
    plan = plan_release(settings, strategies=STRATEGIES, customer_acts=(), sampling_share=1.0)

    def compute(seed: int) -> list[dict[str, float]]:
        log = KnownLog.drawn(plan, N_CUSTOMERS, dialogues_per_customer=6.0, seed=seed)
        return [asdict(price) for price in prices(log, plan)]

    key = ["price", settings.model_dump(mode="json"), N_CUSTOMERS]
    by_seed = [memory.remembered([*key, seed], partial(compute, seed)) for seed in LOG_SEEDS]
    found = [price for prices_of_seed in by_seed for price in prices_of_seed]
    rows = [row for size in SIZES for row in _size_rows(rho, size, found)]
    return [*rows, _coverage_row(rho, found)]


def _size_rows(rho: float, size: tuple[int, int], found: list[dict[str, float]]) -> list[StudyRow]:
    """Released rates beside the strategy's exact rate in all buckets, which needs no cell at all."""
    errors, parents = ([price[of] for price in found if price["low"] == size[0]] for of in ("released", "parent"))
    if not errors:
        return []
    error, parent = float(np.mean(errors)), float(np.mean(parents))
    is_promised = size == SIZES[-1] and rho >= 0.1
    released = StudyRow(
        check=_price_check(f"at ρ {rho:g}", size),
        value=error,
        low=min(errors),
        high=max(errors),
        aim=f"<= {LARGE_CELL_ERROR:g}" if is_promised else "reported",
        holds=error <= LARGE_CELL_ERROR or not is_promised,
        seeds=LOG_SEEDS,
    )
    strategy = StudyRow(
        check=_price_check(STRATEGY_RATE, size),
        value=parent,
        low=min(parents),
        high=max(parents),
        aim="reported",
        holds=True,
        seeds=LOG_SEEDS,
    )
    return [released, *([strategy] if rho == RHOS[0] else [])]


def _coverage_row(rho: float, found: list[dict[str, float]]) -> StudyRow:
    shown = np.array([price["n_cells"] * (1 - price["suppressed"]) for price in found])
    covered = float(np.average([price["covered"] for price in found], weights=shown))
    return StudyRow(
        check=f"price/error bars that hold the true rate at ρ {rho:g}",
        value=covered,
        aim=">= 0.93",
        holds=covered >= 0.93,
        seeds=LOG_SEEDS,
    )


def _price_check(figure: str, size: tuple[int, int]) -> str:
    return f"price/RMSE {figure}, {_size_name(size)}"


def _size_name(size: tuple[int, int]) -> str:
    return f"{size[0]:,} rows and more" if size == SIZES[-1] else f"{size[0]:,} to {size[1] - 1:,} rows"


# ---------- the picture


def _figure(rows: list[StudyRow]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.0, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    by_check = {row.check: row for row in rows}
    for axis, draw_panel in zip(axes, (_draw_claims, _draw_membership, _draw_prices), strict=True):
        draw_panel(axis, by_check)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=INK)
        axis.legend(fontsize=8, frameon=False)
    figure.suptitle("Privacy: claimed, measured, paid for", fontsize=11, color=INK, x=0.01, ha="left")
    return figure


def _draw_claims(axis: Any, rows: dict[str, StudyRow]) -> None:
    correct = [rows[f"two worlds/ε at ρ {rho:g}"] for rho in RHOS]
    forgotten = [rows[f"two worlds/root l0 forgotten at ρ {rho:g}"].value for rho in RHOS]
    at = np.arange(len(RHOS))
    axis.bar(at, [row.high for row in correct], width=0.6, color=PALE, label="claimed")
    axis.plot(at, [row.value for row in correct], "o", color=ACCENT, label="measured at least")
    axis.plot(at, forgotten, "x", color=SHADES[3], label="the same with a planted fault (√L0 forgotten)")
    axis.set_xticks(at, [f"ρ {rho:g}" for rho in RHOS])
    axis.set_ylabel("ε at δ 1e-6", fontsize=9, color=INK)


def _draw_membership(axis: Any, rows: dict[str, StudyRow]) -> None:
    at = np.arange(len(ROWS_PER_CELL))
    for name, colour in zip(MEMBERSHIP_RELEASES.values(), (SHADES[3], SHADES[0], ACCENT), strict=True):
        axis.plot(at, [rows[_membership_check(name, n)].value for n in ROWS_PER_CELL], "o-", color=colour, label=name)
    axis.axhline(0.5, color=PALE, linewidth=1)
    axis.set_xticks(at, [f"{n} rows a cell" for n in ROWS_PER_CELL])
    axis.set_ylabel("AUC of membership, from a policy learned of", fontsize=9, color=INK)


def _draw_prices(axis: Any, rows: dict[str, StudyRow]) -> None:
    styles = [("o-", SHADES[0]), ("o-", ACCENT), ("o-", SHADES[1])]
    lines = [(f"at ρ {rho:g}", *style) for rho, style in zip(RHOS, styles, strict=False)]
    for figure, style, colour in [*lines, (STRATEGY_RATE, "--", INK)]:
        checks = [_price_check(figure, size) for size in SIZES]
        points = [(number, rows[check].value) for number, check in enumerate(checks) if check in rows]
        axis.plot(*zip(*points, strict=True), style, color=colour, label=figure)
    axis.set_xticks(range(len(SIZES)), [_size_name(size) for size in SIZES])
    axis.set_ylabel("RMSE of released conversion rates", fontsize=9, color=INK)
    axis.set_ylim(bottom=0)
