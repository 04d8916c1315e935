"""Daily partitions: one per arrival day of logs. Windows of days come from here, never from string maths."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from orchestration.settings import TalktrackSettings

SINGLE_RUN = dg.BackfillPolicy.single_run()
"""A backfill over a range of days is one run: one ingest, one dbt build, one policy."""


def arrival_days(settings: TalktrackSettings) -> dg.DailyPartitionsDefinition:
    """One partition per UTC day on which logs arrived, from `logs.start_date` on.

    Today has one too: files without a day in their path arrive on the day of their last change.
    """
    return dg.DailyPartitionsDefinition(start_date=settings.logs.start_date.isoformat(), end_offset=1)


def night_of(context: dg.AssetExecutionContext) -> date:
    """The newest arrival day of this run: the night processes every unprocessed day up to it."""
    return date.fromisoformat(context.partition_key_range.end)


def range_tags(first: date, last: date) -> dict[str, str]:
    """Run tags that make one run cover the days from `first` to `last`, both included."""
    return {
        ASSET_PARTITION_RANGE_START_TAG: first.isoformat(),
        ASSET_PARTITION_RANGE_END_TAG: last.isoformat(),
    }


def end_of(day: date) -> datetime:
    """The moment at which a UTC day ends: as of then the night judges maturity."""
    return datetime.combine(day + timedelta(days=1), time(), UTC)
