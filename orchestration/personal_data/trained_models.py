"""Which models were trained on dialogues of certain days: folders, bundles and registered versions, by their manifests.

Here: listing. Not here: retraining or deleting them, which a person decides.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from orchestration.settings import TalktrackSettings
from orchestration.tracking import Tracking

RETRAIN = "run `talktrack nightly`: it trains anew on a data set without them"
REPLACE = "let the next version take its place (`talktrack promote`), then delete it in MLflow"


@dataclass(frozen=True)
class TrainedModel:
    """One model, and the data it saw."""

    where: str
    """Folder in the workspace, or `<model> version <n>`."""
    dataset_hash: str
    window: tuple[str, str] | None
    """First and last dialogue day of its data; None where its manifest is gone."""
    what_to_do: str
    aliases: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def models_of_days(settings: TalktrackSettings, days: Collection[date]) -> list[TrainedModel]:
    """Every model of individual dialogues whose data covers one of `days`, or is not known to cover none.

    A window that covers a day of somebody's is taken to hold their dialogue: the rows of a data set name nobody.
    Models of released aggregates are post-processing of a private release and are not listed.
    """
    if not days:
        return []
    registered = list(_registered(settings))
    windows = {model.dataset_hash: model.window for model in registered if model.window}
    bundle = _bundle(settings.paths.root / "bundle")
    if bundle is not None and bundle.window:
        windows[bundle.dataset_hash] = bundle.window
    found = [*_folders(settings.paths.models, windows), *([bundle] if bundle else []), *registered]
    return [model for model in found if covers(model.window, days)]


def covers(window: tuple[str, str] | list[str] | None, days: Collection[date]) -> bool:
    """Whether one of the days is in the window; an unknown window may hold any."""
    if window is None or not all(window):
        return True
    first, last = (date.fromisoformat(day) for day in window)
    return any(first <= day <= last for day in days)


def _folders(models: Path, windows: Mapping[str, tuple[str, str]]) -> Iterator[TrainedModel]:
    for path in sorted(models.glob("*/training.json")):
        dataset_hash = json.loads(path.read_text()).get("dataset_hash", "")
        yield TrainedModel(f"models/{path.parent.name}", dataset_hash, windows.get(dataset_hash), RETRAIN)


def _bundle(folder: Path) -> TrainedModel | None:
    description, manifest = folder / "bundle.json", folder / "manifest.json"
    if not (description.exists() and manifest.exists()):
        return None
    content = json.loads(description.read_text())
    if content.get("privacy_mode") != "individual":
        return None
    return TrainedModel("bundle", content["dataset_hash"], _window(json.loads(manifest.read_text())["window"]), RETRAIN)


def _registered(settings: TalktrackSettings) -> Iterator[TrainedModel]:
    database = settings.paths.mlflow_uri.removeprefix("sqlite:///")
    if database != settings.paths.mlflow_uri and not Path(database).exists():
        return  # nothing was ever registered in this home
    client = Tracking(settings).store().client()
    if not client.search_registered_models(f"name = '{settings.model_name}'"):
        return
    aliases = client.get_registered_model(settings.model_name).aliases
    for version in client.search_model_versions(f"name = '{settings.model_name}'"):
        if version.tags.get("privacy_mode", "individual") != "individual":
            continue
        held = tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(version.version)))
        window = _window(version.tags.get("data.window", "").split(" to "))
        name = f"{settings.model_name} version {version.version}"
        yield TrainedModel(name, version.tags.get("data.fingerprint", ""), window, REPLACE, held)


def _window(days: list[str] | tuple[str, ...]) -> tuple[str, str] | None:
    return (days[0], days[1]) if len(days) == 2 and all(days) else None
