"""From source files to the landing: validated, scrubbed, pseudonymised Parquet by arrival day, and quarantine.

Here: which files are new, and what becomes of earlier versions of a file. Not here: one file's way into the landing
(`landed_file`), formats (`readers`), duplicates across files (dbt keeps the row of the last arrival per dialogue and
turn).

A file is known by its content: `<source>` is the start of its hash, and `_files/<source>.json`, written last, says
that it is landed. So a file read twice changes nothing, and a kill at any moment is repaired by the next run. A part
that was cut off or lost since is read again from its source; without the source, ingest stops and says so. A file
that changed under the same path and arrival day replaces what was read of it; under a later arrival day its rows win
over the older ones, and it clears the incomplete marks of the dialogues that it brings again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from orchestration.ingest.landed_file import (
    MARKS,
    OWNER_ONLY,
    PRIVATE,
    STAGING,
    LandingTask,
    Mark,
    damaged_part,
    land_file,
    mark_path,
    part_path,
    processing_versions,
)
from orchestration.ingest.parts import remove_rows, without
from orchestration.ingest.pseudonyms import PseudonymKey
from orchestration.ingest.removal import remove_dialogues, rewritten, settle_rewrites
from orchestration.ingest.schema import SCHEMAS, priorities
from orchestration.ingest.sources import SourceFile, find_sources
from orchestration.ingest.tombstones import Tombstones, no_tombstones
from orchestration.processes import die_with_parent
from rl.catalogue import ActionCatalogue
from rl.errors import DataError
from rl.files import content_hash, replaced_file
from rl.settings import ScrubbingSettings

EMPTY_DAY = "1970-01-01"

# Below this (about 75,000 records in gzip) a second process costs more than it saves: starting one takes a second.
_PARALLEL_BYTES = 4_000_000


@dataclass(frozen=True)
class IngestReport:
    """What a run of ingest did. Counts concern the files read in this run."""

    n_files_read: int = 0
    n_files_skipped: int = 0
    n_records: int = 0
    n_turns: int = 0
    n_outcomes: int = 0
    n_decisions: int = 0
    n_dialogues: int = 0
    n_quarantined: int = 0
    n_incomplete: int = 0
    n_erased: int = 0
    """Records of customers who were erased: kept out, and nowhere else counted."""

    arrival_days: tuple[date, ...] = ()
    """Arrival days whose landing changed, in order."""

    first_day: date | None = None
    last_day: date | None = None
    """First and last UTC day of the turns read (or replaced); None when no turn was."""

    broken_files: tuple[str, ...] = ()
    """Files that are cut off or damaged; what could be read of them is landed and marked incomplete."""

    outdated_files: tuple[str, ...] = ()
    """Landed files that an older schema or scrubber made, and whose source is no longer there to read them again:
    they stay as they are, with empty columns where the newer schema has more."""

    scrub_counts: dict[str, int] = field(default_factory=dict)
    """Placeholders put in, by kind."""

    quarantine_counts: dict[str, int] = field(default_factory=dict)
    """Faults by `field: reason`."""

    @property
    def quarantined_share(self) -> float:
        """Share of this run's records that were quarantined, in [0, 1]."""
        return self.n_quarantined / self.n_records if self.n_records else 0.0


