"""`talktrack rekey`: a new pseudonym key for a workspace, and everything landed under it.

Here: which keys are live, when they may change, the change itself. Not here: the keys' files
(`orchestration.ingest.pseudonyms`).

Sources that are still there are read again. In what is left of the others, a customer who also occurs in a source
that is there gets the new pseudonym; the rest keep the old one, and the old key is kept for one more window to find
them. Bounding counts what one customer gives to a window, so nobody may be two customers in one: rows that would keep
the old pseudonym have to lie in windows that are over. Working database and marts are removed; the next night builds
them anew. The split into training and validation customers depends on the pseudonym, so it changes with the key.

After a compromise the old key is destroyed at once. What cannot be read again gets a hash of the old pseudonym under
the new key: it says no more whose it was, and can no longer be found by customer id. The windows whose dialogues the
old key names, and that may still release something, spend nothing more: the ledger books what they have left.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestration.aggregates import forget_exact_window, known_windows, newest_due_window, places
from orchestration.console import progress
from orchestration.ingest.landed_file import Mark, part_path
from orchestration.ingest.landing import committed_files
from orchestration.ingest.parts import PRIVATE
from orchestration.ingest.pseudonyms import (
    KEY_FILE,
    KEY_VARIABLE,
    PREVIOUS_KEY_VARIABLE,
    Pseudonymizer,
    PseudonymKey,
    PseudonymKeys,
    key_path,
    load_keys,
    new_key,
    own_key_path,
    previous_key_path,
    write_key,
)
from orchestration.ingest.readers import reader_named
from orchestration.ingest.records import RawRecord
from orchestration.ingest.removal import rewritten, settle_rewrites
from orchestration.ingest.sources import SourceFile, find_sources
from orchestration.lock import workspace_lock
from orchestration.log_reading import read_logs
from orchestration.personal_data.retention import expire_landing
from orchestration.sample import sample_folder
from orchestration.settings import TalktrackSettings, WorkspacePaths
from orchestration.warehouse import data_clock, forget_build
from orchestration.working_database import wait_until_free
from registry.privacy.budget import COMPROMISED_KEY, Cost
from registry.privacy.release import open_budget, released_records
from registry.privacy.windows import Window, window_of
from rl.errors import DataError, TalktrackError
from rl.files import replaced_file, write_json
from rl.settings import Settings

FILE = "keys.json"
"""In the workspace's folder: which key followed which, and why. Key ids only."""

_WITH_CUSTOMERS = ("turns", "decisions")


class RekeyError(TalktrackError):
    """The key cannot change now, or a change was not finished."""


class Rotation(Settings):
    """One change of the key."""

    from_key_ids: tuple[str, ...]
    to_key_id: str
    at: datetime
    actor: str
    reason: str
    is_compromised: bool = False
    state: Literal["running", "done"] = "running"
    keep_until: date | None = None
    """Day of the data's clock on which the old key is destroyed; None: it was at once, or there was none."""
    retired_key_ids: tuple[str, ...] = ()
    """Old keys that are gone, or were lost: pseudonyms that carry their ids stay, and belong to nobody by id."""


@dataclass(frozen=True)
class RekeyReport:
    """What a change of the key did."""

    from_key_ids: tuple[str, ...]
    to_key_id: str
    n_files_read_again: int
    n_files_mapped: int
    """Landed files whose source is gone, and in which every customer has a new pseudonym."""
    n_files_left: int
    """Landed files in which some customers keep the old one."""
    keep_until: date | None
    key_file: Path | None
    """Where the new key lies; None: in the environment."""


# ---------- which keys are live


def workspace_keys(settings: TalktrackSettings) -> PseudonymKeys:
    """The live keys of the workspace. Raises LostKeyError when the landing was made with one that is not here."""
    paths = settings.paths
    retired = {key_id for rotation in read_rotations(paths.root) for key_id in rotation.retired_key_ids}
    return load_keys(paths.secrets, settings.workspace, used=landed_key_ids(paths.landing) - retired)


def landed_key_ids(landing: Path) -> set[str]:
    """Ids of the keys that made the pseudonyms of the landing."""
    return {mark["key_id"] for mark in committed_files(landing) if mark["parts"]}


