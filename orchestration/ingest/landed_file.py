"""One source file's way into the landing: its rows, its quarantine, its commit mark.

Here: what a worker process does with one file. Not here: which files are read (`landing`), what is valid (`schema`).
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from orchestration.ingest.parts import remove_rows, without
from orchestration.ingest.pseudonyms import Pseudonymizer, PseudonymKey
from orchestration.ingest.readers import reader_named
from orchestration.ingest.records import Fault, RawRecord
from orchestration.ingest.schema import SCHEMA_VERSION, SCHEMAS, TABLES, Priorities, validate
from orchestration.ingest.sources import SourceFile
from orchestration.ingest.tombstones import Tombstones, no_tombstones
from rl.encoders.customer_replies import REPLIES_VERSION, canonical_reply, customer_act
from rl.encoders.scrubbing import ScrubbedText, scrubber_for
from rl.errors import DataError
from rl.files import content_hash, write_json
from rl.settings import ScrubbingSettings

MARKS = "_files"
STAGING = ".staging"
OWNER_ONLY = 0o700
PRIVATE = 0o600

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FLUSH_ROWS = 50_000
_CHUNK = 512
_SOURCE_LENGTH = 16
_MAX_DEPTH = 32
_LONG_NUMBER = 100_000

Mark = dict[str, Any]
"""Content of a commit mark: path, arrival_day, format, counts and `parts` (bytes by table) of one landed file."""


@dataclass(frozen=True)
class LandingTask:
    """What a worker needs to land one file."""

    file: SourceFile
    content_hash: str
    log_format: str
    landing: Path
    quarantine: Path
    strategies: Priorities
    catalogue_hash: str
    key: PseudonymKey
    scrubbing: ScrubbingSettings = field(default_factory=ScrubbingSettings)
    tombstones: Tombstones = field(default_factory=no_tombstones)

    @property
    def source(self) -> str:
        """Name of the file in the landing."""
        return self.content_hash[:_SOURCE_LENGTH]


def land_file(task: LandingTask) -> Mark:
    """Read one file into the landing and commit it."""
    staging = task.landing / STAGING / task.source
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True, mode=OWNER_ONLY)
    batch = _FileInLanding(task, staging)
    for items in _chunks(_records(task)):
        batch.prepare(items)
        for item in items:
            batch.add(item)
    batch.close()
    for table in SCHEMAS:
        _move_or_remove(
            staging / f"{table}.parquet", part_path(task.landing / table, task.file.arrival_day, task.source)
        )
    quarantined = part_path(task.quarantine, task.file.arrival_day, task.source, "jsonl")
    _move_or_remove(staging / "quarantine.jsonl", quarantined)
    mark = batch.mark()
    mark["parts"] = part_sizes(task.landing, mark)
    write_json(mark_path(task.landing, task.source), mark, PRIVATE)
    shutil.rmtree(staging, ignore_errors=True)
    return mark


def _chunks(records: Iterator[RawRecord | Fault]) -> Iterator[list[RawRecord | Fault]]:
    while items := list(islice(records, _CHUNK)):
        yield items


def _records(task: LandingTask) -> Iterator[RawRecord | Fault]:
    """What the reader gives; an error inside it ends the file with a fault instead of a traceback."""
    n_items = 0
    try:
        for item in reader_named(task.log_format).read(task.file.path, task.file.options):
            n_items += 1
            yield item
    except (PermissionError, FileNotFoundError) as error:
        raise DataError(f"{task.file.path} cannot be read: {error.strerror}. Check the file and run again.") from None
    except (ValueError, TypeError, LookupError, AttributeError, OSError) as error:
        reason = f"the {task.log_format} reader stopped here ({type(error).__name__}); what came before was read"
        yield Fault(n_items + 1, "file", reason, is_whole_file=True)


class _FileInLanding:
    """The rows, quarantined records and counts of one file while it is read."""

    def __init__(self, task: LandingTask, staging: Path) -> None:
        self._task = task
        self._staging = staging
        self._pseudonym = Pseudonymizer(task.key)
        self._erased = _Erased(task.tombstones)
        self._scrubber = scrubber_for(task.scrubbing)
        self._prepared: dict[str, ScrubbedText] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {table: [] for table in SCHEMAS}
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._quarantine: list[dict[str, Any]] = []
        self._incomplete: dict[str, tuple[int, str]] = {}
        self._dialogues: dict[str, None] = {}
        self._broken: Fault | None = None
        self._counts: Counter[str] = Counter()
        self._scrubbed: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._first: int | None = None
        self._last: int | None = None
        self._n_items = 0

    def prepare(self, items: list[RawRecord | Fault]) -> None:
        """Scrub the texts of the next records together, where a named-entity model makes that worth while."""
        if not self._task.scrubbing.entity_model:
            return
        said = {item.fields.get("text"): None for item in items if isinstance(item, RawRecord) and item.kind == "turn"}
        texts = [text for text in said if isinstance(text, str)]
        self._prepared = dict(zip(texts, self._scrubber.scrub_all(texts), strict=True))

    def add(self, item: RawRecord | Fault) -> None:
        """Take over a record, or put what is wrong with it into quarantine."""
        row_number = self._n_items
        self._n_items += 1
        if self._erased.covers(item):
            self._counts["erased"] += 1
            return
        if isinstance(item, Fault):
            self._refuse([item], row_number)
            return
        row = validate(item, self._task.strategies)
        if isinstance(row, list):
            self._refuse(row, row_number)
            return
        self._dialogues[row["dialogue_id"]] = None
        self._clean(row)
        row["source"], row["source_row"] = self._task.source, row_number
        table = TABLES[item.kind]
        self._counts[table] += 1
        if item.kind == "turn":
            moment = row["occurred_at"]
            self._first = moment if self._first is None or moment < self._first else self._first
            self._last = moment if self._last is None or moment > self._last else self._last
        self._append(table, row)

    def close(self) -> None:
        """Write what is left."""
        self._forget_erased()
        if self._broken:
            reason = (self._n_items, f"{self._broken.field}: {self._broken.reason}")
            self._incomplete = {**dict.fromkeys(self._dialogues, reason), **self._incomplete}
        for dialogue_id, (row_number, reason_text) in self._incomplete.items():
            row = {"dialogue_id": dialogue_id, "source_row": row_number, "reason": reason_text}
            self._append("incomplete", {**row, "source": self._task.source})
        for table in SCHEMAS:
            self._flush(table)
        for writer in self._writers.values():
            writer.close()
        self._remove_erased()
        if self._quarantine:
            lines = b"".join(orjson.dumps(entry) + b"\n" for entry in self._quarantine)
            (self._staging / "quarantine.jsonl").write_bytes(lines)

    def mark(self) -> Mark:
        """The commit mark: which file, and what became of it."""
        task, counts = self._task, self._counts
        return {
            "source": task.source,
            "path": task.file.path,
            "content_hash": task.content_hash,
            "fingerprint": task.file.fingerprint,
            "arrival_day": task.file.arrival_day.isoformat(),
            "format": task.log_format,
            "first_dialogue": task.file.options.first_dialogue,
            "catalogue_hash": task.catalogue_hash,
            "versions": processing_versions(task.scrubbing),
            "key_id": task.key.key_id,
            "n_records": sum(counts[table] for table in (*TABLES.values(), "quarantined")),
            "n_turns": counts["turns"],
            "n_outcomes": counts["outcomes"],
            "n_decisions": counts["decisions"],
            "n_dialogues": len(self._dialogues),
            "n_quarantined": counts["quarantined"],
            "n_incomplete": len(self._incomplete),
            "n_erased": counts["erased"],
            "erased_dialogues": self._erased.new_digests(),
            "is_broken": self._broken is not None,
            "first_day": _day(self._first),
            "last_day": _day(self._last),
            "scrub_counts": dict(sorted(self._scrubbed.items())),
            "quarantine_counts": dict(sorted(self._reasons.items())),
        }

    def _refuse(self, faults: list[Fault], row_number: int) -> None:
        self._counts["quarantined"] += 1
        for fault in faults:
            entry = {"file": self._task.file.path, "line": fault.line, "field": fault.field, "reason": fault.reason}
            if fault.dialogue_id:
                entry["dialogue_id"] = fault.dialogue_id  # an erasure has to find the lines of a dialogue
            if fault.value is not None:
                entry["value"] = self._scrubber.scrub(fault.value).text if isinstance(fault.value, str) else fault.value
            self._quarantine.append(entry)
            self._reasons[f"{fault.field}: {fault.reason}"] += 1
            if fault.dialogue_id:
                self._incomplete.setdefault(fault.dialogue_id, (row_number, f"{fault.field}: {fault.reason}"))
            if fault.is_whole_file:
                self._broken = fault

    def _forget_erased(self) -> None:
        """Drop what was gathered of dialogues that turned out to be an erased customer's."""
        for dialogue_id in self._erased.new_dialogues:
            self._dialogues.pop(dialogue_id, None)
            self._incomplete.pop(dialogue_id, None)
        refused = [entry for entry in self._quarantine if entry.get("dialogue_id") in self._erased.new_dialogues]
        self._counts["quarantined"] -= len({entry["line"] for entry in refused})
        for entry in refused:
            self._quarantine.remove(entry)
            self._reasons -= Counter([f"{entry['field']}: {entry['reason']}"])

    def _remove_erased(self) -> None:
        """Take out rows that were written before their dialogue turned out to be an erased customer's."""
        if not self._erased.new_dialogues:
            return
        for table in TABLES.values():
            path = self._staging / f"{table}.parquet"
            if path.exists():
                n_removed = remove_rows(path, without("dialogue_id", self._erased.new_dialogues), PRIVATE)
                self._counts[table] -= n_removed
                self._counts["erased"] += n_removed

    def _clean(self, row: dict[str, Any]) -> None:
        """Scrub text and extra fields, replace the customer's id, and hash the text; in place."""
        text = row.get("text")
        if text is not None:
            row["text"] = text = self._scrub(text)
            row["content_hash"] = content_hash(text.encode())
            is_customer = row["speaker"] == "customer"
            row["customer_act"] = customer_act(text) if is_customer else None
            row["canonical_reply"] = canonical_reply(text) if is_customer else None
        if row.get("customer_id") is not None:
            row["customer_id"] = self._pseudonym(row["customer_id"])
        if row.get("extra") is not None:
            row["extra"] = json.dumps(self._scrub_nested(row["extra"], 0), sort_keys=True, ensure_ascii=False)

    def _scrub(self, text: str) -> str:
        scrubbed = self._prepared.get(text) or self._scrubber.scrub(text)
        if scrubbed.counts:
            self._scrubbed.update(scrubbed.counts)
        return scrubbed.text

    def _scrub_nested(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._scrub(value)
        if depth > _MAX_DEPTH:
            return None
        if isinstance(value, dict):
            return {self._scrub(str(k)): self._scrub_nested(v, depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._scrub_nested(item, depth + 1) for item in value]
        if isinstance(value, int) and abs(value) > _LONG_NUMBER:
            return self._scrub(str(value))
        if isinstance(value, (datetime, date)):
            return value.isoformat()
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        return value if value is None or isinstance(value, (bool, int)) else self._scrub(str(value))

    def _append(self, table: str, row: dict[str, Any]) -> None:
        rows = self._rows[table]
        rows.append(row)
        if len(rows) >= _FLUSH_ROWS:
            self._flush(table)

    def _flush(self, table: str) -> None:
        rows, schema = self._rows[table], SCHEMAS[table]
        if not rows:
            return
        if table not in self._writers:
            path = self._staging / f"{table}.parquet"
            self._writers[table] = pq.ParquetWriter(path, schema, compression="zstd")
        columns = [pa.array([row[name] for row in rows], type=kind) for name, kind in _columns(schema)]
        self._writers[table].write_table(pa.Table.from_arrays(columns, schema=schema))
        rows.clear()


class _Erased:
    """Which records of a file belong to customers who were erased."""

    def __init__(self, tombstones: Tombstones) -> None:
        self._tombstones = tombstones
        self._is_erased: dict[tuple[str, str], bool] = {}
        self.new_dialogues: set[str] = set()
        """Dialogues that have no tombstone yet, and in which an erased customer spoke."""

    def covers(self, item: RawRecord | Fault) -> bool:
        """Whether the record has to stay out; asked before validation, so that quarantine gets nothing of it."""
        if self._tombstones.is_empty:
            return False
        if isinstance(item, Fault):
            return item.dialogue_id is not None and self._has_dialogue(item.dialogue_id)
        dialogue_id, customer_id = item.fields.get("dialogue_id"), item.fields.get("customer_id")
        if dialogue_id is not None and self._has_dialogue(str(dialogue_id)):
            return True
        if customer_id in (None, "") or not self._known("customer", str(customer_id), self._tombstones.has_customer):
            return False
        if dialogue_id is not None:
            self.new_dialogues.add(str(dialogue_id))
        return True

    def new_digests(self) -> list[str]:
        """Tombstones of the dialogues that have none yet."""
        return sorted(self._tombstones.digest("dialogue", dialogue_id) for dialogue_id in self.new_dialogues)

    def _has_dialogue(self, dialogue_id: str) -> bool:
        return dialogue_id in self.new_dialogues or self._known("dialogue", dialogue_id, self._tombstones.has_dialogue)

    def _known(self, kind: str, identity: str, ask: Callable[[str], bool]) -> bool:
        """The answer, remembered: an id occurs once per turn."""
        found = self._is_erased.get((kind, identity))
        if found is None:
            found = self._is_erased[kind, identity] = ask(identity)
        return found


def processing_versions(scrubbing: ScrubbingSettings) -> dict[str, str]:
    """What a file of the landing was made by: a file made by something else has to be read again."""
    return {
        "schema": SCHEMA_VERSION,
        "scrubber": scrubber_for(scrubbing).version,
        "replies": REPLIES_VERSION,
    }


def part_path(folder: Path, day: date, source: str, suffix: str = "parquet") -> Path:
    """Where a source's part of a table lies."""
    return folder / f"arrival_day={day.isoformat()}" / f"{source}.{suffix}"


def mark_path(landing: Path, source: str) -> Path:
    """Where the commit mark of a source lies."""
    return landing / MARKS / f"{source}.json"


def part_sizes(landing: Path, mark: Mark) -> dict[str, int]:
    """Bytes of a source's part of each table that it has one of."""
    parts = {
        table: part_path(landing / table, date.fromisoformat(mark["arrival_day"]), mark["source"]) for table in SCHEMAS
    }
    return {table: part.stat().st_size for table, part in parts.items() if part.exists()}


def damaged_part(mark: Mark, landing: Path) -> Path | None:
    """A part of the source that is gone or has not the size it was written with; None when all are whole."""
    found = part_sizes(landing, mark)
    for table, n_bytes in mark["parts"].items():
        if found.get(table) != n_bytes:
            return part_path(landing / table, date.fromisoformat(mark["arrival_day"]), mark["source"])
    return None


def _move_or_remove(written: Path, final: Path) -> None:
    """Rename into place; what an earlier reading wrote there and this one did not is removed."""
    if not written.exists():
        final.unlink(missing_ok=True)
        return
    written.chmod(PRIVATE)
    with written.open("rb+") as stream:
        os.fsync(stream.fileno())
    final.parent.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY)
    written.replace(final)


def _columns(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    return [(column.name, column.type) for column in schema]


def _day(microseconds: int | None) -> str | None:
    return None if microseconds is None else (_EPOCH + timedelta(microseconds=microseconds)).date().isoformat()
