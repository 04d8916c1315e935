"""Settings of encoders, data sets, policies, trainers and evaluation: one frozen, validated class per job.

Every field says its unit, its range and what happens when it is raised. Files (`talktrack.yaml`, the Dagster
Launchpad) are read in `orchestration.settings`; here are only the shapes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of all settings: frozen, unknown fields refused, docstrings become descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class EncoderSettings(Settings):
    """How an utterance becomes a vector."""

    kind: Literal["static", "minilm"] = "static"
    """`static`: distilled from MiniLM by model2vec, about 190 times faster on a CPU. `minilm`: the transformer."""

    dimensions: int = Field(64, ge=8, le=384)
    """Length d of an utterance vector. Raised: more detail, larger data sets. `static` keeps at most 256."""

    source: str = ""
    """The sentence transformer: empty for the packaged, pinned MiniLM; else a folder, or a model id on the hub."""

    batch_size: int = Field(1024, ge=1)
    """Utterances encoded at a time. Raised: faster until memory is short; does not change the vectors."""


class RewardPart(Settings):
    """One term of the reward. Its weight may be 0: then it is reported and not rewarded."""

    name: Literal["conversion_value", "conversion", "rating", "engagement", "cost"]
    """`conversion_value`: value of conversions, last step. `conversion`: 1 if there was one, last step. `rating`:
    value of the last rating, last step. `engagement`: 1 per step that the customer answered. `cost`: -1 per step."""

    weight: float = 1.0
    """Factor in the reward, in reward units per unit of the part."""

    clip_low: float = 0.0
    """Values below are set to this before weighting (conversion_value and rating only)."""

    clip_high: float = 1e9
    """Values above are set to this before weighting (conversion_value and rating only)."""


class RewardDefinition(Settings):
    """The reward of a step: the weighted sum of its parts."""

    unit: str = "EUR"
    """Unit of the reward, shown beside every value."""

    parts: tuple[RewardPart, ...] = (RewardPart(name="conversion_value"), RewardPart(name="conversion", weight=0.0))


class DatasetSettings(Settings):
    """Which rows of the marts become a transition set, and how an observation is built."""

    window_days: int = Field(28, ge=1)
    """Days of mature dialogues in the set, counted back from the newest mature day. Raised: more, older data."""

    turn_limit: int = Field(12, ge=1)
    """Agent turns after which a dialogue is ended; scales the features 'turn' and 'turns remaining'."""

    n_last_strategies: int = Field(2, ge=0, le=8)
    """How many of the agent's last strategies are part of the observation, one-hot each."""

    validation_share: float = Field(0.4, gt=0, lt=1)
    """Share of customers whose dialogues judge policies and never train them."""

    training_discount: float = Field(0.97, gt=0, le=1)
    """γ of the trainers. Evaluation always uses γ = 1."""

    reward: RewardDefinition = RewardDefinition()


class BehaviorModelSettings(Settings):
    """The multinomial model of who did what in the log; cross-fitted and calibrated."""

    n_folds: int = Field(5, ge=2)
    """Folds by customer. Raised: less bias in the estimated propensities, longer fits."""

    l2: float = Field(50.0, ge=0)
    """Weight of the squared coefficients of standardised features, counted in rows. Raised: flatter probabilities."""

    floor: float = Field(1e-3, gt=0, lt=0.1)
    """Smallest estimated probability of a legal action. Raised: smaller importance weights, more bias."""

    max_rows: int = Field(200_000, ge=1)
    """Rows of one fit; more are sampled down. Raised: steadier coefficients, longer fits."""

    seed: int = 0


class TrainerSettings(Settings):
    """What every trainer is told. Defaults are for a night on two CPU cores, not Atari."""

    algorithm: Literal["behavior_cloning", "discrete_cql", "double_dqn"] = "discrete_cql"
    name: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the candidate, unique in a night. Empty: the algorithm's name."""

    n_steps: int = Field(4000, ge=1)
    """Gradient steps. Raised: longer training; watch `losses/*` for overfitting."""

    max_epochs: float = Field(20.0, gt=0)
    """Passes over the training rows after which the job stops, whatever `n_steps` says. Raised: small logs are
    learned by heart: 4,000 steps over 1,700 rows of PersuasionForGood gave importance weights of mean 0."""

    batch_size: int = Field(256, ge=1)
    """Transitions per step. Raised: smoother gradients, slower steps."""

    learning_rate: float = Field(3e-4, gt=0)
    """Adam's step size."""

    hidden_units: tuple[int, ...] = (128, 128)
    """Width of each hidden layer."""

    target_update_interval: int = Field(200, ge=1)
    """Steps between copies into the target network. Raised: steadier, slower to follow."""

    # True value over the behavior policy's on the sample world (20,000 dialogues, one seed, learning rate 1e-3,
    # divergence limit 0.08): +19 % with 0 (Double DQN), +26 % with 0.1, +11 % with 0.5.
    conservative_weight: float = Field(0.1, ge=0)
    """CQL's alpha. Raised: Q-values of actions that the log did not take are pushed lower."""

    divergence_limit: float = Field(0.08, gt=0)
    """Nats per decision: how far the policy may move from the behavior policy on average (mean KL on training
    rows). Raised: larger possible gains, fewer effective samples behind their estimate."""

    seed: int = 0

    @property
    def candidate_name(self) -> str:
        """Name of the candidate in assets, folders, evidence and MLflow."""
        return self.name or self.algorithm


class EvaluationSettings(Settings):
    """How a policy is judged on held-out dialogues."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Two-sided level of every interval."""

    n_bootstrap: int = Field(1000, ge=100)
    """Resamples of whole episodes behind each interval. Raised: steadier ends."""

    weight_clip: float = Field(50.0, gt=1)
    """Largest per-decision cumulative importance weight in clipped diagnostics and doubly robust sums."""

    fqe_steps: int = Field(3000, ge=1)
    """Gradient steps of fitted Q evaluation."""

    fqe_learning_rate: float = Field(1e-3, gt=0)
    fqe_batch_size: int = Field(512, ge=1)
    fqe_hidden_units: tuple[int, ...] = (128, 128)
    seed: int = 0
