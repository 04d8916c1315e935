"""What `talktrack privacy` prints: the state of every window, the ledger's rows, a plan before it is paid for.

Here: tables for people, and the same as plain values. Not here: what is booked, planned or released
(`registry.privacy`), which window a night releases (`orchestration.aggregates`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date, timedelta
from typing import Any

import click
from pydantic import ValidationError
from rich.table import Table

from orchestration.aggregates import known_windows, newest_due_window, places, release_plan
from orchestration.console import console
from orchestration.settings import TalktrackSettings
from orchestration.warehouse import data_clock
from orchestration.workspace import configured_catalogue
from registry.errors import LedgerError, PlanError, ReleaseError
from registry.privacy.accounting import epsilon, rho_for, windows_touched
from registry.privacy.budget import COMPROMISED_KEY, TABLES, BudgetLedger, Cost, Entry
from registry.privacy.grid import selectable_strategies
from registry.privacy.plan import LevelPlan, costs, describe_levels, grids_of, measures_of, short
from registry.privacy.release import ReleaseState, open_budget, release_state, verify_releases
from registry.privacy.settings import UNIT_OF_PRIVACY, PrivacySettings
from registry.privacy.windows import Window
from rl.encoders.customer_replies import CUSTOMER_ACTS
from rl.errors import SettingsError

MOST_WINDOWS = 14
"""Windows that `status` lists, newest last: a year of them."""

STATES: dict[ReleaseState, str] = {
    "released": "released",
    "kept": "drawn, not yet public",
    "lost": "spent, figures lost",
    "deleted": "released, then deleted",
}
"""What `status` says of a window that was drawn."""

MEASURES = {
    "transitions": ("steps, by what came next", "steps", 1),
    "customers": ("customers", "customers", 1),
    "conversions": ("customers who converted", "customers", 1),
    "rewards": ("sums of rewards", "reward units", 1000),
    "replies": ("replies, by act", "customers", 1),
    "reply_texts": ("replies, by text", "customers", 1),
}
"""By measure: what it counts, its unit, and how many of what is summed make one."""


# ---------- talktrack privacy status


def show_privacy_status(settings: TalktrackSettings, *, as_json: bool) -> None:
    """Print what every window has spent and has left, and whether the ledger and the releases are what they were.

    Raises LedgerError or ReleaseError, after the table, for what is not.
    """
    where, fault = places(settings), None
    n_rows = n_releases = 0
    try:
        n_rows, n_releases = open_budget(where).verify(), verify_releases(where)
    except (LedgerError, ReleaseError) as error:
        fault = error
    windows = [_window_status(settings, window, is_verified=fault is None) for window in _windows(settings)]
    if not as_json:
        _print_windows(settings, windows)
        _print_promise(settings.privacy)
    if fault is not None:
        raise fault
    if as_json:
        verified = {"ledger_rows": n_rows, "releases": n_releases}
        _print_json({"windows": windows, "cost": costs(settings.privacy), "verified": verified})
    elif n_rows:
        console.print(f"[green]✓[/] Ledger ({n_rows} rows) and releases ({n_releases}) are as they were written.")


def _windows(settings: TalktrackSettings) -> list[Window]:
    """The windows up to the data's clock, and those that the ledger knows; oldest first."""
    clock = data_clock(settings.paths.landing)
    return known_windows(settings, (clock - timedelta(days=1)).date() if clock else date.min)


def _window_status(settings: TalktrackSettings, window: Window, *, is_verified: bool) -> dict[str, Any]:
    ledger = _ledger(settings)
    by_purpose = ledger.spent(window.start)
    spent = sum(by_purpose.values(), Cost(0))
    left = ledger.left(window.start, Cost.of(settings.privacy.rho, settings.privacy.delta))
    return {
        "window_start": window.start.isoformat(),
        "last_day": window.last_day.isoformat(),
        "spent": {purpose: cost.rho for purpose, cost in by_purpose.items()},
        "rho": spent.rho,
        "rho_left": left.rho,
        "epsilon": epsilon(spent.rho, settings.privacy.delta),
        "delta": spent.delta,
        "state": _state(settings, window) if is_verified else "not verified",
    }


