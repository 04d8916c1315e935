"""What Python knows of a build of the warehouse: what dbt is told, and which days a night rebuilds.

Here: environment and vars of dbt, the plan of a build. Not here: what the log means (`transforms`), the database
itself (`orchestration.working_database`), what leaves it (`orchestration.marts`), Dagster assets.

A build is: `plan_build` → dbt with `plan.dbt_arguments` → `export_marts(…, plan.days)` → `remember_build`.
The last step is the commit mark: a night killed before it is planned again with the same days.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.marts import PARTS, fact_files
from orchestration.settings import PROJECT_ROOT, TalktrackSettings, WorkspacePaths
from orchestration.working_database import dialogue_days, in_memory, parquet_table
from registry.privacy.settings import GridLevel
from registry.privacy.windows import Window
from rl.catalogue import ActionCatalogue
from rl.encoders.customer_replies import CUSTOMER_ACTS
from rl.files import content_hash, replaced_file, write_json
from rl.settings import RewardPart, Settings

if TYPE_CHECKING:
    import duckdb

TRANSFORMS = PROJECT_ROOT / "transforms"
STATE_FILE = "warehouse_state.json"
LANDED_KINDS = ("turns", "outcomes", "decisions", "incomplete")
CLIPPED_PARTS = ("conversion_value", "rating")
NO_DAY = date(1970, 1, 1)
"""A day that no dialogue has: a build without touched days rebuilds this one."""


class WarehouseState(Settings):
    """What the exported marts were built from."""

    sources: tuple[str, ...] = ()
    """Names of the landed source files that are in the marts."""

    as_of: datetime | None = None
    """Clock of the data at the last build."""

    definition: str = ""
    """Hash of everything that gives the marts their meaning: models, reward, attribution, catalogue."""


class BuildPlan(Settings):
    """What one build has to do, and what it will have done."""

    days: tuple[date, ...] | None
    """Dialogue days to rebuild and export, in order; None: all of them; empty: nothing changed."""

    first_arrival_day: date | None = None
    """Earliest arrival of a turn of a dialogue of these days; dbt reads no older landing. None: it reads all."""

    reason: str
    """Why, in one sentence for the log."""

    n_new_sources: int
    state: WarehouseState
    """The state to remember once the marts are exported."""

    @property
    def is_full(self) -> bool:
        """Whether every day is rebuilt."""
        return self.days is None

    @property
    def has_work(self) -> bool:
        """Whether there is anything to rebuild."""
        return self.days is None or len(self.days) > 0

    def dbt_arguments(
        self, settings: TalktrackSettings, window: Window | None = None, grid: GridLevel = "turn"
    ) -> list[str]:
        """Arguments of `dbt build` for this plan. Without touched days it rebuilds none and runs the tests.

        `window` is the one whose exact tables are to be built for a private release, at level `grid`; None: none.
        """
        days = self.days or (NO_DAY,)
        first, last = (None, None) if self.is_full else (days[0], days[-1])
        variables = dbt_vars(settings, first, last, self.state.as_of, window=window, grid=grid)
        if not self.is_full:
            variables["days_to_rebuild"] = [day.isoformat() for day in days]
            variables["min_arrival_day"] = self.first_arrival_day.isoformat() if self.first_arrival_day else ""
        return ["build", "--vars", json.dumps(variables), *(["--full-refresh"] if self.is_full else [])]


# ---------- what dbt is told


def write_catalogue(catalogue: ActionCatalogue, path: Path) -> Path:
    """Write the action catalogue with its dense ids as the CSV that dbt reads."""
    with replaced_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["strategy_id", "strategy", "description", "priority", "role"])
        writer.writerows(
            [number, s.strategy, s.description, s.priority, s.role] for number, s in enumerate(catalogue.strategies)
        )
    return path


def dbt_environment(settings: TalktrackSettings, catalogue_file: Path) -> dict[str, str]:
    """Environment variables under which dbt builds this workspace; to be laid over the process's own."""
    paths = settings.paths
    return {
        "TALKTRACK_LANDING": str(paths.landing),
        "TALKTRACK_CATALOGUE": str(catalogue_file),
        "TALKTRACK_WAREHOUSE": str(paths.warehouse),
        "TALKTRACK_RELEASED": str(paths.released),
        "DBT_PROFILES_DIR": str(TRANSFORMS),
        # Unit tests judge the models, not the data: they run in the project's tests and in plain `dbt build`.
        "DBT_EXCLUDE_RESOURCE_TYPES": "unit_test",
        "DO_NOT_TRACK": "true",
    }


