r"""Job: what each held-out customer says of a policy from aggregates, clipped, in whole numbers, and summed.

    python -m rl.evaluation.private_contributions --input <dataset> --output <folder> --settings s.json

Here: from a customer's own rows to a vector of bounded integers, and its sum over customers. Not here: noise and budget
(`registry.privacy.evidence`), what the gate makes of it (`registry.gates`). **The output is exact: it stays in the
restricted zone, and the job reports none of it.**

Sensitivity. A customer's vector is a function of that customer's rows, the settings, and a policy that was learned from
released tables: the propensities are logged ones or the released behavior's, the values of the difference are those of
the released tables, and nothing is fitted, normalised or averaged over customers. Each coordinate is cut to
its bound and rounded to a whole number of at most U_k either way. So adding or removing one customer moves the sums by
at most

    L2 = sqrt(Σ_k U_k²).

Coordinates do not weigh the same: U_k² is the coordinate's share of L2², and the noise of coordinate k, in its own
unit, is bound_k / sqrt(2 ρ share_k).

Difference to the log. With V_b the released behavior's values and ρ̂_t the cumulative weight, cut at `weight_clip`,

    Σ_t (ρ̂_t − 1) · (r_t + V_b(s_{t+1}) − V_b(s_t)),

the doubly robust sum with Q = V = V_b, minus the return. What the cut takes away counts as what the log earned from
there on, so cutting pulls the difference towards zero. With the candidate's own values in place of V_b it would pull
towards what the candidate believes of itself: on 110,000 storefront dialogues that sum said +4.3 EUR at weights up to
10 where +1.6 was true, this one +0.9 (measured once by hand).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rl.datasets.transitions import PROPENSITY_ESTIMATED, TransitionSet
from rl.errors import DataError, PolicyError
from rl.evaluation.inputs import Array, EvaluationInput
from rl.files import replaced_folder, write_json
from rl.policies import load_policy
from rl.policies.bucketed import BucketedPolicy, ObservationParts
from rl.progress import report_progress, report_result, run_job
from rl.settings import PrivateEvaluationSettings, Settings
from rl.types import Bool1D, Float2D, Int1D

SUMS_FILE = "sums.json"

LEVELS = 1 << 20
"""Whole numbers up to which the largest coordinate counts; rounding is then below three millionths of a bound."""

SHARES: Mapping[str, float] = {
    "customers": 0.02,
    "logged": 0.15,
    "logged_squared": 0.02,
    "advantage": 0.50,
    "advantage_squared": 0.08,
    "weight": 0.06,
    "weight_squared": 0.05,
    "excess": 0.07,
    "excess_squared": 0.03,
    "estimated": 0.02,
}
"""Share of L2² by coordinate; the gate's own number gets most. Means over a customer's dialogues of: 1; logged return;
its square; candidate minus logged; its square; weight w of the dialogue; its square; w · (logged return − center); its
square; share of steps without a logged propensity."""


CLIP_GROWTH = 0.25 * math.sqrt(2 * 0.005 * SHARES["advantage"])
"""Clip of the difference over the range of returns, per √customers; see `with_clips`."""


class Bounds(Settings):
    """Where contributions are cut: configured or released numbers, never found in the log."""

    return_low: float
    return_high: float
    """Of a customer's mean return, in reward units."""
    center: float
    """A released guess of the mean return, from which weighted returns are measured."""

    @model_validator(mode="after")
    def _rising(self) -> Bounds:
        if not self.return_low < self.return_high:
            raise ValueError("return_low must be below return_high")
        return self


class PrivateJobSettings(PrivateEvaluationSettings):
    """Which policy is judged on whom."""

    policy: Path
    """Folder of the policy, as `rl.trainers.train_aggregate` wrote it."""
    window: tuple[str, str]
    """First day of the release's window and the day after its last; ISO dates. Only its dialogues count."""
    bounds: Bounds


class BoundedSums(Settings):
    """Exact sums over held-out customers of bounded whole numbers. Restricted."""

    names: tuple[str, ...]
    sums: tuple[int, ...]
    levels: tuple[int, ...] = Field(min_length=1)
    """Largest absolute contribution of a customer to each sum."""
    bounds: tuple[float, ...]
    """What `levels` stand for, in the unit of the coordinate."""

    @property
    def l2(self) -> float:
        """How far one customer can move the sums, rounded up."""
        return math.nextafter(math.sqrt(sum(level**2 for level in self.levels)), math.inf)


