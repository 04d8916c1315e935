"""What a release with given settings costs and how accurate it is, before anything is spent.

Here: the split of ρ over the measures, the noise of each, the size of each grid, the choice between grids. Not here:
what was spent (`budget`), the draw (`release`).

Everything follows from settings. How full a cell will be is guessed from `expected_dialogues`, `expected_steps` and
`expected_conversion_rate`, which are publicly known orders of magnitude: dialogue lengths are taken as geometric, and
strategies, segments and customer acts as equally frequent. Looking at the log instead would be a release of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from registry.errors import PlanError
from registry.privacy.accounting import PrivacyLoss, epsilon, yearly
from registry.privacy.budget import MICRO, Cost
from registry.privacy.grid import Grid
from registry.privacy.mechanisms import l2_sensitivity
from registry.privacy.settings import GRID_LEVELS, GridLevel, PrivacySettings

MILLI = 1_000
"""Rewards are summed in whole thousandths."""

_SHORTEST_DIALOGUE = 1.001
"""Steps; with exactly one, no dialogue would ever leave the first band."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One noisy column: what a customer can add to it and what noise hides that.

    `l2` is a customer's largest effect on the whole column, at most `linf` on each of at most `l0` cells. These and
    `sigma` are in the unit that is summed: customers, steps, or thousandths of a reward unit.
    """

    name: str
    """As in `privacy.shares`."""
    l0: int
    linf: int
    l2: float
    micro_rho: int
    sigma: float
    """Standard deviation of the noise on each cell."""

    @property
    def rho(self) -> float:
        """ρ of the column."""
        return self.micro_rho / MICRO


@dataclass(frozen=True, kw_only=True)
class LevelPlan:
    """One level of the grid: its size, and how full its cells will be."""

    level: GridLevel
    n_buckets: int
    n_transitions: int
    n_cells: int
    n_replies: int
    median_steps: float
    """Steps in the median cell of the transitions."""
    median_customers: float
    """Customers in the median cell of bucket and strategy."""
    sigma_steps: float
    """Noise on each cell of the transitions."""
    relative_error: float
    """Standard deviation, by noise alone, of the conversion rate in the median cell, as a part of the rate."""

    @property
    def fits(self) -> bool:
        """Whether the median cell of the transitions holds at least as much as its noise."""
        return self.sigma_steps <= self.median_steps


@dataclass(frozen=True, kw_only=True)
class ReleasePlan:
    """What one window's tables will be."""

    settings: PrivacySettings
    sampling_share: float
    """Share of customers that enter tables; the others judge policies."""
    grid: Grid
    measures: tuple[Measure, ...]
    levels: tuple[LevelPlan, ...]
    """Every level, coarse to fine."""

    @property
    def cost(self) -> Cost:
        """What the tables of a window are booked with; δ is the reply threshold's."""
        return Cost.of(self.settings.table_rho, self.settings.delta)

    @property
    def budget(self) -> Cost:
        """What a window has, gate evaluations and all."""
        return Cost.of(self.settings.rho, self.settings.delta)

    def measure(self, name: str) -> Measure:
        """The measure of that name."""
        return next(measure for measure in self.measures if measure.name == name)

    def to_json(self) -> dict[str, Any]:
        """The plan in plain values, with its cost in ε."""
        return {
            "grid": self.grid.to_json(),
            "sampling_share": self.sampling_share,
            "measures": [asdict(measure) | {"rho": measure.rho} for measure in self.measures],
            "levels": [asdict(level) | {"fits": level.fits} for level in self.levels],
            "cost": costs(self.settings),
        }


def plan_release(
    settings: PrivacySettings, *, strategies: Iterable[str], customer_acts: Iterable[str], sampling_share: float
) -> ReleasePlan:
    """Plan the tables of a window: the configured level of the grid, or the finest that is not mostly noise.

    Parameters
    ----------
    strategies, customer_acts :
        Public lists: what an agent may choose (`grid.selectable_strategies`), what a customer's words can do.
    sampling_share : float
        Share of customers that enter tables, in (0, 1].

    Raises
    ------
    PlanError
        If the noise of the configured level, or of the coarsest, is above its median expected cell. The message says
        what would fit.
    """
    grids = grids_of(settings, strategies, customer_acts)
    levels = describe_levels(settings, grids, sampling_share)
    chosen = _chosen(settings, levels)
    return ReleasePlan(
        settings=settings,
        sampling_share=sampling_share,
        grid=grids[levels.index(chosen)],
        measures=measures_of(settings),
        levels=levels,
    )


