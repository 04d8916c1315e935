"""Job: learn one policy from a transition set.

    python -m rl.trainers.train --input <dataset> --output <models>/<name> [--settings s.json]

Settings: `{"trainer": {"algorithm": "cql", ...}, "behavior": <folder>}`. Reads the behavior model from `behavior`, or
from the folder of that name beside the output. Writes policy.json, policy.safetensors and training.json. While it runs
its checkpoint lies beside the output; killed and started again with the same settings, it goes on from there. Not here:
the algorithms (the modules of `rl.trainers`).
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from rl.datasets.transitions import TransitionSet
from rl.errors import PolicyError
from rl.files import replaced_folder, write_json
from rl.policies.storage import StoredPolicy, load_policy
from rl.progress import report_message, report_metric, report_progress, report_result, run_job
from rl.settings import Settings
from rl.trainers import TrainingRecord, trainer
from rl.trainers.selection import parted
from rl.trainers.settings import AnyTrainerSettings, CQLSettings, MaskedTrainerSettings, TrainerSettings

TRAINING_FILE = "training.json"


class TrainingJobSettings(Settings):
    """The trainer's settings, and where the behavior model lies."""

    trainer: AnyTrainerSettings = CQLSettings()

    behavior: Path | None = None
    """Folder of the behavior model. Empty: `behavior` beside the output folder."""


def main(dataset_folder: Path, output: Path, job: TrainingJobSettings) -> None:
    """Train, report, and replace `output` as a whole."""
    dataset = TransitionSet.open(dataset_folder)
    settings = within_epochs(job.trainer, dataset)
    behavior = _load_behavior(job.behavior or output.parent / "behavior", dataset)
    checkpoint = output.with_name(f".{output.name}.checkpoint.safetensors")
    record = TrainingRecord(
        forward=_Reporter(f"train {output.name}", settings.n_steps), say=report_message, checkpoint=checkpoint
    )
    started = time.perf_counter()
    policy = trainer(settings.algorithm).fit(dataset, settings, behavior, record)
    policy.name = output.name
    facts = _facts(settings, record) | {"seconds": time.perf_counter() - started}
    with replaced_folder(output) as folder:
        policy.save(folder)
        write_json(folder / TRAINING_FILE, _document(settings, dataset, record) | facts)
    checkpoint.unlink(missing_ok=True)
    report_result(name=policy.name, algorithm=settings.algorithm, **facts)


def within_epochs(settings: TrainerSettings, dataset: TransitionSet) -> TrainerSettings:
    """The settings with at most `max_epochs` passes over the rows to learn from; the target networks keep their share.

    Raises DataError if the selection leaves nothing to learn from.
    """
    share = settings.selection_share if isinstance(settings, MaskedTrainerSettings) else 0.0
    learning, _ = parted(dataset, share)
    n_rows = int(np.diff(dataset.episode_offsets)[learning].sum())
    most = max(1, math.ceil(settings.max_epochs * n_rows / settings.batch_size))
    if settings.n_steps <= most:
        return settings
    fewer = {"n_steps": most}
    if interval := getattr(settings, "target_update_interval", None):
        fewer["target_update_interval"] = max(1, round(interval * most / settings.n_steps))
    return settings.model_copy(update=fewer)


def _facts(settings: TrainerSettings, record: TrainingRecord) -> dict[str, Any]:
    """What the training came to, in a few numbers."""
    chosen = record.selection
    return {
        "steps": chosen.get("last", {}).get("step", settings.n_steps),
        "selected_step": chosen.get("step", settings.n_steps),
        "setting": chosen.get("setting"),
        "lower_bound": chosen.get("low"),
        "temperature": record.last("policy/temperature"),
        "divergence": record.last("policy/divergence"),
    }


def _document(settings: TrainerSettings, dataset: TransitionSet, record: TrainingRecord) -> dict[str, Any]:
    members = (
        settings.members(dataset.manifest.training_discount) if isinstance(settings, MaskedTrainerSettings) else ()
    )
    return {
        "algorithm": settings.algorithm,
        "settings": settings.model_dump(mode="json"),
        "dataset_hash": dataset.manifest.dataset_hash,
        "members": [{"seed": member.seed, "knobs": member.knobs} for member in members],
        "curves": record.curves,
        "member_curves": record.member_curves,
        "leaderboard": record.leaderboard,
        "selection": record.selection,
        "notes": record.notes,
    }


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
