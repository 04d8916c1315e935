"""Retention: what is older than `retention` allows leaves the workspace.

Here: what has expired, and the order of the stores. Not here: how a store loses rows (`stores`,
`orchestration.ingest.removal`), who was erased (`erasure`).

Age counts on the data's clock, so that an archive that is replayed keeps its days. A dialogue expires with the day of
its first turn, in every table; a record whose dialogue has no turns, and a line in quarantine, with the day on which
its file arrived. The commit marks stay: an expired file is known, and is not read again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from orchestration.aggregates import places
from orchestration.console import progress
from orchestration.ingest.landed_file import Mark, part_path
from orchestration.ingest.landing import committed_files
from orchestration.ingest.parts import Keep, without
from orchestration.ingest.removal import expire_quarantine, mark_expired, remove_landed, settle_rewrites
from orchestration.personal_data.stores import (
    Leaving,
    remove_data_sets,
    remove_from_marts,
    remove_unsaid,
    rewrite_warehouse,
)
from orchestration.settings import TalktrackSettings
from orchestration.warehouse import data_clock
from orchestration.working_database import DUCKDB_CONFIG
from registry.privacy.release import delete_old_releases


@dataclass(frozen=True)
class RetentionReport:
    """What left, and what the rule was."""

    first_kept_day: date | None
    """Oldest dialogue day that stays; None: nothing expires."""
    rows: dict[str, int]
    """Rows that left, by store."""
    data_sets: tuple[str, ...] = ()
    releases: tuple[date, ...] = ()
    """Windows whose release was deleted."""


def apply_retention(settings: TalktrackSettings) -> RetentionReport:
    """Remove everything that has expired. Killed and called again, it finishes.

    Raises WarehouseError if another process writes to the working database.
    """
    paths = settings.paths
    releases = _delete_releases(settings)
    first = first_kept_day(settings)
    if first is None:
        return RetentionReport(None, {}, releases=releases)
    leaving = Leaving(before=first)
    rows = Counter({f"landing/{name}": n for name, n in expire_landing(settings).items()})
    progress("retention: working database")
    rows.update({f"warehouse/{name}": n for name, n in rewrite_warehouse(paths.warehouse, leaving).items()})
    rows.update({f"marts/{name}": n for name, n in remove_from_marts(paths.marts, leaving).items()})
    data_sets = remove_data_sets(paths, lambda manifest: _ends_before(manifest.get("window"), first))
    if rows["landing/turns"]:
        rows["features"] += remove_unsaid(paths.features, paths.landing)
    return RetentionReport(first, dict(+rows), tuple(folder.name for folder in data_sets), releases)


def first_kept_day(settings: TalktrackSettings) -> date | None:
    """The oldest dialogue day that stays; None while nothing is landed, or nothing ever expires."""
    clock, days = data_clock(settings.paths.landing), settings.retention.restricted_days
    return None if clock is None or days is None else clock.date() - timedelta(days=days)


def expire_landing(settings: TalktrackSettings) -> Counter[str]:
    """Remove what has expired from landing and quarantine; rows by table."""
    paths, first = settings.paths, first_kept_day(settings)
    gone: Counter[str] = Counter()
    if first is None:
        return gone
    progress("retention: landing")
    settle_rewrites(paths.landing)
    expired, living = _dialogues(paths.landing, first)
    for mark in committed_files(paths.landing):
        is_old = date.fromisoformat(mark["arrival_day"]) < first
        if not (is_old or expired):
            continue
        removal = remove_landed(paths.landing, [mark], _only(living) if is_old else without("dialogue_id", expired))
        gone.update(removal.rows)
        if is_old:
            gone["quarantine"] += expire_quarantine(paths.quarantine, paths.landing, mark)
            if not _has_rows(paths.landing, mark):
                mark_expired(paths.landing, mark)
    return +gone


def _dialogues(landing: Path, first: date) -> tuple[set[str], set[str]]:
    """Dialogues whose first turn lies before `first`, and the others that have a turn."""
    import duckdb

    if not any((landing / "turns").glob("arrival_day=*/*.parquet")):
        return set(), set()
    with duckdb.connect(config=DUCKDB_CONFIG) as connection:
        connection.execute("set TimeZone = 'UTC'")
        # The day of a dialogue, as int_dialogue_days has it: that of the turn with the lowest index.
        rows = connection.execute(
            """
            select dialogue_id, cast(arg_max(occurred_at, arrival) as date) < $first
            from (
                select dialogue_id, occurred_at, row(-turn_index, arrival_day, source, source_row) as arrival
                from read_parquet($turns, hive_partitioning = true, union_by_name = true)
            )
            group by dialogue_id
            """,
            {"first": first, "turns": str(landing / "turns" / "*" / "*.parquet")},
        ).fetchall()
    return {name for name, is_old in rows if is_old}, {name for name, is_old in rows if not is_old}


def _only(dialogues: set[str]) -> Keep:
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(sorted(dialogues), pa.string())
    return lambda rows: pc.is_in(rows.column("dialogue_id"), value_set=wanted)


def _has_rows(landing: Path, mark: Mark) -> bool:
    day = date.fromisoformat(mark["arrival_day"])
    return any(part_path(landing / table, day, mark["source"]).exists() for table in mark["parts"])


def _ends_before(window: list[str] | None, first: date) -> bool:
    """Whether all days of a data set have expired. The night's own is built anew every night from what is left."""
    return window is not None and bool(window[1]) and date.fromisoformat(window[1]) < first


def _delete_releases(settings: TalktrackSettings) -> tuple[date, ...]:
    clock, days = data_clock(settings.paths.landing), settings.retention.released_days
    if clock is None or days is None:
        return ()
    return tuple(delete_old_releases(places(settings), clock.date() - timedelta(days=days)))