def grids_of(settings: PrivacySettings, strategies: Iterable[str], customer_acts: Iterable[str]) -> tuple[Grid, ...]:
    """The grid at every level, coarse to fine.

    Raises PlanError if a name would be read as something else.
    """
    names, acts = tuple(strategies), tuple(customer_acts)
    return tuple(
        Grid(
            level=level,
            turn_edges=settings.turn_edges,
            strategies=names,
            segments=settings.segments,
            customer_acts=acts,
        )
        for level in GRID_LEVELS
    )


def measures_of(settings: PrivacySettings) -> tuple[Measure, ...]:
    """Every noisy column with its share of the tables' ρ, rounded down to whole millionths.

    Raises PlanError if a share is below one millionth.
    """
    l0, total = settings.max_cells, Cost.of(settings.table_rho).micro_rho
    largest_reward = math.ceil(max(abs(settings.reward_low), abs(settings.reward_high)) * MILLI)
    linf = {"transitions": settings.max_rows_per_cell, "rewards": largest_reward}
    return tuple(
        _measure(name, l0, linf.get(name, 1), math.floor(round(share * total, 6)))
        for name, share in settings.shares.model_dump().items()
    )


def describe_levels(settings: PrivacySettings, grids: Sequence[Grid], sampling_share: float) -> tuple[LevelPlan, ...]:
    """Size and accuracy of each grid, whether or not it fits."""
    measures = {measure.name: measure for measure in measures_of(settings)}
    return tuple(_level(settings, grid, sampling_share, measures) for grid in grids)


def costs(settings: PrivacySettings) -> dict[str, Any]:
    """ρ, ε and δ of the tables, of a window and of the windows that a year can touch.

    ε is stated at `privacy.delta`; `delta` is that and the reply thresholds' δ together.
    """
    window = PrivacyLoss(settings.rho, settings.delta)
    losses = {
        "tables": PrivacyLoss(settings.table_rho, settings.delta),
        "window": window,
        "year": yearly(window, settings.window_days),
    }
    return {
        name: {
            "rho": round(loss.rho, 6),
            "epsilon": round(loss.epsilon(settings.delta), 3),
            "delta": loss.delta + settings.delta,
        }
        for name, loss in losses.items()
    }


def _measure(name: str, l0: int, linf: int, micro: int) -> Measure:
    if micro < 1:
        raise PlanError(
            f"The share of {name} is less than a millionth of rho, which buys no figure. Raise privacy.rho, lower "
            f"privacy.gate_rho, or raise privacy.shares.{name}."
        )
    l2 = l2_sensitivity(l0, linf)
    return Measure(name=name, l0=l0, linf=linf, l2=l2, micro_rho=micro, sigma=l2 / math.sqrt(2 * micro / MICRO))


# ---------- how full cells will be


@dataclass(frozen=True)
class _Cells:
    """`n` cells, each of which a dialogue is expected to enter `steps` times."""

    n: int
    steps: float


def _level(settings: PrivacySettings, grid: Grid, sampling_share: float, measures: dict[str, Measure]) -> LevelPlan:
    dialogues = settings.expected_dialogues * sampling_share
    cells, transitions = _expected_cells(settings, grid)
    customers = dialogues * _median_contribution(cells, 1, settings.max_cells)
    steps = dialogues * _median_contribution(transitions, settings.max_rows_per_cell, settings.max_cells)
    rate = settings.expected_conversion_rate
    noise = math.hypot(measures["conversions"].sigma, rate * measures["customers"].sigma)
    return LevelPlan(
        level=grid.level,
        n_buckets=len(grid.buckets),
        n_transitions=grid.n_transitions,
        n_cells=grid.n_cells,
        n_replies=grid.n_replies,
        median_steps=steps,
        median_customers=customers,
        sigma_steps=measures["transitions"].sigma,
        relative_error=noise / customers / rate,
    )