def _state(settings: TalktrackSettings, window: Window) -> str:
    state = release_state(places(settings), window)
    if state != "not drawn":
        return STATES[state]
    if COMPROMISED_KEY in _ledger(settings).spent(window.start):
        return "closed: key compromised"
    clock, due_at = data_clock(settings.paths.landing), window.due_at(settings.logs.attribution_days)
    if clock is None or clock < due_at:
        return f"due on {due_at.date()}"
    return "due now" if window == newest_due_window(settings, clock) else "was not released"


def _print_windows(settings: TalktrackSettings, windows: Sequence[dict[str, Any]]) -> None:
    if not windows:
        console.print(f"Workspace {settings.workspace}: no logs have landed, and nothing was booked.\n")
        return
    table = _table(f"Privacy of workspace {settings.workspace}", "window", "tables")
    for column in ("ρ of tables", "ρ of gate", "ρ left", "ε spent"):
        table.add_column(column, justify="right")
    for window in windows[-MOST_WINDOWS:]:
        spent = window["spent"]
        gate = [rho for purpose, rho in spent.items() if purpose.startswith("gate:")]
        table.add_row(
            f"{window['window_start']} to {window['last_day']}",
            window["state"],
            _amount(spent.get(TABLES, 0)),
            _amount(sum(gate)) + (f" ({len(gate)} ×)" if gate else ""),
            _amount(window["rho_left"]),
            f"{window['epsilon']:.2f}" if spent else "–",
        )
    console.print(table)
    if len(windows) > MOST_WINDOWS:
        console.print(f"{len(windows) - MOST_WINDOWS} earlier windows: `talktrack privacy ledger`.")
    console.print()


def _print_promise(privacy: PrivacySettings) -> None:
    """What a customer can lose, in the words of the promise."""
    cost, days = costs(privacy), privacy.window_days
    window, year, n_year = cost["window"], cost["year"], windows_touched(365, days)
    console.print(
        f"A {UNIT_OF_PRIVACY} can lose at most ρ {privacy.rho:g} in a window of {days} days: ε {window['epsilon']:.2f} "
        f"at δ {_power(window['delta'])}. Any {days} days in a row can lie in {windows_touched(days, days)} windows, a "
        f"year in {n_year}: ρ {year['rho']:g}, ε {year['epsilon']:.2f} at δ {_power(year['delta'])}."
    )


# ---------- talktrack privacy ledger


def show_privacy_ledger(settings: TalktrackSettings, *, as_json: bool) -> None:
    """Print every row of the privacy ledger, then verify it. Raises LedgerError or ReleaseError, after the rows."""
    rows = _rows(settings)
    if as_json:
        _print_json([asdict(row) for row in rows])
    elif rows:
        table = _table(f"Privacy ledger of workspace {settings.workspace}", "row", "at (UTC)", "window from", "for", "")
        for column in ("ρ", "δ"):
            table.add_column(column, justify="right")
        table.add_column("id")
        for row in rows:
            table.add_row(
                str(row.seq),
                row.at[:16].replace("T", " "),
                row.window_start,
                row.purpose.removesuffix(f":{row.release_id[:8]}"),
                "reserved" if row.kind == "reservation" else "kept",
                _amount(row.cost.rho),
                _power(row.cost.delta) if row.delta_units else "–",
                row.release_id[:8],
            )
        console.print(table)
    else:
        console.print(f"Workspace {settings.workspace}: nothing was booked yet.")
    n_rows = open_budget(places(settings)).verify()
    if n_rows and not as_json:
        console.print(f"\n[green]✓[/] The {n_rows} rows form one chain.")


# ---------- talktrack privacy plan


def explored(
    settings: TalktrackSettings,
    *,
    level: str | None = None,
    rho: float | None = None,
    epsilon: float | None = None,
    dialogues: int | None = None,
) -> TalktrackSettings:
    """The settings with another grid, budget (as ρ, or as ε at `privacy.delta`) or log size.

    Raises SettingsError if they do not go together.
    """
    if epsilon is not None:
        rho = rho_for(epsilon, settings.privacy.delta)
    asked = {"grid": level, "rho": rho, "expected_dialogues": dialogues}
    values = settings.privacy.model_dump() | {name: value for name, value in asked.items() if value is not None}
    try:
        return settings.model_copy(update={"privacy": PrivacySettings.model_validate(values)})
    except ValidationError as error:
        faults = "; ".join(fault["msg"] for fault in error.errors())
        raise SettingsError(f"No release can be planned so: {faults}. Give other values.") from None


