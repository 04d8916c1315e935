"""One file per log format; each gives `read(path, options)` → canonical raw records and faults.

Here: the list of readers. A new format joins by being listed, and by a profile and a catalogue beside.
"""

from __future__ import annotations

from orchestration.ingest.readers.canonical import CANONICAL
from orchestration.ingest.readers.chat import CHAT
from orchestration.ingest.readers.convokit import CONVOKIT
from orchestration.ingest.readers.inspired import INSPIRED
from orchestration.ingest.readers.persuasionforgood import PERSUASIONFORGOOD
from orchestration.ingest.readers.redial import REDIAL
from orchestration.ingest.readers.sgd import SGD
from orchestration.ingest.records import Reader
from rl.errors import SettingsError

READERS: dict[str, Reader] = {
    reader.name: reader for reader in (CANONICAL, PERSUASIONFORGOOD, SGD, INSPIRED, REDIAL, CONVOKIT, CHAT)
}


def reader_named(log_format: str) -> Reader:
    """The reader of a format. Raises SettingsError with the formats that exist."""
    if log_format not in READERS:
        raise SettingsError(f"There is no log format {log_format!r}. Known formats: {', '.join(READERS)}.")
    return READERS[log_format]