def read_rotations(root: Path) -> list[Rotation]:
    """Every change of the key, oldest first."""
    path = root / FILE
    return [Rotation.model_validate(entry) for entry in json.loads(path.read_text())] if path.exists() else []


def refuse_unfinished(settings: TalktrackSettings) -> None:
    """Raise RekeyError if a change of the key was killed: part of the landing has new pseudonyms, part old ones."""
    rotations = read_rotations(settings.paths.root)
    if rotations and rotations[-1].state == "running":
        raise RekeyError(
            f"A change of the pseudonym key, begun on {rotations[-1].at:%Y-%m-%d}, was not finished: customers would "
            "count twice. Run `talktrack rekey` again; it goes on where it stopped."
        )


def retire_previous_key(settings: TalktrackSettings, today: date) -> str | None:
    """Destroy the previous key once its day has come; returns its id.

    `today` is the day of the data's clock. Of a key in the environment only the record changes: whoever set the
    variable has to remove it.
    """
    rotations = read_rotations(settings.paths.root)
    if not rotations or rotations[-1].state == "running":
        return None
    last = rotations[-1]
    if last.keep_until is None:
        _destroy_old_keys(settings, last.retired_key_ids)  # left by a run that was killed before it did
        return None
    if today < last.keep_until:
        return None
    _remember(settings.paths.root, [*rotations[:-1], _retired(last)])
    _destroy_old_keys(settings, last.from_key_ids)
    return ", ".join(last.from_key_ids)


# ---------- the change


def rekey(settings: TalktrackSettings, *, reason: str, compromised: bool = False) -> RekeyReport:
    """Give the workspace a new key: TALKTRACK_PSEUDONYM_KEY where that is set, else one made here.

    Killed and called again, it goes on with the key that it began with.

    Raises
    ------
    RekeyError
        If customers would keep the old pseudonym inside the window that is open, if the key before is still kept, or
        if the environment's key is the one in use.
    WorkspaceBusyError
        If a night is running.
    """
    with workspace_lock(settings.paths.root, exclusive=True, holder="talktrack rekey"):
        settle_rewrites(settings.paths.landing)
        return _Change(settings, reason, compromised).carried_out()


