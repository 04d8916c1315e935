"""Windows tile the calendar and become due by the clock alone."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from registry.privacy.windows import Window, due_window, window_of, windows_until

FIRST = date(2026, 1, 1)
DAYS = st.integers(0, 2000).map(lambda n: FIRST + timedelta(days=n))
LENGTHS = st.integers(7, 90)


def due(as_of: datetime | None) -> Window | None:
    return due_window(as_of, first_day=FIRST, window_days=28, attribution_days=7)


@given(day=DAYS, length=LENGTHS)
def test_every_day_is_in_exactly_one_window_and_windows_follow_each_other(day: date, length: int) -> None:
    window = window_of(day, first_day=FIRST, window_days=length)
    assert window is not None
    assert window.start <= day < window.end
    assert window.n_days == length
    assert window_of(window.end, first_day=FIRST, window_days=length) == window.next()
    assert not window.overlaps(window.next())
    listed = windows_until(day, first_day=FIRST, window_days=length)
    assert listed[0].start == FIRST
    assert listed[-1] == window
    assert all(one.next() == other for one, other in pairwise(listed))


def test_before_the_first_day_there_is_no_window() -> None:
    assert window_of(FIRST - timedelta(days=1), first_day=FIRST, window_days=28) is None
    assert windows_until(FIRST - timedelta(days=1), first_day=FIRST, window_days=28) == []


def test_a_window_is_due_when_the_outcomes_of_its_last_day_are_in() -> None:
    # The last day is 28 January; a dialogue over midnight ends on the 29th and counts outcomes until 5 February.
    window = Window(FIRST, date(2026, 1, 29))
    moment = datetime(2026, 2, 6, tzinfo=UTC)
    assert window.due_at(7) == moment
    assert due(moment) == window
    assert due(moment - timedelta(microseconds=1)) is None
    assert due(None) is None
    assert str(window) == "2026-01-01 to 2026-01-28"


@given(day=DAYS, length=LENGTHS, attribution=st.integers(0, 30))
def test_the_due_window_is_the_newest_whose_time_has_come(day: date, length: int, attribution: int) -> None:
    as_of = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    found = due_window(as_of, first_day=FIRST, window_days=length, attribution_days=attribution)
    ready = [
        window
        for window in windows_until(day, first_day=FIRST, window_days=length)
        if window.due_at(attribution) <= as_of
    ]
    assert found == (ready[-1] if ready else None)


def test_the_clock_is_read_in_utc() -> None:
    # 23:30 of the 5th in New York is the 6th in UTC.
    assert due(datetime.fromisoformat("2026-02-05T23:30:00-05:00")) == Window(FIRST, date(2026, 1, 29))