def _expected_cells(settings: PrivacySettings, grid: Grid) -> tuple[list[_Cells], list[_Cells]]:
    """Cells of bucket and strategy, and cells of the transitions, with one dialogue's steps in each.

    With q the probability that a dialogue goes on, step t is reached with probability q^(t - 1). Of the steps of a
    band [first, next) some are the last of their dialogue, some are followed by a step of the next band, and the
    rest by one of the same.
    """
    q = 1 - 1 / max(settings.expected_steps, _SHORTEST_DIALOGUE)
    converts = settings.expected_conversion_rate
    cells, transitions = [], []
    for band, first in enumerate(grid.turn_edges):
        n = grid.n_cells_in_band(band)
        leaves = q ** (grid.turn_edges[band + 1] - 1) if band + 1 < len(grid.turn_edges) else 0.0
        ends = q ** (first - 1) - leaves
        steps = ends / (1 - q)
        followed_by = {band: steps - ends - leaves, band + 1: leaves}
        n_next = n * len(grid.act_names)
        cells.append(_Cells(n, steps / n))
        transitions += [_Cells(n, ends * converts / n), _Cells(n, ends * (1 - converts) / n)]
        transitions += [_Cells(n_next, followed_by[following] / n_next) for following in grid.next_bands(band)]
    return cells, transitions


def _median_contribution(cells: Sequence[_Cells], linf: int, l0: int) -> float:
    """What one dialogue is expected to add to the median cell, once it is bounded.

    Visits to a cell are taken as Poisson: a customer is in it with probability 1 - e^-steps, and fills at most
    `linf` rows of it and at most `l0` cells in all.
    """
    entered = [(linf * -math.expm1(-group.steps / linf), group.n) for group in cells]
    n_entered = sum(-math.expm1(-group.steps) * group.n for group in cells)
    return min(1.0, l0 / n_entered) * _weighted_median(entered)


def _weighted_median(groups: list[tuple[float, int]]) -> float:
    """The lower median of values that occur `n` times each."""
    half, seen = sum(n for _, n in groups) / 2, 0
    for value, n in sorted(groups):
        seen += n
        if seen >= half:
            return value
    raise AssertionError("a grid has cells")


# ---------- which level


def _chosen(settings: PrivacySettings, levels: Sequence[LevelPlan]) -> LevelPlan:
    fitting = [level for level in levels if level.fits]
    wanted = [level for level in levels if level.level == settings.grid] or list(levels)
    chosen = [level for level in wanted if level.fits]
    if chosen:
        return chosen[-1]
    raise PlanError(_refusal(settings, wanted[0], fitting))


def _refusal(settings: PrivacySettings, level: LevelPlan, fitting: Sequence[LevelPlan]) -> str:
    """What is wrong with the level, and every single change that would make it fit."""
    shortage = level.sigma_steps / level.median_steps
    # The gate's part stays as it is, and σ falls with the root of the tables' ρ.
    rho = settings.gate_rho + settings.table_rho * shortage**2
    ways = [f"privacy.grid: {found.level} (median cell {short(found.median_steps)})" for found in fitting[-1:]]
    ways.append(
        f"windows of {_rounded_up(settings.expected_dialogues * shortage):,} dialogues instead of the expected "
        f"{settings.expected_dialogues:,} (a longer privacy.window_days)"
    )
    ways.append(
        f"privacy.rho {_rounded_up(rho * 1000) / 1000:g}, which is ε {epsilon(rho, settings.delta):.2g} a window"
    )
    ways.append("fewer privacy.segments or privacy.turn_edges")
    return (
        f"The grid `{level.level}` has {level.n_transitions:,} cells of transitions: the noise of each "
        f"(σ {short(level.sigma_steps)}) is above what the median cell is expected to hold "
        f"({short(level.median_steps)} steps), so most of the table would be noise. Nothing was spent. Any of these "
        f"would fit: {'; '.join(ways)}. `talktrack privacy plan` shows every grid."
    )


def short(value: float) -> str:
    """A figure for people: one decimal below 100, none above."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _rounded_up(value: float) -> int:
    """To two leading digits."""
    size = int(10.0 ** max(0, math.floor(math.log10(value)) - 1))
    return math.ceil(value / size) * size
