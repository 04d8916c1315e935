"""From exact tables to released aggregates: which window is due, what is handed to the release, what leaves as Parquet.

Here: the step between two dbt builds, as functions of settings and files. Not here: noise, budget and the order of a
release (`registry.privacy`), the models (`transforms/models/aggregates`), Dagster assets.

A window is released once. The first dbt build of the night fills the exact tables for the window that is due and not
released yet; on all other nights they are empty.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal

from orchestration.marts import export_tables
from orchestration.settings import TalktrackSettings, WorkspacePaths
from orchestration.utility import UtilityReport, utility_report
from orchestration.warehouse import TRANSFORMS
from orchestration.working_database import read_only
from orchestration.workspace import code_revision, configured_catalogue
from registry.errors import BudgetExceededError, PlanError, ReleaseLostError
from registry.privacy.budget import TABLES, BudgetLedger
from registry.privacy.grid import selectable_strategies
from registry.privacy.plan import ReleasePlan, plan_release
from registry.privacy.release import (
    RELEASES,
    ReleasePlaces,
    ReleaseRecord,
    find_release,
    open_budget,
    release_tables,
    released_records,
)
from registry.privacy.settings import GridLevel
from registry.privacy.tables import ExactTables
from registry.privacy.windows import Window, due_window, window_of, windows_until
from rl.encoders.customer_replies import CUSTOMER_ACTS
from rl.files import content_hash, write_json
from rl.settings import Settings

EXACT_WINDOW_FILE = "exact_window.json"
"""In the workspace's folder: the window that the exact tables hold, written when dbt has built them."""

OUTCOME_FILE = "private_release.json"
"""In the workspace's folder: what the last night's private release came to."""

EXACT_MODELS = ("exact_transitions", "exact_cells", "exact_replies")
"""Bounded exact tables of the window that is due: what a release adds noise to."""

AGGREGATES = {
    "agg_transitions": "release_id, segment, aggregate_bucket, strategy, next_bucket",
    "agg_conversion_rates": "release_id, segment, aggregate_bucket, strategy",
    "agg_rewards": "release_id, segment, aggregate_bucket, strategy",
    "agg_frequent_replies": "release_id, segment, reply_kind, aggregate_bucket, position",
}
"""Released models that leave, and the order of their rows: by key, never by where a row came from."""

_BUILT_FILE = "aggregates_state.json"


@dataclass(frozen=True)
class DueRelease:
    """What a night has to release."""

    window: Window | None
    """The window whose exact tables are needed; None: none is due, or it cannot be planned."""
    level: GridLevel
    reason: str
    """In one sentence for the log."""


class ReleaseOutcome(Settings):
    """What the night's private release came to."""

    state: Literal["released", "replayed", "not_due", "not_released"]
    """`replayed`: an earlier night released the window. `not_released`: it is due, and `reason` says why it was not."""
    reason: str
    window_start: str | None = None
    window_end: str | None = None
    release_id: str | None = None


# ---------- what is due


def places(settings: TalktrackSettings) -> ReleasePlaces:
    """Where this workspace's releases are made and kept."""
    paths = settings.paths
    return ReleasePlaces(
        workspace=settings.workspace,
        released=paths.released,
        staging=paths.root / "release_staging",
        ledger=paths.privacy_budget,
    )


def release_plan(settings: TalktrackSettings) -> ReleasePlan:
    """The plan of a window's tables with today's settings. Raises PlanError if they would be mostly noise."""
    return plan_release(
        settings.privacy,
        strategies=selectable_strategies(configured_catalogue(settings)),
        customer_acts=CUSTOMER_ACTS,
        sampling_share=1 - settings.dataset.validation_share,
    )


def due_release(settings: TalktrackSettings, as_of: datetime | None) -> DueRelease:
    """The window that is due at `as_of` and not yet released with its report, and the level of its grid.

    A window that was released keeps the grid that it was released with.
    """
    window = newest_due_window(settings, as_of)
    if window is None:
        return DueRelease(None, "turn", f"No window is due for release{_first_due(settings, as_of)}.")
    if (record := find_release(settings.paths.released, window.start)) is not None:
        if utility_file(settings.paths, window).exists():
            return DueRelease(None, "turn", f"The window {window} was released before.")
        return DueRelease(window, record.grid["level"], f"The window {window} was released, and lacks its report.")
    try:
        level = release_plan(settings).grid.level
    except PlanError as error:
        return DueRelease(None, "turn", str(error))
    return DueRelease(window, level, f"The window {window} is due for release, with the grid {level}.")


