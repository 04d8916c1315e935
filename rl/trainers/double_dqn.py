"""Double deep Q-network (Double DQN), trained on the log. Formula, differences and metrics: rl/README.md."""

from __future__ import annotations

from rl.datasets.transitions import TransitionSet
from rl.policies.regularized import RegularizedQPolicy
from rl.policies.storage import StoredPolicy
from rl.settings import TrainerSettings
from rl.trainers.protocol import OnMetric, ignore_metric


class DoubleDQN:
    """d3rlpy's DoubleDQN (van Hasselt et al., 2016, arXiv:1509.06461) on legal actions, behind the decision
    head."""

    def fit(
        self,
        dataset: TransitionSet,
        settings: TrainerSettings,
        behavior: StoredPolicy,
        on_metric: OnMetric = ignore_metric,
    ) -> RegularizedQPolicy:
        """Learn values by bootstrapping; what keeps the policy near the log is the decision head alone."""
        from rl.trainers.d3rlpy_adapter import algorithms
        from rl.trainers.q_learning import learn_q_policy, shared_configuration

        config = algorithms.DoubleDQNConfig(**shared_configuration(dataset, settings))
        return learn_q_policy(config, dataset, settings, behavior, on_metric)
