"""Exact tables are checked and aligned to the public grid; what is drawn has the noise that it states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from registry.errors import CertificationError, ReleaseError
from registry.privacy.plan import ReleasePlan
from registry.privacy.tables import RELEASED_SCHEMAS, ExactTables, align, certify, draw

STAMP = {
    "release_id": "r",
    "window_start": date(2026, 1, 1),
    "window_end": date(2026, 1, 29),
    "unit_of_privacy": "customer",
    "rho": 0.08,
    "delta": 1e-6,
    "minimum_customers": 20,
    "shrinkage": 50.0,
}


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def changed(exact: ExactTables, table: str, column: str, change: Callable[[list[Any]], list[Any]]) -> ExactTables:
    found = getattr(exact, table)
    return replace(exact, **{table: with_column(found, column, change(found.column(column).to_pylist()))})


def test_aligned_sums_are_those_of_the_exact_tables_in_the_order_of_the_grid(
    exact: ExactTables, plan: ReleasePlan
) -> None:
    shuffled = np.random.default_rng(1).permutation(exact.transitions.num_rows)
    aligned = align(replace(exact, transitions=exact.transitions.take(shuffled)), plan)
    assert aligned.n_steps.tolist() == [*exact.transitions.column("n_steps").to_pylist(), 0]
    assert aligned.n_customers.tolist() == [*exact.cells.column("n_customers").to_pylist(), 0]
    assert aligned.reward_milli[0] == exact.cells.column("reward_milli")[0].as_py()
    assert aligned.n_steps.dtype == np.int64


def test_cells_outside_the_grid_are_dropped_before_the_draw(exact: ExactTables, plan: ReleasePlan) -> None:
    stray = exact.transitions.slice(0, 1)
    stray = with_column(stray, "strategy", ["a strategy that left the catalogue"])
    grown = replace(exact, transitions=pa.concat_tables([exact.transitions, stray]))
    assert np.array_equal(align(grown, plan).n_steps, align(exact, plan).n_steps)


@pytest.mark.parametrize(
    ("table", "column", "change", "message"),
    [
        ("transitions", "n_steps", lambda v: [-1, *v[1:]], "exact_transitions has a negative n_steps"),
        ("transitions", "n_steps", lambda v: [float(x) for x in v], "sums n_steps as double, not as BIGINT"),
        ("transitions", "n_steps", lambda v: [None, *v[1:]], "has nulls in n_steps"),
        ("transitions", "next_bucket", lambda v: ["ended"] * len(v), "two rows for one aggregate_bucket, strategy"),
        ("cells", "n_conversions", lambda v: [10**6, *v[1:]], "more conversions than customers"),
        ("cells", "n_conversions", lambda v: [-1, *v[1:]], "fewer than none"),
        ("cells", "reward_milli", lambda v: [10**12, *v[1:]], r"rewards beyond privacy\.reward_low and reward_high"),
        ("cells", "reward_milli", lambda v: [-1, *v[1:]], r"rewards beyond privacy\.reward_low and reward_high"),
        ("replies", "reply_kind", lambda v: ["word", *v[1:]], "a reply_kind other than act and text"),
        ("replies", "aggregate_bucket", lambda v: [*v[:-1], "1|any|any|any"], "texts in another bucket"),
        ("replies", "n_customers", lambda v: [-1, *v[1:]], "a negative n_customers"),
        ("replies", "reply", lambda v: [*v[:-1], "a\0b"], "not printable"),
    ],
)
def test_what_bounded_sums_cannot_be_is_refused_without_telling_a_value(
    exact: ExactTables,
    plan: ReleasePlan,
    table: str,
    column: str,
    change: Callable[[list[Any]], list[Any]],
    message: str,
) -> None:
    with pytest.raises(ReleaseError, match=message) as caught:
        align(changed(exact, table, column, change), plan)
    said = str(caught.value)
    assert "nothing was spent" in said
    assert "unheard of" not in said
    assert not any(str(n) in said for n in exact.cells.column("n_customers").to_pylist())


def test_tables_without_a_window_are_refused(exact: ExactTables, plan: ReleasePlan) -> None:
    with pytest.raises(ReleaseError, match="no window is due"):
        align(replace(exact, transitions=exact.transitions.slice(0, 0)), plan)
    with pytest.raises(ReleaseError, match="exact_cells has no column n_customers"):
        align(replace(exact, cells=exact.cells.drop(["n_customers"])), plan)


def test_every_cell_of_the_grid_is_released_and_says_what_it_is_of(exact: ExactTables, plan: ReleasePlan) -> None:
    noisy = draw(align(exact, plan), plan, STAMP)
    assert {name: table.schema for name, table in noisy.tables.items()} == RELEASED_SCHEMAS
    transitions, cells = noisy.tables["transitions"], noisy.tables["cells"]
    assert transitions.num_rows == plan.grid.n_transitions
    assert cells.num_rows == plan.grid.n_cells
    assert pc.unique(cells.column("window_end")).to_pylist() == [date(2026, 1, 29)]
    assert pc.unique(cells.column("delta")).to_pylist() == [1e-6]
    assert cells.column("strategy").to_pylist() == [strategy for _, strategy in plan.grid.cells()]
    sigma = pc.unique(cells.column("sigma_reward")).to_pylist()
    assert sigma == [pytest.approx(plan.measure("rewards").sigma / 1000)]


def test_noise_is_as_large_as_it_says_and_sums_stay_near(exact: ExactTables, plan: ReleasePlan) -> None:
    # 48 values with 6 σ each: outside in fewer than one of 10^7 runs.
    aligned = align(exact, plan)
    noisy = draw(aligned, plan, STAMP)
    steps = noisy.tables["transitions"].column("n_steps").to_numpy()
    assert np.abs(steps - aligned.n_steps).max() < 6 * noisy.sigmas["transitions"]
    assert np.any(steps != aligned.n_steps)
    reward = noisy.tables["cells"].column("reward").to_numpy()
    assert np.abs(reward - aligned.reward_milli / 1000).max() < 6 * noisy.sigmas["rewards"] / 1000


def test_a_text_of_one_customer_stays_below_the_threshold(exact: ExactTables, plan: ReleasePlan) -> None:
    noisy = draw(align(exact, plan), plan, STAMP)
    replies = noisy.tables["replies"]
    texts = replies.filter(pc.equal(replies.column("reply_kind"), "text"))
    assert texts.column("reply").to_pylist() == ["yes please"]
    assert texts.column("tau").to_pylist() == [noisy.tau]
    assert noisy.tau >= plan.settings.minimum_customers
    acts = replies.filter(pc.equal(replies.column("reply_kind"), "act"))
    assert acts.column("tau").null_count == acts.num_rows == plan.grid.n_replies


def test_two_draws_differ(exact: ExactTables, plan: ReleasePlan) -> None:
    aligned = align(exact, plan)
    one, other = (draw(aligned, plan, STAMP).tables["transitions"].column("n_steps").to_pylist() for _ in range(2))
    assert one != other


def test_a_plan_that_no_mechanism_certifies_is_refused_on_no_data(plan_with: Callable[..., ReleasePlan]) -> None:
    certify(plan_with())
    with pytest.raises(CertificationError):
        certify(plan_with(reward_high=1e17))
