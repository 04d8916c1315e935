"""`make tables`: write the tables of README.md again from bench.jsonl and studies/*.json of the home folder.

A table stands between `<!-- table:NAME -->` and `<!-- end -->`; nothing between them is typed by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestration.settings import PROJECT_ROOT, load
from rl.files import replaced_file


def main() -> None:
    """Replace every table of README.md whose numbers are there."""
    home = load().paths.home
    makers: dict[str, Callable[[], str]] = {
        "bench": lambda: bench_table(home / "bench.jsonl"),
        "study:storefront": lambda: study_table(home / "studies" / "storefront.json"),
        "study:privacy": lambda: claims_table(home / "studies" / "privacy.json"),
    }
    readme = PROJECT_ROOT / "README.md"
    text = readme.read_text()
    for name, make in makers.items():
        pattern = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda match, make=make: f"{match[1]}{make()}{match[2]}", text)
    with replaced_file(readme) as temporary:
        temporary.write_text(text)


def bench_table(path: Path) -> str:
    """The newest row of each benchmark."""
    newest: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        newest[row["name"]] = row
    lines = ["| what | ours | peer | ratio | aim |", "|---|--:|--:|--:|---|"]
    for row in newest.values():
        peer = f"{row['peer']:,.0f} ({row['peer_name']})"
        lines.append(
            f"| {row['name']}, {row['unit']} | {row['ours']:,.0f} | {peer} | {row['ratio']:.3g} | {row['aim']} |"
        )
    hardware = sorted({row["hardware"] for row in newest.values()})
    return (
        "\n".join(lines)
        + f"\n\nOn {', '.join(hardware)}; ratios are of medians in one run; above 1, ours is better. `make bench`.\n"
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


if __name__ == "__main__":
    main()
