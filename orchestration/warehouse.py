"""What Python knows of the warehouse: what dbt is told, which days a night rebuilds, what leaves as Parquet.

Here: environment and vars of dbt, the plan of a build, the export of the marts, the logged behavior summed
up. Not here: what the log means (`transforms`), Dagster assets (`orchestration.assets.warehouse`).

A build is: `plan_build` → dbt with `plan.dbt_arguments` → `export_marts(…, plan.days)` → `remember_build`.
The last step is the commit mark: a night killed before it is planned again with the same days.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from orchestration.settings import PROJECT_ROOT, TalktrackSettings, WorkspacePaths
from registry.privacy.settings import GridLevel
from registry.privacy.windows import Window
from rl.catalogue import ActionCatalogue
from rl.encoders.customer_replies import CUSTOMER_ACTS
from rl.errors import TalktrackError
from rl.files import content_hash, replaced_file, write_json
from rl.settings import RewardPart, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

TRANSFORMS = PROJECT_ROOT / "transforms"
STATE_FILE = "warehouse_state.json"
LANDED_KINDS = ("turns", "outcomes", "decisions", "incomplete")
PARTS = ("conversion_value", "conversion", "rating", "engagement", "cost")
CLIPPED_PARTS = ("conversion_value", "rating")
NO_DAY = date(1970, 1, 1)
"""A day that no dialogue has: a build without touched days rebuilds this one."""

DUCKDB_CONFIG: dict[str, Any] = {"memory_limit": "4GB"}

_DAYS_PER_SCAN = 16
"""Days that an export copies out of a mart at once."""

FACTS = {
    "fct_dialogues": "dialogue_id",
    "fct_transitions": "dialogue_id, step_index",
    "fct_turns": "dialogue_id, turn_index",
}
"""Marts that leave by day, and the order of their rows in a file."""

DIMENSIONS = {"dim_strategies": "strategy_id", "dim_policies": "policy_version"}
"""Marts that leave whole, and the order of their rows."""


class WarehouseError(TalktrackError):
    """The working database or the marts are missing, locked or not what the plan says."""


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


class ExportReport(Settings):
    """What an export wrote."""

    rows: dict[str, int]
    """Rows written now, by model; for the facts of the exported days only."""

    days: tuple[date, ...]
    """Days exported, those that became empty included."""


class BehaviorSummary(Settings):
    """The logged behavior in numbers, from the exported marts. Means are per usable dialogue."""

    n_dialogues: int = 0
    n_usable: int = 0
    n_immature: int = 0
    n_incomplete: int = 0
    n_unlabelled: int = 0
    """Dialogues kept out because an agent turn carries no known label."""
    n_steps: int = 0
    """Steps of usable dialogues."""
    mean_return: float | None = None
    """Mean sum of rewards, in reward units; None without a usable dialogue."""
    mean_parts: dict[str, float] = Field(default_factory=dict)
    """Mean sum of each reward part, clipped and not weighted; `conversion` is the share that converted."""


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
    exported = _fact_files(marts, "fct_dialogues")
    with _in_memory() as connection:
        _touched_dialogues(connection, landing, new_sources)
        found = _days_of_touched(connection, landing)
        if exported:
            connection.execute(f"create view exported as from {_parquet(exported)}")
            found |= _days(connection, "select dialogue_day from exported semi join touched using (dialogue_id)")
            found |= _days_that_age(connection, as_of, attribution_days)
    return sorted(found)


def first_arrival_day(landing: Path, days: Sequence[date]) -> date | None:
    """The earliest arrival day of any turn of the dialogues of these days; None without such dialogues.

    The first turn of such a dialogue was said on one of the days, so dialogues without a turn on them are none.
    """
    if not days:
        return None
    turns = "read_parquet($turns, hive_partitioning = true, union_by_name = true)"
    with _in_memory() as connection:
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
            connection.execute(f"insert into touched select distinct dialogue_id from {_parquet(files)}")


def _days_of_touched(connection: duckdb.DuckDBPyConnection, landing: Path) -> set[date]:
    """The rule of `int_dialogue_days`, for the touched dialogues."""
    turns = str(landing / "turns" / "*" / "*.parquet")
    return _days(
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
    return _days(
        connection,
        """
        select dialogue_day from exported
        where is_mature <> (last_turn_at + to_days($attribution_days) <= cast($as_of as timestamptz))
        """,
        attribution_days=attribution_days,
        as_of=_as_utc(as_of),
    )


def _days(connection: duckdb.DuckDBPyConnection, query: str, **parameters: Any) -> set[date]:
    rows = connection.execute(f"select distinct dialogue_day from ({query})", parameters).fetchall()
    return {row[0] for row in rows}


# ---------- who writes


def wait_until_free(warehouse: Path, seconds: float = 180) -> None:
    """Wait until no other process writes to the working database, such as the dbt of a night that was killed.

    What that one had spilled to disk is removed: DuckDB does so only when it spills again.

    Raises WarehouseError when that takes longer than `seconds`, or the file is damaged.
    """
    import duckdb

    deadline = time.monotonic() + seconds
    while warehouse.exists():
        try:
            with duckdb.connect(str(warehouse), config=DUCKDB_CONFIG):
                shutil.rmtree(warehouse.with_name(f"{warehouse.name}.tmp"), ignore_errors=True)
            return
        except duckdb.IOException as error:
            if "lock" not in str(error):
                raise _damaged(warehouse) from None
            if time.monotonic() > deadline:
                raise WarehouseError(
                    f"{warehouse} has been held by another process for {seconds:.0f} s{_holder(str(error))}. Wait for "
                    "it, or end it, and run again."
                ) from None
            time.sleep(0.5)
        except duckdb.Error:
            raise _damaged(warehouse) from None


def _damaged(warehouse: Path) -> WarehouseError:
    return WarehouseError(
        f"{warehouse} is damaged. Remove it (and {warehouse.name}.wal beside it) and run again: it is rebuilt from the "
        "landing, nothing is lost."
    )


def _holder(error: str) -> str:
    found = re.search(r"PID \d+", error)
    return f" ({found[0]})" if found else ""


# ---------- what leaves as Parquet


def export_marts(warehouse: Path, marts: Path, days: Iterable[date] | None = None) -> ExportReport:
    """Write chosen days of the marts (None: all) to `<marts>/<model>/day=…/part-0.parquet`, dimensions whole.

    Each file is renamed into place; a day without rows loses its folder. Times are stored as UTC instants.
    Raises WarehouseError if the working database is missing or another process is writing to it.
    """
    chosen = None if days is None else sorted(set(days))
    with read_only(warehouse) as connection:
        if chosen is None:
            chosen = sorted(_all_days(connection) | _exported_days(marts))
        rows = {model: _export_days(connection, marts, model, chosen) for model in FACTS}
        for model, order in DIMENSIONS.items():
            rows[model] = _export(connection, marts / model / "part-0.parquet", f"from {model} order by {order}")
    return ExportReport(rows=rows, days=tuple(chosen))


def export_tables(warehouse: Path, folder: Path, orders: Mapping[str, str]) -> dict[str, int]:
    """Write whole tables to `<folder>/<table>/part-0.parquet`, in the order of columns given; rows by table.

    Raises what `export_marts` raises.
    """
    with read_only(warehouse) as connection:
        return {
            table: _export(connection, folder / table / "part-0.parquet", f"from {table} order by {order}")
            for table, order in orders.items()
        }


def _export_days(connection: duckdb.DuckDBPyConnection, marts: Path, model: str, days: Sequence[date]) -> int:
    """Rows written. A block of days is copied out of the model first: a build of all days leaves them in no order, so
    that every look for one day reads the whole table (100 days of 25,000 steps: 0.5 s a day alone, 0.2 s in blocks).
    """
    n_rows = 0
    for start in range(0, len(days), _DAYS_PER_SCAN):
        block = days[start : start + _DAYS_PER_SCAN]
        chosen = ", ".join(f"date '{day}'" for day in block)
        connection.execute(f"create or replace temp table block as from {model} where dialogue_day in ({chosen})")
        n_rows += sum(_export_day(connection, marts / model / f"day={day}", model, day) for day in block)
    connection.execute("drop table if exists block")
    return n_rows


def _export_day(connection: duckdb.DuckDBPyConnection, folder: Path, model: str, day: date) -> int:
    query = f"from block where dialogue_day = date '{day}'"
    if connection.execute(f"select 1 {query} limit 1").fetchone():
        return _export(connection, folder / "part-0.parquet", f"{query} order by {FACTS[model]}")
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _export(connection: duckdb.DuckDBPyConnection, path: Path, query: str) -> int:
    described = connection.execute(f"describe {query}").fetchall()
    instants = [f"timezone('UTC', {name}) as {name}" for name, kind, *_ in described if kind == "TIMESTAMP"]
    columns = f"* replace ({', '.join(instants)})" if instants else "*"
    with replaced_file(path) as temporary:
        target = str(temporary).replace("'", "''")
        copied = connection.execute(
            f"copy (select {columns} {query}) to '{target}' (format parquet, compression zstd)"
        ).fetchone()
    return int(copied[0]) if copied else 0


def _all_days(connection: duckdb.DuckDBPyConnection) -> set[date]:
    return set().union(*(_days(connection, f"select dialogue_day from {model}") for model in FACTS))


def _exported_days(marts: Path) -> set[date]:
    folders = (folder for model in FACTS for folder in (marts / model).glob("day=*"))
    return {date.fromisoformat(folder.name.partition("=")[2]) for folder in folders}


# ---------- the logged behavior in numbers


def behavior_summary(marts: Path, first_day: date | None = None, last_day: date | None = None) -> BehaviorSummary:
    """Count the dialogues of the exported marts and average the returns of the usable ones.

    `first_day` and `last_day` (inclusive) narrow it to dialogues of those days.
    """
    dialogues, transitions = _fact_files(marts, "fct_dialogues"), _fact_files(marts, "fct_transitions")
    if not dialogues:
        return BehaviorSummary()
    with _in_memory() as connection:
        connection.execute(f"create view dialogues as from {_parquet(dialogues)}")
        window = {"first": first_day or date.min, "last": last_day or date.max}
        counts = _counts(connection, window)
        usable = counts["n_usable"]
        parts = _part_sums(connection, transitions, window) if usable and transitions else {}
    return BehaviorSummary(**counts, mean_parts={name: total / usable for name, total in parts.items()})


def _counts(connection: duckdb.DuckDBPyConnection, window: dict[str, date]) -> dict[str, Any]:
    cursor = connection.execute(
        """
        select
            count(*) as n_dialogues,
            count(*) filter (is_usable) as n_usable,
            count(*) filter (not is_mature) as n_immature,
            count(*) filter (is_incomplete) as n_incomplete,
            count(*) filter (n_unlabelled_steps > 0) as n_unlabelled,
            coalesce(sum(n_steps) filter (is_usable), 0) as n_steps,
            avg(episode_return) filter (is_usable) as mean_return
        from dialogues
        where dialogue_day between $first and $last
        """,
        window,
    )
    names = [column[0] for column in cursor.description or []]
    return dict(zip(names, cursor.fetchone() or (), strict=True))


def _part_sums(
    connection: duckdb.DuckDBPyConnection, transitions: list[Path], window: dict[str, date]
) -> dict[str, float]:
    sums = ", ".join(f"sum(reward_{name})" for name in PARTS)
    row = connection.execute(
        f"""
        select {sums}
        from {_parquet(transitions)}
        semi join (
            from dialogues where is_usable and dialogue_day between $first and $last
        ) using (dialogue_id)
        """,
        window,
    ).fetchone()
    return dict(zip(PARTS, row or (), strict=True))


# ---------- DuckDB


def _parquet(files: Iterable[Path]) -> str:
    """These files as a table. A view takes no parameters, so the names are written out."""
    names = ", ".join("'" + str(path).replace("'", "''") + "'" for path in files)
    return f"read_parquet([{names}], hive_partitioning = false)"


def _fact_files(marts: Path, model: str) -> list[Path]:
    return sorted((marts / model).glob("day=*/part-0.parquet"))


def _as_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


@contextmanager
def _in_memory() -> Iterator[duckdb.DuckDBPyConnection]:
    import duckdb

    with duckdb.connect(config=DUCKDB_CONFIG) as connection:
        connection.execute("set TimeZone = 'UTC'")
        yield connection


@contextmanager
def read_only(warehouse: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that reads the working database and writes nothing, in UTC.

    Raises WarehouseError if the file is missing or another process writes to it.
    """
    import duckdb

    if not warehouse.exists():
        raise WarehouseError(f"There is no working database at {warehouse}. Run `talktrack nightly` to build it.")
    try:
        connection = duckdb.connect(str(warehouse), read_only=True, config=DUCKDB_CONFIG)
    except duckdb.IOException:
        raise WarehouseError(
            f"{warehouse} cannot be opened for reading: another process writes to it, or it is no DuckDB "
            "file. Wait for the other run (or close the program that holds it) and run again."
        ) from None
    with connection:
        connection.execute("set TimeZone = 'UTC'")
        yield connection