def with_clips(settings: PrivateEvaluationSettings, bounds: Bounds, n_customers: float) -> PrivateEvaluationSettings:
    """The settings with clips for a number of judging customers, where none are set.

    The noise on the mean difference falls with n and its sampling error with √n. The clip that makes them alike at
    ρ 0.005, where returns spread by a quarter of their range, grows with √n: little is cut off where many judge.
    `n_customers` must be known without the log: a released count.
    """
    spread = bounds.return_high - bounds.return_low
    advantage = settings.advantage_clip or spread * float(np.clip(CLIP_GROWTH * math.sqrt(n_customers), 0.5, 10.0))
    weight = settings.weight_clip or 1.0 + 4.0 * advantage / spread
    return settings.model_copy(update={"advantage_clip": round(advantage, 3), "weight_clip": round(weight, 3)})


def private_sums(
    dataset: TransitionSet,
    policy: BucketedPolicy,
    settings: PrivateEvaluationSettings,
    bounds: Bounds,
    window: tuple[str, str] | None = None,
) -> BoundedSums:
    """Sums of the clipped contributions of the held-out customers that the log names.

    Raises DataError if there are none, PolicyError if the policy does not fit the observations.
    """
    contributions = customer_contributions(_judges(dataset, window), policy, settings, bounds)
    limits = coordinate_bounds(settings, bounds)
    levels = {name: round(LEVELS * math.sqrt(share / max(SHARES.values()))) for name, share in SHARES.items()}
    sums = [_summed(contributions[name], limits[name], levels[name]) for name in SHARES]
    return BoundedSums(
        names=tuple(SHARES),
        sums=tuple(sums),
        levels=tuple(levels[name] for name in SHARES),
        bounds=tuple(limits[name] for name in SHARES),
    )


def coordinate_bounds(settings: PrivateEvaluationSettings, bounds: Bounds) -> dict[str, float]:
    """Largest absolute contribution of a customer by coordinate, in its own unit."""
    largest_return = max(abs(bounds.return_low), abs(bounds.return_high))
    clip, weight = settings.clips.advantage, settings.clips.weight
    return {
        "customers": 1.0,
        "logged": largest_return,
        "logged_squared": largest_return**2,
        "advantage": clip,
        "advantage_squared": clip**2,
        "weight": weight,
        "weight_squared": weight**2,
        "excess": clip,
        "excess_squared": clip**2,
        "estimated": 1.0,
    }


def customer_contributions(
    judges: TransitionSet, policy: BucketedPolicy, settings: PrivateEvaluationSettings, bounds: Bounds
) -> dict[str, Array]:
    """(C,) each coordinate of each customer, cut to its bound, in the unit of the coordinate.

    A customer's dialogues are averaged first and cut then, so that a customer counts once however much they talked.
    """
    policy = policy.reading(_parts_of(judges))
    log, is_estimated = _evaluation_input(judges, policy, settings)
    customers, index = np.unique(judges.customer_index, return_inverse=True)
    n_dialogues = np.bincount(index, minlength=len(customers)).astype(np.float64)

    def mean(per_dialogue: Array) -> Array:
        return np.asarray(np.bincount(index, per_dialogue, len(customers)) / n_dialogues)

    logged = np.clip(mean(log.returns), bounds.return_low, bounds.return_high)
    clips = settings.clips
    weights = np.minimum(log.cumulative_weights, clips.weight)
    advantage = np.clip(mean(((weights - 1) * _surprises(log)).sum(axis=1)), -clips.advantage, clips.advantage)
    weight = mean(weights[:, -1])
    excess = np.clip(mean(weights[:, -1] * (log.returns - bounds.center)), -clips.advantage, clips.advantage)
    steps = np.add.reduceat(is_estimated.astype(np.float64), log.episode_offsets[:-1]) / log.lengths
    return {
        "customers": np.ones(len(customers)),
        "logged": logged,
        "logged_squared": logged**2,
        "advantage": advantage,
        "advantage_squared": advantage**2,
        "weight": weight,
        "weight_squared": weight**2,
        "excess": excess,
        "excess_squared": excess**2,
        "estimated": mean(steps),
    }


