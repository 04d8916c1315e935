"""Canary customers on their way through the real bounding SQL, alignment to a grid, and the release's own draw."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from registry.privacy.accounting import epsilon
from registry.privacy.audit import OneRun, canary_name, canary_plan, canary_scores, draw_canaries, one_run
from registry.privacy.plan import ReleasePlan
from registry.privacy.tables import align
from tests.registry.privacy.sql import WINDOW, exact_tables, privacy_vars

CANARY_DELTA = 1e-9
"""At the release's 1e-6 a thousand canaries could prove nothing (see `one_run`)."""


@dataclass(frozen=True, kw_only=True)
class CanaryAudit:
    """What canaries do, and what of it the SQL is told to cut off."""

    plan: ReleasePlan
    n_canaries: int = 1_000
    n_cells: int = 8
    """Cells that each canary enters."""
    rows_per_cell: int = 1
    faults: dict[str, Any] = field(default_factory=dict)
    """dbt vars that differ from the settings: planted faults."""

    @property
    def claimed(self) -> float:
        """ε of the release at the δ of this audit."""
        return epsilon(self.plan.settings.table_rho, CANARY_DELTA)

    def run(self, seed: int, confidence: float) -> OneRun:
        """Toss a coin for each canary, release once, score them all."""
        is_in = np.random.default_rng(seed).random(self.n_canaries) < 0.5
        plan = canary_plan(self.plan, self.n_canaries, self.n_cells)
        variables = privacy_vars(plan.settings, grid="turn") | {"privacy_turn_edges": [1]} | self.faults
        exact = exact_tables(canary_marts(is_in, self.n_cells, self.rows_per_cell), variables)
        scores = canary_scores(draw_canaries(align(exact, plan), plan), plan, self.n_canaries)
        return one_run(scores, is_in, delta=CANARY_DELTA, confidence=confidence)


def canary_marts(is_in: np.ndarray, n_cells: int, rows_per_cell: int) -> dict[str, pa.Table]:
    """The marts that the aggregates read. Each canary that is in has one dialogue of one step per row of each cell; the
    dialogue converts, with a reward far above every bound.
    """
    canary, cell, row = (
        part.ravel() for part in np.meshgrid(np.flatnonzero(is_in), range(n_cells), range(rows_per_cell), indexing="ij")
    )
    name = [canary_name(*pair) for pair in zip(canary.tolist(), cell.tolist(), strict=True)]
    return marts_of_single_steps(
        customer=[f"canary {number}" for number in canary.tolist()],
        dialogue=[f"{cell} row {row}" for cell, row in zip(name, row.tolist(), strict=True)],
        step_index=np.zeros(len(name), dtype=np.int64),
        strategy=name,
        segment=pa.nulls(len(name), pa.string()),
        is_converted=np.ones(len(name), dtype=bool),
        reward=np.full(len(name), 1e6),
        reply=name,
    )


def marts_of_single_steps(
    *,
    customer: Any,
    dialogue: Any,
    step_index: Any,
    strategy: Any,
    segment: Any,
    is_converted: Any,
    reward: Any,
    reply: Any,
) -> dict[str, pa.Table]:
    """What the aggregates read of usable dialogues that have one step each; one entry per dialogue in every list."""
    n = len(dialogue)
    yes, unknown = np.ones(n, dtype=bool), pa.nulls(n, pa.string())
    key = {"dialogue_id": dialogue, "dialogue_day": pa.array([WINDOW[0]] * n).cast(pa.date32())}
    step = {**key, "step_index": step_index}
    return {
        "fct_dialogues": pa.table(
            {**key, "customer_id": customer, "has_conversion": is_converted, "is_usable": yes, "has_one_customer": yes}
        ),
        "fct_transitions": pa.table(
            {
                **step,
                "previous_strategy": unknown,
                "segment": segment,
                "customer_act": unknown,
                "strategy": strategy,
                "reward": reward,
            }
        ),
        "int_steps_answered": pa.table({**step, "reply_act": reply, "reply_text": reply}),
    }
