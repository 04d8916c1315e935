"""Settings of encoders, data sets, policies, trainers and evaluation: one frozen, validated class per job.

Every field says its unit, its range and what happens when it is raised. Files (`talktrack.yaml`, the Dagster
Launchpad) are read in `orchestration.settings`; here are only the shapes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from rl.errors import SettingsError


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


class ScrubbingSettings(Settings):
    """How personal data in text is replaced by placeholders, in logs and live alike."""

    allow_list: Literal["none", "names", "strict"] = "names"
    """What becomes of words that are in no public word list. `none`: names are found by their cues alone ("my name
    is …"). `names`: unknown words in capitals and known names count as names, too. `strict`: every word outside some
    16,000 common ones goes, names of products and places included. Raised: fewer names pass, more words are lost."""

    known_words: tuple[str, ...] = ("Aurelle", "Brightmere", "Halden", "Kesto", "Norvik", "Thermo")
    """Names of products, brands and places of the trade, which stay: by default those of the sample storefront. Of
    several words ("Paul Smith") only all of them together stay. Public words only: they pass whoever says them."""

    entity_model: str = ""
    """A token-classification model that looks at what the rules left: a folder, or an id on the hub. Empty: none."""

    entity_revision: str = ""
    """Pins the model: first digits of the sha256 of a folder's weights, or the commit on the hub (needed there)."""

    entity_labels: dict[str, Literal["NAME", "ADDRESS", "NUMBER", "DATE"]] = {"PER": "NAME", "PERSON": "NAME"}
    """Placeholder for each of the model's labels that is personal data; its other labels are left alone."""

    entity_score: float = Field(0.5, ge=0, le=1)
    """Least probability of an entity. Raised: fewer words are lost, more names pass."""


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
    """Share of customers whose dialogues judge policies and never train them; with `split: time`, of dialogues."""

    split: Literal["customer", "time"] = "customer"
    """Who judges. `customer`: customers by a stable hash. `time`: the newest dialogues, as policies will meet them;
    older ones of the same customers are left out, and there can be no aggregate policy."""

    training_discount: float = Field(0.97, gt=0, le=1)
    """γ of the trainers. Evaluation always uses γ = 1."""

    reward: RewardDefinition = RewardDefinition()


class BehaviorModelSettings(Settings):
    """The multinomial model of who did what in the log; cross-fitted and calibrated."""

    n_folds: int = Field(5, ge=2)
    """Folds by customer. Raised: less bias in the estimated propensities, longer fits."""

    l2: float = Field(50.0, ge=0)
    """Weight of the squared coefficients of standardised features, counted in rows. Raised: flatter probabilities."""

    calibration: Literal["temperature", "isotonic"] = "temperature"
    """How probabilities are corrected out of fold. `temperature`: one number, for models that are too sure throughout.
    `isotonic`: an increasing map, for those that are wrong in some range only; wants some 10,000 rows."""

    floor: float = Field(1e-3, gt=0, lt=0.1)
    """Smallest estimated probability of a legal action. Raised: smaller importance weights, more bias."""

    max_rows: int = Field(200_000, ge=1)
    """Rows of one fit; more are sampled down. Raised: steadier coefficients, longer fits."""

    seed: int = 0


class AggregateTrainerSettings(Settings):
    """The policy that is learned from released aggregates alone, once per release."""

    enabled: bool = True
    """Whether a release is learned from. Nothing happens while there is no release."""

    divergence_limit: float = Field(0.1, gt=0)
    """Nats per decision: how far the policy may move from the released behavior on average (mean KL over buckets).
    Raised: larger possible gains, fewer effective samples behind the private evidence."""

    # True gain on the sample world, mean of three releases of 16,000 dialogues by turn and segment, measured once by
    # hand, in EUR: 1.8 with 0.02, 2.1 with 0.04, 1.5 with 0.08.
    rate_deviation: float = Field(0.05, gt=0, lt=1)
    """How much conversion rates are expected to vary between buckets and between strategies (standard deviation, a
    share). Raised: small cells are believed more."""

    shrinkage: float = Field(50.0, gt=0)
    """Steps' worth of its bucket that each transition probability is pulled to. Raised: steadier, more alike."""

    @property
    def candidate_name(self) -> str:
        """Name of the candidate in assets, folders, evidence and MLflow."""
        return "aggregate_q"


class Clips(NamedTuple):
    """Where contributions to private evidence are cut."""

    weight: float
    advantage: float


class PrivateEvaluationSettings(Settings):
    """How a policy from aggregates is judged: clipped contributions of held-out customers, summed with noise."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Two-sided level of every interval, noise included."""

    weight_clip: float | None = Field(None, gt=1)
    """Largest cumulative importance weight of a dialogue. Empty: from the released number of customers, so that little
    is cut where many judge. Raised: less bias towards the log, more noise and variance."""

    advantage_clip: float | None = Field(None, gt=0)
    """Bound of a customer's mean candidate-minus-logged return, in reward units, either way. Empty: from the released
    number of customers. Raised: less is cut off, more noise."""

    propensity_floor: float = Field(0.01, gt=0, lt=0.5)
    """Smallest probability of a logged choice where the log has none and the released behavior stands in."""

    @property
    def clips(self) -> Clips:
        """Both clips; set, or filled in by `rl.evaluation.private_contributions.with_clips`."""
        if self.weight_clip is None or self.advantage_clip is None:
            raise SettingsError("`weight_clip` and `advantage_clip` of the private evaluation are not set. Set both.")
        return Clips(self.weight_clip, self.advantage_clip)


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
