"""`make tables`: write the tables of README.md and rl/README.md again from bench.jsonl and studies/*.json of the home
folder.

A table stands between `<!-- table:NAME -->` and `<!-- end -->`; nothing between them is typed by hand. One whose
numbers are not there stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestration.settings import PROJECT_ROOT, load
from rl.files import replaced_file

PAGES = ("README.md", "rl/README.md")
STOREFRONT = "trainers/storefront/"
BEHIND = " behind the head"
OF_TRAINERS = "trainers: "
"""Begins the names of the rows of the benchmark `trainers`."""
NOT_VALUES = ("share of the way", "ahead of")
"""Begin the ids of the trainers study's rows that are no values in EUR."""


def main() -> None:
    """Replace every table whose numbers are there."""
    home = load().paths.home
    makers: dict[str, tuple[Callable[[Path], str], Path]] = {
        "bench": (lambda path: bench_table(path, leaving_out=OF_TRAINERS), home / "bench.jsonl"),
        "bench:trainers": (lambda path: bench_table(path, only=OF_TRAINERS), home / "bench.jsonl"),
        "study:storefront": (study_table, home / "studies" / "storefront.json"),
        "study:privacy": (claims_table, home / "studies" / "privacy.json"),
        "study:trainers": (trainers_table, home / "studies" / "trainers.json"),
    }
    made = {name: make(path) for name, (make, path) in makers.items() if path.exists()}
    for page in (PROJECT_ROOT / name for name in PAGES):
        text = page.read_text()
        for name, table in made.items():
            if not table:
                continue  # what stands there stays
            pattern = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- end -->)", re.DOTALL)
            text = pattern.sub(lambda match, table=table: f"{match[1]}{table}{match[2]}", text)
        with replaced_file(page) as temporary:
            temporary.write_text(text)


def bench_table(path: Path, only: str = "", leaving_out: str | None = None) -> str:
    """The newest row of each name; those that begin with `only`, which is then not repeated. Empty without rows."""
    newest: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row["name"].startswith(only) and not (leaving_out and row["name"].startswith(leaving_out)):
            newest[row["name"].removeprefix(only)] = row | {"name": row["name"].removeprefix(only)}
    if not newest:
        return ""
    lines = ["| what | ours | peer | ratio | aim |", "|---|--:|--:|--:|---|"]
    for row in newest.values():
        peer = f"{row['peer']:,.0f} ({row['peer_name']})"
        lines.append(
            f"| {row['name']}, {row['unit']} | {row['ours']:,.0f} | {peer} | {row['ratio']:.3g} | {row['aim']} |"
        )
    hardware = sorted({f"{row['hardware']}, {row['at'][:10]}" for row in newest.values()})
    return (
        "\n".join(lines)
        + f"\n\nOn {'; '.join(hardware)}; ratios are of medians in one run; above 1, ours is better. `make bench`.\n"
    )


def study_table(path: Path) -> str:
    """True values beside estimated intervals."""
    lines = ["| policy and estimator | true value, EUR | estimated 95 % interval | covered |", "|---|--:|---|---|"]
    gains = []
    for row in json.loads(path.read_text()):
        name = row["check"].removeprefix("storefront/")
        if row["low"] is None:
            gains.append(f"True {name}: {row['value']:+.1%} against the behavior policy.")
            continue
        covered = "yes" if row["low"] <= row["value"] <= row["high"] else "no"
        lines.append(f"| {name} | {row['value']:.2f} | [{row['low']:.2f}, {row['high']:.2f}] | {covered} |")
    return "\n".join(lines) + "\n\n" + " ".join(gains) + " `make nightly && make study NAME=storefront`.\n"


def claims_table(path: Path) -> str:
    """What attacks measured beside the claim; noise, canaries and prices stay in the study's own file."""
    lines = ["| attack | measured | claim or aim | holds |", "|---|--:|---|---|"]
    for row in json.loads(path.read_text()):
        if row["check"].startswith(("two worlds/", "membership/")):
            holds = "yes" if row["holds"] else "no"
            lines.append(f"| {row['check']} | {row['value']:.2f} | {row['aim']} | {holds} |")
    return "\n".join(lines) + "\n\n`make study NAME=privacy`.\n"


def trainers_table(path: Path) -> str:
    """True values in the storefront, best first, and how far that is from the behavior policy to the optimum."""
    rows = {row["check"].removeprefix(STOREFRONT): row for row in _rows_of(path) if row["check"].startswith(STOREFRONT)}
    behavior, optimum = rows["behavior"]["value"], rows["optimum"]["value"]
    lines = [
        "| policy | true value, EUR | of the way | behind the decision head, EUR | of the way |",
        "|---|--:|--:|--:|--:|",
    ]
    in_euros = {name: row for name, row in rows.items() if not name.startswith(NOT_VALUES) and BEHIND not in name}
    for name, row in sorted(in_euros.items(), key=lambda item: -item[1]["value"]):
        plain, _, log = name.partition(",")
        behind = rows.get(f"{plain}{BEHIND}{',' if log else ''}{log}")
        cells = [_value_and_way(each, behavior, optimum) if each else " | " for each in (row, behind)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    checks = [
        f"{name}: {row['value']:.2f} ({row['aim']})." for name, row in rows.items() if name.startswith(NOT_VALUES)
    ]
    return "\n".join(lines) + "\n\n" + " ".join(checks) + " `make study NAME=trainers`.\n"


def _rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def _value_and_way(row: dict[str, Any], behavior: float, optimum: float) -> str:
    """Two cells; ± is a deviation over seeds, or half a 95 % interval of what is one policy."""
    way = (row["value"] - behavior) / (optimum - behavior)
    return f"{row['value']:.1f} ± {(row['high'] - row['low']) / 2:.1f} | {way:.0%}"


if __name__ == "__main__":
    main()