def show_privacy_plan(settings: TalktrackSettings, *, as_json: bool) -> None:
    """Print what a release with these settings would cost and how accurate it would be. Nothing is spent.

    Raises PlanError, after the tables, if it would be mostly noise.
    """
    if as_json:
        _print_json(release_plan(settings).to_json())
        return
    chosen, refusal = None, None
    try:
        chosen = release_plan(settings).grid.level
    except PlanError as error:
        refusal = error
    _print_levels(settings, chosen)
    _print_measures(settings.privacy)
    _print_costs(settings.privacy)
    if refusal is not None:
        raise refusal


def _print_levels(settings: TalktrackSettings, chosen: str | None) -> None:
    privacy, share = settings.privacy, 1 - settings.dataset.validation_share
    grids = grids_of(privacy, selectable_strategies(configured_catalogue(settings)), CUSTOMER_ACTS)
    levels = describe_levels(privacy, grids, share)
    table = _table(
        f"Grids for windows of {privacy.expected_dialogues:,} dialogues of {privacy.expected_steps:g} steps", "grid"
    )
    for column in (
        "\nbuckets",
        "\ntransitions",
        "steps in\nmedian",
        "\ncells",
        "customers\nin median",
        "error of\na rate",
    ):
        table.add_column(column, justify="right")
    table.add_column("")
    for level in levels:
        table.add_row(*_level_columns(level, chosen), style="bold" if level.level == chosen else None)
    console.print(table)
    sigma, rate = short(levels[0].sigma_steps), privacy.expected_conversion_rate
    console.print(
        f"A grid is of use while the median transition holds more steps than its noise (σ {sigma}). Expected with "
        f"{share:.0%} of customers in the tables, and every strategy, segment and act equally frequent. Error: of a "
        f"conversion rate of {rate:.0%} in the median cell of bucket and strategy, by noise alone.\n"
    )


def _level_columns(level: LevelPlan, chosen: str | None) -> tuple[str, ...]:
    return (
        level.level,
        f"{level.n_buckets:,}",
        f"{level.n_transitions:,}",
        short(level.median_steps),
        f"{level.n_cells:,}",
        short(level.median_customers),
        f"± {level.relative_error:.0%}" if level.relative_error < 10 else "> 1,000%",
        "← chosen" if level.level == chosen else "" if level.fits else "noise",
    )


def _print_measures(privacy: PrivacySettings) -> None:
    table = _table("What is measured", "measure")
    for column in ("ρ", "cells of a customer", "at most in each", "noise σ"):
        table.add_column(column, justify="right")
    table.add_column("unit")
    for measure in measures_of(privacy):
        counted, unit, scale = MEASURES[measure.name]
        table.add_row(
            counted,
            f"{measure.rho:g}",
            str(measure.l0),
            f"{measure.linf / scale:g}",
            short(measure.sigma / scale),
            unit,
        )
    console.print(table)
    console.print()


def _print_costs(privacy: PrivacySettings) -> None:
    table = _table(f"What a {UNIT_OF_PRIVACY} can lose", "")
    for column in ("ρ", "ε", "at δ"):
        table.add_column(column, justify="right")
    n_windows = windows_touched(365, privacy.window_days)
    names = {
        "tables": "tables of a window",
        "window": f"all of a window (gate: ρ {privacy.gate_rho:g} in {privacy.gate_evaluations} evaluations)",
        "year": f"the {n_windows} windows that a year can touch",
    }
    for name, cost in costs(privacy).items():
        table.add_row(names[name], f"{cost['rho']:g}", f"{cost['epsilon']:.2f}", _power(cost["delta"]))
    console.print(table)


# ---------- all


def _ledger(settings: TalktrackSettings) -> BudgetLedger:
    """The ledger without what releases remember of it: rows are shown before they are verified."""
    return BudgetLedger(settings.paths.privacy_budget, settings.workspace)


def _rows(settings: TalktrackSettings) -> list[Entry]:
    """The workspace's rows, whether or not they can be trusted."""
    return [row for row in _ledger(settings).rows() if row.workspace == settings.workspace]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column)
    return table


def _amount(value: float) -> str:
    return f"{value:g}" if value else "–"


def _power(delta: float) -> str:
    """δ as people write it: 1e-6."""
    return f"{delta:.2g}".replace("e-0", "e-")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, sort_keys=True))
