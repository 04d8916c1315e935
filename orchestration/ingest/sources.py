"""Which files a source has, and on which day each of them arrived.

Here: finding files and dating them, without reading records. Not here: reading (`readers`), landing (`landing`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatch
from functools import lru_cache
from typing import Any

import fsspec

from orchestration.ingest.readers import reader_named
from orchestration.ingest.readers.files import open_bytes
from orchestration.ingest.readers.turns import MINUTES_PER_DIALOGUE
from orchestration.ingest.records import Reader, ReaderOptions, Survey
from rl.errors import DataError

_DAY_FOLDER = re.compile(r"(?:^|/)(?:arrival_day|day)=([^/]+)/")
_MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "created")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """One file of a log, with the files that belong to it."""

    path: str
    companions: tuple[str, ...]
    arrival_day: date
    n_bytes: int
    fingerprint: str
    """Sizes and modification times: equal as long as nobody touched the files."""

    options: ReaderOptions

    def content_hash(self) -> str:
        """32 hex digits over the bytes of the file and its companions."""
        digest = hashlib.blake2b(digest_size=16)
        for path in (self.path, *self.companions):
            with _readable(path), open_bytes(path) as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()


def find_sources(
    source: str, log_format: str, *, start_date: date, attribution_days: int, up_to: date | None = None
) -> list[SourceFile]:
    """The source's files in path order, those that arrived after `up_to` left out. Records are not read, only counted
    where needed.

    The arrival day is `arrival_day=YYYY-MM-DD` (or `day=`) in the path, else the UTC day of the last modification. A
    source without times arrives as a whole, on the day after its made-up dialogues are past the attribution window.
    Raises DataError when the source does not exist or has no file of the format.
    """
    reader = reader_named(log_format)
    files = [replace(file, options=ReaderOptions(start_date)) for file in _matching_files(source, reader, start_date)]
    files = _with_made_up_days(files, reader, start_date, attribution_days)
    return [file for file in files if up_to is None or file.arrival_day <= up_to]


def unread(files: Iterable[SourceFile], marks: Iterable[Mapping[str, Any]]) -> list[SourceFile]:
    """Those of `files` that were never landed, or were touched since; `marks` are the commit marks of the landing."""
    known = {(mark["path"], mark["fingerprint"]) for mark in marks}
    return [file for file in files if (file.path, file.fingerprint) not in known]


def _matching_files(source: str, reader: Reader, start_date: date) -> list[SourceFile]:
    try:
        file_system, root = fsspec.core.url_to_fs(source)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"The logs at {source} cannot be reached: {error}. Install what is missing, or correct it."
        ) from None
    if not file_system.exists(root):
        raise DataError(f"There are no logs at {source}. Correct `logs.path` in talktrack.yaml, or LOGS= of make.")
    # Listings of object stores are cached; a sensor has to see what came since.
    file_system.invalidate_cache()
    found = file_system.find(root, detail=True)
    names = {path: path.rsplit("/", 1)[-1] for path in found}
    matching = sorted(
        path for path, name in names.items() if any(fnmatch(name, pattern) for pattern in reader.patterns)
    )
    visible = [path for path in matching if not names[path].startswith((".", "_"))]
    if not visible:
        raise DataError(
            f"{source} has no file that the format {reader.name!r} reads ({', '.join(reader.patterns)}); "
            f"it has {len(found)} file(s). Check the path, or name the right format with FORMAT=."
        )
    return [_source_file(path, found, file_system, reader, start_date) for path in visible]


def _source_file(path: str, found: dict[str, Any], file_system: Any, reader: Reader, start_date: date) -> SourceFile:
    beside = [f"{path.rsplit('/', 1)[0]}/{name}" for name in reader.companions]
    infos = {name: found[name] if name in found else file_system.info(name) for name in [path, *beside]
             if name in found or file_system.exists(name)}  # fmt: skip
    return SourceFile(
        path=_url(path, file_system),
        companions=tuple(_url(name, file_system) for name in infos if name != path),
        arrival_day=_day_in_path(path) or _modified_at(infos[path]).date(),
        n_bytes=sum(info["size"] for info in infos.values()),
        fingerprint=" ".join(f"{info['size']}@{_modified_at(info).isoformat()}" for info in infos.values()),
        options=ReaderOptions(start_date),
    )


def _url(path: str, file_system: Any) -> str:
    protocols = [file_system.protocol] if isinstance(file_system.protocol, str) else file_system.protocol
    return path if "file" in protocols else str(file_system.unstrip_protocol(path))


def _day_in_path(path: str) -> date | None:
    days = _DAY_FOLDER.findall(path)
    if not days:
        return None
    try:
        return date.fromisoformat(days[-1])
    except ValueError:
        raise DataError(
            f"{path}: the day {days[-1]!r} in the path is no date. Name the folder day=YYYY-MM-DD."
        ) from None


def _modified_at(info: dict[str, Any]) -> datetime:
    value = next((info[name] for name in _MODIFIED if info.get(name) is not None), 0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    return datetime.fromtimestamp(value, UTC)


def _with_made_up_days(
    files: Sequence[SourceFile], reader: Reader, start_date: date, attribution_days: int
) -> list[SourceFile]:
    if reader.survey is None:
        return list(files)
    surveys = [_survey(reader.name, file.path, file.fingerprint) for file in files]
    if all(survey.has_times for survey in surveys):
        return list(files)
    total = sum(survey.n_dialogues for survey in surveys)
    last_day = (ReaderOptions(start_date).start + timedelta(minutes=MINUTES_PER_DIALOGUE * total)).date()
    arrival_day = last_day + timedelta(days=attribution_days + 1)
    return [
        replace(
            file,
            arrival_day=file.arrival_day if survey.has_times else arrival_day,
            options=ReaderOptions(start_date, first_dialogue),
        )
        for file, survey, first_dialogue in zip(files, surveys, _running_totals(surveys), strict=True)
    ]


def _running_totals(surveys: Iterable[Survey]) -> Iterator[int]:
    total = 0
    for survey in surveys:
        yield total
        total += survey.n_dialogues


@lru_cache(maxsize=4096)
def _survey(log_format: str, path: str, fingerprint: str) -> Survey:
    """Remembered as long as the file is untouched: a sensor asks every half minute."""
    survey = reader_named(log_format).survey
    with _readable(path):
        return survey(path) if survey else Survey(0, has_times=True)


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Check the file and run again.") from None
