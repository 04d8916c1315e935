"""Membership attack: can whoever sees a policy tell who was in the log it was learned from?

Here: a simulated log with canaries, the attack, its AUC. Not here: audits of noise and bounds (`audit`), the learner
(`rl.trainers.aggregate_q`), which is the production one and so is the noise.

The attacker knows everything but who took part: the log without canaries, the settings, the policy that this log alone
would have given, and the canaries' rows. They see the published policy's probabilities in each bucket and turn, and
compare. A canary enters as many cells as the bounds allow and converts in each: nobody can leave a larger trace.

From the noise alone the AUC is at most Φ(√ρ), 0.611 at ρ 0.08: the best test between N(0, 1) and N(√(2ρ), 1).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from registry.privacy.audit import auc
from registry.privacy.mechanisms import gaussian_sums
from registry.privacy.plan import measures_of
from registry.privacy.settings import PrivacySettings
from rl.datasets.aggregates import OUTCOMES, Aggregates
from rl.encoders.dialogue import StateLayout
from rl.errors import TrainingError
from rl.policies.bucketed import BucketedPolicy, ObservationParts
from rl.settings import AggregateTrainerSettings
from rl.trainers.aggregate_q import fit_aggregate_policy

Release = Literal["individual", "suppressed", "aggregate"]
"""What the policy is learned from: exact counts; those without cells of fewer than 10 customers; noisy tables."""

SMALLEST_GROUP = 10
"""k of the release that only suppresses."""

N_SEGMENTS = 15
N_STRATEGIES = 13
CONVERSION_RATE = 0.2
_EDGES = ("1", "2-3", "4-7", "8+")
_TURN_LIMIT = 12

Counts = NDArray[np.int64]


def membership_auc(
    rows_per_cell: int,
    release: Release,
    *,
    settings: PrivacySettings | None = None,
    n_canaries: int = 100,
    n_repeats: int = 8,
    seed: int = 0,
) -> float:
    """Probability that the attack ranks a canary who took part above one who did not; 0.5 is a guess.

    Parameters
    ----------
    rows_per_cell : int
        Mean number of customers in a cell of bucket and strategy, without canaries.
    release : {"individual", "suppressed", "aggregate"}
        What the policy is learned from. `aggregate` draws with the ρ and bounds of `settings`.
    n_canaries, n_repeats : int
        Canaries of one log, half of whom take part; logs, each with draws of its own. The standard error is about
        0.6 / √(canaries · repeats).
    """
    settings = settings or PrivacySettings()
    world = _World(rows_per_cell, settings, np.random.default_rng(seed))
    scores = [world.attacked(release, n_canaries) for _ in range(n_repeats)]
    return float(np.mean([auc(found, took_part) for found, took_part in scores]))


class _World:
    """One log without canaries, its policy, and logs with some."""

    def __init__(self, rows_per_cell: int, settings: PrivacySettings, rng: np.random.Generator) -> None:
        self.settings, self.rng = settings, rng
        self.buckets = tuple(f"{band}|any|s{k}|any" for band in _EDGES for k in range(N_SEGMENTS))
        shape = (len(self.buckets), N_STRATEGIES)
        self.customers: Counts = rng.poisson(rows_per_cell, shape).astype(np.int64)
        self.conversions: Counts = rng.binomial(self.customers, CONVERSION_RATE).astype(np.int64)
        self.reference = _logits(self._policy(self._tables(self.customers, self.conversions, "individual")))

    def attacked(self, release: Release, n_canaries: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Score of each canary, and whether they took part."""
        n_cells, limit = self.customers.size, self.settings.max_cells
        cells = np.array([self.rng.choice(n_cells, limit, replace=False) for _ in range(n_canaries)])
        took_part = self.rng.permutation(n_canaries) < n_canaries // 2
        planted = np.bincount(cells[took_part].ravel(), minlength=n_cells).reshape(self.customers.shape)
        published = self._tables(self.customers + planted, self.conversions + planted, release)
        try:
            trace = _logits(self._policy(published)) - self.reference
        except TrainingError:  # too noisy to learn from: no policy is published, and there is nothing to see
            trace = np.zeros_like(self.reference)
        return trace.ravel()[cells].sum(axis=1), took_part

    def _policy(self, tables: Aggregates) -> BucketedPolicy:
        names = tuple(f"a{k}" for k in range(N_STRATEGIES))
        layout = StateLayout(1, N_SEGMENTS, N_STRATEGIES, _TURN_LIMIT, 1)
        segments = tuple(f"s{k}" for k in range(N_SEGMENTS))
        parts = ObservationParts(layout.columns, segments, names, _TURN_LIMIT, layout.observation_size)
        return fit_aggregate_policy(tables, parts, AggregateTrainerSettings(), "attacked").policy

    def _tables(self, customers: Counts, conversions: Counts, release: Release) -> Aggregates:
        """The release's figures; an exact one has a noise of next to nothing."""
        if release == "suppressed":
            small = customers < SMALLEST_GROUP
            customers, conversions = np.where(small, 0, customers), np.where(small, 0, conversions)
        shape = (len(self.buckets), N_STRATEGIES)
        bucket, strategy = (index.ravel() for index in np.indices(shape))
        exact = Aggregates(
            release_id="membership",
            window=("", ""),
            unit_of_privacy="customer",
            rho=self.settings.table_rho,
            delta=self.settings.delta,
            minimum_customers=SMALLEST_GROUP if release == "suppressed" else 1,
            buckets=self.buckets,
            strategies=tuple(f"a{k}" for k in range(N_STRATEGIES)),
            n_customers=customers.astype(np.float64),
            n_conversions=conversions.astype(np.float64),
            reward_bounds=(self.settings.reward_low, self.settings.reward_high),
            rewards=conversions * (self.settings.reward_low + self.settings.reward_high) / 2,
            sigma_customers=1e-3,
            sigma_conversions=1e-3,
            sigma_rewards=1e-3,
            transitions=(
                np.tile(bucket, len(OUTCOMES)),
                np.tile(strategy, len(OUTCOMES)),
                np.repeat(len(self.buckets) + np.arange(len(OUTCOMES)), bucket.size),
            ),
            n_steps=np.concatenate([conversions.ravel(), (customers - conversions).ravel()]).astype(np.float64),
            sigma_steps=1e-3,
        )
        return self._noisy(exact) if release == "aggregate" else exact

    def _noisy(self, exact: Aggregates) -> Aggregates:
        """The same through the production mechanism, with the split and the bounds of the settings."""
        measures = {measure.name: measure for measure in measures_of(self.settings)}

        def drawn(values: NDArray[np.float64], name: str, unit: float = 1.0) -> tuple[NDArray[np.float64], float]:
            whole = np.rint(values.ravel() * unit).astype(np.int64)
            noisy = gaussian_sums(whole, l2=measures[name].l2, rho=measures[name].rho)
            return noisy.values.reshape(values.shape) / unit, noisy.sigma / unit

        customers, sigma_customers = drawn(exact.n_customers, "customers")
        conversions, sigma_conversions = drawn(exact.n_conversions, "conversions")
        rewards, sigma_rewards = drawn(exact.rewards, "rewards", 1000.0)
        steps, sigma_steps = drawn(exact.n_steps, "transitions")
        return replace(
            exact,
            minimum_customers=self.settings.minimum_customers,
            n_customers=customers,
            n_conversions=conversions,
            rewards=rewards,
            n_steps=steps,
            sigma_customers=sigma_customers,
            sigma_conversions=sigma_conversions,
            sigma_rewards=sigma_rewards,
            sigma_steps=sigma_steps,
        )


def _logits(policy: BucketedPolicy) -> NDArray[np.float64]:
    """(B, A) log-probabilities that the policy shows on the last turn of the limit, all actions legal."""
    behavior = policy.behavior.astype(np.float64)
    logits = np.log(behavior) + policy.q_values[-1] / policy.temperature
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