def newest_due_window(settings: TalktrackSettings, as_of: datetime | None) -> Window | None:
    """The newest window that may be released at `as_of`, released or not."""
    return due_window(
        as_of,
        first_day=settings.logs.start_date,
        window_days=settings.privacy.window_days,
        attribution_days=settings.logs.attribution_days,
    )


def next_due_at(settings: TalktrackSettings, as_of: datetime | None) -> tuple[Window, datetime] | None:
    """The next window that becomes due after `as_of`, and when; None while nothing is landed."""
    if as_of is None:
        return None
    newest = newest_due_window(settings, as_of)
    first = settings.logs.start_date
    window = newest.next() if newest else window_of(first, first_day=first, window_days=settings.privacy.window_days)
    assert window is not None
    return window, window.due_at(settings.logs.attribution_days)


def known_windows(settings: TalktrackSettings, day: date) -> list[Window]:
    """The windows that begin on or before a day, and those that the privacy ledger knows; oldest first.

    Windows of today's length that share days with booked ones of another have no budget of their own, and are left out.
    """
    ledger = BudgetLedger(settings.paths.privacy_budget, settings.workspace)
    booked = {row.window for row in ledger.rows() if row.workspace == settings.workspace}
    begun = windows_until(day, first_day=settings.logs.start_date, window_days=settings.privacy.window_days)
    return sorted({*booked, *(window for window in begun if not any(window.overlaps(other) for other in booked))})


def _first_due(settings: TalktrackSettings, as_of: datetime | None) -> str:
    following = next_due_at(settings, as_of)
    if following is None:
        return ""
    window, moment = following
    return f"; {window} will be on {moment.date()}, when its outcomes are in"


# ---------- the release


def release_due_window(settings: TalktrackSettings, as_of: datetime | None) -> ReleaseOutcome:
    """Release the window that is due, or find that it was; remember and return what came of it.

    A plan that is mostly noise, a spent budget, a window without customers and a release that was lost are outcomes,
    and the night goes on. Raises LedgerError, ReleaseError or CertificationError for what needs a person.
    """
    outcome = _release(settings, as_of)
    write_json(settings.paths.root / OUTCOME_FILE, outcome.model_dump(mode="json"))
    return outcome


def last_outcome(paths: WorkspacePaths) -> ReleaseOutcome | None:
    """What the last night's private release came to; None before the first."""
    path = paths.root / OUTCOME_FILE
    return ReleaseOutcome.model_validate_json(path.read_text()) if path.exists() else None


def _release(settings: TalktrackSettings, as_of: datetime | None) -> ReleaseOutcome:
    window = newest_due_window(settings, as_of)
    if window is None:
        return ReleaseOutcome(state="not_due", reason=due_release(settings, as_of).reason)
    where = places(settings)
    try:
        plan = release_plan(settings)
        exact = read_exact_tables(settings.paths.warehouse)
        if open_budget(where).find(window.start, TABLES) is None:  # nothing was drawn yet: the tables must be right
            if not _exact_tables_hold(settings.paths, window, plan.grid.level):
                return _not_released(window, "The exact tables hold another window. Run `talktrack nightly`.")
            if not exact.transitions.num_rows:
                return _not_released(window, "It has no usable dialogue of a customer who enters tables.")
        record = release_tables(exact, plan=plan, window=window, places=where, code_revision=code_revision())
    except (PlanError, BudgetExceededError, ReleaseLostError) as error:
        if (record_kept := find_release(where.released, window.start)) is None:
            return _not_released(window, str(error))
        record = record_kept.model_copy(update={"is_replay": True})
    return _outcome(record)


def _outcome(record: ReleaseRecord) -> ReleaseOutcome:
    said = "was released before, and is frozen" if record.is_replay else "was released"
    return ReleaseOutcome(
        state="replayed" if record.is_replay else "released",
        reason=f"The window {record.window} {said}. {record.note}".strip(),
        window_start=record.window_start.isoformat(),
        window_end=record.window_end.isoformat(),
        release_id=record.release_id,
    )


