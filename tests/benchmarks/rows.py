"""The shape of a benchmark's row, and fair timing: the two sides in turn, medians, ratio of medians."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from orchestration.workspace import code_revision


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` above 1 always means that ours is better."""

    name: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    aim: str
    """Such as `>= 5`: what the ratio should be. `none`: only reported."""
    is_lower_better: bool = False
    """For times and sizes: the ratio is then the peer's figure over ours."""

    @property
    def ratio(self) -> float:
        return self.peer / self.ours if self.is_lower_better else self.ours / self.peer

    @property
    def holds(self) -> bool:
        if self.aim == "none":
            return True
        sign, bound = self.aim.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio > float(bound)

    def to_json(self) -> dict[str, object]:
        """The line of bench.jsonl."""
        return {
            **asdict(self),
            "ratio": self.ratio,
            "holds": self.holds,
            "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
            "commit": code_revision(),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def rates(
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    ours_units: int,
    peer_units: int,
    repeats: int = 3,
) -> tuple[float, float]:
    """Units a second of both sides, run in turn (A B A B …) so that a drifting machine hits both; medians."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, call in enumerate((ours, peer)):
            started = time.perf_counter()
            call()
            seconds[side].append(time.perf_counter() - started)
    return ours_units / statistics.median(seconds[0]), peer_units / statistics.median(seconds[1])
