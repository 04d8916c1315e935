"""The one place where assets, checks, resources, schedules and sensors meet. Dagster loads `defs`."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import dagster as dg
from dagster_dbt import DbtCliResource

from orchestration.assets.datasets import build_datasets_assets
from orchestration.assets.evaluation import build_evaluation_assets
from orchestration.assets.features import build_features_assets
from orchestration.assets.logs import build_logs_assets
from orchestration.assets.policies import build_policies_assets
from orchestration.assets.release import build_release_assets
from orchestration.assets.warehouse import build_warehouse_assets, dbt_project
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
    definitions = dg.Definitions(
        assets=[
            *build_logs_assets(settings, partitions),
            *build_warehouse_assets(settings, project, partitions),
            *build_features_assets(settings),
            *build_datasets_assets(settings),
            *build_policies_assets(settings),
            *build_evaluation_assets(settings),
            *build_release_assets(settings),
        ],
        asset_checks=build_checks(settings),
        jobs=build_jobs(partitions),
        schedules=build_schedules(settings),
        sensors=build_sensors(settings),
        resources={
            "workspace": Workspace(settings),
            "jobs": JobRunner(),
            "tracking": Tracking(settings),
            "dbt": DbtCliResource(project),
            **(resource_overrides or {}),
        },
    )
    return definitions.map_asset_specs(func=_with_freshness)


def _with_freshness(spec: dg.AssetSpec) -> dg.AssetSpec:
    return dg.apply_freshness_policy(spec, FRESHNESS)


@dg.definitions
def defs() -> dg.Definitions:
    """What `dg dev` loads; built when asked for, not at import."""
    return build_defs()
