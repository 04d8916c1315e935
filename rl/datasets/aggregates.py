"""Released aggregates as arrays: the noisy tables of one window, and nothing else.

Here: reading a release's Parquet files, and what the text of a bucket says. Not here: how the tables were made
(`registry.privacy`), what is learned from them (`rl.trainers.aggregate_q`).

A bucket's text is `<turn band>|<last strategy>|<segment>|<customer act>`, with `any` for what the grid does not tell
apart. Counts are sums plus noise: they may be negative, and columns that should agree do so up to their σ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.errors import DataError

ANY, OTHER, START, NO_ACT = "any", "other", "start", "none"
"""Parts of a bucket: not told apart; outside the public list; before the first step; before any customer turn."""

OUTCOMES = ("converted", "ended")
"""What stands in `next_bucket` after the last step of a dialogue."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bucket:
    """What the text of a bucket says."""

    first_turn: int
    """First agent turn of its band, counted from 1."""
    last_strategy: str
    segment: str
    customer_act: str

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """Read a bucket's text. Raises DataError if it has not four parts or its band is no range of turns."""
        parts = text.split("|")
        first = parts[0].rstrip("+").split("-")[0]
        if len(parts) != 4 or not first.isdigit():
            raise DataError(
                "A bucket of the released tables is not `<turn band>|<last strategy>|<segment>|<customer act>`. Read a "
                "release of this version of the project."
            )
        return cls(int(first), *parts[1:])

    def without(self, part: str) -> Bucket:
        """The bucket that does not tell `part` apart, `last_strategy` or `customer_act`."""
        return replace(self, last_strategy=ANY) if part == "last_strategy" else replace(self, customer_act=ANY)


@dataclass(frozen=True)
class Aggregates:
    """One release. B buckets, S strategies, T rows of transitions; every number carries noise."""

    release_id: str
    window: tuple[str, str]
    """First day, and the day after the last; ISO dates."""
    unit_of_privacy: str
    rho: float
    """zCDP of the tables of the window."""
    delta: float
    minimum_customers: int
    """k: cells with fewer (noisy) customers say nothing of their own."""
    buckets: tuple[str, ...]
    strategies: tuple[str, ...]
    n_customers: Array
    """(B, S) customers with such a step."""
    n_conversions: Array
    """(B, S) those of them whose dialogue converted."""
    reward_bounds: tuple[float, float]
    """Lowest and highest reward of one step, in reward units."""
    rewards: Array
    """(B, S) reward of one such step of each of them, summed, in reward units."""
    sigma_customers: float
    sigma_conversions: float
    sigma_rewards: float
    transitions: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    """(T,) each: bucket, strategy, next bucket; B and B + 1 are the outcomes `converted` and `ended`."""
    n_steps: Array
    """(T,) steps of each transition."""
    sigma_steps: float

    def without(self, part: str) -> Aggregates:
        """The same release with `part` of the buckets summed out: fewer and larger cells, with more noise in each."""
        coarse = [
            f"{text.split('|')[0]}|{b.last_strategy}|{b.segment}|{b.customer_act}" for text, b in self._coarse(part)
        ]
        buckets = tuple(dict.fromkeys(coarse))
        at = _places(coarse, buckets)
        n_merged = math.sqrt(np.bincount(at).max())

        def summed(values: Array) -> Array:
            sums = np.zeros((len(buckets), len(self.strategies)))
            np.add.at(sums, at, values)
            return sums

        source, strategy, following = self.transitions
        outcomes = np.arange(len(OUTCOMES)) + len(buckets)
        return replace(
            self,
            buckets=buckets,
            n_customers=summed(self.n_customers),
            n_conversions=summed(self.n_conversions),
            rewards=summed(self.rewards),
            sigma_customers=self.sigma_customers * n_merged,
            sigma_conversions=self.sigma_conversions * n_merged,
            sigma_rewards=self.sigma_rewards * n_merged,
            transitions=(at[source], strategy, np.concatenate([at, outcomes])[following]),
        )

    def _coarse(self, part: str) -> Iterator[tuple[str, Bucket]]:
        return ((text, bucket.without(part)) for text, bucket in zip(self.buckets, self.parts, strict=True))

    @cached_property
    def parts(self) -> tuple[Bucket, ...]:
        """(B,) what each bucket says."""
        return tuple(Bucket.parse(text) for text in self.buckets)

    @property
    def turn_edges(self) -> tuple[int, ...]:
        """First agent turn of each band, counted from 1."""
        return tuple(sorted({part.first_turn for part in self.parts}))

    @cached_property
    def band(self) -> NDArray[np.int64]:
        """(B,) number of each bucket's turn band, from 0."""
        edges = self.turn_edges
        return np.array([edges.index(part.first_turn) for part in self.parts], dtype=np.int64)


