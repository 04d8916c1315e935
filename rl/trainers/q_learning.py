"""What the trainers that learn action values share: d3rlpy's updates on masked Q, then the decision head.

Here: from an algorithm's configuration to a `RegularizedQPolicy`. Not here: the configurations
(`rl.trainers.discrete_cql`, `rl.trainers.double_dqn`), the head (`rl.policies.regularized`).
"""

from __future__ import annotations

from typing import Any

import torch

from rl.datasets.transitions import TransitionSet
from rl.policies.regularized import RegularizedQPolicy, find_temperature
from rl.policies.storage import StoredPolicy
from rl.settings import TrainerSettings
from rl.trainers.d3rlpy_adapter import (
    SquaredErrorQFunctionFactory,
    TransitionSampler,
    encoder_factory,
    export_network,
    train_algorithm,
)
from rl.trainers.protocol import OnMetric


def shared_configuration(dataset: TransitionSet, settings: TrainerSettings) -> dict[str, Any]:
    """The arguments that d3rlpy's Q-learning algorithms have in common."""
    return {
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "gamma": dataset.manifest.training_discount,
        "target_update_interval": settings.target_update_interval,
        "encoder_factory": encoder_factory(settings),
        "q_func_factory": SquaredErrorQFunctionFactory(),
    }


def learn_q_policy(
    config: Any,
    dataset: TransitionSet,
    settings: TrainerSettings,
    behavior: StoredPolicy,
    on_metric: OnMetric,
) -> RegularizedQPolicy:
    """Learn Q on the training episodes under `action_mask`, and tilt `behavior` towards it.

    τ is chosen on the same episodes, so that the mean KL divergence there is `settings.divergence_limit`.
    """
    training = dataset.training()
    sampler = TransitionSampler(training, training.action_mask, settings.seed, legal_starts_only=True)
    probe = torch.from_numpy(sampler.probe())

    def report_values(algorithm: Any, step: int) -> None:
        with torch.no_grad():
            greedy = algorithm.impl.modules.q_funcs[0](probe).q_value.max(dim=1).values
        on_metric("values/greedy", float(greedy.mean()) * sampler.reward_scale, step)

    algorithm = train_algorithm(config, sampler, dataset.n_actions, settings, on_metric, report_values)
    network = export_network(algorithm.impl.modules.q_funcs[0], sampler.standardizer)
    network = network.scaled(sampler.reward_scale)
    probabilities = behavior.action_probabilities(training.batch_observations(slice(None)), training.action_mask)
    temperature, divergence = find_temperature(
        probabilities, network(training.observations), training.action_mask, settings.divergence_limit
    )
    on_metric("policy/temperature", temperature, settings.n_steps)
    on_metric("policy/divergence", divergence, settings.n_steps)
    return RegularizedQPolicy(network, behavior, temperature, settings.algorithm)
