"""The bundle of a registered version, handed out: only of a policy that no single customer's dialogue trained.

Here: what decides whether a version may leave, and its bundle as a folder. Not here: aggregates and the scan of what
is written (`orchestration.exports`).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from registry.bundle import DESCRIPTION_FILE, BundleDescription, read_description
from registry.errors import ExportRefusedError, RegistryError
from registry.mlflow_store import MlflowStore

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def export_bundle(store: MlflowStore, model: str, version: str, folder: Path) -> BundleDescription:
    """Copy the bundle of a registered version into the empty `folder`.

    The version's tag and the bundle itself must both say `released`; a tag can be edited in MLflow's pages, the bundle
    is checked against its hashes. Raises ExportRefusedError if one of them says otherwise, RegistryError if there is no
    such version.
    """
    found = _version(store, model, version)
    _refuse_restricted(found.tags.get("zone", "restricted"), model, version, "its MLflow tag `zone`")
    with tempfile.TemporaryDirectory(prefix="talktrack-export-") as download:
        bundle = _downloaded(store, model, version, Path(download))
        description = read_description(bundle)
        _refuse_restricted(description.zone, model, version, f"its {DESCRIPTION_FILE}")
        if not description.may_export:
            _refuse_restricted("restricted", model, version, f"`may_export` in its {DESCRIPTION_FILE}")
        shutil.copytree(bundle, folder, dirs_exist_ok=True)
    return description


def _version(store: MlflowStore, model: str, version: str) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    try:
        return store.client().get_model_version(model, version)
    except MlflowException:
        raise RegistryError(
            f"{model} has no version {version}. `talktrack status` lists the versions in use, MLflow all of them."
        ) from None


def _refuse_restricted(zone: str, model: str, version: str, where: str) -> None:
    if zone != "released":
        raise ExportRefusedError(
            f"Version {version} of {model} is not exported: {where} says it belongs to the restricted zone. A policy "
            "that was trained on single customers' dialogues may be promoted and serve here, and leaves nowhere. "
            "Export a version of privacy mode `aggregate`, or the released aggregates (without --version)."
        )


def _downloaded(store: MlflowStore, model: str, version: str, folder: Path) -> Path:
    import mlflow

    store.use()
    copy = Path(mlflow.artifacts.download_artifacts(f"models:/{model}/{version}", dst_path=str(folder)))
    bundles = sorted(path.parent for path in copy.rglob(DESCRIPTION_FILE))
    if not bundles:
        raise RegistryError(
            f"Version {version} of {model} holds no bundle. Register it again with `talktrack nightly`."
        )
    return bundles[0]