def read_aggregates(folder: Path) -> Aggregates:
    """Read `transitions.parquet` and `cells.parquet` of one release's folder.

    Raises DataError if a file is missing, empty or not of one release.
    """
    cells, steps = _read(folder / "cells.parquet"), _read(folder / "transitions.parquet")
    stamp = _stamp(folder, cells, steps)
    buckets = tuple(dict.fromkeys(cells["aggregate_bucket"]))
    strategies = tuple(dict.fromkeys(cells["strategy"]))
    at = _places(cells["aggregate_bucket"], buckets), _places(cells["strategy"], strategies)

    def table(column: str) -> Array:
        values = np.zeros((len(buckets), len(strategies)))
        values[at] = cells[column]
        return values

    return Aggregates(
        release_id=stamp["release_id"],
        window=(stamp["window_start"].isoformat(), stamp["window_end"].isoformat()),
        unit_of_privacy=stamp["unit_of_privacy"],
        rho=stamp["rho"],
        delta=stamp["delta"],
        minimum_customers=stamp["minimum_customers"],
        buckets=buckets,
        strategies=strategies,
        n_customers=table("n_customers"),
        n_conversions=table("n_conversions"),
        reward_bounds=(cells["reward_low"][0], cells["reward_high"][0]),
        rewards=table("reward"),
        sigma_customers=cells["sigma_customers"][0],
        sigma_conversions=cells["sigma_conversions"][0],
        sigma_rewards=cells["sigma_reward"][0],
        transitions=(
            _places(steps["aggregate_bucket"], buckets),
            _places(steps["strategy"], strategies),
            _places(steps["next_bucket"], (*buckets, *OUTCOMES)),
        ),
        n_steps=np.array(steps["n_steps"], dtype=np.float64),
        sigma_steps=steps["sigma_steps"][0],
    )


def _read(path: Path) -> dict[str, list[Any]]:
    # Here, because a served policy knows buckets and reads no Parquet.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}). Give the folder of a release, "
            "`<workspace>/released/releases/<window start>`."
        ) from None
    if table.num_rows == 0:
        raise DataError(f"{path} has no rows: no window was released yet. Wait until the first window is due.")
    return dict(table.to_pydict())


def _stamp(folder: Path, *tables: dict[str, list[Any]]) -> dict[str, Any]:
    """The columns that say of which release a row is: one value throughout."""
    names = ("release_id", "window_start", "window_end", "unit_of_privacy", "rho", "delta", "minimum_customers")
    try:
        found = {name: {value for table in tables for value in table[name]} for name in names}
    except KeyError as error:
        raise DataError(f"{folder}: the tables have no column {error}. Read a release of this version.") from None
    if any(len(values) != 1 for values in found.values()):
        raise DataError(f"{folder}: the tables are of more than one release. Read one release at a time.")
    return {name: values.pop() for name, values in found.items()}


def _places(names: list[str], known: Sequence[str]) -> NDArray[np.int64]:
    places = {name: place for place, name in enumerate(known)}
    try:
        return np.array([places[name] for name in names], dtype=np.int64)
    except KeyError:
        raise DataError(
            "The released transitions name a bucket or strategy that the released cells lack. The release is "
            "incomplete; restore it from a backup."
        ) from None
