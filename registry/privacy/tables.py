"""Exact tables in, noisy tables out: what a release holds, and nothing of how it is booked or kept.

Here: the columns of both, the checks of the exact ones, their alignment to the public grid, the draw. Not here: budget,
files (`release`), bounding (SQL), the mechanisms.

Exact tables hold sums of customers' bounded contributions. They are checked as far as bounds show in sums; that each
customer was bounded is the SQL's proof. Messages name columns and rules, never a value or a key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from registry.errors import ReleaseError
from registry.privacy.grid import WHOLE_LOG
from registry.privacy.mechanisms import NoisyHistogram, NoisySums, gaussian_histogram, gaussian_sums
from registry.privacy.plan import MILLI, Measure, ReleasePlan
from rl.types import Int1D

_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()

_STAMP = [
    ("release_id", _TEXT),
    ("window_start", pa.date32()),
    ("window_end", pa.date32()),
    ("unit_of_privacy", _TEXT),
    ("rho", _REAL),
    ("delta", _REAL),
    ("minimum_customers", _WHOLE),
    ("shrinkage", _REAL),
]

RELEASED_SCHEMAS: dict[str, pa.Schema] = {
    "transitions": pa.schema(
        [
            *_STAMP,
            ("aggregate_bucket", _TEXT),
            ("strategy", _TEXT),
            ("next_bucket", _TEXT),
            ("n_steps", _WHOLE),
            ("sigma_steps", _REAL),
        ]
    ),
    "cells": pa.schema(
        [
            *_STAMP,
            ("aggregate_bucket", _TEXT),
            ("strategy", _TEXT),
            ("n_customers", _WHOLE),
            ("n_conversions", _WHOLE),
            ("reward", _REAL),
            ("sigma_customers", _REAL),
            ("sigma_conversions", _REAL),
            ("sigma_reward", _REAL),
            ("reward_low", _REAL),
            ("reward_high", _REAL),
        ]
    ),
    "replies": pa.schema(
        [
            *_STAMP,
            ("reply_kind", _TEXT),
            ("aggregate_bucket", _TEXT),
            ("reply", _TEXT),
            ("n_customers", _WHOLE),
            ("sigma", _REAL),
            ("tau", _REAL),
        ]
    ),
}
"""Columns of the released tables: who and what they are of, the cell, noisy sums, σ of each. `reward` and its σ are in
reward units; `tau` is null where keys are public."""

_EXACT_COLUMNS = {
    "transitions": (("aggregate_bucket", "strategy", "next_bucket"), ("n_steps",)),
    "cells": (("aggregate_bucket", "strategy"), ("n_customers", "n_conversions", "reward_milli")),
    "replies": (("reply_kind", "aggregate_bucket", "reply"), ("n_customers",)),
}
"""Keys and sums of the exact tables."""

REPLY_ACT, REPLY_TEXT = "act", "text"
"""Kinds of replies: acts of a closed inventory by bucket, and canonical texts of the whole log."""


@dataclass(frozen=True)
class ExactTables:
    """Exact sums of bounded contributions, as dbt's `exact_*` models state them. They never leave the restricted zone.

    transitions : aggregate_bucket, strategy, next_bucket, n_steps
    cells : aggregate_bucket, strategy, n_customers, n_conversions, reward_milli
    replies : reply_kind, aggregate_bucket, reply, n_customers

    Sums are 64-bit integers. Cells without customers may be missing.
    """

    transitions: pa.Table
    cells: pa.Table
    replies: pa.Table


@dataclass(frozen=True)
class AlignedTables:
    """Exact sums over the whole public grid, zeros for cells without customers; what lies outside is dropped."""

    n_steps: Int1D
    n_customers: Int1D
    n_conversions: Int1D
    reward_milli: Int1D
    n_replies: Int1D
    reply_texts: dict[str, int]
    """Customers by canonical text: the only keys that come from the log."""


@dataclass(frozen=True)
class NoisyTables:
    """What was drawn: tables by name, and by measure the σ (as summed, see `plan.Measure`) and τ of the noise."""

    tables: dict[str, pa.Table]
    sigmas: dict[str, float]
    tau: int


def align(exact: ExactTables, plan: ReleasePlan) -> AlignedTables:
    """Check exact tables and put them in the order of the plan's grid.

    Raises ReleaseError if a table is not what bounded sums look like.
    """
    transitions, cells, replies = (
        _checked(name, table)
        for name, table in (("transitions", exact.transitions), ("cells", exact.cells), ("replies", exact.replies))
    )
    _require_steps(transitions)
    _require_bounded_cells(cells, plan)
    _require_reply_kinds(replies)
    grid = plan.grid
    in_cells = _positions(grid.cells())
    acts = {key[1:]: n for key, n in replies.by_key("n_customers") if key[0] == REPLY_ACT}
    return AlignedTables(
        n_steps=_aligned(_positions(grid.transitions()), transitions.by_key("n_steps")),
        n_customers=_aligned(in_cells, cells.by_key("n_customers")),
        n_conversions=_aligned(in_cells, cells.by_key("n_conversions")),
        reward_milli=_aligned(in_cells, cells.by_key("reward_milli")),
        n_replies=_aligned(_positions(grid.replies()), acts.items()),
        reply_texts={key[2]: n for key, n in replies.by_key("n_customers") if key[0] == REPLY_TEXT and n > 0},
    )


def certify(plan: ReleasePlan) -> None:
    """Have every mechanism certified with the plan's bounds and budget, on no data: noise of nothing costs nothing.

    Raises CertificationError, which must not come after the budget was booked.
    """
    nothing = np.zeros(1, dtype=np.int64)
    for measure in plan.measures:
        _noisy(nothing, measure)
    _noisy_texts({}, plan)


def draw(aligned: AlignedTables, plan: ReleasePlan, stamp: Mapping[str, Any]) -> NoisyTables:
    """Add noise to every measure. The budget of the whole plan must be booked before.

    `stamp` has a value for each of the columns that say of which release a row is.
    """
    sums = {
        "transitions": _noisy(aligned.n_steps, plan.measure("transitions")),
        "customers": _noisy(aligned.n_customers, plan.measure("customers")),
        "conversions": _noisy(aligned.n_conversions, plan.measure("conversions")),
        "rewards": _noisy(aligned.reward_milli, plan.measure("rewards")),
        "replies": _noisy(aligned.n_replies, plan.measure("replies")),
    }
    texts = _noisy_texts(aligned.reply_texts, plan)
    columns = {
        "transitions": _transition_columns(plan, sums["transitions"]),
        "cells": _cell_columns(plan, sums["customers"], sums["conversions"], sums["rewards"]),
        "replies": _reply_columns(plan, sums["replies"], texts),
    }
    return NoisyTables(
        tables={name: _table(name, {**stamp, **values}) for name, values in columns.items()},
        sigmas={**{name: noisy.sigma for name, noisy in sums.items()}, "reply_texts": texts.sigma},
        tau=texts.tau,
    )


# ---------- checks of exact tables


@dataclass(frozen=True)
class _Exact:
    """An exact table: one key per row, and the sums beside it."""

    keys: list[tuple[str, ...]]
    sums: dict[str, list[int]]

    def by_key(self, column: str) -> list[tuple[tuple[str, ...], int]]:
        """Key and sum of every row."""
        return list(zip(self.keys, self.sums[column], strict=True))


def _checked(name: str, table: pa.Table) -> _Exact:
    keys, sums = _EXACT_COLUMNS[name]
    missing = [column for column in (*keys, *sums) if column not in table.column_names]
    if missing:
        raise _refused(name, f"has no column {', '.join(missing)}")
    for column in sums:
        if table.schema.field(column).type != pa.int64():
            found = table.schema.field(column).type
            raise _refused(name, f"sums {column} as {found}, not as BIGINT, and noise is certified for integers only")
    empty = [column for column in (*keys, *sums) if table.column(column).null_count]
    if empty:
        raise _refused(name, f"has nulls in {', '.join(empty)}")
    exact = _Exact(
        keys=list(zip(*(table.column(column).to_pylist() for column in keys), strict=True)),
        sums={column: table.column(column).to_pylist() for column in sums},
    )
    if len(set(exact.keys)) < len(exact.keys):
        raise _refused(name, f"has two rows for one {', '.join(keys)}")
    return exact


def _require_steps(transitions: _Exact) -> None:
    if not transitions.keys:
        raise _refused("transitions", "has no rows: no window is due, or it has no usable dialogue of a customer")
    if min(transitions.sums["n_steps"]) < 0:
        raise _refused("transitions", "has a negative n_steps")


def _require_bounded_cells(cells: _Exact, plan: ReleasePlan) -> None:
    low, high = math.floor(plan.settings.reward_low * MILLI), math.ceil(plan.settings.reward_high * MILLI)
    for customers, conversions, reward in zip(*cells.sums.values(), strict=True):
        if not 0 <= conversions <= customers:
            raise _refused("cells", "counts more conversions than customers in a cell, or fewer than none")
        if not low * customers <= reward <= high * customers:
            raise _refused("cells", "sums rewards beyond privacy.reward_low and reward_high times a cell's customers")


def _require_reply_kinds(replies: _Exact) -> None:
    for (kind, bucket, reply), customers in replies.by_key("n_customers"):
        if kind not in (REPLY_ACT, REPLY_TEXT):
            raise _refused("replies", f"has a reply_kind other than {REPLY_ACT} and {REPLY_TEXT}")
        if kind == REPLY_TEXT and bucket != WHOLE_LOG:
            raise _refused("replies", f"has texts in another bucket than {WHOLE_LOG}")
        if not reply.isprintable():
            raise _refused("replies", "has a reply that is not printable text")
        if customers < 0:
            raise _refused("replies", "has a negative n_customers")


def _refused(name: str, fault: str) -> ReleaseError:
    return ReleaseError(
        f"The exact table exact_{name} {fault}. Nothing was drawn and nothing was spent. Check the model in "
        "transforms/models/aggregates and the settings that dbt was given, and run the night again."
    )


# ---------- alignment


def _positions(keys: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    return {key: position for position, key in enumerate(keys)}


def _aligned(positions: Mapping[tuple[str, ...], int], sums: Iterable[tuple[tuple[str, ...], int]]) -> Int1D:
    values = np.zeros(len(positions), dtype=np.int64)
    for key, value in sums:
        if key in positions:
            values[positions[key]] = value
    return values


# ---------- released columns


def _noisy(values: Int1D, measure: Measure) -> NoisySums:
    return gaussian_sums(values, l2=measure.l2, rho=measure.rho)


def _noisy_texts(customers: Mapping[str, int], plan: ReleasePlan) -> NoisyHistogram:
    measure = plan.measure("reply_texts")
    return gaussian_histogram(
        customers,
        l0=measure.l0,
        rho=measure.rho,
        delta=plan.cost.delta,
        floor=plan.settings.minimum_customers,
    )


def _transition_columns(plan: ReleasePlan, steps: NoisySums) -> dict[str, Any]:
    buckets, strategies, following = zip(*plan.grid.transitions(), strict=True)
    return {
        "aggregate_bucket": buckets,
        "strategy": strategies,
        "next_bucket": following,
        "n_steps": steps.values,
        "sigma_steps": steps.sigma,
    }


def _cell_columns(
    plan: ReleasePlan, customers: NoisySums, conversions: NoisySums, rewards: NoisySums
) -> dict[str, Any]:
    buckets, strategies = zip(*plan.grid.cells(), strict=True)
    return {
        "aggregate_bucket": buckets,
        "strategy": strategies,
        "n_customers": customers.values,
        "n_conversions": conversions.values,
        "reward": rewards.values / MILLI,
        "sigma_customers": customers.sigma,
        "sigma_conversions": conversions.sigma,
        "sigma_reward": rewards.sigma / MILLI,
        "reward_low": plan.settings.reward_low,
        "reward_high": plan.settings.reward_high,
    }


def _reply_columns(plan: ReleasePlan, acts: NoisySums, texts: NoisyHistogram) -> dict[str, Any]:
    buckets, names = zip(*plan.grid.replies(), strict=True)
    n_acts, n_texts = len(names), len(texts.counts)
    return {
        "reply_kind": [REPLY_ACT] * n_acts + [REPLY_TEXT] * n_texts,
        "aggregate_bucket": [*buckets, *[WHOLE_LOG] * n_texts],
        "reply": [*names, *texts.counts],
        "n_customers": [*acts.values.tolist(), *texts.counts.values()],
        "sigma": [acts.sigma] * n_acts + [texts.sigma] * n_texts,
        "tau": [None] * n_acts + [float(texts.tau)] * n_texts,
    }


def _table(name: str, values: Mapping[str, Any]) -> pa.Table:
    """A released table; a single value stands for a column of it."""
    n_rows = len(values["aggregate_bucket"])
    columns = []
    for field in RELEASED_SCHEMAS[name]:
        value = values[field.name]
        is_single = isinstance(value, str | int | float | date)
        columns.append(pa.array([value] * n_rows if is_single else value, type=field.type))
    return pa.table(columns, schema=RELEASED_SCHEMAS[name])
