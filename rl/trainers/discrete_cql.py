"""Conservative Q-learning (CQL) for discrete actions. Formula, differences and metrics: rl/README.md."""

from __future__ import annotations

from rl.datasets.transitions import TransitionSet
from rl.policies.regularized import RegularizedQPolicy
from rl.policies.storage import StoredPolicy
from rl.settings import TrainerSettings
from rl.trainers.protocol import OnMetric, ignore_metric


class DiscreteCQL:
    """d3rlpy's DiscreteCQL (Kumar et al., 2020, arXiv:2006.04779) on legal actions, behind the decision
    head."""

    def fit(
        self,
        dataset: TransitionSet,
        settings: TrainerSettings,
        behavior: StoredPolicy,
        on_metric: OnMetric = ignore_metric,
    ) -> RegularizedQPolicy:
        """Learn values that are pushed down where the log has no evidence."""
        from rl.trainers.d3rlpy_adapter import algorithms
        from rl.trainers.q_learning import learn_q_policy, shared_configuration

        config = algorithms.DiscreteCQLConfig(
            alpha=settings.conservative_weight, **shared_configuration(dataset, settings)
        )
        return learn_q_policy(config, dataset, settings, behavior, on_metric)
