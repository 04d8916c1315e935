"""`talktrack erase`: a customer leaves a workspace, the bytes are searched, and what was done is on record.

Here: who has to go, the order of the stores, the verdict. Not here: how a store loses rows (`stores`,
`orchestration.ingest.removal`), the record (`erasure_log`), the search (`identity_scan`).

The order makes a kill harmless: first the tombstones, so that no later reading brings the customer back and a second
run still knows their dialogues; then every store, each as a whole; then the search. Run again, it finishes.

Released aggregates stay. They are noisy sums under user-level differential privacy: what they say about one customer
is bounded by the window's budget, whoever asks. Computing an old release again without the customer would be a
second release of nearly the same data, and the difference between the two would tell what the erasure should hide.
"""

from __future__ import annotations

import getpass
import shutil
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.aggregates import forget_exact_window
from orchestration.console import progress
from orchestration.ingest.landed_file import STAGING
from orchestration.ingest.landing import committed_files
from orchestration.ingest.parts import without
from orchestration.ingest.pseudonyms import PseudonymKeys
from orchestration.ingest.removal import (
    landed_marks,
    quarantined_in,
    remove_landed,
    remove_quarantined,
    settle_rewrites,
)
from orchestration.ingest.tombstones import Tombstones, read_tombstones
from orchestration.lock import workspace_lock
from orchestration.personal_data.erasure_log import (
    ERASED,
    INCOMPLETE,
    NOT_HELD,
    NOTHING_LEFT,
    STARTED,
    ErasureLog,
    ErasureRow,
)
from orchestration.personal_data.identity_scan import Needles, ScanReport, scan
from orchestration.personal_data.rekey import refuse_unfinished, workspace_keys
from orchestration.personal_data.stores import (
    Leaving,
    remove_data_sets,
    remove_from_marts,
    remove_rows_of_models,
    remove_unsaid,
    rewrite_warehouse,
)
from orchestration.personal_data.trained_models import TrainedModel, covers, models_of_days
from orchestration.sample import sample_folder
from orchestration.settings import TalktrackSettings
from orchestration.warehouse import TRANSFORMS
from orchestration.working_database import DUCKDB_CONFIG, wait_until_free
from rl.errors import DataError

if TYPE_CHECKING:
    import duckdb

KEPT = (
    "Released aggregates and what was computed from them alone: user-level zCDP bounds what they say about one "
    "customer; releasing them again without the customer would be a differencing pair."
)
TEXTS_SEARCHED = 20
"""So many of the longest utterances that nobody else said are searched for."""

SHORTEST_TEXT = 12


@dataclass
class Held:
    """What a workspace holds of the customers of a request."""

    dialogues: set[str] = field(default_factory=set, repr=False)
    customers: set[str] = field(default_factory=set, repr=False)
    """Their pseudonyms, and ids of dialogues that the log gave to no customer."""
    days: set[date] = field(default_factory=set)
    """Dialogue days."""
    sources: set[str] = field(default_factory=set)
    """Paths of the source files that brought them."""
    texts: set[str] = field(default_factory=set, repr=False)
    """Some of what only they said."""


@dataclass(frozen=True)
class ErasureReport:
    """What became of a request."""

    request_id: str
    outcome: str
    """erased | nothing left | not held | incomplete."""
    rows: dict[str, int]
    """Rows that left, by store."""
    files: tuple[str, ...]
    """Files rewritten or removed, relative to the workspace."""
    sources: tuple[str, ...]
    """Source files, not ours to change, that held the customers when they were read."""
    models: tuple[TrainedModel, ...]
    scan: ScanReport | None


