"""Job: fit the behavior model of a transition set.

    python -m rl.policies.fit_behavior --input <dataset> --output <models>/behavior [--settings s.json]

Writes policy.json, policy.safetensors, out_of_fold.safetensors (`probabilities` (N, A) float32, rows as in
the data set) and training.json. Settings: `BehaviorModelSettings`. Not here: the model itself
(`rl.policies.behavior`).
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.numpy import save_file

from rl.datasets.transitions import TransitionSet
from rl.files import replaced_folder, write_json
from rl.policies.behavior import FittedBehavior, fit_behavior_model
from rl.progress import report_metric, report_progress, report_result, run_job
from rl.settings import BehaviorModelSettings

OUT_OF_FOLD_FILE = "out_of_fold.safetensors"
TRAINING_FILE = "training.json"


def main(dataset_folder: Path, output: Path, settings: BehaviorModelSettings) -> None:
    """Fit, report, and replace `output` as a whole."""
    dataset = TransitionSet.open(dataset_folder)
    fitted = fit_behavior_model(
        dataset, settings, lambda done, total: report_progress("fit behavior model", done, total)
    )
    measures = _measures(fitted)
    with replaced_folder(output) as folder:
        fitted.policy.save(folder)
        save_file({"probabilities": fitted.out_of_fold}, folder / OUT_OF_FOLD_FILE)
        write_json(
            folder / TRAINING_FILE,
            {
                "algorithm": "behavior_model",
                "settings": settings.model_dump(mode="json"),
                "dataset_hash": dataset.manifest.dataset_hash,
                "reliability_curve": fitted.curve.as_lists(),
                **measures,
            },
        )
    for name, value in measures.items():
        if value is not None:
            report_metric(f"behavior/{name}", value)
    report_result(dataset_hash=dataset.manifest.dataset_hash, **measures)


def _measures(fitted: FittedBehavior) -> dict[str, float | None]:
    return {
        "calibration_error": fitted.calibration_error,
        "log_loss": fitted.log_loss,
        "temperature": fitted.temperature,
        "logged_propensity_difference": fitted.logged_propensity_difference,
        "seconds": fitted.seconds,
    }


if __name__ == "__main__":
    sys.exit(run_job(main, BehaviorModelSettings, "Fit the behavior model of a transition set."))
