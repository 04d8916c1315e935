"""How far released figures are from the log: error of noise and of bounding, by size of cell and by segment.

Here: the comparison, in the restricted zone. Not here: how accurate a release will be before it is made
(`registry.privacy.plan`), what is released.

Two references. *Bounded*: the exact table that the noise was added to; what is lost to it is noise, shrinkage and
clipping. *Truth*: every step of the same customers, in no way bounded; the difference between the two references is the
bias of bounding. The report is exact, so it stays in the restricted zone: published, it would cost privacy that no
ledger has booked.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.working_database import read_only
from rl.settings import Settings

if TYPE_CHECKING:
    import duckdb

SIZES = ("< 20", "20 to 99", "100 to 499", "500 and more")
"""Customers behind a cell; fewer than 20 are one class, so that no smaller count is told."""


class SumError(Settings):
    """A noisy column against the exact one it was made of, over every cell of the public grid."""

    measure: str
    n_cells: int
    sigma: float
    """Noise as released, in the unit of the column."""
    rmse_noise: float
    """Root mean square of noisy minus bounded: near `sigma`, or the noise is not what was stated."""
    kept_share: float | None
    """Sum of the bounded column over that of the unbounded one; None for a sum of 0. Lower: bounding cuts off more."""


class RateError(Settings):
    """A released rate against both references, over the cells of a class. Errors are in the unit of the rate."""

    model: str
    by: str
    """`size` or `segment`."""
    group: str
    n_cells: int
    n_suppressed: int
    rmse_bounded: float | None
    rmse_truth: float | None
    bias_truth: float | None
    """Mean of released minus truth."""
    rmse_bounding: float | None
    """Root mean square of bounded minus truth: what no amount of budget would mend."""
    coverage_truth: float | None
    """Share of the cells whose 95 % error bar holds the truth."""


class UtilityReport(Settings):
    """The comparison of one release. Of replies only acts are judged: texts are no public list."""

    window_start: date
    window_end: date
    release_id: str
    zone: str
    sums: tuple[SumError, ...]
    rates: tuple[RateError, ...]
    n_reply_texts: int
    """Canonical replies that passed the threshold."""


def utility_report(warehouse: Path, release: Path, *, release_id: str, window: tuple[date, date]) -> UtilityReport:
    """Compare a release with the exact tables of its window, which the working database must still hold.

    `release` is its folder of Parquet files; the released models must have been built over it. Raises WarehouseError if
    the working database is missing or another process writes to it.
    """
    with read_only(warehouse) as connection:
        for name, query in _VIEWS.items():
            connection.execute(f"create temporary view {name} as {query}")
        connection.execute(_JUDGED, {"release_id": release_id})
        sums = [_rows(connection, query, release=str(release)) for query in _SUMS]
        rates = [_rows(connection, _RATE_ERRORS.format(by=by)) for by in ("size", "segment")]
        texts = connection.execute(_TEXTS, {"release_id": release_id}).fetchone()
    return UtilityReport(
        window_start=window[0],
        window_end=window[1],
        release_id=release_id,
        zone="restricted",
        sums=tuple(SumError.model_validate(row) for rows in sums for row in rows),
        rates=tuple(RateError.model_validate(row) for rows in rates for row in rows),
        n_reply_texts=texts[0] if texts else 0,
    )


def _rows(connection: duckdb.DuckDBPyConnection, query: str, **parameters: Any) -> list[dict[str, Any]]:
    cursor = connection.execute(query, parameters)
    names = [column[0] for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


# ---------- SQL


def _overall(bucket: str) -> str:
    """The bucket without its segment, as `bucket_of_all_segments` of the dbt project writes it."""
    part = f"split_part({bucket}, '|', {{}})".format
    without = f"{part(1)} || '|' || {part(2)} || '|any|' || {part(4)}"
    return f"case when contains({bucket}, '|') then {without} else {bucket} end"


def _twice(table: str, *buckets: str) -> str:
    """The rows of a table under their segment, and again under `all`, with the segment taken out of their buckets."""
    replaced = ", ".join(f"{_overall(bucket)} as {bucket}" for bucket in ("aggregate_bucket", *buckets))
    return f"""
        select split_part(aggregate_bucket, '|', 3) as segment, * from {table}
        where split_part(aggregate_bucket, '|', 3) <> 'any'
        union all
        select 'all' as segment, * replace ({replaced}) from {table}
    """


_CELL = "segment, aggregate_bucket, strategy"

_VIEWS = {
    "steps": """
        select bounded.*, marts.reward
        from int_bounded_steps as bounded inner join fct_transitions as marts using (dialogue_id, step_index)
    """,
    "customer_cells": """
        select aggregate_bucket, strategy, customer_id, avg(cast(is_converted as integer)) as rate,
            avg(reward) as reward
        from steps group by all
    """,
    "steps_twice": _twice("steps", "next_bucket"),
    "true_cells": f"""
        select {_CELL}, count(*) as n_customers, avg(rate) as rate, avg(reward) as reward
        from (
            select {_CELL}, customer_id, avg(cast(is_converted as integer)) as rate, avg(reward) as reward
            from steps_twice group by all
        )
        group by all
    """,
    "true_transitions": f"""
        select {_CELL}, next_bucket, count(*) / sum(count(*)) over (partition by {_CELL}) as share
        from steps_twice group by {_CELL}, next_bucket
    """,
    "true_replies": """
        select segment, aggregate_bucket, reply_act as reply, count(distinct customer_id) as n_customers,
            count(distinct customer_id)
                / sum(count(distinct customer_id)) over (partition by segment, aggregate_bucket) as share
        from steps_twice where reply_act is not null group by segment, aggregate_bucket, reply_act
    """,
    "true_buckets": """
        select segment, aggregate_bucket, count(distinct customer_id) as n_customers from steps_twice group by all
    """,
    "bounded_cells": f"""
        select {_CELL}, sum(n_conversions) / sum(n_customers) as rate,
            sum(reward_milli) / 1000 / sum(n_customers) as reward
        from ({_twice("exact_cells")}) group by all
    """,
    "bounded_transitions": f"""
        select {_CELL}, next_bucket, sum(n_steps) / sum(sum(n_steps)) over (partition by {_CELL}) as share
        from ({_twice("exact_transitions", "next_bucket")}) group by {_CELL}, next_bucket
    """,
    "bounded_replies": f"""
        select segment, aggregate_bucket, reply,
            sum(n_customers) / sum(sum(n_customers)) over (partition by segment, aggregate_bucket) as share
        from ({_twice("(select * from exact_replies where reply_kind = 'act')")})
        group by segment, aggregate_bucket, reply
    """,
}
"""Means are over customers: who came often counts once, as in the released tables."""

_JUDGED = f"""
create temporary table judged as
with figures as (
    select 'agg_conversion_rates' as model, released.segment, true_cells.n_customers, released.is_suppressed,
        released.conversion_rate as figure, released.low, released.high, bounded_cells.rate as bounded,
        true_cells.rate as truth
    from agg_conversion_rates as released
    left join bounded_cells using ({_CELL}) left join true_cells using ({_CELL})
    where release_id = $release_id
    union all
    select 'agg_rewards', released.segment, true_cells.n_customers, released.is_suppressed, released.mean_reward,
        released.low, released.high, bounded_cells.reward, true_cells.reward
    from agg_rewards as released
    left join bounded_cells using ({_CELL}) left join true_cells using ({_CELL})
    where release_id = $release_id
    union all
    select 'agg_transitions', released.segment, true_cells.n_customers, released.is_suppressed, released.probability,
        released.low, released.high, case when bounded_cells.rate is not null then coalesce(bounded.share, 0) end,
        case when true_cells.rate is not null then coalesce(truth.share, 0) end
    from agg_transitions as released
    left join bounded_cells using ({_CELL}) left join true_cells using ({_CELL})
    left join bounded_transitions as bounded using ({_CELL}, next_bucket)
    left join true_transitions as truth using ({_CELL}, next_bucket)
    where release_id = $release_id
    union all
    select 'agg_frequent_replies', released.segment, true_buckets.n_customers, released.is_suppressed, released.share,
        released.low, released.high, coalesce(bounded.share, 0), coalesce(truth.share, 0)
    from agg_frequent_replies as released
    left join true_buckets using (segment, aggregate_bucket)
    left join bounded_replies as bounded using (segment, aggregate_bucket, reply)
    left join true_replies as truth using (segment, aggregate_bucket, reply)
    where release_id = $release_id and reply_kind = 'act'
)
select *, case
    when coalesce(n_customers, 0) < 20 then '{SIZES[0]}'
    when n_customers < 100 then '{SIZES[1]}'
    when n_customers < 500 then '{SIZES[2]}'
    else '{SIZES[3]}'
