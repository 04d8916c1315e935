"""Settings of the trainers: one class per algorithm, chosen by `algorithm`.

Here: what each trainer is told, and which members of a sweep that makes. Not here: settings of other jobs
(`rl.settings`), formulas (rl/README.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator

from rl.errors import SettingsError
from rl.settings import Settings

Width = Annotated[int, Field(ge=1)]


class TrainerSettings(Settings):
    """What every trainer is told. Defaults are for a night on two CPU cores, not Atari."""

    algorithm: str
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

    hidden_units: tuple[Width, ...] = (128, 128)
    """Width of each hidden layer."""

    divergence_limit: float | None = Field(0.08, gt=0)
    """Nats per decision: how far the policy may move from the behavior policy on average (mean KL on training rows).
    Raised: larger possible gains, fewer effective samples behind their estimate. Empty: the policy acts as it was
    learned, greedily on its values or by its actor."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Of all random numbers: the same seed and data give the same policy."""

    @property
    def candidate_name(self) -> str:
        """Name of the candidate in assets, folders, evidence and MLflow."""
        return self.name or self.algorithm


@dataclass(frozen=True)
class Member:
    """One of the policies that are trained together: its seed, and the values of what a sweep may vary."""

    seed: int
    knobs: dict[str, float]
    """`learning_rate`, `discount` and the algorithm's own, such as `conservative_weight`."""

    @property
    def setting(self) -> str:
        """The knobs as text, equal for members that differ in their seed only."""
        return ", ".join(f"{name}={value:g}" for name, value in sorted(self.knobs.items()))


