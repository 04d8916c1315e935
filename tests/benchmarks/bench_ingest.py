"""Ingest: validation, scrubbing, pseudonyms and landing, beside pandas that only parses and writes the same lines."""

from __future__ import annotations

import gzip
import io
import tempfile
from datetime import date
from pathlib import Path

import pandas as pd

from orchestration.ingest.landing import ingest
from orchestration.ingest.pseudonyms import load_key
from rl.environments.sample_logs import write_sample_logs
from rl.environments.storefront_items import read_storefront_catalogue
from tests.benchmarks.rows import Row, rates

DIALOGUES, DAYS = 3_000, 3


def run() -> list[Row]:
    """Records a second, one process each. The peer does a fraction of the work."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        logs = folder / "logs"
        written = write_sample_logs(logs, dialogues=DIALOGUES, days=DAYS)
        n_records = written.n_turns + written.n_outcomes
        key = load_key(folder / "secrets")
        attempts = iter(range(100))

        def ours() -> None:
            state = folder / f"state{next(attempts)}"
            ingest(
                str(logs),
                "canonical",
                landing=state / "landing",
                quarantine=state / "quarantine",
                catalogue=read_storefront_catalogue(),
                key=key,
                start_date=date(2026, 1, 1),
                attribution_days=7,
                workers=1,
            )

        def peer() -> None:
            for path in sorted(logs.glob("*/*.jsonl.gz")):
                good = "\n".join(line for line in _lines(path) if line.endswith("}"))
                pd.read_json(io.StringIO(good), lines=True).to_parquet(folder / "peer.parquet")

        our_rate, peer_rate = rates(ours, peer, ours_units=n_records, peer_units=n_records)
    return [Row("ingest of canonical logs", our_rate, peer_rate, "pandas, parsing only", "records/s", ">= 0.3")]


def _lines(path: Path) -> list[str]:
    return gzip.open(path, "rt", encoding="utf-8").read().splitlines()
