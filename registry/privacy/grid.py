"""The public grid: every cell that a released table has, known before a log is read.

Here: what buckets look like, which cells can occur at all. Not here: how many customers are in them (SQL), how much
noise they get (`plan`).

A cell that no customer is in is released like any other: 0 and noise. So the keys of a table say nothing of the
log, and need no threshold. Cells that cannot occur whatever customers do (a step of band 8+ before one of band 1)
are left out; they would cost noise and say nothing.

A bucket's text is `<turn band>|<last strategy>|<segment>|<customer act>`; a part that the level of the grid does not
tell apart is `any`. `transforms/macros` writes the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from registry.errors import PlanError
from registry.privacy.settings import GRID_LEVELS, GridLevel
from rl.catalogue import ActionCatalogue
from rl.files import content_hash

ANY = "any"
"""A part of a bucket that the level does not tell apart."""

OTHER = "other"
"""A segment or customer act outside its public list."""

START = "start"
"""Last strategy before the first step."""

NO_ACT = "none"
"""Customer act before the customer has said anything."""

CONVERTED, ENDED = "converted", "ended"
"""What comes after the last step of a dialogue, in place of a next bucket."""

WHOLE_LOG = f"{ANY}|{ANY}|{ANY}|{ANY}"
"""The bucket of everything."""

_RESERVED = {"strategy": (ANY, START), "segment": (ANY, "all"), "customer act": (ANY, NO_ACT)}
"""Names that would be read as something else; the released models call the sum over segments `all`."""


class Bucket(NamedTuple):
    """What a step is like, as far as the level of the grid tells steps apart."""

    band: int
    """Number of the turn band, from 0."""
    last_strategy: str
    segment: str
    customer_act: str


@dataclass(frozen=True)
class Grid:
    """Every cell of every released table, at one level of detail.

    `strategies` are those of the catalogue that an agent may choose; `segments` and `customer_acts` are the public
    lists, without what is added here (`other`, `none`).
    """

    level: GridLevel
    turn_edges: tuple[int, ...]
    strategies: tuple[str, ...]
    segments: tuple[str, ...]
    customer_acts: tuple[str, ...]

    def __post_init__(self) -> None:
        _require_names("strategy", self.strategies)
        _require_names("segment", self.segments)
        _require_names("customer act", self.customer_acts)
        if not self.strategies:
            raise PlanError("The grid has no strategy. Mark one of the action catalogue as selectable.")

    # ---------- names of the parts

    @cached_property
    def bands(self) -> tuple[str, ...]:
        """Names of the turn bands: `1`, `2-3`, `4-7`, `8+`."""
        ends = self.turn_edges[1:]
        closed = (str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in zip(self.turn_edges, ends, strict=False))
        return (*closed, f"{self.turn_edges[-1]}+")

    @cached_property
    def segment_names(self) -> tuple[str, ...]:
        """Segments that buckets tell apart."""
        told_apart = GRID_LEVELS.index(self.level) >= 1 and self.segments
        return _with(self.segments, OTHER) if told_apart else (ANY,)

    @cached_property
    def act_names(self) -> tuple[str, ...]:
        """Customer acts that buckets tell apart."""
        return _with(self.customer_acts, OTHER, NO_ACT) if GRID_LEVELS.index(self.level) >= 2 else (ANY,)

    @cached_property
    def reply_acts(self) -> tuple[str, ...]:
        """Acts of a customer's reply to a step."""
        return _with(self.customer_acts, OTHER)

    @property
    def knows_last_strategy(self) -> bool:
        """Whether buckets tell the last strategy apart."""
        return self.level == "turn_segment_act_strategy"

    # ---------- buckets

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """Every bucket that a step can be in, in a fixed order."""
        return tuple(
            Bucket(band, last, segment, act)
            for band in range(len(self.bands))
            for last in self._last_strategies(band)
            for segment in self.segment_names
            for act in self.act_names
        )

    def text(self, bucket: Bucket) -> str:
        """The bucket as the tables write it."""
        return f"{self.bands[bucket.band]}|{bucket.last_strategy}|{bucket.segment}|{bucket.customer_act}"

    def next_bands(self, band: int) -> tuple[int, ...]:
        """Bands of the step after one in `band`: step numbers rise by one."""
        is_last = band == len(self.bands) - 1
        stays = is_last or self.turn_edges[band + 1] - self.turn_edges[band] > 1
        return (*([band] if stays else []), *([] if is_last else [band + 1]))

    def next_buckets(self, bucket: Bucket, strategy: str) -> tuple[Bucket, ...]:
        """Buckets that the next step can be in after `strategy` was chosen in `bucket`."""
        last = strategy if self.knows_last_strategy else ANY
        return tuple(
            Bucket(band, last, bucket.segment, act) for band in self.next_bands(bucket.band) for act in self.act_names
        )

    # ---------- cells

    def cells(self) -> Iterator[tuple[str, str]]:
        """(bucket, strategy) of customers, conversions and rewards."""
        for bucket in self.buckets:
            for strategy in self.strategies:
                yield self.text(bucket), strategy

    def transitions(self) -> Iterator[tuple[str, str, str]]:
        """(bucket, strategy, next bucket or outcome)."""
        for bucket in self.buckets:
            for strategy in self.strategies:
                for following in self.next_buckets(bucket, strategy):
                    yield self.text(bucket), strategy, self.text(following)
                yield self.text(bucket), strategy, CONVERTED
                yield self.text(bucket), strategy, ENDED

    def replies(self) -> Iterator[tuple[str, str]]:
        """(bucket, act of the reply)."""
        for bucket in self.buckets:
            for act in self.reply_acts:
                yield self.text(bucket), act

    @property
    def n_cells(self) -> int:
        """Length of `cells`."""
        return len(self.buckets) * len(self.strategies)

    def n_cells_in_band(self, band: int) -> int:
        """How many of `cells` are in a turn band."""
        n_buckets = len(self._last_strategies(band)) * len(self.segment_names) * len(self.act_names)
        return n_buckets * len(self.strategies)

    @property
    def n_transitions(self) -> int:
        """Length of `transitions`, without listing them: the finest level of a large catalogue has millions."""
        n_next = (len(self.next_bands(band)) * len(self.act_names) + 2 for band in range(len(self.bands)))
        return sum(n * self.n_cells_in_band(band) for band, n in enumerate(n_next))

    @property
    def n_replies(self) -> int:
        """Length of `replies`."""
        return len(self.buckets) * len(self.reply_acts)

    def to_json(self) -> dict[str, Any]:
        """What the grid was made of, for records; `hash` names it."""
        parts = {
            "level": self.level,
            "turn_edges": list(self.turn_edges),
            "strategies": list(self.strategies),
            "segments": list(self.segments),
            "customer_acts": list(self.customer_acts),
        }
        counts = {"n_buckets": len(self.buckets), "n_cells": self.n_cells, "n_transitions": self.n_transitions}
        return {**parts, **counts, "n_replies": self.n_replies, "hash": content_hash(parts)}

    def _last_strategies(self, band: int) -> tuple[str, ...]:
        if not self.knows_last_strategy:
            return (ANY,)
        only_first_step = band == 0 and self.turn_edges[1:2] == (2,)
        before_any = (START,) if band == 0 else ()
        return before_any if only_first_step else (*before_any, *self.strategies)


def selectable_strategies(catalogue: ActionCatalogue) -> tuple[str, ...]:
    """The strategies of the grid: those that an agent may choose, the fallback one too."""
    return tuple(strategy.strategy for strategy in catalogue.strategies if strategy.is_selectable)


def _with(names: tuple[str, ...], *more: str) -> tuple[str, ...]:
    return (*names, *(name for name in more if name not in names))


def _require_names(kind: str, names: tuple[str, ...]) -> None:
    reserved = _RESERVED[kind]
    twice = sorted(name for name, n in Counter(names).items() if n > 1)
    unusable = sorted({name for name in names if not name or "|" in name or name in reserved})
    if twice or unusable:
        found = f"{twice[0]!r} twice" if twice else f"{unusable[0]!r}"
        raise PlanError(
            f"The grid of the released tables has the {kind} {found}. Names must be unique and without '|', and "
            f"{' and '.join(reserved)} stand for something else. Rename it in the action catalogue, in the log or "
            "under `privacy`."
        )
