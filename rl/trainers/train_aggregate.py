"""Job: learn one policy from the released aggregates of one window.

    python -m rl.trainers.train_aggregate --input <released>/releases/<window start> --output <released>/models/<name>
        --settings s.json

Reads the released tables and nothing else. Writes policy.json, policy.safetensors and training.json. Not here: the
algorithm (`rl.trainers.aggregate_q`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from rl.catalogue import ActionCatalogue
from rl.datasets.aggregates import ANY, OTHER, Aggregates, read_aggregates
from rl.encoders.dialogue import StateLayout
from rl.evaluation.diagnostics import SUPPORT_PROBABILITY
from rl.files import replaced_folder, write_json
from rl.policies.bucketed import BucketedPolicy, ObservationParts
from rl.policies.networks import mean_divergence
from rl.policies.regularized import tilted_probabilities
from rl.progress import report_progress, report_result, run_job
from rl.settings import AggregateTrainerSettings
from rl.trainers.aggregate_q import FittedAggregates, fit_aggregate_policy

TRAINING_FILE = "training.json"
ALGORITHM = "aggregate_q"
_OWN_STEPS = 0.5
"""Released steps of a turn below which it is left out of what the policy's page shows."""


class AggregateJobSettings(AggregateTrainerSettings):
    """The trainer's settings, and what is public about the observations that the policy will read."""

    catalogue: tuple[dict[str, Any], ...] = Field(min_length=1)
    """Rows of the action catalogue in id order."""
    turn_limit: int = Field(12, ge=1)
    n_last_strategies: int = Field(2, ge=1)


def main(release: Path, output: Path, settings: AggregateJobSettings) -> None:
    """Learn from one release and replace `output` as a whole."""
    aggregates = read_aggregates(release)
    report_progress("aggregate policy", 0, 1)
    parts = observation_parts(aggregates, settings)
    fitted = fit_aggregate_policy(aggregates, parts, settings, output.name)
    found = _found(fitted)
    with replaced_folder(output) as folder:
        fitted.policy.save(folder)
        write_json(
            folder / TRAINING_FILE,
            {
                "algorithm": ALGORITHM,
                "settings": settings.model_dump(mode="json", exclude={"catalogue"}),
                "privacy_mode": "aggregate",
                "release_id": aggregates.release_id,
                "window": list(aggregates.window),
                "unit_of_privacy": aggregates.unit_of_privacy,
                "rho": aggregates.rho,
                "delta": aggregates.delta,
                "segments": list(parts.segments),
                "strategy_use": _strategy_use(fitted),
                **found,
            },
        )
    report_progress("aggregate policy", 1, 1)
    report_result(name=output.name, algorithm=ALGORITHM, release_id=aggregates.release_id, **found)


def observation_parts(aggregates: Aggregates, settings: AggregateJobSettings) -> ObservationParts:
    """The layout that the policy is stored with: public lists only, and no utterance vectors, which it does not read.

    `BucketedPolicy.reading` gives the same policy for the observations of an encoder or a data set.
    """
    catalogue = ActionCatalogue.from_json(settings.catalogue)
    segments = tuple(dict.fromkeys(part.segment for part in aggregates.parts if part.segment not in (ANY, OTHER)))
    layout = StateLayout(0, len(segments), len(catalogue), settings.turn_limit, settings.n_last_strategies)
    return ObservationParts(layout.columns, segments, catalogue.names, settings.turn_limit, layout.observation_size)


def _found(fitted: FittedAggregates) -> dict[str, float]:
    behavior, policy, weights = _decisions(fitted)
    with np.errstate(divide="ignore"):
        divergences = [mean_divergence(np.log(p)[None], np.log(b)[None]) for p, b in zip(policy, behavior, strict=True)]
    covered = (policy * (behavior >= SUPPORT_PROBABILITY)).sum(axis=1)
    return {
        "temperature": fitted.policy.temperature,
        "divergence": float(np.dot(weights, divergences)),
        "overlap_share": float(np.dot(weights, covered)),
        "value_per_conversion": fitted.value_per_conversion,
        "conversion_rate": fitted.conversion_rate,
        "logged_value": _first_value(fitted),
        "n_customers": fitted.n_customers,
        "n_buckets": len(fitted.policy.buckets),
    }


def _first_value(fitted: FittedAggregates) -> float:
    """Mean value of a dialogue's first decision under the released behavior, in reward units."""
    first = fitted.steps[0] / fitted.steps[0].sum()
    policy = fitted.policy
    return float(np.dot(first, (policy.behavior * policy.q_values[-1]).sum(axis=1)))


def _decisions(fitted: FittedAggregates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Behavior and policy (R, A) of every (turn, bucket) with steps, all actions legal, and their shares (R,)."""
    policy: BucketedPolicy = fitted.policy
    turns, at = np.nonzero(fitted.steps > _OWN_STEPS)
    behavior = policy.behavior[at].astype(np.float64)
    behavior /= behavior.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        logs = np.log(behavior)
    legal = behavior > 0
    chosen = tilted_probabilities(logs, policy.q_values[turns, at].astype(np.float64), policy.temperature, legal)
    weights = fitted.steps[turns, at]
    return behavior, chosen, weights / weights.sum()


def _strategy_use(fitted: FittedAggregates) -> list[dict[str, Any]]:
    """How often each strategy is used in each turn band, by the released behavior and by the policy."""
    behavior, chosen, weights = _decisions(fitted)
    bands = [text.split("|")[0] for text in fitted.policy.buckets]
    at = np.nonzero(fitted.steps > _OWN_STEPS)[1]
    names = fitted.policy.parts.strategies
    use = []
    for band in dict.fromkeys(bands):
        rows = np.array([bands[place] == band for place in at])
        if not rows.any():
            continue
        share = weights[rows] / weights[rows].sum()
        rates = share @ behavior[rows], share @ chosen[rows]
        use += [
            {
                "stage": f"turns {band.replace('-', '–')}",
                "strategy": name,
                "behavior_rate": float(min(b, 1.0)),
                "candidate_rate": float(min(c, 1.0)),
            }
            for name, b, c in zip(names, *rates, strict=True)
            if b > 0 or c > 0
        ]
    return use


if __name__ == "__main__":
    sys.exit(run_job(main, AggregateJobSettings, "Learn one policy from released aggregates."))
