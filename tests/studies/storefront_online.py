"""The best that can be done in the storefront on a data set's observations: found by long training in the simulator.

Here: training on dialogues of its own, with the known expected rewards, until the true value stops growing; hand-made
scripts to compare with. Not here: learning from logs (`tests.studies.trainers`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from rl.datasets.transitions import TransitionSet
from rl.environments.storefront import PolicyValue, policy_value
from rl.environments.storefront_customers import TURN_LIMIT
from rl.environments.storefront_encoded import StorefrontEncoder, encoded_policy
from rl.environments.storefront_items import N_STRATEGIES, STRATEGIES
from rl.environments.storefront_policies import DecisionBatch, StorefrontPolicy, uniform_policy
from rl.policies.networks import Standardizer
from rl.policies.regularized import RegularizedQPolicy
from rl.policies.scores import Scores
from rl.policies.uniform import UniformPolicy
from rl.trainers.algorithm import Sizes
from rl.trainers.batches import ResidentRows, reward_scale
from rl.trainers.double_dqn import DoubleDQN
from rl.trainers.learner import Learner
from rl.trainers.settings import DoubleDQNSettings
from rl.types import Float2D
from tests.studies.storefront_logs import behavior_policies, played_set

DIALOGUES_AT_ONCE = 8192
VALUE_SEED = 1
"""Of the customers that true values are measured on; training and choice have others."""


@dataclass(frozen=True)
class OnlineSettings:
    """How long, and on how much."""

    rounds: int = 10
    """At most."""
    dialogues_per_round: int = 30_000
    rounds_kept: int = 6
    """The newest rounds are learned from."""
    steps_per_round: int = 1000
    patience: int = 3
    """Rounds without a better value after which it stops."""
    exploration: float = 0.1
    """Share of uniform choice while playing."""
    evaluated: int = 32_768
    """Dialogues behind each round's value."""
    seed: int = 0
    training: DoubleDQNSettings = field(
        default_factory=lambda: DoubleDQNSettings(
            n_members=2,
            hidden_units=(256, 256),
            learning_rate=5e-4,
            batch_size=512,
            return_steps=3,
            target_update_interval=100,
        )
    )

    @property
    def key(self) -> list[Any]:
        """What the result depends on."""
        return [getattr(self, each.name) for each in fields(self)[:-1]] + [self.training.model_dump(mode="json")]


@dataclass(frozen=True)
class Online:
    """The best policy met, and how values grew by round."""

    policy: RegularizedQPolicy
    values: list[float]
    n_dialogues: int


