"""Releasing a window: reserve → draw → keep → commit → publish, once, whatever is killed in between.

Here: the order of these steps, the files of the released zone, what a later call finds. Not here: what is in the
tables (`tables`), what they cost (`plan`), the ledger's rows (`budget`).

Killed before the reservation, nothing has happened. Killed after the figures were kept (in a restricted staging folder,
on disk), the next call publishes those. Between the two lies the draw: its budget is spent, since nobody can tell who
saw the figures, and the window stays without tables. The space for them is taken before the budget is, so that a full
disk does not stop a release there. A published window is frozen: every later call verifies it and returns it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from registry.errors import LedgerError, ReleaseError, ReleaseLostError
from registry.hash_chain import Seen
from registry.privacy.accounting import epsilon
from registry.privacy.budget import TABLES, Booking, BudgetLedger, Entry
from registry.privacy.plan import ReleasePlan
from registry.privacy.settings import UNIT_OF_PRIVACY
from registry.privacy.staging import RECORD_FILE, move_into_place, take_space, write_record, write_tables
from registry.privacy.tables import RELEASED_SCHEMAS, ExactTables, NoisyTables, align, certify, draw
from registry.privacy.windows import Window
from rl.files import content_hash, replaced_folder
from rl.settings import Settings

RELEASES = "releases"
NONE = "none"
"""Folder of the empty tables, so that readers of the releases find columns before there is one."""

ReleaseState = Literal["not drawn", "kept", "released", "lost", "deleted"]
"""`kept`: drawn and on disk, published by the next call. `lost`: booked, and its figures were not kept."""

LOCK_TIMEOUT_SECONDS = 600
"""How long a second process waits for the first; a release or an evaluation takes seconds."""


@dataclass(frozen=True)
class ReleasePlaces:
    """Where a workspace's releases are made and kept."""

    workspace: str
    released: Path
    """The released zone; a window's files are in `releases/<window start>`."""
    staging: Path
    """Restricted: drawn figures until they are published."""
    ledger: Path
    """The privacy ledger."""

    def folder(self, window_start: date) -> Path:
        """Folder of a window's release."""
        return self.released / RELEASES / window_start.isoformat()


class MeasureRecord(Settings):
    """One noisy column as it was drawn; units as in `plan.Measure`."""

    l0: int
    linf: int
    l2: float
    sigma: float
    tau: int | None
    """Smallest value let out; None where keys are public."""
    rho: float


class ReleaseRecord(Settings):
    """What a release is: everything that is needed to read its tables and to defend them. Released with them."""

    release_id: str
    workspace: str
    window_start: date
    window_end: date
    """Not part of the window."""
    unit_of_privacy: str
    rho: float
    """zCDP of all tables together."""
    epsilon: float
    """Of the tables, at `epsilon_delta`."""
    epsilon_delta: float
    delta: float
    """Of the reply threshold; it comes on top of `epsilon_delta`."""
    sampling_share: float
    """Share of customers that could enter the tables."""
    settings: dict[str, Any]
    grid: dict[str, Any]
    measures: dict[str, MeasureRecord]
    opendp_version: str
    code_revision: str
    ledger_seq: int
    """Row of the reservation."""
    ledger_hash: str
    file_hashes: dict[str, str]
    """By file name (`rl.files.content_hash`)."""
    at: datetime
    """When it was drawn, UTC."""

    is_replay: bool = Field(False, exclude=True)
    """Of this call, not of the release: nothing was drawn now."""
    note: str = Field("", exclude=True)
    """Of this call: what differs between the release and today's settings."""

    @property
    def window(self) -> Window:
        """The window that was released."""
        return Window(self.window_start, self.window_end)


# ---------- the released zone


def prepare_released(released: Path) -> None:
    """Make the released zone's folder with empty tables, so that dbt finds columns before the first release."""
    folder = released / RELEASES / NONE
    with _written("prepared", folder), replaced_folder(folder) as temporary:
        for name, schema in RELEASED_SCHEMAS.items():
            pq.write_table(schema.empty_table(), temporary / f"{name}.parquet")