def ingest(
    source: str,
    log_format: str,
    *,
    landing: Path,
    quarantine: Path,
    catalogue: ActionCatalogue,
    key: PseudonymKey,
    start_date: date,
    attribution_days: int,
    up_to: date | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    scrubbing: ScrubbingSettings | None = None,
    tombstones: Tombstones | None = None,
    rekeyed: Collection[str] = (),
    before_rows_change: Callable[[], None] | None = None,
) -> IngestReport:
    """Land every file of `source` that is not landed yet.

    Parameters
    ----------
    source, log_format
        Folder, file or fsspec URL, and the name of its reader.
    landing, quarantine
        Folders to write; made readable by their owner only.
    catalogue
        Strategies that a turn may carry. A file with quarantined records is read again when this changes.
    start_date, attribution_days
        For logs without times: first day given to them, and days before they count as arrived.
    up_to
        Last arrival day to read; None: all.
    workers
        Processes that read files side by side.
    progress
        Called with the number of files done and in all.
    scrubbing
        How text is scrubbed; None: by the defaults. A file that was landed with other settings, or by an older
        scrubber or schema, is read again, under the day of its first reading.
    tombstones
        Customers who were erased: their records are kept out and counted. A dialogue that turns out to be one of
        theirs leaves the parts that were landed before, too.
    rekeyed
        Sources to read again whatever their marks say, because their pseudonyms are those of another key.
    before_rows_change
        Called before rows of earlier runs are taken out or made anew: what was built of them has to be built again.

    Raises
    ------
    DataError
        If the source does not exist, has no file of the format, or another ingest is at work; or if a file of the
        landing is damaged and its source is no longer there to read it again.
    """
    scrubbing = scrubbing or ScrubbingSettings()
    files = find_sources(source, log_format, start_date=start_date, attribution_days=attribution_days, up_to=up_to)
    with _only_writer(landing):
        _prepare(landing, quarantine)
        settle_rewrites(landing)
        marks = {mark["source"]: mark for mark in committed_files(landing)}
        damaged = {source: part for source, mark in marks.items() if (part := damaged_part(mark, landing))}
        task = partial(
            LandingTask,
            log_format=log_format,
            landing=landing,
            quarantine=quarantine,
            strategies=priorities(catalogue),
            catalogue_hash=content_hash(sorted(catalogue.names)),
            key=key,
            scrubbing=scrubbing,
            tombstones=tombstones or no_tombstones(),
        )
        outdated = {source for source, mark in marks.items() if mark.get("versions") != processing_versions(scrubbing)}
        outdated -= {source for source, mark in marks.items() if mark.get("expired")}
        tasks, current = _planned(files, marks, {*damaged, *rekeyed, *outdated}, task)
        _refuse_to_lose(damaged, tasks, marks, landing)
        if before_rows_change and any(task.source in outdated for task in tasks):
            before_rows_change()
        done = list(_landed(tasks, workers, progress))
        marks |= {mark["source"]: mark for mark in done}
        changed = list(_settle_earlier_versions(current, marks, landing, quarantine))
        if tombstones is not None:
            _keep_out(tombstones, marks.values(), landing, quarantine, before_rows_change)
    left = [
        marks[source]["path"] for source in outdated - {task.source for task in tasks} if _was_due(marks[source], up_to)
    ]
    report = _report(done, changed, n_skipped=len(files) - len(done))
    return replace(report, outdated_files=tuple(sorted(left)))


def committed_files(landing: Path) -> list[Mark]:
    """The commit marks of the landing, by arrival day and path. Empty when nothing was landed."""
    marks = [json.loads(path.read_text()) for path in (landing / MARKS).glob("*.json")]
    return sorted(marks, key=lambda mark: (mark["arrival_day"], mark["path"], mark["source"]))


def broken_files(landing: Path) -> list[str]:
    """Paths of the source files that were cut off or damaged when they were last read, in order."""
    latest = {mark["path"]: mark for mark in committed_files(landing)}
    return sorted(path for path, mark in latest.items() if mark["is_broken"])


@contextmanager
def _only_writer(landing: Path) -> Iterator[None]:
    landing.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY)
    try:
        with FileLock(landing / ".ingest.lock", timeout=0):
            yield
    except Timeout:
        raise DataError(f"Another ingest is writing to {landing}. Wait until it has ended and run again.") from None