def _surprises(log: EvaluationInput) -> Array:
    """(E, T) r + V_b' − V_b of each step, 0 after the last."""
    assert log.state_values is not None
    values = log.by_step(log.state_values)
    following = np.column_stack([values[:, 1:], np.zeros(log.n_episodes)])
    return np.asarray(np.where(log.is_step, log.by_step(log.rewards) + following - values, 0.0))


def _summed(values: Array, bound: float, level: int) -> int:
    """Σ of the values as whole numbers between -level and level."""
    whole: NDArray[np.int64] = np.rint(np.clip(values / bound, -1.0, 1.0) * level).astype(np.int64)
    return int(whole.sum())


def _judges(dataset: TransitionSet, window: tuple[str, str] | None) -> TransitionSet:
    """The held-out dialogues of the window, of customers that the log names."""
    chosen = dataset.validation & dataset.is_customer_known
    if window is not None:
        first, end = (np.datetime64(day, "us").astype(np.int64) for day in window)
        chosen = chosen & (dataset.started_at >= first) & (dataset.started_at < end)
    if not chosen.any():
        raise DataError(
            "No held-out dialogue of the release's window is in the data set, so nobody can judge the policy. Nothing "
            "was spent. A data set of later days does not hold them: dataset.window_days must reach back to the window."
        )
    return dataset.select(chosen)


def _parts_of(dataset: TransitionSet) -> ObservationParts:
    manifest = dataset.manifest
    return ObservationParts(
        manifest.feature_layout,
        manifest.segments,
        manifest.action_catalogue.names,
        manifest.turn_limit,
        dataset.observation_size,
    )


def _evaluation_input(
    judges: TransitionSet, policy: BucketedPolicy, settings: PrivateEvaluationSettings
) -> tuple[EvaluationInput, Bool1D]:
    """The judges' log with the probabilities of both policies and the values of the released tables."""
    observations = judges.batch_observations(slice(None))
    probabilities = policy.action_probabilities(observations, judges.action_mask)
    _require_inside_mask(probabilities, judges)
    behavior = policy.behavior_probabilities(observations.state, judges.logged_mask)
    is_estimated = np.isnan(judges.propensities) | (judges.propensity_source == PROPENSITY_ESTIMATED)
    stand_in = np.maximum(_taken(behavior, judges.actions), settings.propensity_floor)
    log = EvaluationInput(
        rewards=judges.rewards.astype(np.float64),
        propensities=np.where(is_estimated, stand_in, judges.propensities).astype(np.float64),
        evaluation_probabilities=np.clip(_taken(probabilities, judges.actions), 0.0, 1.0),
        episode_offsets=judges.episode_offsets,
    )
    values = policy.logged_values(observations.state)
    return log.with_values(values, values), is_estimated


def _require_inside_mask(probabilities: Float2D, judges: TransitionSet) -> None:
    """What the gate asks for without noise: the policy's head gives forbidden actions exactly nothing, on any row."""
    if (probabilities[~judges.action_mask] != 0).any():
        raise PolicyError("The policy gives probability to strategies that were not allowed. Train it again.")


def _taken(table: Float2D, actions: Int1D) -> Array:
    """(N, A), (N,) → (N,) the entry of each row's action."""
    return np.asarray(np.take_along_axis(table, np.asarray(actions)[:, None], axis=1)[:, 0], dtype=np.float64)


def run(dataset_folder: Path, output: Path, settings: PrivateJobSettings) -> None:
    """Write sums.json, readable by its owner only."""
    report_progress("private evidence", 0, 1)
    policy = load_policy(settings.policy)
    if not isinstance(policy, BucketedPolicy):
        raise PolicyError(
            f"The policy in {settings.policy} was not learned from released aggregates, so it cannot be judged by what "
            "may be released. Judge it with rl.evaluation.evaluate."
        )
    sums = private_sums(TransitionSet.open(dataset_folder), policy, settings, settings.bounds, settings.window)
    with replaced_folder(output) as folder:
        write_json(folder / SUMS_FILE, sums.model_dump(mode="json"), 0o600)
    report_progress("private evidence", 1, 1)
    report_result(n_coordinates=len(sums.names))


if __name__ == "__main__":
    sys.exit(run_job(run, PrivateJobSettings, "Sum clipped contributions of held-out customers."))