def find_release(released: Path, window_start: date) -> ReleaseRecord | None:
    """The record of a window's release; None if there is none.

    Raises ReleaseError if its folder is there without a readable record.
    """
    folder = released / RELEASES / window_start.isoformat()
    if not folder.exists():
        return None
    try:
        return ReleaseRecord.model_validate_json((folder / RECORD_FILE).read_bytes())
    except (OSError, ValidationError):
        raise ReleaseError(
            f"{folder} has no readable {RECORD_FILE}, so nobody can say what its tables are. Restore the folder from a "
            "backup; it is not drawn again."
        ) from None


def released_records(released: Path) -> list[ReleaseRecord]:
    """Every release, oldest window first. Raises ReleaseError like `find_release`."""
    folders = sorted(path.name for path in (released / RELEASES).glob("*-*-*") if path.is_dir())
    found = (find_release(released, date.fromisoformat(name)) for name in folders)
    return [record for record in found if record is not None]


def release_state(places: ReleasePlaces, window: Window) -> ReleaseState:
    """How far the release of a window is. Raises LedgerError or ReleaseError for what cannot be trusted."""
    if find_release(places.released, window.start) is not None:
        return "released"
    booking = open_budget(places).find(window.start, TABLES)
    if booking is None:
        return "not drawn"
    if _staged_record(_stage(places, window)) is not None:
        return "kept"
    return "lost" if booking.commitment is None else "deleted"


def delete_old_releases(places: ReleasePlaces, before: date) -> list[date]:
    """Delete the releases of windows that ended on or before `before`, and return which; the newest one stays.

    Their budget stays spent: a window whose release was deleted is not drawn again.
    """
    records = released_records(places.released)
    old = [record for record in records[:-1] if record.window_end <= before]
    for record in old:
        shutil.rmtree(places.folder(record.window_start))
    return [record.window_start for record in old]


# ---------- the ledger


def open_budget(places: ReleasePlaces) -> BudgetLedger:
    """The workspace's privacy ledger, which has to hold every row that releases remember."""
    return BudgetLedger(places.ledger, places.workspace, remembered_rows(places))


def remembered_rows(places: ReleasePlaces) -> list[Seen]:
    """Ledger rows of everything that was published or awaits it: each JSON file of a draw states its own.

    Raises ReleaseError for a release whose record cannot be read.
    """
    released_records(places.released)
    files = [path for zone in (places.released, places.staging) for path in sorted(zone.rglob("*.json"))]
    return [seen for path in files if (seen := _remembered_row(path)) is not None]


