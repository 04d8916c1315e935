"""What a person sees in the terminal while a night runs: a bar per stage on standard error.

Assets report through `progress`; without a terminal session around them (Dagster's UI) the calls do nothing.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

WIDTH_WITHOUT_TERMINAL = 100  # a CI log does not say how wide it is; 80 would break the table of the summary

console = Console(
    stderr=True, highlight=False, width=None if sys.stderr and sys.stderr.isatty() else WIDTH_WITHOUT_TERMINAL
)


_REST = 1e-9
"""Work after the last unit that was counted: a stage is finished when the next one begins, or the night ends."""


class _Display(Protocol):
    def update(self, stage: str, done: int, total: int | None) -> None: ...

    def close(self, failed: bool) -> None: ...


class _Bars:
    """One line per stage; a stage whose size is unknown shows a moving bar."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def update(self, stage: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` units of `stage` are finished; a new stage closes the ones before it."""
        if stage not in self._tasks:
            self.close(failed=False)
            self._tasks[stage] = self._bars.add_task(stage, total=None, units=total, mark="")
        size = None if total is None else total + _REST
        self._bars.update(self._tasks[stage], completed=done, total=size, units=total)

    def close(self, failed: bool) -> None:
        """End the stage that runs."""
        for task in self._bars.tasks:
            if task.finished or task.fields["mark"]:
                continue
            if failed:
                self._bars.update(task.id, mark="[red]✗[/]")
                self._bars.stop_task(task.id)
            else:
                total = task.fields["units"] or 1
                self._bars.update(task.id, completed=total, total=total)


class _Lines:
    """One line per stage when it ends, for logs of machines."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._stage: str | None = None
        self._units: int | None = None
        self._started = 0.0

    def update(self, stage: str, done: int, total: int | None) -> None:
        """Begin a stage, or note its size."""
        if stage != self._stage:
            self.close(failed=False)
            self._stage, self._units, self._started = stage, None, time.monotonic()
        self._units = total or self._units

    def close(self, failed: bool) -> None:
        """End the stage that runs, and say so."""
        if self._stage is None:
            return
        mark = "✗" if failed else "✓"
        units = _units_text(self._units)
        self._out.print(f"{mark} {self._stage:<32}{units:>10}{_clock(time.monotonic() - self._started):>8}")
        self._stage = None


class _MarkColumn(SpinnerColumn):
    """A spinner that ends as a tick or a cross."""

    def render(self, task: Task) -> Text:
        if task.fields["mark"]:
            return Text.from_markup(task.fields["mark"])
        return super().render(task)  # type: ignore[return-value]


class _UnitsColumn(ProgressColumn):
    """`1,200/4,000`; nothing for a stage that does not count."""

    def render(self, task: Task) -> Text:
        units = task.fields["units"]
        if task.finished or not units or units == 1:
            return Text(f"{_units_text(units):>13}", style="dim")
        return Text(f"{f'{task.completed:,.0f}/{units:,}':>13}")


class _ClockColumn(ProgressColumn):
    """Minutes and seconds of the stage."""

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time if task.finished else task.elapsed
        return Text(f"{_clock(elapsed or 0.0):>6}", style="dim")


def _units_text(units: int | None) -> str:
    return "" if units is None or units == 1 else f"{units:,}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


_current: _Display | None = None


def progress(stage: str, done: int = 0, total: int | None = None) -> None:
    """Report progress of a stage to the terminal, if one is watching."""
    if _current is not None:
        _current.update(stage, done, total)


@contextmanager
def night_display() -> Iterator[None]:
    """Show bars until the block ends. Not a terminal: one line per stage, no animation."""
    global _current
    with _own_stderr() as stream:
        out = Console(file=stream, highlight=False, width=None if stream.isatty() else WIDTH_WITHOUT_TERMINAL)
        bars = Progress(
            _MarkColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description:<30}"),
            BarColumn(bar_width=28),
            _UnitsColumn(),
            _ClockColumn(),
            console=out,
            refresh_per_second=4,
            disable=not stream.isatty(),
            redirect_stdout=False,
            redirect_stderr=False,
        )
        _current = _Bars(bars) if stream.isatty() else _Lines(out)
        failed = True
        try:
            with bars:
                try:
                    yield
                    failed = False
                finally:
                    _current.close(failed)
        finally:
            _current = None


@contextmanager
def _own_stderr() -> Iterator[TextIO]:
    """Standard error through a descriptor of our own.

    While a step runs Dagster points descriptor 2 at the step's log file, and bars written there stand still.
    """
    try:
        descriptor = os.dup(sys.stderr.fileno())
    except (AttributeError, OSError, io.UnsupportedOperation):  # a test or a notebook stands in for the stream
        yield sys.stderr
        return
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as stream:
        yield stream