def _prepare(landing: Path, quarantine: Path) -> None:
    """Folders, the empty file of each table, and nothing left of a run that was killed."""
    for folder in (landing, quarantine, landing / MARKS):
        folder.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY)
        folder.chmod(OWNER_ONLY)
    for table, schema in SCHEMAS.items():
        empty = landing / table / f"arrival_day={EMPTY_DAY}" / "empty.parquet"
        if not empty.exists() or not pq.read_schema(empty).equals(schema):  # of an older version: it lends its columns
            with replaced_file(empty, PRIVATE) as temporary:
                pq.write_table(schema.empty_table(), temporary, compression="zstd")
    shutil.rmtree(landing / STAGING, ignore_errors=True)
    committed = {path.stem for path in (landing / MARKS).glob("*.json")} | {"empty"}
    for path in [*landing.glob("*/arrival_day=*/*.parquet"), *quarantine.glob("arrival_day=*/*.jsonl")]:
        if path.stem not in committed:
            path.unlink()


def _planned(
    files: Iterable[SourceFile],
    marks: dict[str, Mark],
    to_read_again: Collection[str],
    task: Callable[[SourceFile, str], LandingTask],
) -> tuple[list[LandingTask], dict[str, str]]:
    """The files to read, each content once, and the source that every path holds now."""
    untouched = {(mark["path"], mark["fingerprint"]): mark for mark in marks.values()}
    tasks: dict[str, LandingTask] = {}
    current: dict[str, str] = {}
    for file in files:
        mark = untouched.get((file.path, file.fingerprint))
        planned = task(file, mark["content_hash"] if mark else file.content_hash())
        current[file.path] = planned.source
        mark = marks.get(planned.source)
        if mark is None:
            tasks.setdefault(planned.source, planned)
        elif planned.source in to_read_again or _is_stale(mark, planned.catalogue_hash):
            tasks.setdefault(planned.source, task(_as_first_read(file, mark), planned.content_hash))
    return list(tasks.values()), current


def _refuse_to_lose(
    damaged: Mapping[str, Path], tasks: Iterable[LandingTask], marks: Mapping[str, Mark], landing: Path
) -> None:
    """Raise DataError if a damaged part of the landing cannot be read again from its source."""
    for source in sorted(set(damaged) - {task.source for task in tasks}):
        mark = marks[source]
        raise DataError(
            f"{damaged[source]} is cut off or gone, and its source {mark['path']} is no longer there as it was on "
            f"{mark['arrival_day']}. Put one of the two back from a backup and run again. To go on without these "
            f"{mark['n_records']:,} records, remove {mark_path(landing, source)} first."
        )


def _as_first_read(file: SourceFile, mark: Mark) -> SourceFile:
    """The file with the day and made-up times of its first reading, so that reading it again replaces that."""
    options = replace(file.options, first_dialogue=mark["first_dialogue"])
    return replace(file, arrival_day=date.fromisoformat(mark["arrival_day"]), options=options)


def _was_due(mark: Mark, up_to: date | None) -> bool:
    return up_to is None or date.fromisoformat(mark["arrival_day"]) <= up_to


def _is_stale(mark: Mark, catalogue_hash: str) -> bool:
    """Whether reading the file again may take over records that were quarantined for an unknown strategy."""
    return bool(mark["n_quarantined"]) and mark["catalogue_hash"] != catalogue_hash


def _landed(tasks: list[LandingTask], workers: int, progress: Callable[[int, int], None] | None) -> Iterator[Mark]:
    is_worth_processes = workers > 1 and len(tasks) > 1 and sum(task.file.n_bytes for task in tasks) >= _PARALLEL_BYTES
    marks = _land_in_processes(tasks, workers) if is_worth_processes else map(land_file, tasks)
    for n_done, mark in enumerate(marks, start=1):
        if progress:
            progress(n_done, len(tasks))
        yield mark