class MaskedTrainerSettings(TrainerSettings):
    """What our own, masked trainers are told beside that. They train all members of a sweep in one pass."""

    knobs: ClassVar[tuple[str, ...]] = ("learning_rate",)
    """Fields that `sweep` may vary, beside `discount`."""
    uses_discount: ClassVar[bool] = True
    """Whether the discount matters to what is learned, so that `sweep` may vary it, too."""
    acts_by_values: ClassVar[bool] = True
    """Whether the policy ranks actions by values, from which `pessimism` can be taken off."""

    n_members: int = Field(4, ge=1)
    """Policies per setting, trained together with seeds `seed`, `seed + 1`, …; they act as one ensemble. Raised: a
    steadier policy and a better sense of what the log cannot tell; costs time in proportion."""

    sweep: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Values to try, by setting: `{conservative_weight: [0.1, 1.0]}`. All combinations are trained in one pass with
    the same batches; the best by the lower bound on the selection episodes becomes the candidate."""

    pessimism: float = Field(1.0, ge=0)
    """Spreads (standard deviations over the members) that are subtracted from the ensemble's values. Raised: actions
    on whose value the members disagree are avoided."""

    layer_norm: bool = True
    """Normalise each hidden layer's features before its ReLU: steadier values far from the log."""

    encoder: Literal["state", "sasrec"] = "state"
    """What the networks read. `state`: the observation. `sasrec`: the observation and, through a causal transformer
    (Kang and McAuley, 2018), the vectors of the utterances so far."""

    longest_history: int = Field(24, ge=1)
    """Utterances that `sasrec` reads, the newest ones. Raised: earlier words count; slower in proportion."""

    sequence_width: int = Field(64, ge=1)
    """Width of `sasrec`. Raised: more of the words' meaning gets through; slower, and sooner learned by heart."""

    sequence_layers: int = Field(1, ge=1)
    """Attention blocks of `sasrec`. The last one reads from the newest utterance alone, so a second one costs more
    than the first."""

    sequence_heads: int = Field(2, ge=1)
    """Attention heads of `sasrec`; they divide its width."""

    @field_validator("sequence_heads")
    @classmethod
    def _divides(cls, n_heads: int, info: ValidationInfo) -> int:
        width = info.data.get("sequence_width")
        if width and width % n_heads:
            raise ValueError(f"`sequence_heads` does not divide `sequence_width`, which is {width}.")
        return n_heads

    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay per step, as a share of the learning rate (AdamW). Raised: smaller weights."""

    # 42 to 43 EUR with 0.2 and 43 to 44 with 0 in the storefront, on two logs, measured once by hand.
    selection_share: float = Field(0.1, ge=0, lt=1)
    """Share of the training customers whose dialogues choose checkpoint and setting and are not learned from. 0: the
    last step is kept and nothing is chosen."""

    n_looks: int = Field(20, ge=1)
    """Points of each learning curve, and moments at which a checkpoint may be chosen."""

    patience: int | None = Field(None, ge=1)
    """Looks without a better lower bound after which training stops. Empty: it never stops early."""

    mode: Literal["auto", "eager", "compiled", "graph"] = "auto"
    """How the updates are run. `eager`: torch operation by operation. `compiled`: by torch's compiler, needs a C++
    compiler on a CPU. `graph`: captured CUDA graphs. `auto`: graph on a GPU, else compiled from 20,000 updates on where
    a compiler is found, else eager: compiling takes as long as some thousand updates."""

    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the matrix products. `tf32` acts on GPUs only; `bfloat16` on GPUs and on CPUs that have it."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`cpu`, `cuda`, `cuda:1`, or `auto`: a GPU where there is one."""

    memory_limit_gb: float = Field(4.0, gt=0)
    """Data held at a time, in GiB. A larger set is learned from in chunks of this size, shuffled anew in each pass."""

    @field_validator("sweep")
    @classmethod
    def _known(cls, sweep: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        known = {*cls.knobs, "discount"} if cls.uses_discount else {*cls.knobs}
        unknown = sorted(set(sweep) - known)
        if unknown or not all(sweep.values()):
            what = f"cannot vary {', '.join(unknown)}" if unknown else "has a setting without values"
            raise ValueError(f"`sweep` {what}. It may vary {', '.join(sorted(known))}, each with one value or more.")
        for name, values in sweep.items():
            cls._check_varied(name, values)
        return sweep

    @classmethod
    def _check_varied(cls, name: str, values: tuple[float, ...]) -> None:
        allowed = _DISCOUNT if name == "discount" else TypeAdapter(cls.model_fields[name].rebuild_annotation())
        for value in values:
            try:
                allowed.validate_python(value)
            except ValidationError as error:
                raise ValueError(f"`sweep` cannot set {name} to {value:g}: {error.errors()[0]['msg']}.") from None
        if len(set(values)) < len(values):
            raise ValueError(f"`sweep` names a value of {name} twice. Each one is a setting of its own: name it once.")

    @model_validator(mode="after")
    def _all_have_an_effect(self) -> Self:
        for name, why in self._idle():
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise ValueError(f"`{name}` has no effect here: {why}. Leave it out.")
        return self

    def _idle(self) -> Iterator[tuple[str, str]]:
        """Fields that nothing reads beside the others as they are, and why."""
        if not self.acts_by_values:
            yield "pessimism", "it is taken off values, and this policy acts by preferences"
        if self.encoder == "state":
            for name in ("longest_history", "sequence_width", "sequence_layers", "sequence_heads"):
                yield name, "it is of `encoder: sasrec`, and `encoder` is `state`"
        if self.selection_share == 0:
            yield "patience", "with `selection_share` 0 no look is judged"
            yield "sweep", "with `selection_share` 0 nothing chooses among its settings"

    def members(self, training_discount: float) -> tuple[Member, ...]:
        """All combinations of `sweep` times the seeds; members of one setting stand together."""
        fixed = {name: float(getattr(self, name)) for name in self.knobs} | {"discount": training_discount}
        varied = [dict(zip(self.sweep, values, strict=True)) for values in itertools.product(*self.sweep.values())]
        return tuple(
            Member(self.seed + number, fixed | chosen) for chosen in varied for number in range(self.n_members)
        )


class BehaviorCloningSettings(MaskedTrainerSettings):
    """Behavior cloning: the policy that does what the log did."""

    uses_discount: ClassVar[bool] = False
    acts_by_values: ClassVar[bool] = False
    algorithm: Literal["behavior_cloning"] = "behavior_cloning"
    n_members: int = Field(1, ge=1)
    """As of every masked trainer; imitations of the same log hardly differ."""

    max_epochs: float = Field(10.0, gt=0)
    """Passes over the training rows after which the job stops."""

    divergence_limit: float | None = Field(None, gt=0)


class ValueTrainerSettings(MaskedTrainerSettings):
    """What the trainers that bootstrap are told."""

    learning_rate: float = Field(1e-3, gt=0)
    """Adam's step size."""

    max_epochs: float = Field(6.0, gt=0)
    """Passes over the training rows after which the job stops. Raised: rewards are learned by heart."""

    pessimism: float = Field(0.5, ge=0)
    """Spreads (standard deviations over the members) that are subtracted from the ensemble's values. Raised: actions
    on whose value the members disagree are avoided."""

    target_update_interval: int = Field(150, ge=1)
    """Steps between copies into the target networks, of `n_steps`; fewer where `max_epochs` stops before. Raised:
    steadier, slower to follow."""

    return_steps: int = Field(3, ge=1)
    """Logged rewards in a target before it bootstraps (n-step returns). Raised: rewards travel faster, and values
    lean towards those of the behavior policy."""

    return_lambda: float | None = Field(None, ge=0, le=1)
    """λ of λ-returns, which then take the place of `return_steps`; they are made anew at each target update. Empty:
    none."""

    def _idle(self) -> Iterator[tuple[str, str]]:
        yield from super()._idle()
        if self.return_lambda is not None:
            yield "return_steps", "`return_lambda` takes its place"


class QTrainerSettings(ValueTrainerSettings):
    """What the trainers that act by their values alone are told."""

    # True values of greedy CQL in the storefront, EUR, one log of 20,000 dialogues, α 0.05, pessimism 0, 1,000 steps:
    # 41.2 with 4 members, 43.1 with 8, 44.7 with 16. With 4 members it falls after two to four passes over the rows
    # (α 0.1: 42.5 after 2,000 steps, 39.9 after 4,000); one logged reward in a target gave 41.5 where three gave 42.5.
    # On another log these defaults reach 43.0 and, behind the decision head, 26.7; four members, 4,000 steps at 3e-4,
    # one reward in a target, α 0.1 and pessimism 1 reached 36.7 and 24.0. The behavior policy's value is 18.8. All
    # measured once by hand.
    n_members: int = Field(16, ge=1)
    """As of every masked trainer; these have small networks, so that many are cheap."""

    max_epochs: float = Field(3.0, gt=0)
    """Passes over the training rows after which the job stops. Raised: rewards are learned by heart."""


class DoubleDQNSettings(QTrainerSettings):
    """Double DQN on the log: nothing but the decision head keeps it near."""

    algorithm: Literal["double_dqn"] = "double_dqn"

    head: Literal["mean", "dueling", "quantile"] = "mean"
    """What the network gives: values; a state's value and each action's advantage; or quantiles of the return."""

    n_quantiles: int = Field(32, ge=2)
    """Quantiles of the `quantile` head."""


class CQLSettings(DoubleDQNSettings):
    """Conservative Q-learning."""

    knobs: ClassVar[tuple[str, ...]] = ("learning_rate", "conservative_weight")
    algorithm: Literal["cql"] = "cql"  # type: ignore[assignment]

    conservative_weight: float = Field(0.05, ge=0)
    """α. Raised: Q-values of actions that the log did not take are pushed lower."""

    conservative_gap: float | None = Field(None, gt=0)
    """Lagrange form: α is learned so that log-sum-exp of Q minus Q of the logged action stays at this, in deviations
    of the return-to-go; `conservative_weight` is where it starts. Empty: α is fixed."""

    @model_validator(mode="after")
    def _can_be_learned(self) -> CQLSettings:
        starts = self.sweep.get("conservative_weight", (self.conservative_weight,))
        if self.conservative_gap is not None and 0 in starts:
            raise ValueError("`conservative_gap` learns a multiple of `conservative_weight`, which is 0. Start above.")
        return self


class CalibratedCQLSettings(CQLSettings):
    """CQL whose values are not pushed below the log's own returns, so that online learning starts without a dip."""

    algorithm: Literal["calibrated_cql"] = "calibrated_cql"  # type: ignore[assignment]


class BCQSettings(QTrainerSettings):
    """Batch-constrained Q-learning, discrete."""

    algorithm: Literal["bcq"] = "bcq"
    support_ratio: float = Field(0.3, gt=0, lt=1)
    """An action counts where its imitated probability is at least this share of the likeliest one's. Raised: nearer
    to what the log mostly did."""


class IQLSettings(ValueTrainerSettings):
    """Implicit Q-learning, discrete."""

    knobs: ClassVar[tuple[str, ...]] = ("learning_rate", "expectile", "inverse_temperature")
    acts_by_values: ClassVar[bool] = False
    algorithm: Literal["iql"] = "iql"
    # 35.7 EUR with expectile 0.7 and 38.3 with 0.9 in the storefront, greedily, measured once by hand.
    expectile: float = Field(0.9, ge=0.5, lt=1)
    """Of Q under the log that is a state's value. Raised: nearer to the best logged action, noisier."""

    inverse_temperature: float = Field(10.0, gt=0)
    """β: the actor imitates with weight exp(β · advantage). Raised: greedier."""

    largest_weight: float = Field(100.0, gt=1)
    """Where that weight is cut."""


class AWACSettings(ValueTrainerSettings):
    """Advantage-weighted actor-critic."""

    knobs: ClassVar[tuple[str, ...]] = ("learning_rate", "inverse_temperature")
    acts_by_values: ClassVar[bool] = False
    algorithm: Literal["awac"] = "awac"
    inverse_temperature: float = Field(3.0, gt=0)
    """1/λ: the actor imitates with weight exp(advantage / λ). Raised: greedier."""

    largest_weight: float = Field(20.0, gt=1)
    """Where that weight is cut."""


class CRRSettings(ValueTrainerSettings):
    """Critic-regularised regression with the binary filter: imitate what is better than the policy's average."""

    acts_by_values: ClassVar[bool] = False
    algorithm: Literal["crr"] = "crr"


class ActorCriticSettings(ValueTrainerSettings):
    """Conservative actor-critic: an actor with an entropy bonus, and twin critics with CQL's penalty."""

    knobs: ClassVar[tuple[str, ...]] = ("learning_rate", "conservative_weight", "entropy_weight")
    acts_by_values: ClassVar[bool] = False
    algorithm: Literal["conservative_actor_critic"] = "conservative_actor_critic"
    conservative_weight: float = Field(0.1, ge=0)
    """α of the critics' penalty. Raised: values of actions that the log did not take are pushed lower."""

    # 34.8 EUR with 0.02 and 37.4 with 0.1 in the storefront, measured once by hand.
    entropy_weight: float = Field(0.1, ge=0)
    """Weight of the policy's entropy in its objective, in deviations of the return-to-go per nat. Raised: more
    even choices."""


class DecisionTransformerSettings(MaskedTrainerSettings):
    """Decision transformer: imitation of the log, given the dialogue so far and the return that is wanted."""

    uses_discount: ClassVar[bool] = False
    acts_by_values: ClassVar[bool] = False
    algorithm: Literal["decision_transformer"] = "decision_transformer"
    n_members: int = Field(1, ge=1)
    batch_size: int = Field(64, ge=1)
    """Stretches of dialogues per step, each of `context_steps` decisions at most."""

    hidden_units: tuple[Width, ...] = (64,)
    """Width of the transformer (one number)."""

    n_layers: int = Field(2, ge=1)
    """Attention blocks."""

    n_heads: int = Field(2, ge=1)
    """Attention heads; they divide the width."""

    context_steps: int = Field(12, ge=1)
    """Decisions that it reads, the one to be taken included."""

    target_quantile: float = Field(0.9, gt=0, lt=1)
    """Quantile of the training dialogues' returns that it is asked for. Raised: bolder, less seen in the log. Where
    fewer dialogues than 1 − this earn anything, it asks for nothing: take the share that does."""

    @model_validator(mode="after")
    def _one_transformer(self) -> DecisionTransformerSettings:
        if self.encoder != "state":
            raise ValueError("`encoder` is `state` here: a decision transformer reads the dialogue by itself.")
        if len(self.hidden_units) != 1 or self.hidden_units[0] % self.n_heads:
            raise ValueError("`hidden_units` is one width that `n_heads` divides.")
        return self

    def _idle(self) -> Iterator[tuple[str, str]]:
        yield from super()._idle()
        yield "layer_norm", "a transformer normalises always"


class D3rlpyBehaviorCloningSettings(TrainerSettings):
    """d3rlpy's DiscreteBC with `beta` 0."""

    algorithm: Literal["d3rlpy_bc"] = "d3rlpy_bc"
    divergence_limit: float | None = Field(None, gt=0)


class D3rlpyValueSettings(TrainerSettings):
    """What d3rlpy's Q-learning algorithms share."""

    target_update_interval: int = Field(200, ge=1)
    """Steps between copies into the target network. Raised: steadier, slower to follow."""


class D3rlpyDoubleDQNSettings(D3rlpyValueSettings):
    """d3rlpy's DoubleDQN."""

    algorithm: Literal["d3rlpy_double_dqn"] = "d3rlpy_double_dqn"


class D3rlpyNFQSettings(TrainerSettings):
    """d3rlpy's NFQ."""

    algorithm: Literal["d3rlpy_nfq"] = "d3rlpy_nfq"


class D3rlpyCQLSettings(D3rlpyValueSettings):
    """d3rlpy's DiscreteCQL."""

    algorithm: Literal["d3rlpy_cql"] = "d3rlpy_cql"
    # True value over the behavior policy's on the sample world (20,000 dialogues, one seed, learning rate 1e-3,
    # divergence limit 0.08): +19 % with 0 (Double DQN), +26 % with 0.1, +11 % with 0.5.
    conservative_weight: float = Field(0.1, ge=0)
    """CQL's α. Raised: Q-values of actions that the log did not take are pushed lower."""


class D3rlpyBCQSettings(D3rlpyValueSettings):
    """d3rlpy's DiscreteBCQ with `beta` 0."""

    algorithm: Literal["d3rlpy_bcq"] = "d3rlpy_bcq"
    support_ratio: float = Field(0.3, gt=0, lt=1)
    """d3rlpy's `action_flexibility`: share of the likeliest action's imitated probability that an action needs."""


class D3rlpySACSettings(D3rlpyValueSettings):
    """d3rlpy's DiscreteSAC."""

    algorithm: Literal["d3rlpy_sac"] = "d3rlpy_sac"
    entropy_weight: float = Field(0.02, gt=0)
    """Its temperature, fixed. Raised: more even choices."""


class D3rlpyDecisionTransformerSettings(TrainerSettings):
    """d3rlpy's DiscreteDecisionTransformer."""

    algorithm: Literal["d3rlpy_decision_transformer"] = "d3rlpy_decision_transformer"
    divergence_limit: float | None = Field(None, gt=0)
    hidden_units: tuple[Annotated[int, Field(ge=2, multiple_of=2)]] = (64,)
    """Width of the transformer (one number), which its two attention heads share."""

    context_steps: int = Field(12, ge=1)
    """Decisions that it looks back."""

    target_quantile: float = Field(0.9, gt=0, lt=1)
    """Quantile of the training dialogues' returns that it is asked for."""


AnyTrainerSettings = Annotated[
    BehaviorCloningSettings
    | DoubleDQNSettings
    | CQLSettings
    | CalibratedCQLSettings
    | BCQSettings
    | IQLSettings
    | AWACSettings
    | CRRSettings
    | ActorCriticSettings
    | DecisionTransformerSettings
    | D3rlpyBehaviorCloningSettings
    | D3rlpyDoubleDQNSettings
    | D3rlpyNFQSettings
    | D3rlpyCQLSettings
    | D3rlpyBCQSettings
    | D3rlpySACSettings
    | D3rlpyDecisionTransformerSettings,
    Field(discriminator="algorithm"),
]
"""Any trainer's settings; `algorithm` tells which."""

_ANY: TypeAdapter[Any] = TypeAdapter(AnyTrainerSettings)
_DISCOUNT: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(gt=0, le=1)])


def settings_class(algorithm: str) -> type[TrainerSettings] | None:
    """The settings class of an algorithm; None if there is no such algorithm."""
    kinds: tuple[type[TrainerSettings], ...] = get_args(get_args(AnyTrainerSettings)[0])
    return next((kind for kind in kinds if kind.model_fields["algorithm"].default == algorithm), None)


def trainer_settings(**fields: Any) -> TrainerSettings:
    """The settings class of `algorithm`, checked: `trainer_settings(algorithm="cql", seed=1)`.

    Raises SettingsError, which names each wrong field, what it holds and what is allowed.
    """
    try:
        settings: TrainerSettings = _ANY.validate_python(fields)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, each['loc']))}: {each['msg']} (found {each['input']!r})" for each in error.errors()
        ]
        raise SettingsError(f"Settings of a trainer are wrong. {' '.join(faults)} Correct them.") from None
    return settings
