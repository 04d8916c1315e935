"""`make study NAME=…`: run a study, show progress, write <home>/studies/NAME.json and NAME.png.

A study is a module `tests.studies.<name>` with `run(settings, memory) -> (rows, figure)`. `memory` keeps finished
pieces on disk, so that a study that was stopped goes on where it was.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from orchestration.console import console, night_display
from orchestration.plots import png
from orchestration.settings import load
from rl.errors import TalktrackError
from rl.files import replaced_file, write_json
from tests.studies.memory import Memory

STUDIES = ("storefront", "privacy", "trainers")
"""Modules of this package that have a `run`; the others are parts of them."""


def main(name: str | None) -> int:
    """Run the study; exit status 1 if one of its checks does not hold."""
    known = sorted(STUDIES)
    if name not in known:
        print(f"make study NAME=<one of {', '.join(known)}>")
        return 2
    settings = load()
    folder = settings.paths.home / "studies"
    memory = Memory(folder / f".{name}.pieces.json")
    try:
        with night_display():
            rows, figure = importlib.import_module(f"tests.studies.{name}").run(settings, memory)
    except TalktrackError as error:
        console.print(f"[bold red]Stopped.[/] {error}")
        return 1
    write_json(folder / f"{name}.json", [row.model_dump(mode="json") for row in rows])
    with replaced_file(folder / f"{name}.png") as temporary:
        Path(temporary).write_bytes(png(figure))
    for row in rows:
        interval = "" if row.low is None else f"  [{row.low:.4f}, {row.high:.4f}]"
        print(f"{'ok    ' if row.holds else 'MISSED'} {row.check:<44}{row.value:>10.4f}{interval}  {row.aim}")
    print(json.dumps({"study": name, "checks": len(rows), "hold": sum(row.holds for row in rows)}))
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None))