class _Change:
    """One change of the key in one workspace."""

    def __init__(self, settings: TalktrackSettings, reason: str, compromised: bool) -> None:
        self.settings, self.paths = settings, settings.paths
        rotations = read_rotations(self.paths.root)
        is_open = bool(rotations) and rotations[-1].state == "running"
        self.earlier = rotations[:-1] if is_open else rotations
        self.open: Rotation | None = rotations[-1] if is_open else None
        self.reason = self.open.reason if self.open else reason
        self.compromised = self.open.is_compromised if self.open else compromised
        retired = {key_id for rotation in self.earlier for key_id in rotation.retired_key_ids}
        self.landed = landed_key_ids(self.paths.landing) - retired

    def carried_out(self) -> RekeyReport:
        """Choose the key, check, read again, map the rest, remove what was derived, record."""
        progress("look for sources")
        old, new = self._keys()
        landed = [mark for mark in committed_files(self.paths.landing) if mark["parts"]]
        there = self._sources_that_are_there(landed)
        marks = [mark for mark in landed if mark["key_id"] != new.key_id]
        readable = [mark["source"] for mark in marks if mark["source"] in there]
        rest = [mark for mark in marks if mark["source"] not in there]
        names = self._new_names(rest, there.values(), old, new)
        if self.open is None:
            self._refuse_earlier()
            self._refuse_two_customers(rest, names)
        rotation = self._begin(old, new)
        if readable:
            read_logs(self.settings, new, up_to=_newest_day(marks), rekeyed=readable)
        progress("map what cannot be read again")
        n_left = sum(self._mapped(mark, names, new) for mark in rest)
        self._remove_derived()
        expire_landing(self.settings)
        if self.compromised:
            self._spend_the_rest(new)
        self._finish(rotation)
        return RekeyReport(
            from_key_ids=rotation.from_key_ids,
            to_key_id=new.key_id,
            n_files_read_again=len(readable),
            n_files_mapped=len(rest) - n_left,
            n_files_left=n_left,
            keep_until=self._keep_until(),
            key_file=None
            if os.environ.get(KEY_VARIABLE)
            else own_key_path(self.paths.secrets, self.settings.workspace),
        )

    # ---------- keys

    def _keys(self) -> tuple[tuple[PseudonymKey, ...], PseudonymKey]:
        """The keys that are here and were in use, and the one to come."""
        given = os.environ.get(KEY_VARIABLE)
        path = key_path(self.paths.secrets, self.settings.workspace)
        if not given and not path.exists():
            return (), new_key()
        keys = load_keys(self.paths.secrets, self.settings.workspace)
        if given:
            if keys.current.key_id in self.landed and self.open is None:
                raise RekeyError(
                    f"{KEY_VARIABLE} still holds the key that is in use ({keys.current.key_id}). Set it to a new key "
                    f"(`openssl rand -hex 32`), {PREVIOUS_KEY_VARIABLE} to the old one, and run again."
                )
            return keys.live[1:], keys.current
        if self.open is not None and keys.current.key_id == self.open.to_key_id:
            return keys.live[1:], keys.current
        return keys.live, new_key()

    def _begin(self, old: tuple[PseudonymKey, ...], new: PseudonymKey) -> Rotation:
        """Keep the old key, record the change, put the new key in its place: in this order a kill loses none."""
        from_key_ids = self.open.from_key_ids if self.open else tuple(sorted(self.landed | {k.key_id for k in old[:1]}))
        own = own_key_path(self.paths.secrets, self.settings.workspace)
        assert own is not None
        in_files = not os.environ.get(KEY_VARIABLE)
        is_new = self.open is None or self.open.to_key_id != new.key_id
        if in_files and old and is_new:
            write_key(previous_key_path(self.paths.secrets, self.settings.workspace), old[0])
        rotation = Rotation(
            from_key_ids=from_key_ids,
            to_key_id=new.key_id,
            at=self.open.at if self.open else datetime.now(UTC),
            actor=getpass.getuser(),
            reason=self.reason,
            is_compromised=self.compromised,
        )
        _remember(self.paths.root, [*self.earlier, rotation])
        if in_files and is_new:
            write_key(own, new)
        return rotation

    def _finish(self, rotation: Rotation) -> None:
        retired = rotation.from_key_ids if self.compromised else self._lost(rotation)
        done = {"state": "done", "keep_until": self._keep_until(), "retired_key_ids": retired}
        # A key before the last is not kept for a window of its own: nothing carries its pseudonyms any more.
        superseded = [_retired(earlier) for earlier in self.earlier]
        _remember(self.paths.root, [*superseded, rotation.model_copy(update=done)])
        _destroy_shared_key(self.settings, [name for earlier in superseded for name in earlier.retired_key_ids])
        if self.compromised:
            _destroy_old_keys(self.settings, rotation.from_key_ids)

    def _lost(self, rotation: Rotation) -> tuple[str, ...]:
        """Keys of the landing that are nowhere: what carries their ids stays as it is."""
        here = load_keys(self.paths.secrets, self.settings.workspace).key_ids
        return tuple(key_id for key_id in rotation.from_key_ids if key_id not in here)

    def _keep_until(self) -> date | None:
        clock = data_clock(self.paths.landing)
        if self.compromised or clock is None:
            return None
        return clock.date() + timedelta(days=self.settings.privacy.window_days)

    # ---------- what can be read again, and what may stay

    def _sources_that_are_there(self, marks: list[Mark]) -> dict[str, SourceFile]:
        """Landed sources whose file is still there with the same content."""
        logs = self.settings.logs
        try:
            files = find_sources(
                logs.path or str(sample_folder(self.settings)),
                logs.format,
                start_date=logs.start_date,
                attribution_days=logs.attribution_days,
            )
        except DataError:  # nothing is there any more: everything has to be mapped
            return {}
        untouched = {(mark["path"], mark["fingerprint"]): mark["source"] for mark in marks}
        by_content = {mark["content_hash"]: mark["source"] for mark in marks}
        found: dict[str, SourceFile] = {}
        for file in files:
            source = untouched.get((file.path, file.fingerprint)) or by_content.get(file.content_hash())
            if source is not None:
                found.setdefault(source, file)
        return found

    def _new_names(
        self, rest: list[Mark], files: Iterable[SourceFile], old: tuple[PseudonymKey, ...], new: PseudonymKey
    ) -> Mapping[str, str]:
        """Old pseudonym → new one, for every customer in the files that are there. Only needed where some are not."""
        if not rest or not old:
            return {}
        before, after = [Pseudonymizer(key) for key in old], Pseudonymizer(new)
        customers = {name for file in files for name in _customers_in(file, self.settings.logs.format)}
        return {make(name): after(name) for name in customers for make in before}

    def _refuse_earlier(self) -> None:
        last = self.earlier[-1] if self.earlier else None
        if last is None or last.keep_until is None or self.compromised or not self.landed - {last.to_key_id}:
            return
        raise RekeyError(
            f"The key before ({', '.join(last.from_key_ids)}) is still needed: landed files carry its pseudonyms, and "
            f"it is kept until the data's clock shows {last.keep_until}. Rotate after that day. If a key is in wrong "
            "hands, use --compromised."
        )

    def _refuse_two_customers(self, rest: list[Mark], names: Mapping[str, str]) -> None:
        """Raise RekeyError if someone would keep the old pseudonym in the window that is open."""
        clock = data_clock(self.paths.landing)
        if self.compromised or clock is None:
            return
        window = window_of(
            clock.date(), first_day=self.settings.logs.start_date, window_days=self.settings.privacy.window_days
        )
        staying = [mark for mark in rest if window and _last_day_of_unnamed(mark, self.paths, names) >= window.start]
        if staying and window:
            raise RekeyError(
                f"{len(staying)} landed file(s) of the window {window} name customers who cannot get a new pseudonym: "
                f"their sources are gone (the first: {staying[0]['path']}). A customer under two pseudonyms would "
                "count twice in one window, and give it more than the privacy budget allows for. Nothing was changed. "
                f"Put the sources back, or rotate when the data's clock shows {window.end}, before later logs are "
                "read. If the key is in wrong hands, use --compromised."
            )

    # ---------- the landing

    def _mapped(self, mark: Mark, names: Mapping[str, str], new: PseudonymKey) -> bool:
        """Put new pseudonyms into the parts of a source that is gone; whether some old ones stay."""
        rehash = Pseudonymizer(new) if self.compromised else None
        has_old = False
        with rewritten(self.paths.landing, mark) as begin:
            begin()
            for path in _parts_with_customers(mark, self.paths):
                has_old |= _rename(path, names, new.key_id, rehash)
            if not has_old:
                mark["key_id"] = new.key_id
        return has_old

    def _remove_derived(self) -> None:
        """Working database and marts hold old pseudonyms; the next night builds them from the landing."""
        forget_build(self.paths.root)
        forget_exact_window(self.paths.root)
        wait_until_free(self.paths.warehouse)
        self.paths.warehouse.unlink(missing_ok=True)
        shutil.rmtree(self.paths.marts, ignore_errors=True)

    def _spend_the_rest(self, new: PseudonymKey) -> None:
        """Book what windows have left that might still release something, so that none does."""
        ledger, privacy = open_budget(places(self.settings)), self.settings.privacy
        today = Cost.of(privacy.rho, privacy.delta)
        for window in self._windows_in_use():
            # All that the window began with, so that nothing is left where settings that were lowered are raised again.
            budget = ledger.opened_with(window.start) or today
            left = ledger.left(window.start, budget)
            if COMPROMISED_KEY not in ledger.spent(window.start) and left.micro_rho:
                ledger.reserve(window, COMPROMISED_KEY, release_id=new.key_id, cost=left, budget=budget)

    def _windows_in_use(self) -> list[Window]:
        """From the window of the newest release, whose policies the gate may still judge, or the newest that is due."""
        clock = data_clock(self.paths.landing)
        if clock is None:
            return []
        newest = [newest_due_window(self.settings, clock), *(r.window for r in released_records(self.paths.released))]
        oldest = min((window.start for window in (newest[0], newest[-1]) if window), default=date.min)
        return [window for window in known_windows(self.settings, clock.date()) if window.end > oldest]


