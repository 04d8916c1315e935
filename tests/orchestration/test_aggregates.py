"""The step between the two dbt builds: which window is due, what becomes of it, and how far its figures are off."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestration import aggregates
from orchestration.aggregates import (
    DueRelease,
    due_release,
    forget_exact_window,
    last_outcome,
    next_due_at,
    places,
    release_due_window,
    remember_exact_window,
    report_utility,
    utility_file,
)
from orchestration.settings import LogsSettings, TalktrackSettings
from orchestration.utility import SIZES, UtilityReport, utility_report
from registry.errors import CertificationError, LedgerError
from registry.privacy.recertify import recertify
from registry.privacy.release import find_release, open_budget, prepare_released
from registry.privacy.settings import PrivacySettings
from registry.privacy.windows import Window
from rl.files import write_json

WINDOW = Window(date(2026, 1, 1), date(2026, 1, 8))
DUE = datetime(2026, 1, 12, tzinfo=UTC)
"""Seven days, three of attribution and one for dialogues over midnight."""


@pytest.fixture
def settings(tmp_path: Path) -> TalktrackSettings:
    return TalktrackSettings(
        home=tmp_path,
        logs=LogsSettings(attribution_days=3),
        privacy=PrivacySettings(window_days=7, grid="turn", segments=()),
    )


def write_exact(settings: TalktrackSettings, n_customers: int = 400) -> None:
    """A working database with exact tables as dbt leaves them: one cell, in which everybody is."""
    path = settings.paths.warehouse
    path.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            f"""
            create or replace table exact_transitions as
                select '1|any|any|any' as aggregate_bucket, 'offer_help' as strategy, 'ended' as next_bucket,
                    {n_customers}::bigint as n_steps where {n_customers} > 0;
            create or replace table exact_cells as
                select '1|any|any|any' as aggregate_bucket, 'offer_help' as strategy,
                    {n_customers}::bigint as n_customers,
                    {n_customers // 4}::bigint as n_conversions, {n_customers * 5000}::bigint as reward_milli
                where {n_customers} > 0;
            create or replace table exact_replies as
                select 'act' as reply_kind, '1|any|any|any' as aggregate_bucket, 'interest' as reply,
                    {n_customers}::bigint as n_customers where {n_customers} > 0;
            """
        )
    remember_exact_window(settings.paths.root, DueRelease(WINDOW, "turn", ""))
    prepare_released(settings.paths.released)


# ---------- what is due


def test_a_window_is_due_when_its_last_outcome_is_in(settings: TalktrackSettings) -> None:
    assert due_release(settings, DUE).window == WINDOW
    before = due_release(settings, DUE - timedelta(seconds=1))
    assert before.window is None
    assert "2026-01-01 to 2026-01-07 will be on 2026-01-12, when its outcomes are in" in before.reason
    assert next_due_at(settings, DUE) == (WINDOW.next(), datetime(2026, 1, 19, tzinfo=UTC))


def test_without_logs_nothing_is_due(settings: TalktrackSettings) -> None:
    assert due_release(settings, None).window is None
    assert next_due_at(settings, None) is None


def test_a_released_window_needs_its_exact_tables_until_its_report_is_made(settings: TalktrackSettings) -> None:
    write_exact(settings)
    release_due_window(settings, DUE)
    assert due_release(settings, DUE).window == WINDOW
    write_json(utility_file(settings.paths, WINDOW), {})
    after = due_release(settings, DUE)
    assert after.window is None
    assert "was released before" in after.reason


def test_exact_tables_for_a_report_are_counted_over_the_grid_of_the_release(settings: TalktrackSettings) -> None:
    write_exact(settings)
    release_due_window(settings, DUE)
    finer = settings.privacy.model_copy(update={"grid": "turn_segment"})
    due = due_release(settings.model_copy(update={"privacy": finer}), DUE)
    assert (due.window, due.level) == (WINDOW, "turn")
    assert "lacks its report" in due.reason


# ---------- what becomes of it


def test_a_due_window_is_released_once_and_replayed_after(settings: TalktrackSettings) -> None:
    write_exact(settings)
    first = release_due_window(settings, DUE)
    folder = places(settings).folder(WINDOW.start)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    write_exact(settings, 9999)  # whatever comes later
    again = release_due_window(settings, DUE + timedelta(days=3))

    assert (first.state, again.state) == ("released", "replayed")
    assert first.release_id == again.release_id
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert last_outcome(settings.paths) == again
    assert open_budget(places(settings)).spent(WINDOW.start)["tables"].micro_rho == 80_000


def test_before_the_window_is_due_nothing_is_drawn(settings: TalktrackSettings) -> None:
    write_exact(settings)
    outcome = release_due_window(settings, DUE - timedelta(days=1))
    assert outcome.state == "not_due"
    assert not places(settings).ledger.exists()


def test_exact_tables_of_another_window_or_grid_are_not_released(settings: TalktrackSettings) -> None:
    write_exact(settings)
    remember_exact_window(settings.paths.root, DueRelease(WINDOW.next(), "turn", ""))
    assert "The exact tables hold another window" in release_due_window(settings, DUE).reason
    remember_exact_window(settings.paths.root, DueRelease(WINDOW, "turn_segment", ""))
    assert "The exact tables hold another window" in release_due_window(settings, DUE).reason
    forget_exact_window(settings.paths.root)
    outcome = release_due_window(settings, DUE)
    assert outcome.state == "not_released"
    assert not places(settings).ledger.exists()


def test_a_window_without_customers_is_not_released_and_costs_nothing(settings: TalktrackSettings) -> None:
    write_exact(settings, 0)
    outcome = release_due_window(settings, DUE)
    assert outcome.state == "not_released"
    assert "It has no usable dialogue of a customer who enters tables." in outcome.reason
    assert not places(settings).ledger.exists()


def test_a_grid_that_would_be_noise_is_refused_by_plan_and_the_night_can_go_on(settings: TalktrackSettings) -> None:
    write_exact(settings)
    fine = settings.privacy.model_copy(update={"grid": "turn_segment_act_strategy", "expected_dialogues": 50})
    refused = settings.model_copy(update={"privacy": fine})
    assert due_release(refused, DUE).window is None
    outcome = release_due_window(refused, DUE)
    assert outcome.state == "not_released"
    assert "The window 2026-01-01 to 2026-01-07 is due and was not released. The grid" in outcome.reason
    assert "Any of these would fit" in outcome.reason


def test_a_spent_budget_refuses_and_says_what_is_left(settings: TalktrackSettings) -> None:
    write_exact(settings)
    ledger = open_budget(places(settings))
    plan = aggregates.release_plan(settings)
    for name in ("gate:a", "gate:b"):
        ledger.reserve(WINDOW, name, release_id="r", cost=type(plan.cost)(15_000), budget=plan.budget)
    outcome = release_due_window(settings, DUE)
    assert outcome.state == "not_released"
    assert "tables asks for ρ 0.08" in outcome.reason
    assert "has ρ 0.07" in outcome.reason
    assert find_release(settings.paths.released, WINDOW.start) is None


def test_an_edited_ledger_stops_the_release(settings: TalktrackSettings) -> None:
    write_exact(settings)
    release_due_window(settings, DUE)
    with_cheaper_row(places(settings).ledger)
    with pytest.raises(LedgerError, match="row 1"):
        release_due_window(settings, DUE)


def with_cheaper_row(path: Path) -> None:
    """As somebody would who wants a second draw: triggers off, spent 0."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(path)) as connection:
        for (name,) in connection.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            connection.execute(f'drop trigger "{name}"')
        connection.execute("update entries set micro_rho = 0 where seq = 1")
        connection.commit()


# ---------- the noise, certified again


def test_a_release_is_certified_again_from_its_record(settings: TalktrackSettings) -> None:
    write_exact(settings)
    release_due_window(settings, DUE)
    record = find_release(settings.paths.released, WINDOW.start)
    assert record is not None
    assert 0.0799 < recertify(record) <= record.rho == 0.08


@pytest.mark.parametrize(
    ("measure", "change", "message"),
    [
        ("customers", {"sigma": 3.0}, r"noise of sigma 3, which is certified for rho .* only \(customers\)"),
        ("transitions", {"l0": 64}, r"an L2 sensitivity of .* for 64 cells of 1 \(transitions\)"),
        ("reply_texts", {"tau": 2}, r"the threshold 2, which is certified for delta .* only"),
        ("rewards", {"rho": 0.5, "sigma": 5e5}, r"cost rho .* together, and 0.08 was booked"),
    ],
)
def test_a_record_that_promises_more_than_its_noise_holds_is_refused(
    measure: str, change: dict[str, float], message: str, settings: TalktrackSettings
) -> None:
    write_exact(settings)
    release_due_window(settings, DUE)
    record = find_release(settings.paths.released, WINDOW.start)
    assert record is not None
    changed = record.measures | {measure: record.measures[measure].model_copy(update=change)}
    with pytest.raises(CertificationError, match=message):
        recertify(record.model_copy(update={"measures": changed}))


# ---------- how far figures are off


def small_world(path: Path, release: Path) -> None:
    """Forty customers with a step each in one cell, ten of whom converted; bounding kept thirty and six conversions.

    The release added 3 customers, took a conversion away, and drew nobody's reply.
    """
    path.parent.mkdir(parents=True)
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            """
            create table int_bounded_steps as
                select 'customer-' || i as customer_id, 'd' || i as dialogue_id, 0 as step_index,
                    '1|any|A|any' as aggregate_bucket, 's' as strategy, i < 10 as is_converted,
                    case when i < 10 then 'converted' else 'ended' end as next_bucket, 0 as reward_milli,
                    'interest' as reply_act, null::varchar as reply_text
                from range(40) as t(i);
            create table fct_transitions as
                select dialogue_id, step_index, if(is_converted, 2.0, 0.0) as reward from int_bounded_steps;
            create table exact_transitions as from (values ('1|any|A|any', 's', 'converted', 6::bigint),
                ('1|any|A|any', 's', 'ended', 24::bigint)) as t(aggregate_bucket, strategy, next_bucket, n_steps);
            create table exact_cells as select '1|any|A|any' as aggregate_bucket, 's' as strategy,
                30::bigint as n_customers, 6::bigint as n_conversions, 12000::bigint as reward_milli;
            create table exact_replies as select 'act' as reply_kind, '1|any|A|any' as aggregate_bucket,
                'interest' as reply, 30::bigint as n_customers;
            create table cells as
                select 'r' as release_id, segment, '1|any|' || part || '|any' as aggregate_bucket, 's' as strategy,
                    false as is_suppressed
                from (values ('all', 'any'), ('A', 'A')) as t(segment, part);
            create table agg_conversion_rates as select *, 0.25 as conversion_rate, 0.1 as low, 0.24 as high from cells;
            create table agg_rewards as select *, 0.5 as mean_reward, 0.1 as low, 0.9 as high from cells;
            create table agg_transitions as
                select *, 'ended' as next_bucket, 0.8 as probability, 0.7 as low, 0.9 as high from cells;
            create table agg_frequent_replies as
                select * exclude (strategy), 'act' as reply_kind, 'interest' as reply, 0.9 as share, 0.8 as low,
                    1.0 as high
                from cells
                union all select * exclude (strategy), 'text', 'yes please', 1.0, 0.9, 1.0 from cells;
            """
        )
    release.mkdir(parents=True)
    keys = {"aggregate_bucket": ["1|any|A|any", "2+|any|A|any"], "strategy": ["s", "s"]}
    write = {
        "transitions": {**keys, "next_bucket": ["ended"] * 2, "n_steps": [27, 4], "sigma_steps": [3.5] * 2},
        "cells": {
            **keys,
            "n_customers": [33, -4],
            "n_conversions": [5, 0],
            "reward": [12.0, 0.5],
            **{f"sigma_{name}": [4.0] * 2 for name in ("customers", "conversions", "reward")},
        },
        "replies": {
            "aggregate_bucket": keys["aggregate_bucket"],
            "reply_kind": ["act"] * 2,
            "reply": ["interest"] * 2,
            "n_customers": [30, 0],
            "sigma": [5.0] * 2,
        },
    }
    for name, columns in write.items():
        pq.write_table(pa.table(columns), release / f"{name}.parquet")


