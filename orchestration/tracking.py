"""MLflow as assets see it: one run per trained policy, closed whatever happens, linked both ways with Dagster.

mlflow is imported when a run is opened, not when the code location loads (it takes about six seconds).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from orchestration.plots import Curve
from orchestration.settings import TalktrackSettings
from registry.mlflow_store import MlflowStore, open_store

UI_URL = "http://127.0.0.1:5000"
"""Where `make mlflow` serves; links in Dagster point there."""

MAX_PARAM_LENGTH = 500
METRIC_BATCH = 900  # MLflow refuses more than 1,000 metrics a call


@dataclass(frozen=True)
class TrackedRun:
    """One MLflow run that is open, or was."""

    store: MlflowStore
    experiment_id: str
    run_id: str

    @property
    def url(self) -> str | None:
        return self.store.run_url(self.experiment_id, self.run_id)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Settings, flattened by the caller; long values are cut."""
        from mlflow.entities import Param

        params = [Param(k, str(v)[:MAX_PARAM_LENGTH]) for k, v in values.items()]
        self.store.client().log_batch(self.run_id, params=params)

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Final numbers."""
        self.log_curves({name: [(0, value)] for name, value in values.items()})

    def log_curves(self, curves: Mapping[str, Curve]) -> None:
        """Numbers over training steps."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, value, now, step) for name, curve in curves.items() for step, value in curve]
        for start in range(0, len(points), METRIC_BATCH):
            self.store.client().log_batch(self.run_id, metrics=points[start : start + METRIC_BATCH])

    def log_file(self, path: Path) -> None:
        """A file among the run's artifacts."""
        self.store.client().log_artifact(self.run_id, str(path))

    def log_page(self, path: Path, name: str) -> None:
        """A text file among the run's artifacts, under another name."""
        self.store.client().log_text(self.run_id, path.read_text(encoding="utf-8"), name)

    def child(self, name: str) -> TrackedRun:
        """A finished run below this one, for one member of a sweep."""
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        client = self.store.client()
        run = client.create_run(self.experiment_id, run_name=name, tags={MLFLOW_PARENT_RUN_ID: self.run_id})
        client.set_terminated(run.info.run_id, "FINISHED")
        return TrackedRun(self.store, self.experiment_id, run.info.run_id)

    def log_figure(self, figure: Any, name: str) -> None:
        """A plot among the run's artifacts."""
        self.store.client().log_figure(self.run_id, figure, name)


@dataclass(frozen=True)
class Tracking:
    """Opens runs in the experiment of this workspace."""

    settings: TalktrackSettings

    def store(self) -> MlflowStore:
        """The MLflow store of this home folder, created on first use."""
        paths = self.settings.paths
        return open_store(paths.mlflow_uri, paths.mlflow_artifacts, ui_url=UI_URL)

    @contextmanager
    def run(self, context: dg.AssetExecutionContext, name: str, tags: Mapping[str, str]) -> Iterator[TrackedRun]:
        """A new run, ended FINISHED or FAILED when the block ends."""
        store = self.store()
        client, experiment = store.client(), store.experiment_id(self.settings.model_name)
        lineage = _lineage_tags(context)
        _close_killed(client, experiment, lineage["dagster_asset_key"])
        created = client.create_run(experiment, run_name=name, tags={**lineage, **tags})
        status = "FAILED"
        try:
            yield TrackedRun(store, experiment, created.info.run_id)
            status = "FINISHED"
        finally:
            client.set_terminated(created.info.run_id, status)

    def reopened(self, run_id: str) -> TrackedRun:
        """A run of an earlier step, to add what was learned since."""
        store = self.store()
        return TrackedRun(store, store.experiment_id(self.settings.model_name), run_id)


def _close_killed(client: Any, experiment: str, asset_key: str) -> None:
    """End the runs of an asset that are still open: what wrote to them was killed, or it would hold the pool."""
    query = f"tags.dagster_asset_key = '{asset_key}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment], query):
        client.set_terminated(run.info.run_id, "KILLED")


def _lineage_tags(context: dg.AssetExecutionContext) -> dict[str, str]:
    return {"dagster_run_id": context.run_id, "dagster_asset_key": context.asset_key.to_user_string()}


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
