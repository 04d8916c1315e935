"""What an evaluation found, as typed JSON: written by `rl.evaluation.evaluate`, read by gate and card.

Here: shapes only. Not here: how the numbers are computed (the estimators) or judged (`registry.gates`).
"""

from __future__ import annotations

from rl.settings import Settings


class ValueEstimate(Settings):
    """A value per dialogue, in reward units, with its interval and the episodes that carry it."""

    value: float
    low: float
    high: float
    effective_sample_size: float
    """Kish's n of the episode weights; for estimates without weights, the number of episodes."""
    n_episodes: int


class StrategyUse(Settings):
    """How often a strategy is used at a stage of the dialogue, by the log and by the candidate, in [0, 1]."""

    stage: str
    strategy: str
    behavior_rate: float
    candidate_rate: float


class CandidateEvidence(Settings):
    """Everything known about one candidate from held-out dialogues."""

    name: str
    algorithm: str
    estimates: dict[str, ValueEstimate]
    """By estimator: wis, pdis, dr, fqe. Glossary: rl/README.md."""
    advantage: ValueEstimate
    """Candidate minus behavior on the same episodes, by the doubly robust estimator: what the gate reads."""
    effective_sample_size: float
    effective_share: float
    diagnostics: dict[str, float]
    """mean_weight, max_weight_share, overlap_share, out_of_mask_share, divergence, ...:
    `rl.evaluation.diagnostics`."""
    strategy_use: tuple[StrategyUse, ...]
    policy_note: str = ""
    """What a reader must know of the policy, e.g. that its mask is applied at decision time only."""
    refusal: str = ""
    """Why the candidate could not be evaluated; then there are no estimates, the advantage is the widest
    that the logged returns allow, and its effective sample size is 0."""


class EvidencePrivacy(Settings):
    """How the figures of an evaluation were protected, where they may be released."""

    unit_of_privacy: str
    rho: float
    """zCDP that the evaluation cost one customer."""
    epsilon: float
    """The same as ε, at `delta`."""
    delta: float
    advantage_noise: float
    """Standard deviation of the noise on the advantage, in reward units; every interval includes its own."""
    note: str
    """What a reader must know: where contributions are cut, and what that can hide."""


class Evidence(Settings):
    """One evaluation: behavior policy and candidates on one set of held-out dialogues."""

    dataset_hash: str
    reward_unit: str
    confidence: float
    window: tuple[str, str]
    """First and last day of the data, ISO dates."""
    n_steps: int
    n_episodes: int
    n_validation_episodes: int
    behavior: ValueEstimate
    """Mean return of all complete, mature dialogues of the set, as logged."""
    behavior_validation: ValueEstimate
    """The same on the held-out dialogues alone."""
    behavior_parts: dict[str, float]
    """Mean per dialogue of each reward part, unweighted: conversion is a share, conversion_value a mean."""
    propensities_estimated_share: float
    propensity_calibration_error: float | None
    candidates: tuple[CandidateEvidence, ...]
    privacy: EvidencePrivacy | None = None
    """Only where every figure carries noise: then counts are of customers and noisy as well, and means are per dialogue
    of an average customer."""
