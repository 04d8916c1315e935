"""d3rlpy's discrete algorithms behind the trainer protocol, with masks and the decision head.

Here: which of its algorithms with which settings, and what becomes of its networks. Not here: d3rlpy's habits and what
is done about them (`rl.trainers.d3rlpy_adapter`), its decision transformer (`rl.trainers.d3rlpy_transformer`),
formulas (rl/README.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from rl.datasets.transitions import TransitionSet
from rl.policies.scores import Scores, Support
from rl.policies.storage import StoredPolicy
from rl.trainers.d3rlpy_adapter import (
    SquaredErrorQFunctionFactory,
    TransitionSampler,
    algorithms,
    encoder_factory,
    export_network,
    train_algorithm,
)
from rl.trainers.decision import decided_by
from rl.trainers.protocol import TrainingRecord
from rl.trainers.settings import TrainerSettings

NOTE = (
    "Learned by d3rlpy, which knows no action masks: they are put on its networks from outside while it learns, and on "
    "its choice when it decides."
)


class D3rlpyTrainer(ABC):
    """One of d3rlpy's algorithms; keeps the contract of `rl.trainers.protocol.Trainer`.

    d3rlpy has no checkpoint that holds its optimiser's state and random numbers, so a killed training begins anew.
    """

    decides_by = "values"
    uses_logged_mask = False

    @abstractmethod
    def configuration(self, settings: Any, discount: float) -> Any:
        """d3rlpy's own configuration of the algorithm."""

    def decision_network(self, modules: Any) -> torch.nn.Module:
        """The network that the policy acts by."""
        network: torch.nn.Module = modules.q_funcs[0]
        return network

    def support(self, modules: Any, sampler: TransitionSampler, settings: Any) -> Support | None:
        """What the policy is held to, beside the mask."""
        return None

    def fit(
        self,
        dataset: TransitionSet,
        settings: TrainerSettings,
        behavior: StoredPolicy,
        record: TrainingRecord | None = None,
    ) -> StoredPolicy:
        """Learn a policy; see `Trainer.fit`."""
        record = record or TrainingRecord()
        record.notes.append(NOTE)
        training = dataset.training()
        mask = training.logged_mask if self.uses_logged_mask else training.action_mask
        sampler = TransitionSampler(training, mask, settings.seed, legal_starts_only=not self.uses_logged_mask)
        configuration = self.configuration(settings, dataset.manifest.training_discount)
        report = _value_reporter(sampler, record) if self.decides_by == "values" else _no_report
        learned = train_algorithm(configuration, sampler, dataset.n_actions, settings, record, report)
        modules = learned.impl.modules
        network = export_network(self.decision_network(modules), sampler.standardizer)
        if self.decides_by == "values":
            network = network.scaled(sampler.reward_scale)
        policy, reached = decided_by(
            Scores.of(network),
            settings,
            behavior,
            training,
            is_actor=self.decides_by == "actor",
            support=self.support(modules, sampler, settings),
        )
        for name, value in reached.items():
            record(name, value, settings.n_steps)
        return policy


class DiscreteBC(D3rlpyTrainer):
    """d3rlpy's DiscreteBC."""

    decides_by = "actor"
    uses_logged_mask = True

    def configuration(self, settings: Any, discount: float) -> Any:
        return algorithms.DiscreteBCConfig(
            # The default of 0.5 pulls the logits together: .25 where the truth was .75 (10 actions, 20,000
            # rows).
            beta=0.0,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            encoder_factory=encoder_factory(settings),
        )

    def decision_network(self, modules: Any) -> torch.nn.Module:
        network: torch.nn.Module = modules.imitator
        return network


class NFQ(D3rlpyTrainer):
    """d3rlpy's NFQ: its target is the newest network's own, so there is no older copy to wait for."""

    def configuration(self, settings: Any, discount: float) -> Any:
        return algorithms.NFQConfig(**_q_learning(settings, discount))


class DoubleDQN(D3rlpyTrainer):
    """d3rlpy's DoubleDQN."""

    def configuration(self, settings: Any, discount: float) -> Any:
        return algorithms.DoubleDQNConfig(
            target_update_interval=settings.target_update_interval, **_q_learning(settings, discount)
        )


class DiscreteCQL(D3rlpyTrainer):
    """d3rlpy's DiscreteCQL."""

    def configuration(self, settings: Any, discount: float) -> Any:
        return algorithms.DiscreteCQLConfig(
            alpha=settings.conservative_weight,
            target_update_interval=settings.target_update_interval,
            **_q_learning(settings, discount),
        )


class DiscreteBCQ(D3rlpyTrainer):
    """d3rlpy's DiscreteBCQ."""

    def configuration(self, settings: Any, discount: float) -> Any:
        return algorithms.DiscreteBCQConfig(
            action_flexibility=settings.support_ratio,
            beta=0.0,
            share_encoder=False,
            target_update_interval=settings.target_update_interval,
            **_q_learning(settings, discount),
        )

    def support(self, modules: Any, sampler: TransitionSampler, settings: Any) -> Support:
        return Support(Scores.of(export_network(modules.imitator, sampler.standardizer)), settings.support_ratio)


class DiscreteSAC(D3rlpyTrainer):
    """d3rlpy's DiscreteSAC, which has nothing conservative: the decision head alone keeps it near the log."""

    decides_by = "actor"

    def configuration(self, settings: Any, discount: float) -> Any:
        shared = _q_learning(settings, discount)
        rate, encoder = shared.pop("learning_rate"), shared.pop("encoder_factory")
        return algorithms.DiscreteSACConfig(
            actor_learning_rate=rate,
            critic_learning_rate=rate,
            temp_learning_rate=0.0,
            initial_temperature=settings.entropy_weight,
            actor_encoder_factory=encoder,
            critic_encoder_factory=encoder,
            target_update_interval=settings.target_update_interval,
            **shared,
        )

    def decision_network(self, modules: Any) -> torch.nn.Module:
        network: torch.nn.Module = modules.policy
        return network


def _q_learning(settings: TrainerSettings, discount: float) -> dict[str, Any]:
    """The arguments that d3rlpy's Q-learning algorithms have in common."""
    return {
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "gamma": discount,
        "encoder_factory": encoder_factory(settings),
        "q_func_factory": SquaredErrorQFunctionFactory(),
    }


def _value_reporter(sampler: TransitionSampler, record: TrainingRecord) -> Any:
    probe = torch.from_numpy(sampler.probe())
    legal = probe[:, -sampler.n_actions :] > 0

    def report(algorithm: Any, step: int) -> None:
        with torch.no_grad():
            values = algorithm.impl.modules.q_funcs[0](probe).q_value
        greedy = values.masked_fill(~legal, -torch.inf).max(dim=1).values
        record("values/greedy", float(greedy.mean()) * sampler.reward_scale, step)

    return report


def _no_report(algorithm: Any, step: int) -> None:
    """Actors report no values."""
