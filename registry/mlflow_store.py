"""Where MLflow keeps runs, models and files, with every address said explicitly.

Here: opening the store, its experiments, its registered model, the links into its user interface. Not here:
what is logged (`registry.model_code`), who may move an alias (`registry.rollout`).

MLflow falls back to a database in the current folder when it is told nothing, sends usage data when it is
not told otherwise, and writes migration messages to the terminal. `open_store` settles all three, once for
a process.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ENVIRONMENT = {
    # MLflow compares DO_NOT_TRACK with "true" and ignores "1".
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # Standard output belongs to the night's summary.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_NOISY = ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent", "mlflow.utils.requirements_utils")
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Shown as the experiment's type; MLflow's other type is for language-model traces."""

_CREATION_TIMEOUT_SECONDS = 120.0
"""Creating the tables took 2 s on two cores; a second process waits for the first."""


@dataclass(frozen=True)
class MlflowStore:
    """An open MLflow store. Make one with `open_store`."""

    tracking_uri: str
    """`sqlite:///<file>`, `postgresql+psycopg2://…` or the address of an MLflow server."""
    artifacts: Path
    """Folder of the files of runs and models; unused behind a server, which has its own."""
    ui_url: str | None = None
    """Address of MLflow's pages, for links; None where nobody serves them."""

    @property
    def address(self) -> str:
        """`tracking_uri` without user and password, for messages."""
        scheme, separator, rest = self.tracking_uri.partition("://")
        return f"{scheme}{separator}{rest.rpartition('@')[2]}"

    def client(self) -> MlflowClient:
        """A client of this store, whatever the process-wide addresses are."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)

    def use(self) -> None:
        """Make this store the one that `mlflow.start_run` and `mlflow.pyfunc` speak to in this process."""
        import mlflow

        mlflow.set_tracking_uri(self.tracking_uri)
        mlflow.set_registry_uri(self.tracking_uri)

    def experiment_id(self, name: str) -> str:
        """The id of an experiment, which is made when missing, with its files under `artifacts`."""
        from mlflow.exceptions import MlflowException

        client = self.client()
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                created = client.create_experiment(name, self._artifact_location(), _EXPERIMENT_TAGS)
                return str(created)
            except MlflowException:  # another process was faster
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise RegistryError(
                f"The MLflow experiment {name!r} is in the bin. Restore it with `mlflow experiments restore -x "
                f"{found.experiment_id}`."
            )
        return str(found.experiment_id)

    def ensure_registered_model(self, name: str, description: str = "") -> None:
        """Make the registered model when it is missing; leave it alone when it is there."""
        from mlflow.exceptions import MlflowException

        try:
            self.client().create_registered_model(name, description=description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def run_url(self, experiment_id: str, run_id: str) -> str | None:
        """The page of a run; None without `ui_url`."""
        return self._page(f"experiments/{experiment_id}/runs/{run_id}")

    def version_url(self, model: str, version: str) -> str | None:
        """The page of a model version; None without `ui_url`."""
        return self._page(f"models/{model}/versions/{version}")

    def _page(self, route: str) -> str | None:
        return None if self.ui_url is None else f"{self.ui_url.rstrip('/')}/#/{route}"

    def _artifact_location(self) -> str | None:
        if self.tracking_uri.startswith(("http://", "https://")):
            return None
        self.artifacts.mkdir(parents=True, exist_ok=True)
        return self.artifacts.resolve().as_uri()


def open_store(tracking_uri: str, artifacts: Path, ui_url: str | None = None) -> MlflowStore:
    """Open the store, creating its database on first use, and quieten MLflow in this process.

    Two processes that open a new store at once wait for each other: MLflow's own table creation races.
    Raises RegistryError if the store cannot be reached.
    """
    _quieten()
    store = MlflowStore(tracking_uri, artifacts, ui_url)
    try:
        if tracking_uri.startswith("sqlite:///"):
            _create_database(store, Path(tracking_uri.removeprefix("sqlite:///")))
        else:
            store.client().search_experiments(max_results=1)
    except RegistryError:
        raise
    except Exception as error:  # SQLAlchemy, HTTP and MLflow have errors of their own; to the reader they are one fact
        raise RegistryError(
            f"MLflow's store at {store.address} cannot be opened ({type(error).__name__}). Check "
            "MLFLOW_TRACKING_URI, and that the database or server is up."
        ) from error
    return store


def _create_database(store: MlflowStore, file: Path) -> None:
    from filelock import FileLock, Timeout

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = file.with_name(f".{file.name}.lock")
    try:
        with FileLock(lock, timeout=_CREATION_TIMEOUT_SECONDS):
            store.client().search_experiments(max_results=1)
    except Timeout:
        raise RegistryError(
            f"Another process has held {lock} for {_CREATION_TIMEOUT_SECONDS:.0f} s while it creates {file}. Wait "
            "for it, or end it, and run again."
        ) from None


def _quieten() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
