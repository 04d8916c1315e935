"""The one place where assets, checks, resources, schedules and sensors meet. Dagster loads `defs`."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from typing import Any

import dagster as dg

from orchestration.assets.aggregates import build_aggregates_assets
from orchestration.assets.datasets import build_datasets_assets
from orchestration.assets.evaluation import build_evaluation_assets
from orchestration.assets.features import build_features_assets
from orchestration.assets.logs import build_logs_assets
from orchestration.assets.policies import build_policies_assets
from orchestration.assets.release import build_release_assets
from orchestration.assets.retention import build_retention_assets
from orchestration.assets.warehouse import InstalledDbt, build_warehouse_assets, dbt_project
from orchestration.checks import build_checks
from orchestration.jobs import build_jobs
from orchestration.partitions import arrival_days
from orchestration.resources import JobRunner, Workspace
from orchestration.schedules import build_schedules
from orchestration.sensors import build_sensors
from orchestration.settings import TalktrackSettings, load
from orchestration.tracking import Tracking

os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Single-run backfills and code references are marked beta in Dagster; constraints.txt pins the version we tested.
warnings.filterwarnings("ignore", category=dg.BetaWarning)

FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=36), warn_window=timedelta(hours=28))
"""A night that did not run, or did not finish, shows on every asset by the next noon."""


def build_defs(
    settings: TalktrackSettings | None = None, *, resource_overrides: dict[str, Any] | None = None
) -> dg.Definitions:
    """Everything Dagster shows and runs, for one workspace.

    `settings` default to what talktrack.yaml and the environment say; tests override resources here.
    """
    settings = settings or load()
    partitions = arrival_days(settings)
    project = dbt_project(settings)
    assets = [
        *build_logs_assets(settings, partitions),
        *build_warehouse_assets(settings, project, partitions),
        *build_aggregates_assets(settings),
        *build_features_assets(settings),
        *build_datasets_assets(settings),
        *build_policies_assets(settings),
        *build_evaluation_assets(settings),
        *build_release_assets(settings),
        *build_retention_assets(settings),
    ]
    return dg.Definitions(
        assets=dg.map_asset_specs(_with_freshness, dg.with_source_code_references(assets)),
        asset_checks=build_checks(settings),
        jobs=build_jobs(partitions),
        schedules=build_schedules(settings),
        sensors=build_sensors(settings),
        # Heavy work is in subprocesses already, and every pool is a mutex. A process per step would only load this
        # module again: three light assets took 49 s that way and 5.5 s in one process (two busy cores).
        executor=dg.in_process_executor,
        resources={
            "workspace": Workspace(settings),
            "jobs": JobRunner(),
            "tracking": Tracking(settings),
            "dbt": InstalledDbt(project),
            **(resource_overrides or {}),
        },
    )


def _with_freshness(spec: dg.AssetSpec) -> dg.AssetSpec:
    return dg.apply_freshness_policy(spec, FRESHNESS)


@dg.definitions
def defs() -> dg.Definitions:
    """What `dg dev` loads; built when asked for, not at import."""
    return build_defs()
