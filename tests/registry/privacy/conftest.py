"""A window, a plan and exact tables of a small world, for tests of tables and releases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from registry.privacy.plan import ReleasePlan, plan_release
from registry.privacy.release import ReleasePlaces
from registry.privacy.settings import PrivacySettings
from registry.privacy.tables import ExactTables
from registry.privacy.windows import Window

STRATEGIES = ("ask", "inform", "offer", "wait")
ACTS = ("accept", "question", "other")
FREQUENT, RARE = "yes please", "my name is unheard of"


@pytest.fixture
def window() -> Window:
    return Window(date(2026, 1, 1), date(2026, 1, 29))


@pytest.fixture
def places(tmp_path: Path) -> ReleasePlaces:
    return ReleasePlaces(
        workspace="storefront",
        released=tmp_path / "released",
        staging=tmp_path / "staging",
        ledger=tmp_path / "ledger" / "privacy_budget.db",
    )


@pytest.fixture
def plan_with() -> Callable[..., ReleasePlan]:
    """The plan of settings that differ from the defaults as stated."""

    def plan(**changes: Any) -> ReleasePlan:
        settings = PrivacySettings(**{"grid": "turn", **changes})
        return plan_release(settings, strategies=STRATEGIES, customer_acts=ACTS, sampling_share=0.6)

    return plan


@pytest.fixture
def plan(plan_with: Callable[..., ReleasePlan]) -> ReleasePlan:
    """The coarsest grid: 4 buckets, 16 cells, 48 transitions."""
    return plan_with()


@pytest.fixture
def exact(plan: ReleasePlan) -> ExactTables:
    """A thousand and more customers in each cell of the plan's grid but the last, which has none."""
    rng = np.random.default_rng(0)
    transitions, cells, replies = (
        list(keys) for keys in (plan.grid.transitions(), plan.grid.cells(), plan.grid.replies())
    )
    customers = rng.integers(1000, 5000, len(cells) - 1)
    return ExactTables(
        transitions=pa.table(
            {
                **_keys(("aggregate_bucket", "strategy", "next_bucket"), transitions[:-1]),
                "n_steps": rng.integers(1000, 5000, len(transitions) - 1),
            }
        ),
        cells=pa.table(
            {
                **_keys(("aggregate_bucket", "strategy"), cells[:-1]),
                "n_customers": customers,
                "n_conversions": customers // 5,
                "reward_milli": customers * 10_000,
            }
        ),
        replies=pa.table(
            {
                "reply_kind": ["act"] * len(replies) + ["text", "text"],
                **_keys(
                    ("aggregate_bucket", "reply"), [*replies, ("any|any|any|any", FREQUENT), ("any|any|any|any", RARE)]
                ),
                "n_customers": [*rng.integers(1000, 5000, len(replies)).tolist(), 4000, 1],
            }
        ),
    )


def _keys(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> dict[str, list[str]]:
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
