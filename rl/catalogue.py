"""The action catalogue: which strategies exist, which may be chosen, and their dense ids.

Here: reading the CSV and the append-only id file. Not here: what was eligible at a step (data sets), what rules
allow (compliance).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from rl.errors import DataError
from rl.files import write_json
from rl.types import Bool1D

Role = Literal["selectable", "fallback", "after_decision", "outcome"]
"""`selectable`: may be chosen. `fallback`: may be chosen, and is what remains when nothing else is legal.
`after_decision`: said after the customer decided; never an action, and a turn with only such labels is no step.
`outcome`: reports the outcome; never an action, and the episode ends before the first turn that carries it."""

COLUMNS = ("strategy", "description", "priority", "role")


@dataclass(frozen=True)
class Strategy:
    """One label of agent turns. Lower `priority` wins when a turn carries several; ties go to the earliest."""

    strategy: str
    description: str
    priority: int
    role: Role

    @property
    def is_selectable(self) -> bool:
        """Whether a policy may choose it."""
        return self.role in ("selectable", "fallback")


@dataclass(frozen=True)
class ActionCatalogue:
    """Strategies in the order of their dense ids. Ids are append-only: a policy keeps its meaning for ever."""

    strategies: tuple[Strategy, ...]

    def __len__(self) -> int:
        return len(self.strategies)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Strategy names by id."""
        return tuple(s.strategy for s in self.strategies)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Dense id by strategy name."""
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def selectable(self) -> Bool1D:
        """(A,) true where a policy may choose the action."""
        return np.array([s.is_selectable for s in self.strategies], dtype=bool)

    @cached_property
    def fallback(self) -> int:
        """Id of the action that stays legal when nothing else is: the one marked so, else the last in priority."""
        marked = [i for i, s in enumerate(self.strategies) if s.role == "fallback"]
        if marked:
            return marked[0]
        return max(np.flatnonzero(self.selectable), key=lambda i: self.strategies[i].priority).item()

    def extended(self, other: ActionCatalogue) -> ActionCatalogue:
        """This catalogue with `other`'s new strategies appended and known ones described as `other` does.

        A strategy that `other` lacks stays, with role `after_decision`, so that its id is never given away.
        """
        incoming = {s.strategy: s for s in other.strategies}
        kept = [
            incoming.pop(s.strategy, Strategy(s.strategy, s.description, s.priority, "after_decision"))
            for s in self.strategies
        ]
        return ActionCatalogue((*kept, *incoming.values()))

    def to_json(self) -> list[dict[str, object]]:
        """Rows in id order, for manifests and bundles."""
        return [asdict(s) for s in self.strategies]

    @classmethod
    def from_json(cls, rows: Iterable[dict[str, object]]) -> ActionCatalogue:
        """The inverse of `to_json`."""
        return cls(tuple(Strategy(**row) for row in rows))  # type: ignore[arg-type]


def read_catalogue(path: Path) -> ActionCatalogue:
    """Read a catalogue CSV with the columns strategy, description, priority, role.

    Raises DataError naming the file, the line and what is wrong.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise DataError(f"{path}: the header is {reader.fieldnames}; it must be {', '.join(COLUMNS)}.")
            strategies = tuple(_strategy(row, path, line) for line, row in enumerate(reader, start=2))
    except FileNotFoundError:
        raise DataError(f"There is no action catalogue at {path}. Set `logs.catalogue` to your CSV.") from None
    names = [s.strategy for s in strategies]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"{path}: listed twice: {', '.join(sorted(twice))}. Keep one line for each strategy.")
    if not any(s.is_selectable for s in strategies):
        raise DataError(f"{path}: no strategy has the role selectable, so there is nothing to choose.")
    if sum(s.role == "fallback" for s in strategies) > 1:
        raise DataError(f"{path}: more than one strategy has the role fallback. Keep one.")
    return ActionCatalogue(strategies)


def remembered_catalogue(configured: ActionCatalogue, id_file: Path) -> ActionCatalogue:
    """The configured catalogue with the ids that this workspace has already given out; updates the id file."""
    if id_file.exists():
        configured = ActionCatalogue.from_json(json.loads(id_file.read_text())).extended(configured)
    write_json(id_file, configured.to_json())
    return configured


def _strategy(row: dict[str, str], path: Path, line: int) -> Strategy:
    if row["role"] not in get_args(Role):
        raise DataError(f"{path}, line {line}: role is {row['role']!r}; it must be one of {', '.join(get_args(Role))}.")
    try:
        priority = int(row["priority"])
    except (TypeError, ValueError):
        raise DataError(f"{path}, line {line}: priority is {row['priority']!r}; it must be a whole number.") from None
    if not row["strategy"]:
        raise DataError(f"{path}, line {line}: the strategy has no name.")
    return Strategy(row["strategy"], row["description"], priority, row["role"])  # type: ignore[arg-type]