def _retired(rotation: Rotation) -> Rotation:
    return rotation.model_copy(
        update={
            "retired_key_ids": tuple(sorted({*rotation.retired_key_ids, *rotation.from_key_ids})),
            "keep_until": None,
        }
    )


def _destroy_old_keys(settings: TalktrackSettings, key_ids: Iterable[str]) -> None:
    """Remove the files of old keys."""
    previous_key_path(settings.paths.secrets, settings.workspace).unlink(missing_ok=True)
    _destroy_shared_key(settings, key_ids)


def _destroy_shared_key(settings: TalktrackSettings, key_ids: Iterable[str]) -> None:
    """Remove the home's own key if it is one of these and no other workspace uses it."""
    paths = settings.paths
    shared = paths.secrets / KEY_FILE
    own = own_key_path(paths.secrets, settings.workspace)
    if not shared.exists() or own is None or not own.exists():
        return
    shared_id = load_keys(paths.secrets, environment={}).current.key_id
    others = [landing for landing in paths.home.glob("*/landing") if landing.parent != paths.root]
    if shared_id in set(key_ids) and not any(shared_id in landed_key_ids(landing) for landing in others):
        shared.unlink()


def _remember(root: Path, rotations: list[Rotation]) -> None:
    write_json(root / FILE, [rotation.model_dump(mode="json") for rotation in rotations], PRIVATE)


