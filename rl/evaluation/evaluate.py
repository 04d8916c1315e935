"""The evaluation job: a data set and policies in, evidence out.

Here: which rows are used for what, the estimators that are reported, the job. Not here: the estimators and
intervals themselves, the verdict (`registry.gates`), the page (`card`).

Policies are judged on held-out dialogues; value models are fitted on the others. A candidate that cannot be
judged is recorded as refused and does not stop the others.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file, save_file

from rl.datasets.transitions import PROPENSITY_ESTIMATED, TransitionSet
from rl.errors import DataError, PolicyError, SettingsError, TalktrackError
from rl.evaluation.diagnostics import Decisions, diagnose
from rl.evaluation.doubly_robust import direct_method, weighted_doubly_robust
from rl.evaluation.evidence import CandidateEvidence, Evidence, StrategyUse, ValueEstimate
from rl.evaluation.fqe import OnMetric, QFunction, TrainingRows, fit_q_function
from rl.evaluation.importance_sampling import weighted_importance_sampling, weighted_per_decision
from rl.evaluation.inputs import Array, Contributions, EvaluationInput
from rl.evaluation.intervals import estimate
from rl.files import replaced_folder, write_json
from rl.policies import load_policy
from rl.progress import report_message, report_metric, report_progress, report_result, run_job
from rl.settings import EvaluationSettings, Settings
from rl.types import Bool1D, Float2D, Int1D, Policy

EVIDENCE_FILE = "evidence.json"
CONTRIBUTIONS_FILE = "contributions.safetensors"

STAGES = {"turns 1–2": (0, 2), "turns 3–5": (2, 5), "turns 6+": (5, 10**9)}
"""Stages of a dialogue by agent turn: [first, last) step index."""

MIN_STAGE_STEPS = 20
"""A stage with fewer held-out steps is left out: its rates would be about single customers."""

_ROWS_AT_ONCE = 4_096
"""Rows that a policy is asked about at a time: 50 MB of earlier observations of 870 features, where it reads those."""


class CandidateDescription(Settings):
    """What is said of a candidate beside its numbers."""

    algorithm: str = ""
    """Name of the trainer; empty: the policy's kind."""
    policy_note: str = ""


class EvaluationJobSettings(Settings):
    """Which policies are judged, against which behavior model, and how."""

    policies: dict[str, Path] = Field(min_length=1)
    """Folder of each candidate by name."""
    behavior: Path
    """Folder of the behavior model, with `out_of_fold.safetensors` and `training.json`."""
    evaluation: EvaluationSettings = EvaluationSettings()


class EvaluationResult(Settings):
    """Evidence, and what each held-out episode contributed to it."""

    evidence: Evidence
    contributions: dict[str, Any]
    """`episodes`, `behavior` and `<candidate>.<estimator>`, each (E held out,); the mean is the estimate."""


def evaluate_policies(
    dataset: TransitionSet,
    policies: Mapping[str, Policy],
    out_of_fold: Float2D,
    settings: EvaluationSettings,
    calibration_error: float | None = None,
    descriptions: Mapping[str, CandidateDescription] | None = None,
) -> EvaluationResult:
    """Judge policies on the held-out episodes of a data set.

    Parameters
    ----------
    out_of_fold : (N, A)
        Behavior probabilities of all steps from models that have not seen the step's customer. Used as
        propensity where the log has none, and for overlap and divergence.
    calibration_error : float, optional
        Expected calibration error of that model.

    Raises
    ------
    DataError
        If there are no held-out or no training episodes, fewer than two held-out customers, or shapes that
        do not fit. What is wrong with one candidate alone is recorded in its evidence.
    """
    propensities, is_estimated = _propensities(dataset, out_of_fold)
    judge = _Judge(dataset, propensities, out_of_fold, settings)
    behavior = estimate(Contributions.of_mean(dataset.returns), dataset.customer_index, **judge.interval_settings)
    candidates, contributions = [], judge.behavior_contributions()
    for number, (name, policy) in enumerate(policies.items()):
        report_progress("evaluate", number, len(policies))
        description = (descriptions or {}).get(name, CandidateDescription())
        candidate, added = judge.candidate(name, policy, description)
        candidates.append(candidate)
        contributions |= {f"{name}.{key}": value for key, value in added.items()}
    report_progress("evaluate", len(policies), len(policies))
    evidence = Evidence(
        dataset_hash=dataset.manifest.dataset_hash,
        reward_unit=dataset.manifest.reward.unit,
        confidence=settings.confidence,
        window=dataset.manifest.window,
        n_steps=dataset.n_steps,
        n_episodes=dataset.n_episodes,
        n_validation_episodes=judge.held_out.n_episodes,
        behavior=behavior,
        behavior_validation=judge.behavior,
        behavior_parts=mean_reward_parts(dataset),
        propensities_estimated_share=float(is_estimated.mean()),
        propensity_calibration_error=calibration_error,
        candidates=tuple(candidates),
    )
    return EvaluationResult(evidence=evidence, contributions=contributions)