def dbt_vars(
    settings: TalktrackSettings,
    min_date: date | None = None,
    max_date: date | None = None,
    as_of: datetime | None = None,
    *,
    window: Window | None = None,
    grid: GridLevel = "turn",
) -> dict[str, Any]:
    """Vars of `dbt build`: the day range (both or none), the clock of the data, the reward definition, and the bounds
    and keys of private aggregates.

    `window` and `grid` are those of the release that is due; without a window the exact tables stay empty.
    """
    return {
        "min_date": min_date.isoformat() if min_date else "",
        "max_date": max_date.isoformat() if max_date else "",
        "as_of": _as_utc(as_of).strftime("%Y-%m-%d %H:%M:%S.%f") if as_of else "",
        **_meaning_vars(settings),
        **_privacy_vars(settings, window, grid),
    }


def _meaning_vars(settings: TalktrackSettings) -> dict[str, Any]:
    """What gives the marts their meaning. A reward part that the definition does not name has weight 0."""
    parts: dict[str, RewardPart] = {part.name: part for part in settings.dataset.reward.parts}
    variables: dict[str, Any] = {"attribution_days": settings.logs.attribution_days}
    for name in PARTS:
        part = parts.get(name)
        variables[f"reward_{name}_weight"] = float(part.weight) if part else 0.0
        if part and name in CLIPPED_PARTS:
            variables[f"reward_{name}_clip_low"] = float(part.clip_low)
            variables[f"reward_{name}_clip_high"] = float(part.clip_high)
    return variables


def _privacy_vars(settings: TalktrackSettings, window: Window | None, grid: GridLevel) -> dict[str, Any]:
    """Bounds and public keys of the exact tables. The salt is the window's own; it need not be secret, only blind."""
    privacy = settings.privacy
    return {
        "privacy_window_start": window.start.isoformat() if window else "",
        "privacy_window_end": window.end.isoformat() if window else "",
        "privacy_grid": grid,
        "privacy_turn_edges": list(privacy.turn_edges),
        "privacy_segments": list(privacy.segments),
        "privacy_customer_acts": list(CUSTOMER_ACTS),
        "privacy_max_cells": privacy.max_cells,
        "privacy_max_rows_per_cell": privacy.max_rows_per_cell,
        "privacy_reward_low": privacy.reward_low,
        "privacy_reward_high": privacy.reward_high,
        "privacy_salt": f"{settings.workspace}|{window.start}" if window else "",
        "privacy_validation_share": settings.dataset.validation_share,
    }


# ---------- which days a night rebuilds


def data_clock(landing: Path) -> datetime | None:
    """The end of the newest arrival day, UTC: up to then the log is known. None while nothing landed."""
    names = (folder.name.partition("=")[2] for kind in LANDED_KINDS for folder in landing.glob(f"{kind}/arrival_day=*"))
    newest = max((name for name in names if name > "1970-01-01"), default=None)
    if newest is None:
        return None
    return datetime.fromisoformat(newest).replace(tzinfo=UTC) + timedelta(days=1)


def landed_sources(landing: Path) -> set[str]:
    """Names of the source files whose landing is complete."""
    return {path.stem for path in (landing / "_files").glob("*.json")}


def touched_days(
    landing: Path, marts: Path, new_sources: Collection[str], *, as_of: datetime | None, attribution_days: int
) -> list[date]:
    """Dialogue days that differ from the exported marts, in order.

    These are the days of every dialogue with a record in `new_sources`, the days under which the marts have
    those dialogues now (a late first turn moves one), and the days of dialogues whose maturity changes.
    """
    exported = fact_files(marts, "fct_dialogues")
    with in_memory() as connection:
        _touched_dialogues(connection, landing, new_sources)
        found = _days_of_touched(connection, landing)
        if exported:
            connection.execute(f"create view exported as from {parquet_table(exported)}")
            found |= dialogue_days(
                connection, "select dialogue_day from exported semi join touched using (dialogue_id)"
            )
            found |= _days_that_age(connection, as_of, attribution_days)
    return sorted(found)


def first_arrival_day(landing: Path, days: Sequence[date]) -> date | None:
    """The earliest arrival day of any turn of the dialogues of these days; None without such dialogues.

    The first turn of such a dialogue was said on one of the days, so dialogues without a turn on them are none.
    """
    if not days:
        return None
    turns = "read_parquet($turns, hive_partitioning = true, union_by_name = true)"
    with in_memory() as connection:
        row = connection.execute(
            f"""
            select cast(min(arrival_day) as date)
            from {turns}
            semi join (
                select dialogue_id
                from {turns}
                where
                    occurred_at >= $first and occurred_at < $end
                    and list_contains($days, cast(occurred_at as date))
            ) using (dialogue_id)
            """,
            {
                "turns": str(landing / "turns" / "*" / "*.parquet"),
                "first": datetime.combine(min(days), datetime.min.time(), UTC),
                "end": datetime.combine(max(days) + timedelta(days=1), datetime.min.time(), UTC),
                "days": list(days),
            },
        ).fetchone()
    return row[0] if row else None