def _land_in_processes(tasks: list[LandingTask], workers: int) -> Iterator[Mark]:
    # Spawned, not forked: the caller may have threads (Dagster, Arrow), and a fork would inherit their locks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=context, initializer=die_with_parent, initargs=(os.getpid(),)
    ) as pool:
        try:
            for future in as_completed([pool.submit(land_file, task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool:
            raise DataError(
                "A process that read logs was ended from outside, perhaps for memory. Files that were finished are "
                "kept; run again, with workers=1 if it happens again."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _settle_earlier_versions(
    current: dict[str, str], marks: dict[str, Mark], landing: Path, quarantine: Path
) -> Iterator[Mark]:
    """Drop what a changed file replaces, and clear the incomplete marks that it puts right. Yields what changed."""
    for mark in list(marks.values()):
        source = current.get(mark["path"])
        newer = marks.get(source) if source else None
        if newer is None or newer is mark or newer["path"] != mark["path"]:
            continue
        if newer["arrival_day"] == mark["arrival_day"]:
            _drop(mark, landing, quarantine)
            yield mark
        elif mark["n_incomplete"] and newer["arrival_day"] > mark["arrival_day"]:
            cleared = _clear_incomplete(mark, newer, landing)
            if cleared:
                yield cleared


def _keep_out(
    tombstones: Tombstones,
    marks: Iterable[Mark],
    landing: Path,
    quarantine: Path,
    before_rows_change: Callable[[], None] | None,
) -> None:
    """Dialogues that turned out to be an erased customer's leave what was landed of them, and get a tombstone."""
    new = {digest for mark in marks for digest in mark.get("erased_dialogues", ())} - tombstones.dialogues
    if not new:
        return
    if before_rows_change:
        before_rows_change()
    remove_dialogues(landing, quarantine, lambda dialogue_id: tombstones.digest("dialogue", dialogue_id) in new)
    tombstones.with_digests(dialogues=new)


def _drop(mark: Mark, landing: Path, quarantine: Path) -> None:
    # The mark goes first: parts without a mark are removed by the next run if this one is killed here.
    mark_path(landing, mark["source"]).unlink(missing_ok=True)
    day = date.fromisoformat(mark["arrival_day"])
    for table in SCHEMAS:
        part_path(landing / table, day, mark["source"]).unlink(missing_ok=True)
    part_path(quarantine, day, mark["source"], "jsonl").unlink(missing_ok=True)


def _clear_incomplete(mark: Mark, newer: Mark, landing: Path) -> Mark | None:
    """Remove from an older reading the incomplete marks of dialogues that the newer one brings."""
    path = part_path(landing / "incomplete", date.fromisoformat(mark["arrival_day"]), mark["source"])
    if not path.exists():
        return None
    brought: set[str] = set()
    for table in ("turns", "outcomes"):
        part = part_path(landing / table, date.fromisoformat(newer["arrival_day"]), newer["source"])
        if part.exists():
            brought.update(pq.read_table(part, columns=["dialogue_id"], partitioning=None)[0].to_pylist())
    with rewritten(landing, mark) as begin:
        n_cleared = remove_rows(path, without("dialogue_id", brought), before=begin)
    return mark if n_cleared else None


def _report(done: list[Mark], changed: list[Mark], n_skipped: int) -> IngestReport:
    def total(name: str) -> int:
        return sum(mark[name] for mark in done)

    days = {date.fromisoformat(mark["arrival_day"]) for mark in [*done, *changed]}
    firsts = [date.fromisoformat(mark["first_day"]) for mark in [*done, *changed] if mark["first_day"]]
    lasts = [date.fromisoformat(mark["last_day"]) for mark in [*done, *changed] if mark["last_day"]]
    return IngestReport(
        n_files_read=len(done),
        n_files_skipped=n_skipped,
        n_records=total("n_records"),
        n_turns=total("n_turns"),
        n_outcomes=total("n_outcomes"),
        n_decisions=total("n_decisions"),
        n_dialogues=total("n_dialogues"),
        n_quarantined=total("n_quarantined"),
        n_incomplete=total("n_incomplete"),
        n_erased=total("n_erased"),
        arrival_days=tuple(sorted(days)),
        first_day=min(firsts, default=None),
        last_day=max(lasts, default=None),
        broken_files=tuple(sorted(mark["path"] for mark in done if mark["is_broken"])),
        scrub_counts=_summed(done, "scrub_counts"),
        quarantine_counts=_summed(done, "quarantine_counts"),
    )


def _summed(marks: list[Mark], name: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for mark in marks:
        counts.update(mark[name])
    return dict(sorted(counts.items()))