def _newest_day(marks: list[Mark]) -> date:
    return max(date.fromisoformat(mark["arrival_day"]) for mark in marks)


def _customers_in(file: SourceFile, log_format: str) -> set[str]:
    """Ids of the customers whom a source file names, as it writes them."""
    try:
        return {
            str(item.fields["customer_id"])
            for item in reader_named(log_format).read(file.path, file.options)
            if isinstance(item, RawRecord) and item.fields.get("customer_id") not in (None, "")
        }
    except (ValueError, TypeError, LookupError, AttributeError, OSError):
        return set()  # a damaged file: what it would have told is not known


def _parts_with_customers(mark: Mark, paths: WorkspacePaths) -> list[Path]:
    day = date.fromisoformat(mark["arrival_day"])
    found = [part_path(paths.landing / table, day, mark["source"]) for table in _WITH_CUSTOMERS]
    return [path for path in found if path.exists()]


def _last_day_of_unnamed(mark: Mark, paths: WorkspacePaths, names: Mapping[str, str]) -> date:
    """The newest day of a row whose customer keeps the old pseudonym; long ago when there is none."""
    newest = date.min
    for path in _parts_with_customers(mark, paths):
        rows = pq.ParquetFile(path).read(columns=["customer_id", "occurred_at"])
        customers = rows.column("customer_id")
        staying = pc.and_(
            pc.is_valid(customers), pc.invert(pc.is_in(customers, value_set=pa.array(sorted(names), pa.string())))
        )
        if moment := pc.max(rows.column("occurred_at").filter(staying)).as_py():
            newest = max(newest, moment.date())
    return newest


def _rename(path: Path, names: Mapping[str, str], new_key_id: str, rehash: Pseudonymizer | None) -> bool:
    """Rewrite a part with new pseudonyms; whether some rows keep the old one."""
    table = pq.ParquetFile(path).read()
    column = table.column("customer_id").combine_chunks().dictionary_encode()
    before = column.dictionary.to_pylist()
    after = [_renamed(name, names, new_key_id, rehash) for name in before]
    if after != before:
        renamed = pa.array(after, pa.string()).take(column.indices)
        place = table.schema.get_field_index("customer_id")
        table = table.set_column(place, table.schema.field(place), renamed)
        with replaced_file(path, PRIVATE) as temporary:
            temporary.touch(PRIVATE)
            pq.write_table(table, temporary, compression="zstd")
    return any(not name.startswith(f"{new_key_id}:") for name in after)


def _renamed(name: str, names: Mapping[str, str], new_key_id: str, rehash: Pseudonymizer | None) -> str:
    if name.startswith(f"{new_key_id}:"):
        return name
    return names.get(name) or (rehash(name) if rehash else name)
