"""A private release of about 5,000 cells: from exact tables to published files, beside the aim and OpenDP's own draws.

The grid is the storefront's catalogue and acts at level `turn_segment` with 17 public segments: 3,276 transitions, 936
cells with three measures each and 1,008 replies are 5,220 cells and 7,092 draws, plus 300 texts for the threshold.
A release is the whole protocol: alignment with the grid, certification, the ledger's reservation, the draws, files
written and flushed, the ledger's commit, publication, verification. Medians of three releases in folders of their own.

The second row is how far a release is from the least that its noise can cost: the same number of draws from OpenDP's
discrete Gaussian at the same σ, each measure in one call, nothing else. OpenDP draws one value at a time from an exact
sampler over big integers on one core; nothing here can be faster than that. On two busy cores a release took 0.4 s,
17,500 draws a second against 55,600. In CPU time the sampler is 0.15 of 0.19 s; the gap is mostly waiting for the disk,
sixteen flushes of files, which are what makes a release survive a power cut.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa

from registry.privacy.grid import selectable_strategies
from registry.privacy.mechanisms import gaussian_sums
from registry.privacy.plan import ReleasePlan, plan_release
from registry.privacy.release import ReleasePlaces, prepare_released, release_tables
from registry.privacy.settings import PrivacySettings
from registry.privacy.tables import ExactTables
from registry.privacy.windows import Window
from rl.encoders.customer_replies import CUSTOMER_ACTS
from rl.environments.storefront_items import read_storefront_catalogue
from tests.benchmarks.rows import Row

N_SEGMENTS = 17
N_REPLY_TEXTS = 300
REPEATS = 3
AIM_SECONDS = 5.0
WINDOW = Window(date(2026, 1, 1), date(2026, 1, 29))
SUMS = ("transitions", "customers", "conversions", "rewards", "replies")
"""Measures over public keys; reply texts go through the thresholded mechanism."""


def run(n_segments: int = N_SEGMENTS) -> list[Row]:
    """Milliseconds of a release, and draws a second."""
    plan = release_plan(n_segments)
    exact = exact_tables(plan)
    n_draws = sum(_n_draws(plan).values())
    release = _median_seconds(lambda folder: _release(exact, plan, folder))
    bare = _median_seconds(lambda folder: _bare_draws(plan))
    n_cells = plan.grid.n_transitions + plan.grid.n_cells + plan.grid.n_replies
    return [
        Row(
            f"release of {n_cells:,} cells",
            release * 1000,
            AIM_SECONDS * 1000,
            "stated aim",
            "ms",
            ">= 1",
            is_lower_better=True,
        ),
        Row("draws of a release", n_draws / release, n_draws / bare, "OpenDP's sampler alone", "draws/s", "none"),
    ]


def release_plan(n_segments: int = N_SEGMENTS) -> ReleasePlan:
    """The plan of a window of a million dialogues with this many public segments."""
    settings = PrivacySettings(
        grid="turn_segment",
        segments=tuple(f"segment_{number:02d}" for number in range(n_segments)),
        expected_dialogues=1_000_000,
    )
    strategies = selectable_strategies(read_storefront_catalogue())
    return plan_release(settings, strategies=strategies, customer_acts=CUSTOMER_ACTS, sampling_share=0.6)


def exact_tables(plan: ReleasePlan) -> ExactTables:
    """Hundreds of customers in every cell of the grid, and texts that a few to hundreds of customers said."""
    random = np.random.default_rng(0)
    transitions, cells, replies = (
        list(keys) for keys in (plan.grid.transitions(), plan.grid.cells(), plan.grid.replies())
    )
    customers = random.integers(100, 1000, len(cells))
    texts = [("text", "any|any|any|any", f"canonical reply {number}") for number in range(N_REPLY_TEXTS)]
    said = [*(("act", bucket, act) for bucket, act in replies), *texts]
    return ExactTables(
        transitions=pa.table(
            {
                **_keys(("aggregate_bucket", "strategy", "next_bucket"), transitions),
                "n_steps": random.integers(100, 1000, len(transitions)),
            }
        ),
        cells=pa.table(
            {
                **_keys(("aggregate_bucket", "strategy"), cells),
                "n_customers": customers,
                "n_conversions": customers // 4,
                "reward_milli": customers * 20_000,
            }
        ),
        replies=pa.table(
            {
                **_keys(("reply_kind", "aggregate_bucket", "reply"), said),
                "n_customers": random.integers(1, 1000, len(said)),
            }
        ),
    )


def _keys(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> dict[str, list[str]]:
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _n_draws(plan: ReleasePlan) -> dict[str, int]:
    """Draws by measure, texts aside."""
    lengths = {"transitions": plan.grid.n_transitions, "replies": plan.grid.n_replies}
    return {name: lengths.get(name, plan.grid.n_cells) for name in SUMS}


def _release(exact: ExactTables, plan: ReleasePlan, folder: Path) -> None:
    places = ReleasePlaces("benchmark", folder / "released", folder / "staging", folder / "privacy_budget.db")
    prepare_released(places.released)
    record = release_tables(exact, plan=plan, window=WINDOW, places=places, code_revision="benchmark")
    if record.is_replay:
        raise RuntimeError("Nothing was drawn: the folder of this release was used before.")


def _bare_draws(plan: ReleasePlan) -> None:
    for name, n_draws in _n_draws(plan).items():
        measure = plan.measure(name)
        gaussian_sums(np.zeros(n_draws, dtype=np.int64), l2=measure.l2, rho=measure.rho)


def _median_seconds(call: Callable[[Path], None]) -> float:
    seconds = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            call(Path(folder))
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