def plan_build(settings: TalktrackSettings, catalogue_file: Path, as_of: datetime | None = None) -> BuildPlan:
    """Decide what to rebuild: everything when the meaning of the marts changed, else the touched days.

    `as_of` defaults to the data's own clock. Everything is also rebuilt when the working database, the marts or
    the state are missing, or when a source that was built is no longer landed.
    """
    paths = settings.paths
    sources = landed_sources(paths.landing)
    as_of = _as_utc(as_of) if as_of else data_clock(paths.landing)
    definition = _definition(settings, catalogue_file)
    state = read_state(paths.root)
    built = WarehouseState(sources=tuple(sorted(sources)), as_of=as_of, definition=definition)
    new = sources - set(state.sources)
    if reason := _reason_to_rebuild_all(state, built, paths):
        return BuildPlan(days=None, reason=reason, n_new_sources=len(new), state=built)
    days = touched_days(paths.landing, paths.marts, new, as_of=as_of, attribution_days=settings.logs.attribution_days)
    return BuildPlan(
        days=tuple(days),
        first_arrival_day=first_arrival_day(paths.landing, days),
        reason=f"{len(new)} new source files and the passing of time touch {len(days)} dialogue days.",
        n_new_sources=len(new),
        state=built,
    )


def read_state(workspace: Path) -> WarehouseState:
    """What the marts of this workspace were built from; empty before the first build."""
    path = workspace / STATE_FILE
    if not path.exists():
        return WarehouseState()
    return WarehouseState.model_validate_json(path.read_text())


def remember_build(workspace: Path, plan: BuildPlan) -> None:
    """Commit a build whose marts are exported."""
    write_json(workspace / STATE_FILE, plan.state.model_dump(mode="json"))


def forget_build(workspace: Path) -> None:
    """Have the next night rebuild every day: what the marts were built from is no longer as it was."""
    (workspace / STATE_FILE).unlink(missing_ok=True)


def _reason_to_rebuild_all(state: WarehouseState, built: WarehouseState, paths: WorkspacePaths) -> str | None:
    if not state.definition:
        return "Nothing was built before: all days."
    if not paths.warehouse.exists() or not (paths.marts / "dim_strategies" / "part-0.parquet").exists():
        return "The working database or the exported marts are missing: all days."
    if state.definition != built.definition:
        return "The models, the reward, the attribution window or the catalogue changed: all days."
    if set(state.sources) - set(built.sources):
        return "Source files that were built are no longer landed: all days."
    return None


def _definition(settings: TalktrackSettings, catalogue_file: Path) -> str:
    """Hash of what gives the marts their meaning. The aggregates come after them and are built whole."""
    files = [path for folder in ("models", "macros") for path in sorted((TRANSFORMS / folder).rglob("*.sql"))]
    models = [path for path in files if path.parent.name != "aggregates"]
    return content_hash(
        {
            "vars": _meaning_vars(settings),
            "catalogue": catalogue_file.read_text(),
            "project": (TRANSFORMS / "dbt_project.yml").read_text(),
            "models": {path.name: path.read_text() for path in models},
        }
    )


def _touched_dialogues(connection: duckdb.DuckDBPyConnection, landing: Path, sources: Collection[str]) -> None:
    connection.execute("create table touched (dialogue_id varchar)")
    for kind in LANDED_KINDS:
        landed = (landing / kind).glob("arrival_day=*/*.parquet")
        files = sorted(path for path in landed if path.stem in sources)
        if files:
            connection.execute(f"insert into touched select distinct dialogue_id from {parquet_table(files)}")


def _days_of_touched(connection: duckdb.DuckDBPyConnection, landing: Path) -> set[date]:
    """The rule of `int_dialogue_days`, for the touched dialogues."""
    turns = str(landing / "turns" / "*" / "*.parquet")
    return dialogue_days(
        connection,
        """
        select cast(arg_max(occurred_at, arrival) as date) as dialogue_day
        from (
            select dialogue_id, occurred_at, row(-turn_index, arrival_day, source, source_row) as arrival
            from read_parquet($turns, hive_partitioning = true, union_by_name = true)
        )
        semi join touched using (dialogue_id)
        group by dialogue_id
        """,
        turns=turns,
    )


def _days_that_age(connection: duckdb.DuckDBPyConnection, as_of: datetime | None, attribution_days: int) -> set[date]:
    if as_of is None:
        return set()
    return dialogue_days(
        connection,
        """
        select dialogue_day from exported
        where is_mature <> (last_turn_at + to_days($attribution_days) <= cast($as_of as timestamptz))
        """,
        attribution_days=attribution_days,
        as_of=_as_utc(as_of),
    )


def _as_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
