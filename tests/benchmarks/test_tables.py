"""Tables of the READMEs are made from rows of benchmarks and studies."""

from __future__ import annotations

import json
from pathlib import Path

from orchestration.settings import PROJECT_ROOT
from tests.benchmarks.tables import OF_TRAINERS, PAGES, bench_table, trainers_table


def test_the_trainers_table_puts_values_on_the_way_from_behavior_to_optimum(tmp_path: Path) -> None:
    values = {"behavior": 20.0, "optimum": 50.0, "cql": 44.0, "cql behind the head": 26.0, "uniform": 14.0}
    rows = [{"check": f"trainers/storefront/{c}", "value": v, "low": v - 1, "high": v + 1} for c, v in values.items()]
    shares = {"check": "trainers/storefront/share of the way", "value": 0.8, "aim": ">= 0.8"}
    other = {"check": "trainers/exact worlds/cql", "value": 0.01}
    (tmp_path / "trainers.json").write_text(json.dumps([*rows, shares, other]))

    table = trainers_table(tmp_path / "trainers.json").splitlines()

    assert table[2:6] == [
        "| optimum | 50.0 ± 1.0 | 100% |  |  |",
        "| cql | 44.0 ± 1.0 | 80% | 26.0 ± 1.0 | 20% |",
        "| behavior | 20.0 ± 1.0 | 0% |  |  |",
        "| uniform | 14.0 ± 1.0 | -20% |  |  |",
    ]
    assert "share of the way: 0.80 (>= 0.8)." in table[-1]


def test_rows_of_the_trainers_have_a_table_of_their_own(tmp_path: Path) -> None:
    common = {"peer": 1, "peer_name": "p", "ratio": 2, "unit": "s", "aim": "none", "hardware": "h", "at": "2026-01-05T"}
    rows = [{"name": name, "ours": 2} | common for name in ("ingest", "trainers: batch 32")]
    (tmp_path / "bench.jsonl").write_text("\n".join(map(json.dumps, rows)))

    others = bench_table(tmp_path / "bench.jsonl", leaving_out=OF_TRAINERS)
    trainers = bench_table(tmp_path / "bench.jsonl", only=OF_TRAINERS)

    assert "| ingest, s | 2 |" in others
    assert "batch 32" not in others
    assert "| batch 32, s | 2 |" in trainers
    assert "ingest" not in trainers
    assert "On h, 2026-01-05;" in trainers


def test_every_table_of_the_pages_can_be_made() -> None:
    source = (PROJECT_ROOT / "tests" / "benchmarks" / "tables.py").read_text()
    pages = [(PROJECT_ROOT / page).read_text() for page in PAGES]
    names = [
        line.split("table:")[1].split(" ")[0] for page in pages for line in page.splitlines() if "<!-- table:" in line
    ]
    assert len(names) >= 4
    assert all(f'"{name}"' in source for name in names)
