"""A night killed in the middle of any stage, and run again, ends like one that nobody disturbed.

Each case kills the main process of the real command with SIGKILL and runs the command again. It starts from a copy of
the undisturbed home without what the stage and those after it wrote, so that the stages before are quick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.orchestration.nights import Night, exists, job_runs, prepared

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("interruptions")]

# What each stage writes, as globs in the workspace's folder.
LANDING = ("landing", "quarantine", "catalogue.*")
AGGREGATES = (
    "released",
    "release_staging",
    "ledger/privacy_budget.db*",
    "private_release.json",
    "aggregates_state.json",
    "utility",
)
WAREHOUSE = ("warehouse.duckdb*", "warehouse_state.json", "exact_window.json", "marts", *AGGREGATES)
FEATURES = ("features", ".features.job.json")
DATASET = ("datasets",)
EVALUATION = ("evaluation", ".evaluation.job.json")
CARDS = ("cards",)
RELEASE = ("bundle", "release.json", "ledger/rollout.db*")
AFTER_DATASET = ("models", *EVALUATION, *CARDS, *RELEASE)


@dataclass(frozen=True)
class Stage:
    """When to kill, and what has not run before."""

    is_there: Callable[[Night, int], bool]
    without: tuple[str, ...]
    delay: float = 0.0


def _model(name: str) -> tuple[str, ...]:
    return (f"models/{name}", f"models/.{name}.*", *EVALUATION, *CARDS, *RELEASE)


def _has_version(night: Night, pid: int) -> bool:
    return bool(night.query("select 1 from model_versions"))


def _builds_released_models(night: Night, pid: int) -> bool:
    return exists("released/releases/2026-*/release.json")(night, pid) and job_runs("dbt build")(night, pid)


STAGES = {
    "ingest": Stage(exists("landing/_files/*.json", 3), (*LANDING, *WAREHOUSE, *FEATURES, *DATASET, *AFTER_DATASET)),
    "dbt, just begun": Stage(job_runs("dbt build"), (*WAREHOUSE, *FEATURES, *DATASET, *AFTER_DATASET), delay=1),
    "dbt, while it writes": Stage(
        exists("warehouse.duckdb.wal"), (*WAREHOUSE, *FEATURES, *DATASET, *AFTER_DATASET), delay=1
    ),
    "export": Stage(exists("marts/fct_dialogues/*", 3), (*WAREHOUSE, *DATASET, *AFTER_DATASET)),
    "private release": Stage(exists("released/releases/2026-*/release.json"), (*WAREHOUSE, *DATASET, *AFTER_DATASET)),
    "dbt, over what was released": Stage(_builds_released_models, (*WAREHOUSE, *DATASET, *AFTER_DATASET), delay=3),
    "publish aggregates": Stage(exists("released/aggregates/*/part-0.parquet"), (*WAREHOUSE, *DATASET, *AFTER_DATASET)),
    "encode": Stage(job_runs("rl.encoders.encode"), (*FEATURES, *DATASET, *AFTER_DATASET), delay=1),
    "data set": Stage(exists("datasets/.transitions.*.tmp"), (*DATASET, *AFTER_DATASET)),
    "behavior model": Stage(job_runs("rl.policies.fit_behavior"), AFTER_DATASET, delay=3),
    "train behavior_cloning": Stage(job_runs("rl.trainers.train"), _model("behavior_cloning"), delay=3),
    "train cql": Stage(job_runs("rl.trainers.train"), _model("cql"), delay=3),
    "train cql, after a checkpoint": Stage(exists("models/.cql.checkpoint*"), _model("cql")),
    "train d3rlpy_double_dqn, before it is tracked": Stage(
        exists("models/.d3rlpy_double_dqn.job.json"), _model("d3rlpy_double_dqn")
    ),
    "evaluate": Stage(job_runs("rl.evaluation.evaluate"), (*EVALUATION, *CARDS, *RELEASE), delay=3),
    "cards": Stage(exists("cards/*.html"), (*CARDS, *RELEASE)),
    "release, before the version": Stage(exists("bundle/bundle.json"), RELEASE),
    "release, before the alias": Stage(_has_version, RELEASE),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Night:
    night = prepared(tmp_path_factory.mktemp("undisturbed"))
    status, seen = night.run()
    assert status == 0, seen
    assert night.state()["versions"] == [("talktrack-storefront", 1)]
    return night


@pytest.mark.parametrize("name", STAGES)
def test_a_killed_night_that_runs_again_ends_like_an_undisturbed_one(
    name: str, undisturbed: Night, tmp_path: Path
) -> None:
    stage = STAGES[name]
    night = undisturbed.copy(tmp_path / "home", *stage.without)

    assert night.kill_when(stage.is_there, stage.delay), "the night ended before it could be killed"
    status, seen = night.run()

    assert status == 0, seen
    found, expected = night.state(), undisturbed.state()
    assert found == expected
    assert night.leftovers() == []


def test_a_dbt_that_is_killed_is_started_again_by_the_night_itself(undisturbed: Night, tmp_path: Path) -> None:
    night = undisturbed.copy(tmp_path / "home", *WAREHOUSE, *DATASET, *AFTER_DATASET)
    status, seen = night.kill_child_when("dbt build")
    assert status == 0, seen
    assert night.state() == undisturbed.state()
