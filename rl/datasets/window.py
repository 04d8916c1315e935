"""Which dialogues of the marts are in a data set, and which of them judge.

Here: the window's days, the usable dialogues, the split; counts of what is left out. All of it from `fct_dialogues`,
read day by day before any step is, so that the sizes of the set are known when it is begun. Not here: the rows
(`rl.datasets.build`), the rules of the split (`rl.datasets.splits`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rl.datasets.marts import Names, booleans, days_of, read_day
from rl.datasets.splits import newest_members, validation_members
from rl.errors import DataError
from rl.settings import DatasetSettings
from rl.types import Bool1D, Int1D

_COLUMNS = [
    "dialogue_id", "customer_id", "segment", "started_at", "n_turns", "n_steps", "n_unlabelled_steps", "is_mature",
    "is_incomplete", "is_usable", "has_one_customer",
]  # fmt: skip


class Day(NamedTuple):
    """The chosen dialogues of a day, in the order in which they are in the set, and where they are there."""

    day: date
    dialogues: pa.Table
    episodes: slice


@dataclass(frozen=True, eq=False)
class ChosenDialogues:
    """The dialogues of a window that are in the set: E of them, known by a few numbers each."""

    marts: Path
    days: tuple[date, ...]
    window: tuple[str, str]
    """First and last day of the window that is there, ISO dates."""
    counts: dict[str, int]
    """Dialogues left out, by reason."""
    segments: tuple[str, ...]
    is_kept: tuple[Bool1D, ...]
    """By day: which of its usable dialogues the split leaves in the set."""
    n_steps: int
    customer_index: NDArray[np.int32]
    """(E,)"""
    validation: Bool1D
    """(E,)"""

    @property
    def n_episodes(self) -> int:
        """E."""
        return len(self.validation)

    def read(self) -> Iterator[Day]:
        """The days, one after the other, without those of which nothing is left."""
        first = 0
        for day, is_kept in zip(self.days, self.is_kept, strict=True):
            if is_kept.any():
                usable = _usable(read_day(self.marts, "fct_dialogues", day, _COLUMNS))
                if usable.num_rows != len(is_kept):
                    raise DataError(
                        f"{day}: fct_dialogues has {usable.num_rows} usable dialogues and had {len(is_kept)} before. "
                        "The marts were exported meanwhile. Build the data set again."
                    )
                dialogues = usable.filter(pa.array(is_kept))
                yield Day(day, dialogues, slice(first, first + dialogues.num_rows))
                first += dialogues.num_rows


def choose_dialogues(marts: Path, settings: DatasetSettings, window_end: date | None) -> ChosenDialogues:
    """Choose the usable dialogues of a window that ends on `window_end`, by default the newest mature day.

    Raises DataError if no dialogue is usable (with the counts), or none would be left to train on.
    """
    days = days_of(marts, "fct_dialogues")
    end = window_end or _newest_mature_day(marts, days)
    start = end - timedelta(days=settings.window_days - 1)
    days = [day for day in days if start <= day <= end]
    customers, segments = Names(), set[str | None]()
    counts = dict.fromkeys(
        ("excluded_not_mature", "excluded_incomplete", "excluded_unlabelled", "excluded_no_steps"), 0
    )
    parts = []
    for day in days:
        table = read_day(marts, "fct_dialogues", day, _COLUMNS)
        _count_excluded(table, counts)
        usable = _usable(table)
        segments |= set(usable.column("segment").unique().to_pylist())
        parts.append(_Usable(customers.encode(_customer(usable)), started_at(usable), n_steps(usable)))
    every = _Usable(*(np.concatenate(column) for column in zip(*parts, strict=True))) if parts else None
    if every is None or len(every.customer) == 0:
        raise _nothing_usable(counts)
    validation, left_out = _split(every, customers, settings)
    if settings.split == "time":
        counts["excluded_customer_judges"] = int(left_out.sum())
    return ChosenDialogues(
        marts=marts,
        days=tuple(days),
        window=(min(days).isoformat(), max(days).isoformat()),
        counts=counts,
        segments=tuple(sorted(name for name in segments if name is not None)),
        is_kept=tuple(np.split(~left_out, np.cumsum([len(part.customer) for part in parts])[:-1])),
        n_steps=int(every.n_steps[~left_out].sum()),
        customer_index=every.customer[~left_out],
        validation=validation[~left_out],
    )


def started_at(dialogues: pa.Table) -> NDArray[np.int64]:
    """(n,) microseconds since 1970 UTC."""
    times = dialogues.column("started_at").cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    return np.asarray(times.to_numpy(), dtype=np.int64)


def n_steps(dialogues: pa.Table) -> NDArray[np.int64]:
    """(n,) steps of each dialogue."""
    return np.asarray(dialogues.column("n_steps").to_numpy().astype(np.int64))


class _Usable(NamedTuple):
    """What the split and the sizes need to know of usable dialogues."""

    customer: NDArray[np.int32]
    started_at: NDArray[np.int64]
    n_steps: Int1D


def _usable(table: pa.Table) -> pa.Table:
    by_time = [("started_at", "ascending"), ("dialogue_id", "ascending")]
    return table.filter(table.column("is_usable")).sort_by(by_time)


def _customer(dialogues: pa.Table) -> pa.ChunkedArray:
    """A dialogue whose customer is unknown stands for a customer of its own."""
    return pc.coalesce(dialogues.column("customer_id"), dialogues.column("dialogue_id"))


def _split(every: _Usable, customers: Names, settings: DatasetSettings) -> tuple[Bool1D, Bool1D]:
    """Whether each usable dialogue judges, and whether it is left out."""
    if settings.split == "time":
        return newest_members(every.started_at, every.customer, settings.validation_share)
    members = validation_members(customers.ids, settings.validation_share)
    return members[every.customer], np.zeros(len(every.customer), dtype=bool)


def _newest_mature_day(marts: Path, days: list[date]) -> date:
    partly: date | None = None
    n_young = 0
    for day in reversed(days):
        mature = read_day(marts, "fct_dialogues", day, ["is_mature"]).column("is_mature")
        if len(mature) and pc.all(mature).as_py():
            return day
        if pc.any(mature).as_py():
            partly = partly or day
        n_young += len(mature) - (pc.sum(mature).as_py() or 0)
    if partly is None:
        raise DataError(
            f"None of {n_young} dialogues is mature: their outcomes may still arrive. The newest day is {days[-1]}. "
            "Wait until the attribution window is over, or add older logs."
        )
    return partly


def _count_excluded(table: pa.Table, counts: dict[str, int]) -> None:
    """Add each dialogue that is not usable under the first reason that holds."""
    left = ~booleans(table, "is_usable")
    reasons = {
        "excluded_not_mature": ~booleans(table, "is_mature"),
        "excluded_incomplete": booleans(table, "is_incomplete"),
        "excluded_unlabelled": table.column("n_unlabelled_steps").to_numpy() > 0,
        "excluded_no_steps": np.ones(table.num_rows, dtype=bool),
    }
    for name, holds in reasons.items():
        counts[name] += int((left & holds).sum())
        left = left & ~holds


def _nothing_usable(counts: dict[str, int]) -> DataError:
    reasons = ", ".join(f"{n} {name.removeprefix('excluded_')}" for name, n in counts.items() if n) or "none at all"
    return DataError(
        f"No dialogue of the window is usable; left out: {reasons}. Widen `dataset.window_days`, add logs, or "
        "complete the strategies (unlabelled) and the quarantined records (incomplete)."
    )