def mean_reward_parts(dataset: TransitionSet) -> dict[str, float]:
    """Mean per dialogue of each reward part, clipped and not weighted, in the unit of the part."""
    totals = dataset.reward_parts.sum(axis=0, dtype=np.float64) / dataset.n_episodes
    return {part.name: float(total) for part, total in zip(dataset.manifest.reward.parts, totals, strict=True)}


def probabilities_of(policy: Policy, dataset: TransitionSet) -> Array:
    """(N, A) the policy's probabilities on all steps under today's mask.

    Raises PolicyError if they are no distribution.
    """
    parts = []
    for start in range(0, dataset.n_steps, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        observations = dataset.batch_observations(rows, policy.reads_history, policy.reads_past)
        parts.append(policy.action_probabilities(observations, dataset.action_mask[rows]))
    probabilities = np.concatenate(parts).astype(np.float64)
    is_wrong = ~(np.abs(probabilities.sum(1) - 1) < 1e-4) | (probabilities < 0).any(1)
    if is_wrong.any():
        raise PolicyError(
            f"The probabilities of {int(is_wrong.sum())} of {len(is_wrong)} decisions are negative, missing "
            f"or do not sum to 1; the first is row {int(np.argmax(is_wrong))}. Train the policy again."
        )
    return probabilities


def strategy_use(dataset: TransitionSet, probabilities: Float2D) -> tuple[StrategyUse, ...]:
    """How often each strategy is used at each stage, by the log and by the policy, on the logged
    observations."""
    names = dataset.manifest.action_catalogue.names
    use = []
    for stage, (first, last) in STAGES.items():
        rows = (dataset.step_index >= first) & (dataset.step_index < last)
        if int(rows.sum()) < MIN_STAGE_STEPS:
            continue
        logged = np.bincount(dataset.actions[rows], minlength=dataset.n_actions) / rows.sum()
        chosen = probabilities[rows].mean(0)
        use += [
            StrategyUse(stage=stage, strategy=name, behavior_rate=float(b), candidate_rate=float(min(c, 1.0)))
            for name, b, c in zip(names, logged, chosen, strict=True)
            if b > 0 or c > 0
        ]
    return tuple(use)


class _Judge:
    """The parts of an evaluation that all candidates share."""

    def __init__(
        self, dataset: TransitionSet, propensities: Array, out_of_fold: Float2D, settings: EvaluationSettings
    ) -> None:
        self.dataset, self.propensities, self.settings = dataset, propensities, settings
        if dataset.validation.all() or not dataset.validation.any():
            raise DataError(
                f"{int(dataset.validation.sum())} of {dataset.n_episodes} dialogues are held out; policies "
                "need some to learn from and some to be judged on. Use a larger window, or another "
                "validation_share."
            )
        self.held_out, self.training = dataset.held_out(), dataset.training()
        self.is_held_out_step: Bool1D = dataset.validation[dataset.episode_index]
        self.held_out_behavior = out_of_fold[self.is_held_out_step]
        self.interval_settings: dict[str, Any] = {
            "confidence": settings.confidence,
            "n_bootstrap": settings.n_bootstrap,
            "seed": settings.seed,
        }
        self.returns = Contributions.of_mean(self.held_out.returns)
        self.behavior = self._estimate(self.returns)

    def behavior_contributions(self) -> dict[str, NDArray[Any]]:
        return {"episodes": np.flatnonzero(self.dataset.validation), "behavior": self.held_out.returns}

    def candidate(
        self, name: str, policy: Policy, description: CandidateDescription
    ) -> tuple[CandidateEvidence, dict[str, Array]]:
        """Evidence of one candidate, and its contributions by estimator; both say so if it cannot be
        judged."""
        algorithm = description.algorithm or str(getattr(policy, "kind", type(policy).__name__))
        use: tuple[StrategyUse, ...] = ()
        try:
            probabilities = probabilities_of(policy, self.dataset)
            use = strategy_use(self.held_out, probabilities[self.is_held_out_step])
            figures, contributions = self._figures(name, probabilities)
        except TalktrackError as error:
            report_message(f"{name} cannot be evaluated: {error}")
            figures, contributions = self._no_figures(str(error)), {}
        evidence = CandidateEvidence(
            name=name, algorithm=algorithm, strategy_use=use, policy_note=description.policy_note, **figures
        )
        return evidence, contributions

    def _figures(self, name: str, probabilities: Array) -> tuple[dict[str, Any], dict[str, Array]]:
        log = self._log(probabilities)
        weights = log.cumulative_weights[:, -1]
        found = {"wis": weighted_importance_sampling(log), "pdis": weighted_per_decision(log)}
        estimates = {key: self._estimate(each, weights) for key, each in found.items()}
        # The value model takes most of the time, so it comes after what may refuse the candidate.
        log = self._with_values(log, probabilities, _metric_of(name))
        found |= {"dr": weighted_doubly_robust(log), "fqe": direct_method(log)}
        estimates["dr"] = self._estimate(found["dr"], weights)
        estimates["fqe"] = self._estimate(found["fqe"])
        decisions = Decisions(
            self.held_out.actions,
            self.held_out.action_mask,
            self.held_out_behavior,
            probabilities[self.is_held_out_step],
        )
        diagnostics = diagnose(log, decisions, estimates)
        figures = {
            "estimates": estimates,
            "advantage": self._estimate(found["dr"].minus(self.returns), weights),
            "effective_sample_size": estimates["dr"].effective_sample_size,
            "effective_share": diagnostics["effective_share"],
            "diagnostics": diagnostics,
        }
        return figures, {key: each.per_episode for key, each in found.items()} | {"weight": weights}

    def _no_figures(self, refusal: str) -> dict[str, Any]:
        """The widest advantage that the logged returns allow, carried by no episode."""
        span = float(np.ptp(self.held_out.returns))
        advantage = ValueEstimate(
            value=0.0, low=-span, high=span, effective_sample_size=0.0, n_episodes=self.held_out.n_episodes
        )
        return {
            "estimates": {},
            "advantage": advantage,
            "effective_sample_size": 0.0,
            "effective_share": 0.0,
            "diagnostics": {},
            "refusal": refusal,
        }

    def _log(self, probabilities: Array) -> EvaluationInput:
        rows, held_out = self.is_held_out_step, self.held_out
        chosen = _taken(probabilities[rows], held_out.actions)
        allowed = _taken(held_out.action_mask, held_out.actions)
        return EvaluationInput(
            rewards=held_out.rewards.astype(np.float64),
            propensities=self.propensities[rows],
            evaluation_probabilities=np.clip(np.where(allowed, chosen, 0.0), 0.0, 1.0),
            episode_offsets=held_out.episode_offsets,
            weight_clip=self.settings.weight_clip,
        )

    def _with_values(self, log: EvaluationInput, probabilities: Array, on_metric: OnMetric) -> EvaluationInput:
        rows = ~self.is_held_out_step
        training = TrainingRows(
            self.training.observations,
            self.training.actions,
            self.training.rewards,
            self.propensities[rows],
            probabilities[rows],
            self.training.episode_offsets,
        )
        function: QFunction = fit_q_function(training, self.settings, on_metric)
        q_values = function.values(self.held_out.observations)
        state_values = (q_values * probabilities[self.is_held_out_step]).sum(1)
        return log.with_values(_taken(q_values, self.held_out.actions), state_values)

    def _estimate(self, contributions: Contributions, weights: Array | None = None) -> ValueEstimate:
        return estimate(contributions, self.held_out.customer_index, weights=weights, **self.interval_settings)


def _propensities(dataset: TransitionSet, out_of_fold: Float2D) -> tuple[Array, Bool1D]:
    """(N,) logged propensities, or out-of-fold ones where the log has none, and which are estimated."""
    expected = (dataset.n_steps, dataset.n_actions)
    if out_of_fold.shape != expected:
        raise DataError(
            f"The out-of-fold probabilities have shape {out_of_fold.shape}, the data set {expected}. Fit "
            "the behavior model on this data set."
        )
    is_missing = np.isnan(dataset.propensities)
    is_estimated = is_missing | (dataset.propensity_source == PROPENSITY_ESTIMATED)
    propensities = np.where(is_missing, _taken(out_of_fold, dataset.actions), dataset.propensities)
    return propensities.astype(np.float64), is_estimated


def _taken(table: NDArray[Any], actions: Int1D) -> NDArray[Any]:
    """(N, A), (N,) → (N,) the entry of each row's action."""
    return np.take_along_axis(table, np.asarray(actions)[:, None], axis=1)[:, 0]


def _metric_of(candidate: str) -> OnMetric:
    return lambda name, value, step: report_metric(f"{candidate}/{name}", value, step)


def write_result(folder: Path, result: EvaluationResult) -> None:
    """Write evidence.json and contributions.safetensors, replacing `folder` as a whole."""
    arrays = {name: np.ascontiguousarray(array) for name, array in result.contributions.items()}
    with replaced_folder(folder) as temporary:
        write_json(temporary / EVIDENCE_FILE, result.evidence.model_dump(mode="json"))
        save_file(arrays, temporary / CONTRIBUTIONS_FILE)


def run(dataset_folder: Path, output: Path, settings: EvaluationJobSettings) -> None:
    """Read the data set, the behavior model's out-of-fold probabilities and the policies; write the
    evidence."""
    out_of_fold, calibration_error = _read_behavior(settings.behavior)
    result = evaluate_policies(
        TransitionSet.open(dataset_folder),
        {name: load_policy(folder) for name, folder in settings.policies.items()},
        out_of_fold,
        settings.evaluation,
        calibration_error,
        {name: _read_description(folder) for name, folder in settings.policies.items()},
    )
    write_result(output, result)
    evidence = result.evidence
    report_result(
        n_episodes=evidence.n_episodes,
        n_validation_episodes=evidence.n_validation_episodes,
        behavior_value=evidence.behavior.value,
        advantages={each.name: each.advantage.model_dump() for each in evidence.candidates},
        refused=[each.name for each in evidence.candidates if each.refusal],
    )


def _read_behavior(folder: Path) -> tuple[Array, float | None]:
    try:
        arrays = load_file(folder / "out_of_fold.safetensors")
    except FileNotFoundError:
        raise SettingsError(
            f"{folder} has no out_of_fold.safetensors. Run rl.policies.fit_behavior, or correct `behavior`."
        ) from None
    training = _read_training(folder)
    error = training.get("calibration_error")
    return next(iter(arrays.values())).astype(np.float64), None if error is None else float(error)


def _read_description(folder: Path) -> CandidateDescription:
    training = _read_training(folder)
    algorithm = training.get("algorithm") or (training.get("settings") or {}).get("algorithm") or ""
    return CandidateDescription(algorithm=str(algorithm), policy_note=" ".join(training.get("notes", ())))


def _read_training(folder: Path) -> dict[str, Any]:
    path = folder / "training.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


if __name__ == "__main__":
    sys.exit(run_job(run, EvaluationJobSettings, "Judge policies on held-out dialogues."))
