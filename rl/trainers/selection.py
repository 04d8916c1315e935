"""Which checkpoint of which setting becomes the policy: the one with the largest lower bound of its value on dialogues
that were not learned from.

Here: the episodes that choose, the judgement of one policy on them, and who leads. Not here: the estimators
(`rl.evaluation`), how networks become a policy (`rl.trainers.decision`), when a look is taken (`rl.trainers.fit`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.datasets.transitions import TransitionSet
from rl.errors import DataError, PropensityError, SupportError
from rl.evaluation.doubly_robust import weighted_doubly_robust
from rl.evaluation.importance_sampling import effective_sample_size, weighted_per_decision
from rl.evaluation.inputs import Contributions, EvaluationInput
from rl.policies.networks import mean_divergence
from rl.policies.regularized import log_probabilities
from rl.policies.scores import spread
from rl.policies.storage import StoredPolicy
from rl.trainers.decision import Decided, Situations
from rl.trainers.settings import MaskedTrainerSettings
from rl.types import Bool1D, Float1D, Float2D, Float3D, Int1D

CONFIDENCE = 0.95
"""That the value lies above the lower bound, one-sided."""

WEIGHT_CLIP = 50.0
"""Largest cumulative importance weight, as in the evaluation."""

LEAST_EFFECTIVE_CUSTOMERS = 20.0
"""With fewer the lower bound means nothing: a greedy policy that two logged dialogues agree with has a narrow interval
around what these two happened to earn, and the dialogues of one customer say nothing of how customers differ."""

LEAST_ROWS, MOST_ROWS = 6_000, 30_000
"""Between which a look's share of the training sets how many steps it judges by: about 1,000 to 5,000 dialogues."""

SHARE_OF_DRAWS = 1 / 3
"""Steps that a look judges by, to steps drawn for updates since the look before. 28,700 steps (64 features, 50 actions)
took 0.39 s of one core with four members of two layers of 128, as long as 32 of their updates of 256 rows: at this
share a look costs about a tenth of the updates before it."""


def parted(dataset: TransitionSet, share: float) -> tuple[Bool1D, Bool1D]:
    """(E,) and (E,) episodes to learn from, and to choose by; with share 0 none chooses.

    Raises DataError if nothing would be left to learn from or, with a share, to choose by.
    """
    if share > 0:
        return dataset.selection_split(share)
    if dataset.validation.all():
        raise DataError(
            f"All {dataset.n_episodes} dialogues of the data set judge, and none is left to learn from. Lower "
            "`dataset.validation_share`, or widen `dataset.window_days`."
        )
    return ~dataset.validation, np.zeros(dataset.n_episodes, dtype=bool)


def rows_of_a_look(settings: MaskedTrainerSettings) -> int:
    """Steps that a look may judge by."""
    drawn = settings.n_steps * settings.batch_size / settings.n_looks
    return int(np.clip(drawn * SHARE_OF_DRAWS, LEAST_ROWS, MOST_ROWS))


