"""The warehouse at a million dialogues: a whole build, the same SQL by hand, pandas, and a night after a long history.

`make bench ONLY=warehouse` at full size takes about half an hour and 8 GB of disk in the home folder, removed at the
end; TALKTRACK_BENCH_DIALOGUES=50000 takes some minutes. Everything runs on two cores, in processes of its own, whose
peak memory is watched; DuckDB has the project's own settings (memory_limit 4GB).

What the rows compare:

- *landing to marts and exact cells*: `dbt build` with all models and data tests of a first night (start of dbt, parsing
  and 100 days of landing included), beside the statements that dbt compiled in that run, each executed once in one
  DuckDB connection, in the order in which dbt finished them. The aim, dbt within 1.3 times, is a ratio of 0.77.
- *peak memory*: of dbt and its children, beside 6 GiB.
- *pandas*: the same landing → steps → transitions → exact cells without data tests, on the largest whole number of days
  that has at most 200,000 dialogues (2 million turns); only reported.
- *a night*: plan, dbt and export of the marts for one more day with outcomes of the ten days before, after 100 days of
  history beside after 10, at equal daily volume; medians of three nights.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from orchestration import warehouse
from orchestration.console import console
from orchestration.settings import PROJECT_ROOT, TalktrackSettings, load
from orchestration.workspace import configured_catalogue
from registry.privacy.settings import GRID_LEVELS
from registry.privacy.windows import Window
from tests.benchmarks.landing_at_scale import FIRST_DAY, TURNS_PER_DIALOGUE, LogShape, land_days
from tests.benchmarks.measure import Cost, run_measured
from tests.benchmarks.rows import Row
from tests.benchmarks.warehouse_steps import BUILD_RESULTS, BY_HAND, PLAN_FILE, bench_settings

DIALOGUES = int(os.environ.get("TALKTRACK_BENCH_DIALOGUES", "1_000_000"))
SHORT_HISTORY, LONG_HISTORY = 10, 100
NIGHTS = 3
FOLDER = "bench-warehouse"
"""In the home folder; landing, working database, spill and marts of one run."""
CUSTOMERS_PER_DAILY_DIALOGUE = 20
PANDAS_DIALOGUES = 200_000
MEMORY_AIM_MIB = 6 * 1024
MIB = 2**20


@dataclass(frozen=True)
class Workspace:
    """A throw-away workspace and the log that is landed in it."""

    settings: TalktrackSettings
    shape: LogShape
    long_history: int = LONG_HISTORY
    """Days."""

    @property
    def catalogue(self) -> Path:
        return self.settings.paths.root / "catalogue.csv"

    @property
    def dbt_target(self) -> Path:
        return self.settings.paths.root / "dbt"

    @property
    def window(self) -> Window:
        """Of the exact tables of the whole build: every day that is mature at its end."""
        mature = self.long_history - self.settings.logs.attribution_days - 1
        return Window(FIRST_DAY, FIRST_DAY + timedelta(days=mature))


def run(dialogues: int = DIALOGUES) -> list[Row]:
    """Turns a second, MiB and milliseconds a night."""
    with _two_cores(), _workspace(dialogues) as space:
        early = _night_after(space, SHORT_HISTORY)
        whole = whole_build(space)
        by_hand = the_same_by_hand(space)
        pandas_turns, pandas = _pandas(space)
        late = _night_after(space, LONG_HISTORY)
    n_turns = LONG_HISTORY * space.shape.dialogues_per_day * TURNS_PER_DIALOGUE
    rate, pandas_rate = n_turns / whole.seconds, pandas_turns / pandas.seconds
    in_pandas = f"pandas 3 on {pandas_turns / 1e6:.2g} M turns"
    return [
        Row(
            "landing to marts and exact cells",
            rate,
            n_turns / by_hand.seconds,
            "same SQL by hand in DuckDB",
            "turns/s",
            ">= 0.77",
        ),
        Row("the same beside pandas", rate, pandas_rate, in_pandas, "turns/s", "none"),
        Row(
            "peak memory of the build",
            whole.peak_bytes / MIB,
            MEMORY_AIM_MIB,
            "stated aim",
            "MiB",
            ">= 1",
            is_lower_better=True,
        ),
        Row(
            "peak memory beside pandas",
            whole.peak_bytes / MIB,
            pandas.peak_bytes / MIB,
            in_pandas,
            "MiB",
            "none",
            is_lower_better=True,
        ),
        Row(
            f"a night after {LONG_HISTORY} days",
            late.seconds * 1000,
            early.seconds * 1000,
            f"a night after {SHORT_HISTORY} days",
            "ms",
            ">= 0.83",
            is_lower_better=True,
        ),
    ]


# ---------- the steps


def _night_after(space: Workspace, n_days: int) -> Cost:
    """The median night of one more day on top of a history of `n_days`, which is built first where it is not."""
    if not (space.settings.paths.root / warehouse.STATE_FILE).exists():
        _land(space, n_days)
        _say(f"build of {n_days} days", _night(space))
    nights = []
    for day in range(n_days, n_days + NIGHTS):
        _land(space, day + 1)
        nights.append(_night(space))
        _say(f"night of day {day + 1}", nights[-1])
    return sorted(nights, key=lambda cost: cost.seconds)[NIGHTS // 2]


def whole_build(space: Workspace) -> Cost:
    """A first night of the long history, with the exact tables of a window that covers it. Costs of dbt only."""
    paths = space.settings.paths
    _land(space, space.long_history)
    shutil.rmtree(paths.marts, ignore_errors=True)
    for path in (paths.warehouse, paths.root / warehouse.STATE_FILE):
        path.unlink(missing_ok=True)
    plan, _ = _plan(space)
    built = _dbt(space, plan, space.window)
    _say(f"build of {space.long_history} days with exact cells", built)
    shutil.copy(space.dbt_target / "run_results.json", paths.root / BUILD_RESULTS)
    _say("export of the marts", _step("export", space))
    return built


def the_same_by_hand(space: Workspace) -> Cost:
    """What dbt ran in that build, in one connection, in a database that is removed again."""
    cost = _step("by_hand", space)
    shutil.rmtree(space.settings.paths.root / BY_HAND)
    _say("the same SQL by hand", cost)
    return cost


def _pandas(space: Workspace) -> tuple[int, Cost]:
    """Turns of the whole days that pandas was given, and what it took."""
    n_days = max(1, min(space.long_history, PANDAS_DIALOGUES // space.shape.dialogues_per_day))
    cost = _step("pandas", space, str(n_days))
    _say(f"pandas on {n_days} days", cost)
    return n_days * space.shape.dialogues_per_day * TURNS_PER_DIALOGUE, cost


def _night(space: Workspace) -> Cost:
    """Plan, dbt and export. No window is due: the exact tables of a window are built once."""
    plan, planned = _plan(space)
    return planned + _dbt(space, plan, None) + _step("export", space)


def _plan(space: Workspace) -> tuple[warehouse.BuildPlan, Cost]:
    cost = _step("plan", space)
    return warehouse.BuildPlan.model_validate_json((space.settings.paths.root / PLAN_FILE).read_text()), cost


def _step(name: str, space: Workspace, *more: str) -> Cost:
    home = str(space.settings.home)
    command = [sys.executable, "-m", "tests.benchmarks.warehouse_steps", name, home, *more]
    return run_measured(command, folder=PROJECT_ROOT)


def _dbt(space: Workspace, plan: warehouse.BuildPlan, window: Window | None) -> Cost:
    arguments = plan.dbt_arguments(space.settings, window, GRID_LEVELS[-1])
    environment = {
        **warehouse.dbt_environment(space.settings, space.catalogue),
        "DBT_TARGET_PATH": str(space.dbt_target),
        "DBT_LOG_PATH": str(space.dbt_target),
    }
    dbt = str(Path(sys.executable).with_name("dbt"))
    return run_measured(
        [dbt, *arguments, "--exclude", "tag:released"], folder=warehouse.TRANSFORMS, environment=environment
    )


def _land(space: Workspace, n_days: int) -> None:
    """Land the days up to `n_days` that are not landed yet."""
    landing = space.settings.paths.landing
    landed = len(list((landing / "_files").glob("*.json")))
    for day in land_days(landing, range(landed, n_days), space.shape, configured_catalogue(space.settings)):
        if day.day == 1:
            console.print(f"  landed up to {day}")


# ---------- around them


@contextmanager
def _workspace(dialogues: int) -> Iterator[Workspace]:
    """A workspace in the home folder, where there is room; what a killed run left there is removed first."""
    folder = load().paths.home / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    settings = bench_settings(folder)
    settings.paths.root.mkdir(parents=True)
    try:
        per_day = max(1, dialogues // LONG_HISTORY)
        shape = LogShape(dialogues_per_day=per_day, customers=per_day * CUSTOMERS_PER_DAILY_DIALOGUE)
        space = Workspace(settings, shape)
        warehouse.write_catalogue(configured_catalogue(settings), space.catalogue)
        yield space
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _two_cores() -> Iterator[None]:
    """Keep this process and its children on two cores, so that engines do not count more."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:2]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _say(what: str, cost: Cost) -> None:
    console.print(f"  {what}: {cost}")
