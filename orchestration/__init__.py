"""When things run: Dagster assets, checks, jobs, schedules, sensors, and the `talktrack` command. Thin."""
