"""The nightly schedule: 02:00 in the configured time zone, for the UTC day that has just ended."""

from datetime import UTC, timedelta

import dagster as dg

from orchestration.jobs import NIGHTLY
from orchestration.settings import TalktrackSettings


def build_schedules(settings: TalktrackSettings) -> list[dg.ScheduleDefinition]:
    """Off by default: switch it on in the UI once the settings point to your logs."""

    @dg.schedule(
        name="nightly_schedule",
        job_name=NIGHTLY,
        cron_schedule="0 2 * * *",
        execution_timezone=settings.logs.time_zone,
        description="Every night at 02:00: the last complete UTC day and whatever arrived late before it.",
    )
    def nightly_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        day = (context.scheduled_execution_time.astimezone(UTC) - timedelta(days=1)).date().isoformat()
        return dg.RunRequest(run_key=day, partition_key=day)

    return [nightly_schedule]