def test_errors_of_sums_are_those_of_the_noise_and_of_what_bounding_cut_off(tmp_path: Path) -> None:
    small_world(tmp_path / "ws" / "warehouse.duckdb", tmp_path / "release")
    report = utility_report(
        tmp_path / "ws" / "warehouse.duckdb", tmp_path / "release", release_id="r", window=(WINDOW.start, WINDOW.end)
    )
    sums = {row.measure: row for row in report.sums}
    assert sums["customers"].rmse_noise == pytest.approx((9 / 2 + 16 / 2) ** 0.5)  # +3 and -4 over two cells
    assert sums["customers"].kept_share == pytest.approx(30 / 40)
    assert sums["conversions"].kept_share == pytest.approx(6 / 10)
    assert sums["rewards"].kept_share == pytest.approx(12 / 20)
    assert sums["transitions"].rmse_noise == pytest.approx((9 / 2 + 16 / 2) ** 0.5)
    assert {row.sigma for row in report.sums} == {3.5, 4.0, 5.0}


def test_errors_of_rates_are_told_by_size_and_segment_against_both_references(tmp_path: Path) -> None:
    small_world(tmp_path / "ws" / "warehouse.duckdb", tmp_path / "release")
    report = utility_report(
        tmp_path / "ws" / "warehouse.duckdb", tmp_path / "release", release_id="r", window=(WINDOW.start, WINDOW.end)
    )
    rates = {(row.model, row.by, row.group): row for row in report.rates}
    by_size = rates["agg_conversion_rates", "size", SIZES[1]]
    assert by_size.rmse_bounded == pytest.approx(0.05)  # released 0.25, bounded 6 of 30
    assert by_size.rmse_truth == pytest.approx(0.0)  # truth 10 of 40
    assert by_size.rmse_bounding == pytest.approx(0.05)
    assert by_size.coverage_truth == 0.0  # the bar ends at 0.24
    assert rates["agg_rewards", "segment", "A"].bias_truth == pytest.approx(0.0)  # 20 over 40 customers
    assert rates["agg_transitions", "segment", "all"].rmse_bounded == pytest.approx(0.0)  # 24 of 30
    assert rates["agg_transitions", "segment", "all"].bias_truth == pytest.approx(0.05)  # 30 of 40
    assert rates["agg_frequent_replies", "segment", "all"].rmse_truth == pytest.approx(0.1)
    assert report.n_reply_texts == 1
    assert report.zone == "restricted"


def test_without_the_exact_tables_of_the_release_there_is_no_report(settings: TalktrackSettings) -> None:
    write_exact(settings)
    release_due_window(settings, DUE)
    record = find_release(settings.paths.released, WINDOW.start)
    assert record is not None
    for held in (DueRelease(WINDOW.next(), "turn", ""), DueRelease(WINDOW, "turn_segment", "")):
        remember_exact_window(settings.paths.root, held)
        assert report_utility(settings.paths, record) is None
    assert not utility_file(settings.paths, WINDOW).exists()
    kept = UtilityReport(
        window_start=WINDOW.start, window_end=WINDOW.end, release_id="r", zone="restricted", sums=(), rates=(),
        n_reply_texts=0,
    )  # fmt: skip
    write_json(utility_file(settings.paths, WINDOW), kept.model_dump(mode="json"))
    assert report_utility(settings.paths, record) == kept, "a report that was made stays"
