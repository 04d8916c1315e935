"""Dagster's state when a night did not end by itself."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from orchestration.instance import close_killed_nights, night_tags
from orchestration.settings import TalktrackSettings


def test_a_killed_night_is_failed_and_nothing_else_is_touched(tmp_path: Path) -> None:
    settings = TalktrackSettings(home=tmp_path)
    started = dg.DagsterRunStatus.STARTED

    @dg.job
    def night() -> None: ...

    with dg.DagsterInstance.ephemeral() as instance:
        killed = instance.create_run_for_job(night, status=started, tags=night_tags(settings))
        ended = instance.create_run_for_job(night, status=dg.DagsterRunStatus.SUCCESS, tags=night_tags(settings))
        other = instance.create_run_for_job(night, status=started)
        elsewhere = instance.create_run_for_job(night, status=started, tags={"talktrack/night": "another"})

        close_killed_nights(instance, settings)

        statuses = [instance.get_run_by_id(run.run_id).status.value for run in (killed, ended, other, elsewhere)]
    assert statuses == ["FAILURE", "SUCCESS", "STARTED", "STARTED"]


def test_a_killed_night_gives_back_its_places_in_the_pools(tmp_path: Path) -> None:
    settings = TalktrackSettings(home=tmp_path)

    @dg.job
    def night() -> None: ...

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        run = instance.create_run_for_job(night, status=dg.DagsterRunStatus.STARTED, tags=night_tags(settings))
        storage = instance.event_log_storage
        storage.set_concurrency_slots("gpu", 1)
        assert storage.claim_concurrency_slot("gpu", run.run_id, "train").is_claimed
        assert not storage.claim_concurrency_slot("gpu", "next", "train").is_claimed

        close_killed_nights(instance, settings)

        assert storage.claim_concurrency_slot("gpu", "next", "train").is_claimed
