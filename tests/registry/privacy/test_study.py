"""The short form of `make study NAME=privacy`."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestration.plots import png
from orchestration.settings import TalktrackSettings
from tests.studies import privacy
from tests.studies.memory import Memory

SHORT = {
    "RHOS": (0.5,),
    "N_RUNS": 2_500,
    "N_DRAWS": 20_000,
    "SIGMAS": (3.7,),
    "THRESHOLDS": ((1.0, 0.023),),
    "N_CANARIES": 600,
    "ROWS_PER_CELL": (20,),
    "MEMBERSHIP_REPEATS": 4,
    "N_CUSTOMERS": 20_000,
    "LOG_SEEDS": (1,),
}


def test_the_study_finds_its_claims_kept_and_its_planted_faults_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small enough to be quick, and still each of its checks fails at most once in a thousand runs."""
    for name, value in SHORT.items():
        monkeypatch.setattr(privacy, name, value)
    pieces = Memory(tmp_path / "pieces.json")

    rows, figure = privacy.run(TalktrackSettings(home=tmp_path), pieces)

    assert not [row for row in rows if not row.holds]
    assert png(figure).startswith(b"\x89PNG")
    assert privacy.run(TalktrackSettings(home=tmp_path), Memory(tmp_path / "pieces.json"))[0] == rows