def online_training(
    encoder: StorefrontEncoder,
    settings: OnlineSettings | None = None,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> Online:
    """Play with an ensemble's greedy choices and some chance, learn from the newest dialogues, and so on.

    The first round is played by uniform choice and by the logs' policies. `on_round(done, total)` hears of progress.
    """
    settings = settings or OnlineSettings()
    players: list[tuple[StorefrontPolicy, float]] = [(uniform_policy, 0.5)]
    players += [(policy, share / 2) for policy, share in behavior_policies()]
    sets: list[TransitionSet] = []
    values: list[float] = []
    best: RegularizedQPolicy | None = None
    learner: Learner | None = None
    for number in range(settings.rounds):
        sets.append(
            played_set(
                settings.dialogues_per_round,
                [settings.seed, number],
                encoder,
                players,
                expected_rewards=True,
                validation_share=0.0,
            )
        )
        sets = sets[-settings.rounds_kept :]
        if learner is None:
            standardizer = Standardizer.fit(sets[0].observations)
            scale = reward_scale(sets[0].rewards, sets[0].episode_offsets)
            learner = _learner(sets[0], settings)
        learner.advance(_rows(sets, standardizer, scale, learner), settings.steps_per_round)
        policy = _greedy(learner, standardizer, scale)
        acting = encoded_policy(policy, encoder)
        value = _rough_value(acting, settings.evaluated, settings.seed)
        if value > max(values, default=-np.inf):
            best = policy
        values.append(value)
        on_round(number + 1, settings.rounds)
        if len(values) - 1 - int(np.argmax(values)) >= settings.patience:
            break
        players = [(_exploring(acting, settings.exploration), 1.0)]
    assert best is not None
    return Online(best, values, len(values) * settings.dialogues_per_round)


def true_value(policy: StorefrontPolicy, relative_standard_error: float) -> PolicyValue:
    """Of a policy in the simulator, on customers that it was not chosen by."""
    return policy_value(policy, relative_standard_error, seed=VALUE_SEED, batch_size=DIALOGUES_AT_ONCE)


def _rough_value(policy: StorefrontPolicy, n_dialogues: int, seed: int) -> float:
    """Of about `n_dialogues`, the same customers for all policies."""
    batch_size = min(n_dialogues, DIALOGUES_AT_ONCE)
    return policy_value(policy, 1e-9, seed=seed, batch_size=batch_size, max_dialogues=n_dialogues).value


def script_policy(script: tuple[int, ...]) -> StorefrontPolicy:
    """The n-th turn takes the n-th strategy of the script, whoever talks; the fallback where that is not eligible."""
    unit, fallback = np.eye(N_STRATEGIES), STRATEGIES.index("no_strategy")
    steps = np.array(script)

    def probabilities(batch: DecisionBatch) -> Float2D:
        wanted = steps[batch.turn.astype(np.intp)]
        eligible = batch.eligible[np.arange(len(batch)), wanted]
        return np.asarray(unit[np.where(eligible, wanted, fallback)])

    return probabilities


def best_script(n_dialogues: int = 8192, passes: int = 2, seed: int = 0) -> tuple[int, ...]:
    """The best script found turn by turn: of each turn, in order, the strategy that sells most with the others as they
    are, until a pass changes nothing. It starts from the best constant strategy."""

    def value(script: tuple[int, ...]) -> float:
        return _rough_value(script_policy(script), n_dialogues, seed)

    script = max(((strategy,) * TURN_LIMIT for strategy in range(N_STRATEGIES)), key=value)
    for _ in range(passes):
        before = script
        for turn in range(TURN_LIMIT):
            script = max((_with(script, turn, strategy) for strategy in range(N_STRATEGIES)), key=value)
        if script == before:
            break
    return script


def _with(script: tuple[int, ...], turn: int, strategy: int) -> tuple[int, ...]:
    return (*script[:turn], strategy, *script[turn + 1 :])


def _exploring(policy: StorefrontPolicy, share: float) -> StorefrontPolicy:
    def probabilities(batch: DecisionBatch) -> Float2D:
        return np.asarray((1 - share) * policy(batch) + share * uniform_policy(batch))

    return probabilities


def _learner(dataset: TransitionSet, settings: OnlineSettings) -> Learner:
    algorithm = DoubleDQN(settings.training, Sizes(dataset.observation_size, dataset.n_actions))
    return Learner(algorithm, settings.training.members(1.0), settings.training, torch.device("cpu"))


def _rows(sets: list[TransitionSet], standardizer: Standardizer, scale: float, learner: Learner) -> ResidentRows:
    discounts = tuple(member.knobs["discount"] for member in learner.members)
    return ResidentRows(
        _joined(sets),
        standardizer,
        scale,
        discounts,
        learner.settings.return_steps,  # type: ignore[attr-defined]
        learner.device,
    )


def _joined(sets: list[TransitionSet]) -> TransitionSet:
    """One set of all dialogues, without their utterances."""
    names = ("observations", "actions", "rewards", "logged_mask")
    arrays = {name: np.concatenate([getattr(each, name) for each in sets]) for name in names}
    lengths = np.concatenate([np.diff(each.episode_offsets) for each in sets])
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return TransitionSet.from_arrays(**arrays, episode_offsets=offsets, manifest=sets[0].manifest)


def _greedy(learner: Learner, standardizer: Standardizer, scale: float) -> RegularizedQPolicy:
    shape = learner.networks.shapes["q"]
    members = range(len(learner.members))
    scores = Scores.of(*(shape.stored(learner.weights(member, "q"), standardizer, scale) for member in members))
    anything = UniformPolicy(scores.n_actions, scores.observation_size)
    return RegularizedQPolicy(scores, anything, 0.0, "online")
