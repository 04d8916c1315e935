"""The price of privacy: released conversion rates beside the exact ones, on logs whose true rates are known.

A log goes the whole way: bounding SQL, alignment, noise, `agg_conversion_rates`. What a reader of the released table
gets is compared with what a reader of the raw log would get, by how many rows the log has in the cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from registry.privacy.audit import draw_canaries
from registry.privacy.plan import ReleasePlan
from registry.privacy.tables import align
from tests.registry.privacy.canaries import marts_of_single_steps
from tests.registry.privacy.sql import conversion_rates, exact_tables, privacy_vars

SIZES = ((1, 50), (50, 200), (200, 1_000), (1_000, 10**9))
"""Rows of a cell in the raw log: [low, high)."""

BASE_RATE = 0.15


@dataclass(frozen=True)
class KnownLog:
    """Dialogues of one step each; every cell of a plan's grid converts at a rate of its own."""

    plan: ReleasePlan
    customer: np.ndarray
    cell: np.ndarray
    """(N,) which of `plan.grid.cells()` the dialogue is in."""
    is_converted: np.ndarray
    true_rates: np.ndarray
    """Of each cell."""

    @classmethod
    def drawn(cls, plan: ReleasePlan, n_customers: int, dialogues_per_customer: float, seed: int) -> KnownLog:
        """Cells are as unevenly filled as Zipf's law has it. Strategies differ in their rates, and so do the buckets
        of a strategy, by about a third each.
        """
        rng = np.random.default_rng(seed)
        n_cells = plan.grid.n_cells
        weights = 1 / np.arange(1, n_cells + 1)
        weights = rng.permutation(weights / weights.sum())
        customer = np.repeat(np.arange(n_customers), rng.poisson(dialogues_per_customer, n_customers))
        cell = rng.choice(n_cells, size=len(customer), p=weights)
        strategies = np.exp(rng.normal(0, 0.35, len(plan.grid.strategies)))
        of_strategy = np.tile(strategies, n_cells // len(strategies))
        rates = np.clip(BASE_RATE * of_strategy * np.exp(rng.normal(0, 0.35, n_cells)), 0.01, 0.9)
        return cls(plan, customer, cell, rng.random(len(cell)) < rates[cell], rates)

    def marts(self) -> dict[str, pa.Table]:
        """What the aggregates read of the log."""
        keys = list(self.plan.grid.cells())
        first_steps = dict(zip(self.plan.grid.bands, self.plan.grid.turn_edges, strict=True))
        parts = [(first_steps[bucket.split("|")[0]], bucket.split("|")[2], strategy) for bucket, strategy in keys]
        steps, segments, strategies = (np.array(column)[self.cell] for column in zip(*parts, strict=True))
        return marts_of_single_steps(
            customer=[f"customer {number}" for number in self.customer.tolist()],
            dialogue=[f"dialogue {number}" for number in range(len(self.cell))],
            step_index=steps.astype(np.int64) - 1,
            strategy=strategies,
            segment=segments,
            is_converted=self.is_converted,
            reward=20.0 * self.is_converted,
            reply=pa.nulls(len(self.cell), pa.string()),
        )

    def exact_rates(self) -> pd.DataFrame:
        """Rows, conversions and both rates of every cell that the log has rows in."""
        n_rows = np.bincount(self.cell, minlength=self.plan.grid.n_cells)
        n_converted = np.bincount(self.cell[self.is_converted], minlength=self.plan.grid.n_cells)
        cells = pd.DataFrame(self.plan.grid.cells(), columns=["aggregate_bucket", "strategy"])
        cells = cells.assign(n_rows=n_rows, n_converted=n_converted, true_rate=self.true_rates)
        return cells[n_rows > 0].assign(exact_rate=lambda seen: seen["n_converted"] / seen["n_rows"])


@dataclass(frozen=True)
class Price:
    """Errors of conversion rates in the cells of one size, as root mean squares against the log's exact rates."""

    low: int
    high: int
    """Rows of the cells in the raw log: [low, high)."""
    n_cells: int
    released: float
    """Of the released figure; the released rate of the strategy stands in for a suppressed one."""
    parent: float
    """Of what is known without looking into cells: the exact rate of the strategy in its segment."""
    covered: float
    """Share of the figures that are not suppressed whose 95 % error bars hold the true rate."""
    suppressed: float
    """Share of the cells whose figure is suppressed."""


def prices(log: KnownLog, plan: ReleasePlan) -> list[Price]:
    """Release the log with the plan's budget, and compare by size of cell. Sizes without cells are left out."""
    exact = exact_tables(log.marts(), privacy_vars(plan.settings, grid=plan.grid.level))
    noisy = draw_canaries(align(exact, plan), plan)
    table = conversion_rates(noisy.tables["cells"]).to_pandas().query("segment != 'all'")
    table = table.merge(log.exact_rates(), on=["aggregate_bucket", "strategy"], how="right", validate="1:1")
    sums = table.groupby(["segment", "strategy"])[["n_conversions", "n_customers", "n_converted", "n_rows"]]
    sums = sums.transform("sum").clip(lower=1)
    released_parent = (sums["n_conversions"] / sums["n_customers"]).clip(0, 1)
    table["released"] = table["conversion_rate"].fillna(released_parent)
    table["parent"] = sums["n_converted"] / sums["n_rows"]
    of_sizes = ((low, high, table[table["n_rows"].between(low, high - 1)]) for low, high in SIZES)
    return [_price(low, high, cells) for low, high, cells in of_sizes if len(cells)]


def _price(low: int, high: int, cells: pd.DataFrame) -> Price:
    shown = cells[~cells["is_suppressed"]]

    def error(column: str) -> float:
        return float(np.sqrt(np.mean((cells[column] - cells["exact_rate"]) ** 2)))

    return Price(
        low=low,
        high=high,
        n_cells=len(cells),
        released=error("released"),
        parent=error("parent"),
        covered=float(shown["true_rate"].between(shown["low"], shown["high"]).mean()) if len(shown) else 1.0,
        suppressed=float(cells["is_suppressed"].mean()),
    )
