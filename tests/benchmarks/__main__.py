"""`make bench [ONLY=name]`: run the benchmarks, print a table, append one JSON line per row to <home>/bench.jsonl."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main(only: str | None) -> int:
    """Run `bench_<only>`, or all; exit status 1 if a row misses its aim."""
    import tests.benchmarks
    from orchestration.settings import load

    names = sorted(m.name for m in pkgutil.iter_modules(tests.benchmarks.__path__) if m.name.startswith("bench_"))
    if only and f"bench_{only}" not in names:
        print(f"There is no benchmark {only!r}. There are: {', '.join(n.removeprefix('bench_') for n in names)}.")
        return 2
    rows = []
    for name in names:
        if only in (None, name.removeprefix("bench_")):
            rows += importlib.import_module(f"tests.benchmarks.{name}").run()
    file = load().paths.home / "bench.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.writelines(json.dumps(row.to_json()) + "\n" for row in rows)
    print(f"{'name':<34}{'ours':>14}{'peer':>14}  {'unit':<20}{'ratio':>8}  {'aim':<8}peer")
    for row in rows:
        mark = "" if row.holds else "  MISSED"
        print(
            f"{row.name:<34}{row.ours:>14,.0f}{row.peer:>14,.0f}  {row.unit:<20}{row.ratio:>8.2f}  "
            f"{row.aim:<8}{row.peer_name}{mark}"
        )
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None))
