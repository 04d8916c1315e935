"""SQL and Python agree on the public grid: every bucket that the macro writes is one that the grid lists.

A key that only one of the two knows would be dropped before the draw, in silence. The macro is rendered as dbt renders
it, from the same variables, and run in DuckDB over random dialogues.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import jinja2
import numpy as np
import pyarrow as pa
import pytest

from orchestration.settings import TalktrackSettings
from orchestration.warehouse import dbt_vars
from registry.privacy.grid import Grid
from registry.privacy.settings import GRID_LEVELS, GridLevel, PrivacySettings
from rl.encoders.customer_replies import CUSTOMER_ACTS

BUCKETS = Path(__file__).resolve().parents[2] / "transforms" / "macros" / "buckets.sql"
STRATEGIES = ("ask", "it's nice", "offer", "wait")
N_DIALOGUES, LONGEST = 400, 14


def grid_of(privacy: PrivacySettings, level: GridLevel) -> Grid:
    return Grid(
        level=level,
        turn_edges=privacy.turn_edges,
        strategies=STRATEGIES,
        segments=privacy.segments,
        customer_acts=CUSTOMER_ACTS,
    )


def bucket_in_sql(privacy: PrivacySettings, level: GridLevel) -> str:
    variables: dict[str, Any] = dbt_vars(TalktrackSettings(privacy=privacy), None, None, grid=level)
    macros = jinja2.Environment().from_string(BUCKETS.read_text(), {"var": variables.__getitem__}).module
    return str(macros.aggregate_bucket("step_index + 1", "previous_strategy", "segment", "customer_act"))


def random_steps() -> pa.Table:
    """Steps of dialogues, with what a log may hold: acts and segments outside the lists, and none at all."""
    rng = np.random.default_rng(0)
    rows = []
    for dialogue in range(N_DIALOGUES):
        segment = rng.choice([None, "bargain_hunter", "enthusiast", "gift_buyer", "a new one", "other"])
        heard = None
        for step in range(rng.integers(1, LONGEST + 1)):
            heard = rng.choice([*CUSTOMER_ACTS, "an act of old"]) if rng.random() < 0.8 else heard
            rows.append(
                {
                    "dialogue_id": dialogue,
                    "step_index": step,
                    "segment": segment,
                    "customer_act": heard,
                    "strategy": str(rng.choice(STRATEGIES)),
                }
            )
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize("level", GRID_LEVELS)
@pytest.mark.parametrize(
    "privacy",
    [
        PrivacySettings(),
        PrivacySettings(segments=(), turn_edges=(1,)),
        PrivacySettings(segments=("gift_buyer", "other"), turn_edges=(1, 3, 4)),
    ],
    ids=["defaults", "no segments", "wide first band"],
)
def test_every_cell_of_a_random_log_is_in_the_public_grid(privacy: PrivacySettings, level: GridLevel) -> None:
    with duckdb.connect() as connection:
        connection.register("steps", random_steps())
        found = connection.execute(
            f"""
            with ordered as (
                select *, lag(strategy) over (partition by dialogue_id order by step_index) as previous_strategy
                from steps
            ),
            bucketed as (select *, {bucket_in_sql(privacy, level)} as aggregate_bucket from ordered)
            select distinct aggregate_bucket, strategy,
                coalesce(lead(aggregate_bucket) over (partition by dialogue_id order by step_index), 'ended')
            from bucketed
            """
        ).fetchall()
    grid = grid_of(privacy, level)
    assert set(found) <= set(grid.transitions())
    # Every band, and every segment that is told apart, occurs in the log: the lists are not longer than they need be.
    buckets = {bucket for bucket, _, _ in found}
    assert {bucket.split("|")[0] for bucket in buckets} == set(grid.bands)
    assert {bucket.split("|")[2] for bucket in buckets} == set(grid.segment_names)