def _remembered_row(path: Path) -> Seen | None:
    """The row that a file states; None for a file that is not of a draw, or that was cut off while it was written."""
    try:
        stated = json.loads(path.read_bytes())
        return int(stated["ledger_seq"]), str(stated["ledger_hash"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def verify_releases(places: ReleasePlaces) -> int:
    """Check the ledger and every release against it; return how many releases there are.

    Raises LedgerError or ReleaseError naming what is not as it was.
    """
    ledger = open_budget(places)
    ledger.verify()
    records = released_records(places.released)
    for record in records:
        _require_unchanged(places, record, ledger)
    return len(records)


# ---------- the protocol


def release_tables(
    exact: ExactTables, *, plan: ReleasePlan, window: Window, places: ReleasePlaces, code_revision: str
) -> ReleaseRecord:
    """Release a window, or return what was released of it: a window is drawn once.

    Parameters
    ----------
    exact : ExactTables
        Exact bounded sums of the window; not looked at where the window was drawn already.
    plan : ReleasePlan
        The grid that `exact` was counted over, and the cost.
    window : Window
        A window that is due.
    places : ReleasePlaces
        Where the release is kept. Of several processes that release a window at once, one draws.
    code_revision : str
        Kept in the record.

    Returns
    -------
    ReleaseRecord
        `is_replay` says whether nothing was drawn now; `note` what today's settings would have changed.

    Raises
    ------
    ReleaseError
        If the exact tables are not bounded sums, files cannot be written, or a release is not what it was.
    ReleaseLostError
        If the window's budget was spent and its figures were not kept.
    BudgetExceededError, LedgerError
        See `BudgetLedger.reserve`.
    """
    with one_at_a_time(places, "release", doing="releasing"):
        with _written("read", places.staging):
            ledger = open_budget(places)
        record = find_release(places.released, window.start)
        is_replay = record is not None
        if record is None:
            booking = ledger.find(window.start, TABLES)
            is_replay = booking is not None
            if booking is None:
                booking = Booking(_draw(exact, plan, window, places, ledger, code_revision))
            record = _publish(places, booking, ledger)
        _require_unchanged(places, record, ledger)
        shutil.rmtree(_stage(places, window), ignore_errors=True)
        return record.model_copy(update={"is_replay": is_replay, "note": _note(record, plan)})


def release_id(plan: ReleasePlan, window: Window, workspace: str) -> str:
    """Name of what is drawn: equal for equal settings, and independent of the log."""
    return content_hash(
        {
            "workspace": workspace,
            "window": [window.start.isoformat(), window.end.isoformat()],
            "settings": plan.settings.model_dump(mode="json"),
            "grid": plan.grid.to_json(),
            "sampling_share": plan.sampling_share,
        }
    )


def _draw(
    exact: ExactTables,
    plan: ReleasePlan,
    window: Window,
    places: ReleasePlaces,
    ledger: BudgetLedger,
    code_revision: str,
) -> Entry:
    """Book the budget, draw, and keep what was drawn in the staging folder; returns the reservation.

    Whatever can be refused is refused before the reservation.
    """
    aligned = align(exact, plan)
    certify(plan)
    stage = _stage(places, window)
    n_rows = {
        "transitions": len(aligned.n_steps),
        "cells": len(aligned.n_customers),
        "replies": len(aligned.n_replies) + len(aligned.reply_texts),
    }
    with _written("prepared", stage):
        take_space(stage, n_rows)
    row = ledger.reserve(
        window,
        TABLES,
        release_id=release_id(plan, window, places.workspace),
        cost=plan.cost,
        budget=plan.budget,
    )
    noisy = draw(aligned, plan, _stamp(plan, row))
    with _written("kept", stage):
        try:
            hashes = write_tables(stage, noisy.tables)
            record = _record(plan, row, noisy, places.workspace, code_revision, hashes)
            write_record(stage, record.model_dump_json(indent=2) + "\n")
        except OSError as error:
            if _staged_record(stage) is None:
                raise ReleaseLostError(_lost(row, f"could not be kept in {stage} ({error.strerror})")) from None
            raise
    return row


def _publish(places: ReleasePlaces, booking: Booking, ledger: BudgetLedger) -> ReleaseRecord:
    """Commit what is in the staging folder and move it into the released zone."""
    row = booking.reservation
    stage = _stage(places, row.window)
    record = _staged_record(stage)
    if record is None or record.ledger_hash != row.hash or not _is_whole(stage, record):
        if booking.commitment is not None:
            raise ReleaseError(
                f"The window {row.window} was released (row {row.seq} of the privacy ledger), and its files are not in "
                f"{places.released} any more. Restore them from a backup; they are not drawn again."
            )
        raise ReleaseLostError(_lost(row, f"are not in {stage}"))
    ledger.commit(row, _output_hash(stage))
    with _written("published", places.folder(row.window.start)):
        move_into_place(stage, places.folder(row.window.start), places.released / ".incoming")
    return record


def _lost(row: Entry, fault: str) -> str:
    return (
        f"The figures of the window {row.window} {fault}: its release was cut off after {row.cost} were booked (row "
        f"{row.seq} of the privacy ledger). They count as spent, since nobody can tell whether the figures were seen, "
        "and the window stays without tables. Nothing has to be done: what is kept for the gate is untouched, earlier "
        f"releases stay in use, and the next window opens on {row.window.end}."
    )


def _require_unchanged(places: ReleasePlaces, record: ReleaseRecord, ledger: BudgetLedger) -> None:
    folder = places.folder(record.window_start)
    booking = ledger.find(record.window_start, TABLES)
    if booking is None or booking.commitment is None:
        raise LedgerError(
            f"{places.ledger}: the commitment of the release of {record.window} is missing. Rows were cut off: restore "
            "the file from a backup, and find out who wrote to it."
        )
    if not _is_whole(folder, record) or _output_hash(folder) != booking.commitment.output_hash:
        raise ReleaseError(
            f"The files in {folder} are not those that were released (row {booking.commitment.seq} of the privacy "
            "ledger has their hash). Restore them from a backup; nothing is drawn again."
        )


def _note(record: ReleaseRecord, plan: ReleasePlan) -> str:
    today = plan.settings.model_dump(mode="json") | {"grid": plan.grid.level, "sampling_share": plan.sampling_share}
    released = record.settings | {"grid": record.grid["level"], "sampling_share": record.sampling_share}
    changed = [name for name, value in today.items() if released.get(name) != value]
    if not changed and record.grid["hash"] != plan.grid.to_json()["hash"]:
        changed = ["the strategies or customer acts of the grid"]
    if not changed:
        return ""
    return (
        f"The window {record.window} was released under other settings ({', '.join(changed)}) and stays as it is; "
        f"today's hold from the window that begins on {record.window_end}."
    )


@contextmanager
def one_at_a_time(places: ReleasePlaces, name: str, *, doing: str) -> Iterator[None]:
    """Hold the workspace's lock of this name, which lies in the staging folder.

    Raises ReleaseError, with what others are `doing`, if they hold it longer than `LOCK_TIMEOUT_SECONDS`, or if it
    cannot be written.
    """
    with _written("prepared", places.staging):
        places.staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(places.staging / f"{name}.lock", timeout=LOCK_TIMEOUT_SECONDS)
        try:
            lock.acquire()
        except Timeout:
            raise ReleaseError(
                f"Another process has been {doing} in workspace {places.workspace!r} for {LOCK_TIMEOUT_SECONDS} s. "
                "Nothing was drawn. Wait until it has finished, or end it, and run again."
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _written(verb: str, path: Path) -> Iterator[None]:
    """Say of a failed write that it costs nothing: what was drawn is kept, what was not is not booked."""
    try:
        yield
    except OSError as error:
        raise ReleaseError(
            f"{path} could not be {verb} ({error.strerror or error}). Nothing is lost and nothing was drawn twice. "
            "Look at the free space of the disk and the permissions of the folder, and run the night again."
        ) from None


# ---------- files of a release


def _stage(places: ReleasePlaces, window: Window) -> Path:
    return places.staging / window.start.isoformat()


def _staged_record(stage: Path) -> ReleaseRecord | None:
    """The record of a release that was kept; None while there is none."""
    try:
        return ReleaseRecord.model_validate_json((stage / RECORD_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _is_whole(folder: Path, record: ReleaseRecord) -> bool:
    """Whether every file is there and is the one that was drawn."""
    files = [folder / name for name in record.file_hashes]
    return all(path.is_file() and content_hash(path.read_bytes()) == record.file_hashes[path.name] for path in files)


def _output_hash(folder: Path) -> str:
    """Hash of a release: its record holds the hashes of its tables."""
    return content_hash((folder / RECORD_FILE).read_bytes())


def _stamp(plan: ReleasePlan, row: Entry) -> Mapping[str, Any]:
    return {
        "release_id": row.release_id,
        "window_start": row.window.start,
        "window_end": row.window.end,
        "unit_of_privacy": UNIT_OF_PRIVACY,
        "rho": row.cost.rho,
        "delta": row.cost.delta,
        "minimum_customers": plan.settings.minimum_customers,
        "shrinkage": plan.settings.shrinkage,
    }


def _record(
    plan: ReleasePlan, row: Entry, noisy: NoisyTables, workspace: str, code_revision: str, file_hashes: dict[str, str]
) -> ReleaseRecord:
    return ReleaseRecord(
        release_id=row.release_id,
        workspace=workspace,
        window_start=row.window.start,
        window_end=row.window.end,
        unit_of_privacy=UNIT_OF_PRIVACY,
        rho=row.cost.rho,
        epsilon=epsilon(row.cost.rho, plan.settings.delta),
        epsilon_delta=plan.settings.delta,
        delta=row.cost.delta,
        sampling_share=plan.sampling_share,
        settings=plan.settings.model_dump(mode="json"),
        grid=plan.grid.to_json(),
        measures={
            measure.name: MeasureRecord(
                l0=measure.l0,
                linf=measure.linf,
                l2=measure.l2,
                sigma=noisy.sigmas[measure.name],
                tau=noisy.tau if measure.name == "reply_texts" else None,
                rho=measure.rho,
            )
            for measure in plan.measures
        },
        opendp_version=version("opendp"),
        code_revision=code_revision,
        ledger_seq=row.seq,
        ledger_hash=row.hash,
        file_hashes=file_hashes,
        at=datetime.now(UTC),
    )
