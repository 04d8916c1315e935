"""What a person sees in the terminal while a night runs: a bar per stage on standard error.

Assets report through `progress`; without a terminal session around them (Dagster's UI) the calls do nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

console = Console(stderr=True, highlight=False)


class NightProgress:
    """One line per stage; a stage whose size is unknown shows a spinner."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def update(self, stage: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` units of `stage` are finished; a new stage closes the ones before it."""
        if stage not in self._tasks:
            self._close_all()
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def _close_all(self) -> None:
        for task in self._bars.tasks:
            if not task.finished:
                total = task.total or 1
                self._bars.update(task.id, completed=total, total=total)


_current: NightProgress | None = None


def progress(stage: str, done: int = 0, total: int | None = None) -> None:
    """Report progress of a stage to the terminal, if one is watching."""
    if _current is not None:
        _current.update(stage, done, total)


@contextmanager
def night_display() -> Iterator[None]:
    """Show bars until the block ends. Not a terminal: one line per stage, no animation."""
    global _current
    with Progress(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description:<42}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        refresh_per_second=4,
    ) as bars:
        _current = NightProgress(bars)
        try:
            yield
        finally:
            _current._close_all()
            _current = None
