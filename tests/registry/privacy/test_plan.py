"""The plan: what a release costs and how accurate it will be, from settings alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import PlanError
from registry.privacy.budget import Cost
from registry.privacy.plan import ReleasePlan, describe_levels, grids_of, measures_of, plan_release
from registry.privacy.settings import GRID_LEVELS, BudgetShares, PrivacySettings

STRATEGIES = ("ask", "inform", "offer", "wait")
ACTS = ("accept", "question", "other")


def plan(**changes: Any) -> ReleasePlan:
    return plan_release(PrivacySettings(**changes), strategies=STRATEGIES, customer_acts=ACTS, sampling_share=0.6)


def levels(sampling_share: float = 0.6, **changes: Any) -> dict[str, Any]:
    settings = PrivacySettings(**changes)
    described = describe_levels(settings, grids_of(settings, STRATEGIES, ACTS), sampling_share)
    return {level.level: level for level in described}


# ---------- cost


def test_the_default_split_of_the_budget_is_known() -> None:
    micro = {measure.name: measure.micro_rho for measure in plan().measures}
    assert micro == {
        "transitions": 28_000,
        "customers": 16_000,
        "conversions": 16_000,
        "rewards": 12_000,
        "replies": 4_000,
        "reply_texts": 4_000,
    }
    assert plan().cost == Cost(80_000, 1_000_000)
    assert plan().budget == Cost(100_000, 1_000_000)


def test_the_noise_of_the_transitions_is_the_formula_by_hand() -> None:
    # A customer moves 8 cells by 1: L2 = √8. ρ = (L2 / σ)² / 2 = 0.028, so σ = √(8 / 0.056) = 11.95.
    transitions = plan().measure("transitions")
    assert transitions.l2 == pytest.approx(math.sqrt(8))
    assert transitions.sigma == pytest.approx(11.952, abs=1e-3)
    assert plan(max_rows_per_cell=3).measure("transitions").l2 == pytest.approx(3 * math.sqrt(8))


def test_rewards_are_bounded_by_the_larger_end() -> None:
    assert plan(reward_low=-200.0, reward_high=50.0).measure("rewards").linf == 200_000


def test_a_year_costs_the_fourteen_windows_that_it_can_touch() -> None:
    cost = plan().to_json()["cost"]
    assert cost["window"] == {"rho": 0.1, "epsilon": pytest.approx(2.14, abs=0.01), "delta": 2e-6}
    assert cost["year"]["rho"] == pytest.approx(1.4)


@given(
    rho=st.floats(0.001, 5),
    gate_share=st.floats(0, 0.9),
    parts=st.lists(st.floats(0.01, 1), min_size=6, max_size=6),
)
def test_what_is_drawn_never_adds_up_to_more_than_what_is_booked(
    rho: float, gate_share: float, parts: list[float]
) -> None:
    names = tuple(BudgetShares.model_fields)
    shares = BudgetShares(**{name: part / sum(parts) for name, part in zip(names, parts, strict=True)})
    settings = PrivacySettings(rho=rho, gate_rho=rho * gate_share, shares=shares)
    try:
        measures = measures_of(settings)
    except PlanError:
        return  # a share below a millionth is refused
    assert sum(measure.micro_rho for measure in measures) <= Cost.of(settings.table_rho).micro_rho
    assert Cost.of(settings.table_rho).micro_rho + Cost.of(settings.gate_rho).micro_rho <= Cost.of(rho).micro_rho
    for measure in measures:
        assert measure.l2**2 / (2 * measure.sigma**2) <= measure.rho * (1 + 1e-9)


def test_a_share_that_buys_nothing_is_refused_with_its_name() -> None:
    with pytest.raises(PlanError, match=r"share of replies is less than a millionth.*privacy\.shares\.replies"):
        plan(rho=0.00001, gate_rho=0)


# ---------- accuracy


@given(rho=st.floats(0.03, 2), factor=st.floats(1.05, 20))
def test_more_rho_is_less_noise_and_never_a_coarser_grid(rho: float, factor: float) -> None:
    less, more = levels(rho=rho), levels(rho=rho * factor)
    for name in GRID_LEVELS:
        assert more[name].sigma_steps < less[name].sigma_steps
        assert more[name].relative_error < less[name].relative_error
        assert more[name].median_steps == less[name].median_steps
        assert more[name].fits >= less[name].fits


@given(dialogues=st.integers(10, 10**7), factor=st.floats(1.05, 100), share=st.floats(0.1, 1))
def test_more_dialogues_fill_cells_and_never_coarsen_the_grid(dialogues: int, factor: float, share: float) -> None:
    few = levels(share, expected_dialogues=dialogues)
    many = levels(share, expected_dialogues=math.ceil(dialogues * factor))
    for name in GRID_LEVELS:
        assert many[name].median_steps > few[name].median_steps
        assert many[name].relative_error < few[name].relative_error
        assert many[name].sigma_steps == few[name].sigma_steps
        assert many[name].fits >= few[name].fits


@given(steps=st.floats(0.5, 40), share=st.floats(0.1, 1), linf=st.integers(1, 5), l0=st.integers(1, 20))
def test_a_cell_is_never_expected_to_hold_more_than_bounded_customers_can_give(
    steps: float, share: float, linf: int, l0: int
) -> None:
    described = levels(share, expected_steps=steps, max_rows_per_cell=linf, max_cells=l0)
    for level in described.values():
        assert 0 < level.median_customers <= 20_000 * share
        assert 0 < level.median_steps <= 20_000 * share * linf


def test_the_expected_median_of_one_band_and_one_strategy_is_known_by_hand() -> None:
    # Of 4 steps a dialogue 3 are followed by another, and the last one ends it: 1 in 4 converts. Lower median: 3/4.
    settings = PrivacySettings(
        turn_edges=(1,),
        segments=(),
        expected_dialogues=1_000,
        expected_steps=4,
        expected_conversion_rate=0.25,
        max_rows_per_cell=10**6,
        max_cells=100,
    )
    coarsest = describe_levels(settings, grids_of(settings, ["speak"], ACTS), 1.0)[0]
    assert coarsest.n_transitions == 3
    assert coarsest.median_steps == pytest.approx(750, rel=1e-3)


@pytest.mark.parametrize(("level", "segments"), [(0, ()), (1, ("new", "loyal"))])
def test_the_expected_median_is_that_of_simulated_dialogues(level: int, segments: tuple[str, ...]) -> None:
    """Random dialogues, bounded as the SQL bounds customers. Measured: 651 for 655 steps, 221 for 219."""
    settings = PrivacySettings(segments=segments, expected_dialogues=20_000)
    grid = grids_of(settings, STRATEGIES, ACTS)[level]
    rng = np.random.default_rng(0)
    counts: Counter[tuple[str, str, str]] = Counter(dict.fromkeys(grid.transitions(), 0))
    for _ in range(12_000):  # three in five of the customers
        segment = rng.choice(grid.segment_names)
        bands = np.searchsorted(settings.turn_edges, np.arange(1, rng.geometric(1 / 6) + 1), side="right") - 1
        buckets = [f"{grid.bands[band]}|any|{segment}|any" for band in bands]
        following = [*buckets[1:], "converted" if rng.random() < 0.2 else "ended"]
        entered = sorted(set(zip(buckets, rng.choice(STRATEGIES, len(buckets)).tolist(), following, strict=True)))
        rng.shuffle(entered)
        counts.update(tuple(cell) for cell in entered[: settings.max_cells])
    planned = describe_levels(settings, [grid], 0.6)[0]
    assert len(counts) == planned.n_transitions
    assert planned.median_steps == pytest.approx(float(np.median(list(counts.values()))), rel=0.05)


def test_finer_grids_have_more_cells_and_less_in_each() -> None:
    described = list(levels().values())
    for coarse, fine in pairwise(described):
        assert fine.n_transitions > coarse.n_transitions
        assert fine.median_steps < coarse.median_steps
        assert fine.relative_error > coarse.relative_error


def test_customers_held_out_for_the_gate_are_not_counted_on() -> None:
    assert levels(0.3)["turn"].median_steps == pytest.approx(levels(0.6)["turn"].median_steps / 2)


def test_dialogues_of_one_step_leave_the_later_bands_empty_and_are_planned_all_the_same() -> None:
    described = levels(expected_steps=0.5)
    assert described["turn"].median_steps < 1
    assert math.isfinite(described["turn"].relative_error)


# ---------- the choice


def test_auto_takes_the_finest_level_whose_noise_stays_below_its_median_cell() -> None:
    for dialogues in (2_000, 20_000, 200_000, 2_000_000, 20_000_000):
        chosen = plan(expected_dialogues=dialogues)
        fitting = [level.level for level in chosen.levels if level.sigma_steps <= level.median_steps]
        assert chosen.grid.level == fitting[-1]
    assert plan(expected_dialogues=20_000_000).grid.level == "turn_segment_act_strategy"


def test_a_level_that_is_asked_for_is_taken_though_a_finer_one_would_fit() -> None:
    assert plan(grid="turn").grid.level == "turn"


def test_a_grid_of_noise_is_refused_and_every_way_out_that_is_named_is_one() -> None:
    with pytest.raises(PlanError, match=r"The grid `turn_segment_act`.*Nothing was spent") as caught:
        plan(grid="turn_segment_act", expected_dialogues=5_000)
    said = str(caught.value)
    level = re.search(r"privacy\.grid: (\w+)", said)
    dialogues = re.search(r"windows of ([\d,]+) dialogues", said)
    rho = re.search(r"privacy\.rho ([\d.]+),", said)
    assert level
    assert dialogues
    assert rho
    assert plan(grid=level[1], expected_dialogues=5_000)
    assert plan(grid="turn_segment_act", expected_dialogues=int(dialogues[1].replace(",", "")))
    assert plan(grid="turn_segment_act", expected_dialogues=5_000, rho=float(rho[1]))


def test_a_log_too_small_for_the_coarsest_grid_is_refused_and_no_grid_is_recommended() -> None:
    with pytest.raises(PlanError, match="The grid `turn` has") as caught:
        plan(expected_dialogues=100)
    assert "privacy.grid:" not in str(caught.value)