end as size
from figures
"""

_RATE_ERRORS = """
select
    model, '{by}' as by, {by} as "group", count(*) as n_cells, count(*) filter (is_suppressed) as n_suppressed,
    sqrt(avg(power(figure - bounded, 2))) as rmse_bounded, sqrt(avg(power(figure - truth, 2))) as rmse_truth,
    avg(figure - truth) as bias_truth, sqrt(avg(power(bounded - truth, 2))) as rmse_bounding,
    avg(cast(truth between low and high as integer)) filter (figure is not null and truth is not null) as coverage_truth
from judged
group by model, {by}
order by model, min(coalesce(n_customers, 0)), {by}
"""

_TEXTS = """
select count(*) from agg_frequent_replies
where release_id = $release_id and segment = 'all' and reply_kind = 'text' and not is_suppressed
"""

_SUM_ERROR = """
    count(*) as n_cells, avg(sigma) as sigma, sqrt(avg(power(noisy - bounded, 2))) as rmse_noise,
    sum(bounded) / nullif(sum(truth), 0) as kept_share
"""

_SUMS = (
    f"""
    select 'transitions' as measure, {_SUM_ERROR}
    from (
        select released.n_steps as noisy, sigma_steps as sigma, coalesce(exact.n_steps, 0) as bounded,
            coalesce(truth.n_steps, 0) as truth
        from read_parquet($release || '/transitions.parquet') as released
        left join exact_transitions as exact using (aggregate_bucket, strategy, next_bucket)
        left join (
            select aggregate_bucket, strategy, next_bucket, count(*) as n_steps from steps group by all
        ) as truth using (aggregate_bucket, strategy, next_bucket)
    )
    """,
    *(
        f"""
        select '{measure}' as measure, {_SUM_ERROR}
        from (
            select released.{noisy} as noisy, {sigma} as sigma, coalesce({bounded}, 0) as bounded,
                coalesce(truth.truth, 0) as truth
            from read_parquet($release || '/cells.parquet') as released
            left join exact_cells as exact using (aggregate_bucket, strategy)
            left join (
                select aggregate_bucket, strategy, {truth} as truth from customer_cells group by all
            ) as truth using (aggregate_bucket, strategy)
        )
        """
        for measure, noisy, sigma, bounded, truth in (
            ("customers", "n_customers", "sigma_customers", "exact.n_customers", "count(*)"),
            ("conversions", "n_conversions", "sigma_conversions", "exact.n_conversions", "sum(rate)"),
            ("rewards", "reward", "sigma_reward", "exact.reward_milli / 1000", "sum(reward)"),
        )
    ),
    f"""
    select 'replies' as measure, {_SUM_ERROR}
    from (
        select released.n_customers as noisy, sigma, coalesce(exact.n_customers, 0) as bounded,
            coalesce(truth.n_customers, 0) as truth
        from read_parquet($release || '/replies.parquet') as released
        left join exact_replies as exact using (reply_kind, aggregate_bucket, reply)
        left join (
            select aggregate_bucket, reply_act as reply, count(distinct customer_id) as n_customers
            from steps where reply_act is not null group by all
        ) as truth using (aggregate_bucket, reply)
        where released.reply_kind = 'act'
    )
    """,
)
