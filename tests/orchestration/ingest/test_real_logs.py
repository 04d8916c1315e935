"""The public logs, landed and counted: the figures that the whole pipeline has to reproduce.

The step rules are counted here in a few lines of Python, so that the SQL of the warehouse has something to agree with.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestration.ingest.landing import IngestReport, ingest
from orchestration.ingest.pseudonyms import load_key
from rl.catalogue import ActionCatalogue, read_catalogue

INGEST = Path(__file__).resolve().parents[3] / "orchestration" / "ingest"


class Landed:
    """A public log in a landing of its own."""

    def __init__(self, source: Path, log_format: str, folder: Path) -> None:
        self.catalogue: ActionCatalogue = read_catalogue(INGEST / "catalogues" / f"{log_format}.csv")
        self.folder = folder / "landing"
        self.report: IngestReport = ingest(
            str(source),
            log_format,
            landing=self.folder,
            quarantine=folder / "quarantine",
            catalogue=self.catalogue,
            key=load_key(folder / "secrets", {}),
            start_date=date(2026, 1, 1),
            attribution_days=7,
            workers=1,
        )

    def rows(self, table: str, *columns: str) -> list[dict[str, Any]]:
        return [
            row
            for path in sorted(self.folder.glob(f"{table}/arrival_day=*/*.parquet"))
            for row in pq.read_table(path, columns=["dialogue_id", *columns], partitioning=None).to_pylist()
        ]

    def actions(self) -> list[str]:
        """The action of every step of the log."""
        roles = {s.strategy: s for s in self.catalogue.strategies}
        turns: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in self.rows("turns", "speaker", "turn_index", "strategies"):
            if row["speaker"] == "agent":
                turns[row["dialogue_id"]].append(row)
        actions = []
        for dialogue in turns.values():
            for turn in sorted(dialogue, key=lambda row: row["turn_index"]):
                assert turn["strategies"], "an agent turn without a label"
                labels = [roles[label] for label in turn["strategies"]]
                if any(label.role == "outcome" for label in labels):
                    break
                if selectable := [label for label in labels if label.is_selectable]:
                    actions.append(min(selectable, key=lambda label: label.priority).strategy)
        return actions


def test_persuasionforgood_gives_2959_steps_27_cents_and_148_donors(shared_data: Path, tmp_path: Path) -> None:
    landed = Landed(shared_data / "persuasionforgood", "persuasionforgood", tmp_path)

    outcomes = landed.rows("outcomes", "kind", "value")
    dollars = [min(row["value"] or 0.0, 2.0) for row in outcomes]
    assert landed.report.n_quarantined == 0
    assert landed.report.n_dialogues == len(outcomes) == 300
    assert len(landed.catalogue) == 27
    assert landed.catalogue.selectable.sum() == 22
    assert len(landed.actions()) == 2_959
    assert sum(dollars) / 300 == pytest.approx(0.27, abs=0.005)
    assert sum(row["kind"] == "conversion" for row in outcomes) == 148
    assert landed.report.arrival_days == (date(2026, 1, 9),)


def test_sgd_gives_15744_steps_of_six_strategies_and_2136_successes(shared_data: Path, tmp_path: Path) -> None:
    landed = Landed(shared_data / "sgd", "sgd", tmp_path)

    kinds = [row["kind"] for row in landed.rows("outcomes", "kind", "value")]
    actions = landed.actions()
    assert landed.report.n_quarantined == 0
    assert landed.report.n_turns == 44_128
    assert len(actions) == 15_744
    assert len(set(actions)) == 6
    assert [kinds.count(kind) for kind in ("conversion", "rejection", "abandonment")] == [2_136, 110, 541]


def test_inspired_gives_1039_steps_of_fourteen_strategies_and_46_acceptances(shared_data: Path, tmp_path: Path) -> None:
    landed = Landed(shared_data / "inspired2", "inspired", tmp_path)

    kinds = [row["kind"] for row in landed.rows("outcomes", "kind", "value")]
    assert landed.report.n_quarantined == 0
    assert landed.report.n_dialogues == 99
    assert len(landed.actions()) == 1_039
    assert len(landed.catalogue) == landed.catalogue.selectable.sum() == 14
    assert (kinds.count("conversion"), kinds.count("rejection")) == (46, 53)


def test_redial_converts_64_percent_of_the_union_of_its_two_parts(shared_data: Path, tmp_path: Path) -> None:
    landed = Landed(shared_data / "redial", "redial", tmp_path)

    turns = landed.rows("turns", "item_ids", "is_synthetic")
    converted = {row["dialogue_id"] for row in landed.rows("outcomes", "kind", "value") if row["kind"] == "conversion"}
    dialogues = {row["dialogue_id"] for row in turns}
    assert landed.report.n_quarantined == 0
    assert len(dialogues) == 1_813
    assert len(converted) / len(dialogues) == pytest.approx(0.644, abs=0.0005)
    assert any(row["item_ids"] for row in turns)
    assert all(row["is_synthetic"] for row in turns)