def _not_released(window: Window, reason: str) -> ReleaseOutcome:
    return ReleaseOutcome(
        state="not_released",
        reason=f"The window {window} is due and was not released. {reason}",
        window_start=window.start.isoformat(),
        window_end=window.end.isoformat(),
    )


def read_exact_tables(warehouse: Path) -> ExactTables:
    """The exact tables of the working database. Raises WarehouseError if it is missing or being written."""
    with read_only(warehouse) as connection:
        tables = {name: connection.execute(f"from {name}").fetch_arrow_table() for name in EXACT_MODELS}
    return ExactTables(**{name.removeprefix("exact_"): table for name, table in tables.items()})


# ---------- which window the exact tables hold


def forget_exact_window(workspace: Path) -> None:
    """Before dbt builds the exact tables: until it has, nobody knows what they hold."""
    (workspace / EXACT_WINDOW_FILE).unlink(missing_ok=True)


def remember_exact_window(workspace: Path, due: DueRelease) -> None:
    """After dbt has built them."""
    window = due.window
    held = {"start": window.start.isoformat(), "end": window.end.isoformat(), "level": due.level} if window else {}
    write_json(workspace / EXACT_WINDOW_FILE, held)


def _exact_tables_hold(paths: WorkspacePaths, window: Window, level: GridLevel) -> bool:
    path = paths.root / EXACT_WINDOW_FILE
    held = json.loads(path.read_text()) if path.exists() else {}
    return bool(held == {"start": window.start.isoformat(), "end": window.end.isoformat(), "level": level})


# ---------- the released models


def aggregates_are_current(paths: WorkspacePaths) -> bool:
    """Whether the released models in the working database are those of today's releases and SQL."""
    state = paths.root / _BUILT_FILE
    return (
        state.exists()
        and paths.warehouse.exists()
        and json.loads(state.read_text()) == _built_from(paths)
        and set(AGGREGATES) <= _tables(paths.warehouse)
    )


def forget_aggregates(paths: WorkspacePaths) -> None:
    """Before dbt builds them."""
    (paths.root / _BUILT_FILE).unlink(missing_ok=True)


def remember_aggregates(paths: WorkspacePaths) -> None:
    """After dbt has built them."""
    write_json(paths.root / _BUILT_FILE, _built_from(paths))


def export_aggregates(paths: WorkspacePaths) -> dict[str, int]:
    """Write the released models to `released/aggregates/<model>/part-0.parquet`; rows by model."""
    return export_tables(paths.warehouse, paths.released / "aggregates", AGGREGATES)


def _built_from(paths: WorkspacePaths) -> dict[str, Any]:
    models = [path for folder in ("models", "macros") for path in sorted((TRANSFORMS / folder).rglob("*"))]
    return {
        "releases": {record.release_id: record.file_hashes for record in released_records(paths.released)},
        "models": content_hash({path.name: path.read_text() for path in models if path.suffix in {".sql", ".yml"}}),
    }


def _tables(warehouse: Path) -> set[str]:
    with read_only(warehouse) as connection:
        return {row[0] for row in connection.execute("select table_name from information_schema.tables").fetchall()}


# ---------- the utility report


def utility_file(paths: WorkspacePaths, window: Window) -> Path:
    """Where a window's report lies, in the restricted zone."""
    return paths.root / "utility" / f"{window.start}.json"


def report_utility(paths: WorkspacePaths, record: ReleaseRecord) -> UtilityReport | None:
    """The report of a release: made on the night of the release, while the exact tables are there, then kept.

    None where there is none and the exact tables hold another window or grid: nobody can say how far the figures are
    off. The next night builds those of the release again.
    """
    path = utility_file(paths, record.window)
    if path.exists():
        return UtilityReport.model_validate_json(path.read_text())
    if not _exact_tables_hold(paths, record.window, record.grid["level"]):
        return None
    report = utility_report(
        paths.warehouse,
        paths.released / RELEASES / record.window_start.isoformat(),
        release_id=record.release_id,
        window=(record.window_start, record.window_end),
    )
    write_json(path, report.model_dump(mode="json"), 0o600)
    return report