def spread_episodes(dataset: TransitionSet, episodes: Bool1D, most_rows: int) -> TransitionSet:
    """Of the chosen (E,) episodes evenly spread ones with about `most_rows` steps, or all; a copy."""
    numbers = np.flatnonzero(episodes)
    n_rows = int(np.diff(dataset.episode_offsets)[numbers].sum())
    kept = max(1, int(len(numbers) * min(1.0, most_rows / n_rows)))
    return dataset.select(numbers[np.arange(kept) * len(numbers) // kept])


@dataclass(frozen=True)
class Look:
    """One setting's policy at one step, judged."""

    step: int
    value: float | None = None
    """Estimate in reward units; None where the log says nothing about the policy."""
    low: float | None = None
    """Lower end of its one-sided interval; the smallest logged return where too few customers carry it."""
    effective_sample_size: float | None = None
    """Kish's n, in customers, of the sums of the weights of each one's episodes."""
    is_judged: bool = False
    """Whether enough customers carry the estimate."""
    divergence: float | None = None
    """Mean KL to the behavior policy on the rows, in nats per decision; None where it does what that never does."""
    spread: float | None = None
    """How far the members disagree: deviation over members of the chosen action's value, mean over rows, in reward
    units. None where the policy has no values."""

    def beats(self, best: Look | None) -> bool:
        """Whether it takes the place of an earlier look at the same setting. Looks that too few customers carry say
        nothing, so of those the last stands."""
        if best is None or self.is_judged != best.is_judged:
            return best is None or self.is_judged
        return not self.is_judged or _known(self.low) > _known(best.low)


class Judge:
    """Judges policies on the episodes that choose.

    Value model: the policy's own Q-values, of the ensemble's mean, in the weighted doubly robust estimate; without
    values, weighted per-decision importance sampling. The Q-values are of the training discount and of a policy that
    goes on greedily; the estimate corrects a wrong value model, so it stays one of the undiscounted value.
    """

    def __init__(self, dataset: TransitionSet, episodes: Bool1D, behavior: StoredPolicy, most_rows: int) -> None:
        self.rows = spread_episodes(dataset, episodes, most_rows)
        self.situations = Situations(self.rows, behavior, np.arange(self.rows.n_steps))
        self._customers: Int1D = np.unique(self.rows.customer_index, return_inverse=True)[1]
        self._behavior_log_probabilities = log_probabilities(
            self.situations.behavior_probabilities(self.situations.mask)
        )
        missing = np.isnan(self.rows.propensities)
        self.estimated_share = float(missing.mean())
        """Of the propensities."""
        self._propensities: Float1D = self.rows.propensities.astype(np.float64)
        if missing.any():
            logged = self.situations.behavior_probabilities(self.rows.logged_mask)
            self._propensities = np.where(missing, self._at_action(logged), self._propensities)

    def note(self, best: Look) -> str:
        """For the policy card, given the look that was chosen."""
        if not best.is_judged:
            return (
                f"Nothing chose checkpoint and setting: in {self.rows.n_episodes} dialogues that were to choose, too "
                "few customers met what the policies do. The last step was kept, of the setting nearest to the log."
            )
        of_model = (
            f" For {self.estimated_share:.0%} of their decisions the propensity is the behavior model's own "
            "probability, which was fitted on them: their weights are somewhat too near to 1."
            if self.estimated_share
            else ""
        )
        return (
            f"Checkpoint and setting were chosen by the lower bound of the value on {self.rows.n_episodes} dialogues "
            f"of training customers that were not learned from.{of_model}"
        )

    def look(self, decided: Decided, values: Float3D | None, step: int) -> Look:
        """Judge what a policy does on the rows; `values` (M, B, A): its members' Q in reward units, if it has any."""
        log = self._log(decided.probabilities)
        if values is not None:
            log = self._with_values(log, decided.probabilities, values.mean(axis=0))
        contributions, effective = self._estimated(log)
        is_judged = contributions is not None and effective >= LEAST_EFFECTIVE_CUSTOMERS
        return Look(
            step,
            value=contributions.value if contributions else None,
            low=self._lower_bound(contributions) if contributions and is_judged else float(self.rows.returns.min()),
            effective_sample_size=effective,
            is_judged=is_judged,
            divergence=self._divergence(decided.probabilities),
            spread=None if values is None else self._disagreement(values, decided.probabilities),
        )

    def logged(self) -> dict[str, Any]:
        """What the episodes are and what they earned as they were."""
        contributions = Contributions.of_mean(self.rows.returns)
        n_customers = int(self._customers.max()) + 1
        return {
            "episodes": self.rows.n_episodes,
            "customers": n_customers,
            "estimated_propensities_share": self.estimated_share,
            "behavior_value": contributions.value,
            "behavior_low": self._lower_bound(contributions) if n_customers >= LEAST_EFFECTIVE_CUSTOMERS else None,
        }

    def _estimated(self, log: EvaluationInput) -> tuple[Contributions | None, float]:
        """The estimate, and how many customers carry it; None and 0 where no logged dialogue does what the policy does,
        or weights overflow."""
        try:
            contributions = weighted_per_decision(log) if log.q_values is None else weighted_doubly_robust(log)
            with np.errstate(over="ignore", invalid="ignore"):
                effective = effective_sample_size(self._by_customer(log.cumulative_weights[:, -1]))
                is_known = math.isfinite(contributions.value) and math.isfinite(effective)
        except (SupportError, PropensityError):
            is_known = False
        return (contributions, effective) if is_known else (None, 0.0)

    def _log(self, probabilities: Float2D) -> EvaluationInput:
        return EvaluationInput(
            rewards=self.rows.rewards.astype(np.float64),
            propensities=self._propensities,
            evaluation_probabilities=self._at_action(probabilities),
            episode_offsets=self.rows.episode_offsets,
            weight_clip=WEIGHT_CLIP,
        )

    def _with_values(self, log: EvaluationInput, probabilities: Float2D, q_values: Float2D) -> EvaluationInput:
        return log.with_values(self._at_action(q_values), np.einsum("ba,ba->b", q_values, probabilities))

    def _lower_bound(self, contributions: Contributions) -> float:
        """By the normal approximation to the sum over customers, whose dialogues are not independent."""
        of_customers = self._by_customer(contributions.per_episode - contributions.value)
        error = float(np.sqrt(np.square(of_customers).sum())) / self.rows.n_episodes
        return contributions.value - NormalDist().inv_cdf(CONFIDENCE) * error

    def _by_customer(self, of_episodes: Float1D) -> Float1D:
        return np.asarray(np.bincount(self._customers, weights=of_episodes), dtype=np.float64)

    def _at_action(self, table: NDArray[Any]) -> NDArray[Any]:
        return np.take_along_axis(table, np.asarray(self.rows.actions)[:, None], axis=1)[:, 0]

    def _divergence(self, probabilities: Float2D) -> float | None:
        found = mean_divergence(log_probabilities(probabilities), self._behavior_log_probabilities)
        return found if math.isfinite(found) else None

    @staticmethod
    def _disagreement(values: Float3D, probabilities: Float2D) -> float:
        """Deviation over the members of the chosen action's value, mean over rows, in reward units."""
        return float(np.einsum("ba,ba->b", spread(values), probabilities).mean())


@dataclass
class Contest:
    """The settings of a sweep against each other: the best and the newest look at each."""

    best: list[Look | None]
    last: list[Look | None]
    looks_without_gain: int = 0
    """Looks since the largest lower bound of all settings rose; 0 while none is judged."""
    _highest: float | None = None

    @classmethod
    def of(cls, n_settings: int) -> Contest:
        """Before the first look."""
        return cls([None] * n_settings, [None] * n_settings)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Contest:
        """The inverse of `document`."""
        best, last = ([look and Look(**look) for look in document[name]] for name in ("best", "last"))
        return cls(best, last, document["looks_without_gain"], document["highest"])

    def document(self) -> dict[str, Any]:
        """As JSON."""
        looks = {name: [look and asdict(look) for look in getattr(self, name)] for name in ("best", "last")}
        return {**looks, "looks_without_gain": self.looks_without_gain, "highest": self._highest}

    def enter(self, looks: Sequence[Look]) -> list[int]:
        """Note a look at each setting; the settings of which it is the best so far."""
        better = [number for number, look in enumerate(looks) if look.beats(self.best[number])]
        for number in better:
            self.best[number] = looks[number]
        self.last = list(looks)
        judged = [look.low for look in self.best if look and look.is_judged and look.low is not None]
        if judged and (self._highest is None or max(judged) > self._highest):
            self._highest, self.looks_without_gain = max(judged), 0
        elif judged:
            self.looks_without_gain += 1
        return better

    def ranking(self) -> list[int]:
        """Settings, best first: by the lower bound; those that too few customers carry come last, nearest to the log
        first."""

        def place(setting: int) -> tuple[bool, float]:
            best = self.best[setting]
            if best is not None and best.is_judged:
                return False, -_known(best.low)
            return True, math.inf if best is None or best.divergence is None else best.divergence

        return sorted(range(len(self.best)), key=place)


def _known(number: float | None) -> float:
    """The number, of a look that has it."""
    assert number is not None
    return number
