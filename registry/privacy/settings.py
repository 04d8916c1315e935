"""Settings of private release: the unit, the window, the bounds, the grid, the budget and its split.

Here: shapes and what each knob does. Not here: what a setting costs and how accurate it is (`plan`).

Every bound and every list of keys comes from here, or from a public source, never from the data: a bound that was
fitted to the log is itself a release.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rl.settings import Settings

GridLevel = Literal["turn", "turn_segment", "turn_segment_act", "turn_segment_act_strategy"]
GRID_LEVELS: tuple[GridLevel, ...] = ("turn", "turn_segment", "turn_segment_act", "turn_segment_act_strategy")
"""Coarse to fine: what an aggregate bucket tells apart."""

UNIT_OF_PRIVACY = "customer"


class BudgetShares(Settings):
    """How the tables' ρ is split over what is measured; the shares add up to 1."""

    transitions: float = Field(0.35, gt=0)
    """Steps by bucket, strategy and what came next."""

    customers: float = Field(0.20, gt=0)
    """Customers by bucket and strategy: the denominator of every rate, and what suppression looks at."""

    conversions: float = Field(0.20, gt=0)
    """Customers whose dialogue converted, by bucket and strategy."""

    rewards: float = Field(0.15, gt=0)
    """Sums of rewards by bucket and strategy."""

    replies: float = Field(0.05, gt=0)
    """Customers by bucket and customer act (closed inventory, public keys)."""

    reply_texts: float = Field(0.05, gt=0)
    """Customers by canonical reply (keys from the log, so they pass a threshold)."""

    @model_validator(mode="after")
    def _whole(self) -> BudgetShares:
        total = sum(self.model_dump().values())
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the shares add up to {total:g}, not to 1")
        return self


class PrivacySettings(Settings):
    """Private aggregates: one release per window, then frozen."""

    window_days: int = Field(28, ge=7)
    """Days of one release. Windows tile the calendar from `logs.start_date`. Raised: more rows behind each cell,
    fewer releases a year."""

    rho: float = Field(0.1, gt=0)
    """zCDP that one customer can lose in one window, all releases of the window together (ε 2.14 at δ 2e-6). Raised:
    less noise, less privacy."""

    gate_rho: float = Field(0.02, ge=0)
    """Part of `rho` that is kept for gate evaluations; the tables get the rest."""

    gate_evaluations: int = Field(4, ge=1)
    """Gate evaluations that share `gate_rho` in a window."""

    delta: float = Field(1e-6, gt=0, lt=1e-3)
    """Probability with which a reply of few customers may pass the threshold; also the δ at which ε is stated. Well
    below one over the number of customers."""

    shares: BudgetShares = BudgetShares()

    max_cells: int = Field(8, ge=1)
    """L0: cells of one table that a customer may enter in a window. Raised: less is cut off, more noise."""

    max_rows_per_cell: int = Field(1, ge=1)
    """L∞ of `agg_transitions`: rows of a customer in one cell. The other tables count a customer once per cell."""

    reward_low: float = 0.0
    reward_high: float = 150.0
    """Bounds of a step's reward, in reward units; values beyond are set to them. Wider: less is cut off, more noise."""

    minimum_customers: int = Field(20, ge=5)
    """k: cells whose noisy number of customers is below are suppressed; also the floor of the reply threshold."""

    shrinkage: float = Field(50.0, ge=0)
    """Customers' worth of its parent cell that each rate is pulled to; noisy cells are pulled further. Raised:
    steadier, more alike."""

    grid: Literal["auto", "turn", "turn_segment", "turn_segment_act", "turn_segment_act_strategy"] = "auto"
    """What a bucket tells apart. `auto`: the finest whose noise stays below the median expected cell."""

    turn_edges: tuple[int, ...] = (1, 2, 4, 8)
    """First step of each turn band, counted from 1."""

    segments: tuple[str, ...] = ("bargain_hunter", "enthusiast", "gift_buyer")
    """Public list of segments (here the sample world's); others count as `other`. Empty: not told apart."""

    expected_dialogues: int = Field(20_000, ge=1)
    """Dialogues of a window, as publicly known (an order of magnitude is enough): what `auto` plans with."""

    expected_steps: float = Field(6.0, gt=0)
    """Agent turns of a dialogue, as publicly known."""

    expected_conversion_rate: float = Field(0.2, gt=0, lt=1)
    """Share of dialogues that convert, as publicly known: what the plan states its relative error for."""

    @model_validator(mode="after")
    def _consistent(self) -> PrivacySettings:
        if self.gate_rho >= self.rho:
            raise ValueError(f"gate_rho {self.gate_rho:g} leaves nothing of rho {self.rho:g} for the tables")
        if self.reward_high <= self.reward_low:
            raise ValueError(f"reward_high {self.reward_high:g} is not above reward_low {self.reward_low:g}")
        if list(self.turn_edges) != sorted(set(self.turn_edges)) or self.turn_edges[:1] != (1,):
            raise ValueError("turn_edges must start with 1 and rise")
        return self

    @property
    def table_rho(self) -> float:
        """ρ of the tables of one window."""
        return self.rho - self.gate_rho


class RetentionSettings(Settings):
    """How long each zone keeps what it holds, in days of the data's clock."""

    restricted_days: int | None = Field(400, ge=36)
    """Dialogues older than this leave landing, quarantine, warehouse and marts. None: kept until erased by hand.
    Lowered: less to lose, shorter training windows."""

    released_days: int | None = Field(None, ge=28)
    """Releases older than this are deleted. None: kept; they hold no personal data."""
