"""Windows of the calendar: which days one release covers, and from when on it may be made.

Here: dates. Not here: whether a window has dialogues, what was spent on it (`budget`), what it released (`release`).

Windows tile the calendar from the first day of the log, so that they depend on no customer: window k covers
[first + k · days, first + (k + 1) · days).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta


@dataclass(frozen=True, order=True)
class Window:
    """Dialogue days from `start` up to `end`, which is not part of it."""

    start: date
    end: date

    @property
    def n_days(self) -> int:
        """Days in the window."""
        return (self.end - self.start).days

    @property
    def last_day(self) -> date:
        """The newest dialogue day in the window."""
        return self.end - timedelta(days=1)

    def overlaps(self, other: Window) -> bool:
        """Whether a day is in both."""
        return self.start < other.end and other.start < self.end

    def next(self) -> Window:
        """The window that begins where this one ends."""
        return Window(self.end, self.end + timedelta(days=self.n_days))

    def due_at(self, attribution_days: int) -> datetime:
        """When every outcome of the window counts or has come too late.

        One day more than the attribution window: a dialogue of the last day may end after midnight.
        """
        return datetime.combine(self.end + timedelta(days=attribution_days + 1), time(), UTC)

    def __str__(self) -> str:
        return f"{self.start} to {self.last_day}"


def window_of(day: date, *, first_day: date, window_days: int) -> Window | None:
    """The window that `day` is in; None before the first day of the log."""
    if day < first_day:
        return None
    start = first_day + timedelta(days=(day - first_day).days // window_days * window_days)
    return Window(start, start + timedelta(days=window_days))


def due_window(as_of: datetime | None, *, first_day: date, window_days: int, attribution_days: int) -> Window | None:
    """The newest window that may be released when the clock shows `as_of` (UTC); None while there is none.

    It depends on the clock alone: a night that is run again for an earlier day finds the window of that day.
    """
    if as_of is None:
        return None
    newest_end = as_of.astimezone(UTC).date() - timedelta(days=attribution_days + 1)
    open_window = window_of(newest_end, first_day=first_day, window_days=window_days)
    if open_window is None or open_window.start == first_day:
        return None
    return Window(open_window.start - timedelta(days=window_days), open_window.start)


def windows_until(day: date, *, first_day: date, window_days: int) -> list[Window]:
    """Every window that begins on or before `day`, oldest first."""
    newest = window_of(day, first_day=first_day, window_days=window_days)
    if newest is None:
        return []
    starts = (first_day + timedelta(days=k) for k in range(0, (newest.end - first_day).days, window_days))
    return [Window(start, start + timedelta(days=window_days)) for start in starts]
