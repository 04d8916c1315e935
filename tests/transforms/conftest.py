"""Real dbt builds in temporary folders: a history built night by night, the same landing at once, an empty one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestration import marts, warehouse
from orchestration.settings import LogsSettings, TalktrackSettings
from registry.privacy.release import prepare_released
from rl.files import content_hash
from rl.settings import DatasetSettings, RewardDefinition, RewardPart
from tests.transforms import landing_builder as logs

REWARD = RewardDefinition(
    parts=(
        RewardPart(name="conversion_value", clip_high=8.0),
        RewardPart(name="conversion", weight=2.0),
        RewardPart(name="engagement", weight=0.25),
        RewardPart(name="cost", weight=0.125),
    )
)


def dbt_command() -> str:
    """The dbt beside this Python: an activated environment is not needed."""
    return str(Path(sys.executable).with_name("dbt"))


@dataclass
class Workspace:
    """A workspace folder with a landing, and the steps of a night that concern the warehouse."""

    settings: TalktrackSettings
    catalogue: Path
    last_output: str = ""

    @classmethod
    def create(cls, home: Path, landing: Path | None = None) -> Workspace:
        settings = TalktrackSettings(
            home=home,
            workspace="tested",
            logs=LogsSettings(attribution_days=7),
            dataset=DatasetSettings(reward=REWARD),
        )
        settings.paths.root.mkdir(parents=True)
        if landing is None:
            logs.empty_landing(settings.paths.landing)
        else:
            settings.paths.landing.symlink_to(landing)
        prepare_released(settings.paths.released)
        return cls(settings, logs.write_catalogue(home / "catalogue.csv"))

    def night(self, *, unit_tests: bool = False) -> tuple[warehouse.BuildPlan, marts.ExportReport]:
        paths = self.settings.paths
        plan = warehouse.plan_build(self.settings, self.catalogue)
        self.dbt(plan.dbt_arguments(self.settings), unit_tests=unit_tests)
        report = marts.export_marts(paths.warehouse, paths.marts, plan.days)
        warehouse.remember_build(paths.root, plan)
        return plan, report

    def dbt(self, arguments: list[str], *, unit_tests: bool = False, may_fail: bool = False, **variables: str) -> None:
        scratch = self.settings.paths.home / "dbt"
        environment = {
            **os.environ,
            **warehouse.dbt_environment(self.settings, self.catalogue),
            "DBT_TARGET_PATH": str(scratch),
            "DBT_LOG_PATH": str(scratch),
            **variables,
        }
        if unit_tests:
            del environment["DBT_EXCLUDE_RESOURCE_TYPES"]
        command = [dbt_command(), *arguments]
        done = subprocess.run(
            command, cwd=warehouse.TRANSFORMS, env=environment, capture_output=True, text=True, check=False
        )
        self.last_output = done.stdout
        assert may_fail or done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

    def mart(self, model: str) -> pa.Table:
        """The exported rows of a mart, all days."""
        folder = self.settings.paths.marts / model
        files = sorted(folder.glob("**/part-0.parquet"))
        return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])

    def rows(self, model: str) -> list[dict[str, object]]:
        return self.mart(model).to_pylist()


@dataclass
class History:
    """The same landing, built night by night and built at once."""

    nightly: Workspace
    plans: list[warehouse.BuildPlan]
    files: list[dict[str, tuple[str, int]]]
    """After each night: hash and time of writing of every mart file that is of a day, by `<model>/day=…`."""
    at_once: Workspace


def first_arrivals(landing: Path) -> None:
    """Six days of logs, as the first night finds them."""
    start, day = logs.START, timedelta(days=1)
    a = [row for k in range(4) for row in logs.dialogue(f"a{k}", start, segment="new", customer_id=f"c{k}")]
    logs.land(
        landing,
        "2026-01-01",
        turns=a,
        outcomes=[logs.outcome("a0", start + timedelta(hours=1), value=20.0)],
        incomplete=[{"dialogue_id": "a3", "reason": "propensity"}],
    )
    late_start = logs.dialogue("moves", start + day)[2:]
    unlabelled = [
        *logs.dialogue("unlabelled", start + day),
        logs.turn("unlabelled", 6, start + day, speaker="agent"),
    ]
    logs.land(landing, "2026-01-02", turns=[*late_start, *unlabelled, *logs.dialogue("b0", start + day)])
    logs.land(landing, "2026-01-04", turns=logs.dialogue("lone", start + 3 * day)[2:])
    logs.land(landing, "2026-01-06", turns=logs.dialogue("young", start + 5 * day, policy_version="v2"))


def late_arrivals(landing: Path) -> None:
    """What the second night finds: late outcomes, a re-sent turn, first turns that move dialogues to earlier days."""
    start, day = logs.START, timedelta(days=1)
    resent = logs.turn("a2", 2, start, "inquire", propensity=0.6, policy_version="v1", segment="new")
    logs.land(
        landing,
        "2026-01-10",
        turns=[
            resent,
            logs.turn("moves", 0, start, "greet", propensity=0.2, policy_version="v1"),
            logs.turn("lone", 0, start + 2 * day, "greet", propensity=0.2, policy_version="v1"),
        ],
        outcomes=[
            logs.outcome("a1", start + 6 * day, value=3.0),
            logs.outcome("a2", start + 8 * day, value=3.0),
        ],
        decisions=[
            decision("a1", 2, "canary", "inquire", 0.3),
            decision("a1", 4, "shadow", "greet", 0.1),
        ],
    )


def decision(dialogue: str, turn_index: int, stage: str, strategy: str, probability: float) -> logs.Row:
    return {
        "decision_id": f"{dialogue}-{turn_index}",
        "dialogue_id": dialogue,
        "turn_index": turn_index,
        "occurred_at": datetime(2026, 1, 1),
        "policy_version": "v3",
        "stage": stage,
        "strategy": strategy,
        "probability": probability,
        "eligible_strategies": ["greet", "inquire"],
    }


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    nightly = Workspace.create(tmp_path_factory.mktemp("nightly"))
    paths = nightly.settings.paths
    first_arrivals(paths.landing)
    first, _ = nightly.night()
    files = [mart_files(paths.marts)]
    late_arrivals(paths.landing)
    second, _ = nightly.night()
    files.append(mart_files(paths.marts))
    at_once = Workspace.create(tmp_path_factory.mktemp("at_once"), paths.landing)
    at_once.night()
    return History(nightly, [first, second], files, at_once)


def mart_files(marts: Path) -> dict[str, tuple[str, int]]:
    """Hash and time of writing of every mart file that is of a day."""
    return {
        str(path.parent.relative_to(marts)): (content_hash(path.read_bytes()), path.stat().st_mtime_ns)
        for path in marts.glob("*/day=*/part-0.parquet")
    }


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace.create(tmp_path_factory.mktemp("empty"))
    workspace.night(unit_tests=True)
    return workspace
