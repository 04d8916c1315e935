"""Job: learn one policy from a transition set.

    python -m rl.trainers.train --input <dataset> --output <models>/<name> [--settings s.json]

Reads the behavior model from `behavior` beside the output, or from the setting `behavior`. Writes
policy.json, policy.safetensors and training.json. Not here: the algorithms (the modules of `rl.trainers`).
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import numpy as np

from rl.datasets.transitions import TransitionSet
from rl.errors import PolicyError
from rl.files import replaced_folder, write_json
from rl.policies.storage import StoredPolicy, load_policy
from rl.progress import report_metric, report_progress, report_result, run_job
from rl.settings import TrainerSettings
from rl.trainers import TRAINERS, TrainingRecord

TRAINING_FILE = "training.json"


class TrainingJobSettings(TrainerSettings):
    """The trainer's settings, and where the behavior model lies."""

    behavior: Path | None = None
    """Folder of the behavior model. Empty: `behavior` beside the output folder."""


def main(dataset_folder: Path, output: Path, settings: TrainingJobSettings) -> None:
    """Train, report, and replace `output` as a whole."""
    dataset = TransitionSet.open(dataset_folder)
    settings = within_epochs(settings, dataset)
    behavior = _load_behavior(settings.behavior or output.parent / "behavior", dataset)
    record = TrainingRecord(forward=_Reporter(f"train {settings.algorithm}", settings.n_steps))
    started = time.perf_counter()
    policy = TRAINERS[settings.algorithm].fit(dataset, settings, behavior, record)
    policy.name = output.name
    seconds = time.perf_counter() - started
    reached = {
        "temperature": record.last("policy/temperature"),
        "divergence": record.last("policy/divergence"),
    }
    with replaced_folder(output) as folder:
        policy.save(folder)
        write_json(
            folder / TRAINING_FILE,
            {
                "algorithm": settings.algorithm,
                "settings": settings.model_dump(mode="json", exclude={"behavior"}),
                "steps": settings.n_steps,
                "seconds": seconds,
                "dataset_hash": dataset.manifest.dataset_hash,
                "curves": record.curves,
                **reached,
            },
        )
    report_result(name=policy.name, algorithm=settings.algorithm, steps=settings.n_steps, seconds=seconds, **reached)


def within_epochs(settings: TrainingJobSettings, dataset: TransitionSet) -> TrainingJobSettings:
    """The settings with at most `max_epochs` passes over the training rows; the target network keeps its share."""
    n_rows = int(np.diff(dataset.episode_offsets)[~dataset.validation].sum())
    most = max(1, math.ceil(settings.max_epochs * n_rows / settings.batch_size))
    if settings.n_steps <= most:
        return settings
    interval = max(1, round(settings.target_update_interval * most / settings.n_steps))
    return settings.model_copy(update={"n_steps": most, "target_update_interval": interval})


def _load_behavior(folder: Path, dataset: TransitionSet) -> StoredPolicy:
    behavior = load_policy(folder)
    found, wanted = (
        (behavior.observation_size, behavior.n_actions),
        (dataset.observation_size, dataset.n_actions),
    )
    if found != wanted:
        raise PolicyError(
            f"The behavior model in {folder} has (features, actions) {found} and the data set {wanted}. Fit "
            "it again with rl.policies.fit_behavior."
        )
    return behavior


class _Reporter:
    """Forwards metrics as JSON lines, and counts steps whenever a total loss arrives."""

    def __init__(self, stage: str, n_steps: int) -> None:
        self._stage = stage
        self._n_steps = n_steps

    def __call__(self, name: str, value: float, step: int) -> None:
        report_metric(name, value, step)
        if name == "losses/total":
            report_progress(self._stage, step, self._n_steps)


if __name__ == "__main__":
    sys.exit(run_job(main, TrainingJobSettings, "Learn one policy from a transition set."))
