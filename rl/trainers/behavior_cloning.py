"""Behavior cloning (BC): the policy that does what the log did. Formula and metrics: rl/README.md."""

from __future__ import annotations

from rl.datasets.transitions import TransitionSet
from rl.policies.imitation import ImitationPolicy
from rl.policies.storage import StoredPolicy
from rl.settings import TrainerSettings
from rl.trainers.protocol import OnMetric, ignore_metric


class BehaviorCloning:
    """d3rlpy's DiscreteBC over the legal actions; does not use `behavior`."""

    def fit(
        self,
        dataset: TransitionSet,
        settings: TrainerSettings,
        behavior: StoredPolicy,
        on_metric: OnMetric = ignore_metric,
    ) -> ImitationPolicy:
        """Maximise the likelihood of the logged actions over `logged_mask`."""
        from rl.trainers.d3rlpy_adapter import (
            TransitionSampler,
            algorithms,
            encoder_factory,
            export_network,
            train_algorithm,
        )

        training = dataset.training()
        sampler = TransitionSampler(training, training.logged_mask, settings.seed, legal_starts_only=False)
        config = algorithms.DiscreteBCConfig(
            # The default of 0.5 pulls the logits together: .25 where the truth was .75 (10 actions, 20,000
            # rows).
            beta=0.0,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            encoder_factory=encoder_factory(settings),
        )
        algorithm = train_algorithm(config, sampler, dataset.n_actions, settings, on_metric)
        return ImitationPolicy(export_network(algorithm.impl.modules.imitator, sampler.standardizer))