def erase(
    settings: TalktrackSettings, customer_ids: Iterable[str], *, request_id: str | None = None, reapply: bool = False
) -> ErasureReport:
    """Erase customers by the ids that the logs give them; `reapply` erases everyone with a tombstone once more.

    A dialogue without a customer counts as a customer of its own: its dialogue id is accepted.

    Raises
    ------
    DataError
        If no id is given.
    LostKeyError
        If the landing was made with a key that is not here: nobody can be found then.
    WorkspaceBusyError
        If a night is running.
    """
    ids = frozenset(name.strip() for name in customer_ids if name.strip())
    if not ids and not reapply:
        raise DataError("No customer id was given. Use --customer-id, or --from-file with one id a line.")
    paths = settings.paths
    with workspace_lock(paths.root, exclusive=True, holder="talktrack erase"):
        refuse_unfinished(settings)
        progress("look for them")
        settle_rewrites(paths.landing)
        shutil.rmtree(paths.landing / STAGING, ignore_errors=True)
        request = _Request(
            settings,
            ids,
            keys=workspace_keys(settings),
            tombstones=read_tombstones(paths.erasures, paths.secrets, to_write=True),
            request_id=request_id or uuid.uuid4().hex[:12],
        )
        return request.carried_out(reapply)


class _Request:
    """One request in one workspace."""

    def __init__(
        self,
        settings: TalktrackSettings,
        ids: frozenset[str],
        *,
        keys: PseudonymKeys,
        tombstones: Tombstones,
        request_id: str,
    ) -> None:
        self.settings, self.paths = settings, settings.paths
        self.ids, self.tombstones, self.request_id = ids, tombstones, request_id
        self.digests = frozenset(tombstones.digest("customer", name) for name in ids)
        self.pseudonyms = frozenset(p for name in ids for p in keys.pseudonyms(name))
        self.log = ErasureLog(self.paths.erasures)
        self.rows: Counter[str] = Counter()
        self.files: list[Path] = []

    def carried_out(self, reapply: bool) -> ErasureReport:
        """Find, remove, search, record."""
        earlier = self.log.about(self.digests)
        held = held_of(self.settings, self.ids, self.pseudonyms, self.tombstones)
        held.days |= _days_of(earlier)
        is_open = bool(earlier) and earlier[-1].outcome in (STARTED, INCOMPLETE)
        if not (held.dialogues or held.customers or is_open):
            return self._nothing(held, earlier)
        if not reapply:
            self.tombstones = self.tombstones.with_digests(
                customers=self.digests,
                pseudonyms=(self.tombstones.digest("pseudonym", name) for name in self.pseudonyms),
                dialogues=(self.tombstones.digest("dialogue", name) for name in held.dialogues),
            )
        self._record(STARTED, {"days": sorted(day.isoformat() for day in held.days)})
        self._remove(held)
        progress("list models")
        models = tuple(models_of_days(self.settings, held.days))
        progress("search every file")
        found = _searched(self.settings, Needles(frozenset(self.ids | self.pseudonyms | held.dialogues), _texts(held)))
        outcome = INCOMPLETE if found.found else ERASED
        return self._finished(outcome, held, models, found)

    def _remove(self, held: Held) -> None:
        leaving = Leaving(held.dialogues, held.customers | self.pseudonyms)
        paths = self.paths
        progress("data sets")
        self.files += remove_data_sets(paths, lambda manifest: covers(manifest.get("window"), held.days))
        self.files += remove_rows_of_models(paths)
        progress("marts")
        self._count("marts", remove_from_marts(paths.marts, leaving))
        progress("working database")
        forget_exact_window(paths.root)
        self._count("warehouse", rewrite_warehouse(paths.warehouse, leaving, always=True))
        self.files += [path for path in (paths.warehouse, paths.marts) if path.exists()]
        progress("landing")
        removal = remove_landed(paths.landing, landed_marks(paths.landing), without("dialogue_id", held.dialogues))
        remove_quarantined(paths.quarantine, paths.landing, held.dialogues, removal)
        self._count("landing", removal.rows)
        self.files += removal.files
        progress("vectors")
        if n_vectors := remove_unsaid(paths.features, paths.landing):
            self.rows["features"] += n_vectors
            self.files.append(paths.features)

    def _count(self, store: str, rows: Mapping[str, int]) -> None:
        self.rows.update({f"{store}/{name}": n for name, n in rows.items()})

    def _nothing(self, held: Held, earlier: list[ErasureRow]) -> ErasureReport:
        """Nobody is here: erased before, or never was. The person at the terminal is told neither."""
        outcome = NOTHING_LEFT if earlier and any(row.outcome == ERASED for row in earlier) else NOT_HELD
        models = tuple(models_of_days(self.settings, held.days))
        return self._finished(outcome, held, models, None)

    def _finished(
        self, outcome: str, held: Held, models: tuple[TrainedModel, ...], found: ScanReport | None
    ) -> ErasureReport:
        report = ErasureReport(
            request_id=self.request_id,
            outcome=outcome,
            rows=dict(self.rows),
            files=tuple(_relative(self.files, self.paths.root)),
            sources=tuple(sorted(held.sources)),
            models=models,
            scan=found,
        )
        self._record(outcome, self._details(report, held))
        return report

    def _details(self, report: ErasureReport, held: Held) -> dict[str, Any]:
        found = report.scan
        searched: dict[str, Any] = {}
        if found is not None:
            searched = {
                "files": found.n_files,
                "bytes": found.n_bytes,
                "found": _relative(found.found, self.paths.root),
                "unreadable": _relative(found.unreadable, self.paths.root),
            }
        return {
            "days": sorted(day.isoformat() for day in held.days),
            "rows": report.rows,
            "files": list(report.files),
            "sources": list(report.sources),
            "models": [model.to_json() for model in report.models],
            "search": searched,
            "kept": KEPT,
        }

    def _record(self, outcome: str, details: dict[str, Any]) -> None:
        self.log.record(
            request_id=self.request_id,
            actor=getpass.getuser(),
            customers=self.digests,
            outcome=outcome,
            details=details,
        )


