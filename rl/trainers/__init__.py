"""Trainers: transition sets in, policies out, all through `Trainer.fit`.

`TRAINERS` lists them by the name that `TrainerSettings.algorithm` uses. d3rlpy and torch are imported when
one is run, not when this package is.
"""

from rl.trainers.behavior_cloning import BehaviorCloning
from rl.trainers.discrete_cql import DiscreteCQL
from rl.trainers.double_dqn import DoubleDQN
from rl.trainers.protocol import OnMetric, Trainer, TrainingRecord

TRAINERS: dict[str, Trainer] = {
    "behavior_cloning": BehaviorCloning(),
    "discrete_cql": DiscreteCQL(),
    "double_dqn": DoubleDQN(),
}

__all__ = ["TRAINERS", "OnMetric", "Trainer", "TrainingRecord"]