# ---------- who is there


def held_of(
    settings: TalktrackSettings, ids: Collection[str], pseudonyms: Collection[str], tombstones: Tombstones
) -> Held:
    """What the landing, the marts and the working database hold of these customers, or of anyone with a tombstone.

    A store that a killed erasure has emptied already does not matter: each is asked, and the tombstones know.
    """
    import duckdb

    paths, held = settings.paths, Held()
    wait_until_free(paths.warehouse)
    with duckdb.connect(config=DUCKDB_CONFIG) as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.execute("create table known (dialogue_id varchar, customer_id varchar, day date, source varchar)")
        _gather_landing(connection, paths.landing)
        _gather_quarantine(connection, paths.quarantine)
        _gather_marts(connection, paths.marts)
        _gather_warehouse(connection, paths.warehouse)
        _choose(connection, held, ids, pseudonyms, tombstones)
        sources = {mark["source"]: mark["path"] for mark in committed_files(paths.landing)}
        held.sources = {sources[name] for name in held.sources if name in sources}
        held.texts = _only_theirs(connection, paths.landing, held.dialogues)
    return held


def _gather_landing(connection: duckdb.DuckDBPyConnection, landing: Path) -> None:
    for table, customer, day in (
        ("turns", "customer_id", "cast(occurred_at as date)"),
        ("decisions", "customer_id", "cast(occurred_at as date)"),
        ("outcomes", "null", "null"),
        ("incomplete", "null", "null"),
    ):
        if any((landing / table).glob("arrival_day=*/*.parquet")):
            files = str(landing / table / "*" / "*.parquet")
            connection.execute(
                f"insert into known select distinct dialogue_id, {customer}, {day}, source "
                "from read_parquet($files, hive_partitioning = false, union_by_name = true)",
                {"files": files},
            )


def _gather_quarantine(connection: duckdb.DuckDBPyConnection, quarantine: Path) -> None:
    found = [(name, path.stem) for path in quarantine.glob("arrival_day=*/*.jsonl") for name in quarantined_in(path)]
    connection.execute(
        "insert into known select unnest($dialogues::varchar[]), null, null, unnest($sources::varchar[])",
        {"dialogues": [name for name, _ in found], "sources": [source for _, source in found]},
    )


def _gather_marts(connection: duckdb.DuckDBPyConnection, marts: Path) -> None:
    for model, customer in (("fct_dialogues", "customer_id"), ("fct_transitions", "null"), ("fct_turns", "null")):
        if any((marts / model).glob("day=*/*.parquet")):
            files = str(marts / model / "*" / "*.parquet")
            connection.execute(
                f"insert into known select distinct dialogue_id, {customer}, dialogue_day, null "
                "from read_parquet($files, hive_partitioning = false, union_by_name = true)",
                {"files": files},
            )


def _gather_warehouse(connection: duckdb.DuckDBPyConnection, warehouse: Path) -> None:
    if not warehouse.exists():
        return
    file = str(warehouse).replace("'", "''")
    connection.execute(f"attach '{file}' as warehouse (read_only)")
    tables = connection.execute(
        "select table_name, list(column_name) from duckdb_columns() semi join "
        "(from duckdb_tables() where database_name = 'warehouse') using (database_name, table_name) group by table_name"
    ).fetchall()
    for table, columns in tables:
        if "dialogue_id" in columns:
            customer = "customer_id" if "customer_id" in columns else "null"
            connection.execute(
                f'insert into known select distinct dialogue_id, {customer}, null, null from warehouse.main."{table}"'
            )
    connection.execute("detach warehouse")


def _choose(
    connection: duckdb.DuckDBPyConnection,
    held: Held,
    ids: Collection[str],
    pseudonyms: Collection[str],
    tombstones: Tombstones,
) -> None:
    """Their dialogues: by customer, by tombstone, and the unnamed customer whose dialogue id was given."""
    named = dict(
        connection.execute(
            "select dialogue_id, bool_or(customer_id is not null and customer_id <> dialogue_id) from known group by 1"
        ).fetchall()
    )
    by_customer = connection.execute("select distinct customer_id, dialogue_id from known").fetchall()
    for customer, dialogue in by_customer:
        if customer is not None and (customer in pseudonyms or tombstones.has_pseudonym(customer)):
            held.customers.add(customer)
            held.dialogues.add(dialogue)
    unnamed = {name for name in ids if name in named and not named[name]}
    held.dialogues |= unnamed | {name for name in named if tombstones.has_dialogue(name)}
    held.customers |= unnamed
    connection.execute("create table theirs as select unnest(?::varchar[]) as dialogue_id", [sorted(held.dialogues)])
    rows = connection.execute("select distinct day, source from known semi join theirs using (dialogue_id)").fetchall()
    held.days = {day for day, _ in rows if day is not None}
    held.sources = {source for _, source in rows if source is not None}


def _only_theirs(connection: duckdb.DuckDBPyConnection, landing: Path, dialogues: Collection[str]) -> set[str]:
    """The longest utterances of these dialogues that occur in no other."""
    if not dialogues or not any((landing / "turns").glob("arrival_day=*/*.parquet")):
        return set()
    rows = connection.execute(
        """
        with said as (
            select text, content_hash, dialogue_id in (from theirs) as is_theirs
            from read_parquet($files, hive_partitioning = false, union_by_name = true)
        )
        select min(text) as text from said group by content_hash
        having bool_and(is_theirs) and length(min(text)) >= $shortest
        order by length(min(text)) desc limit $n
        """,
        {"files": str(landing / "turns" / "*" / "*.parquet"), "shortest": SHORTEST_TEXT, "n": TEXTS_SEARCHED},
    ).fetchall()
    return {text for (text,) in rows}


def _texts(held: Held) -> frozenset[str]:
    return frozenset(held.texts)


def _days_of(rows: Iterable[ErasureRow]) -> set[date]:
    return {date.fromisoformat(day) for row in rows for day in row.content.get("days", ())}


# ---------- the search


def _searched(settings: TalktrackSettings, needles: Needles) -> ScanReport:
    """Every file of the workspace and of the home, but for the logs themselves, the keys and other workspaces."""
    paths = settings.paths
    others = [path.parent for path in paths.home.glob("*/landing") if path.parent != paths.root]
    leave_out = [paths.secrets, sample_folder(settings), *others]
    if settings.logs.path and "://" not in settings.logs.path:
        leave_out.append(Path(settings.logs.path))
    roots = [paths.root, paths.home, TRANSFORMS / "target", TRANSFORMS / "logs"]
    return scan(roots, needles, leave_out=leave_out)


def _relative(files: Iterable[Path], root: Path) -> list[str]:
    return sorted({str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in files})
