"""Trainers: transition sets in, policies out, all through `Trainer.fit`.

`trainer` finds one by the name that its settings carry as `algorithm`. d3rlpy and torch are imported when one is
asked for, not when this package is.
"""

from importlib import import_module

from rl.trainers.protocol import OnMetric, Trainer, TrainingRecord
from rl.trainers.settings import TrainerSettings, trainer_settings

ALGORITHMS: dict[str, str] = {
    "behavior_cloning": "rl.trainers.behavior_cloning:BehaviorCloning",
    "double_dqn": "rl.trainers.double_dqn:DoubleDQN",
    "cql": "rl.trainers.cql:CQL",
    "calibrated_cql": "rl.trainers.cql:CalibratedCQL",
    "bcq": "rl.trainers.bcq:BCQ",
    "iql": "rl.trainers.iql:IQL",
    "awac": "rl.trainers.awac:AWAC",
    "crr": "rl.trainers.awac:CRR",
    "conservative_actor_critic": "rl.trainers.actor_critic:ConservativeActorCritic",
    "decision_transformer": "rl.trainers.decision_transformer:DecisionTransformer",
}
"""The masked algorithms by name: module and class of the `rl.trainers.algorithm.Algorithm`."""

D3RLPY: dict[str, str] = {
    "d3rlpy_bc": "rl.trainers.d3rlpy_trainers:DiscreteBC",
    "d3rlpy_double_dqn": "rl.trainers.d3rlpy_trainers:DoubleDQN",
    "d3rlpy_nfq": "rl.trainers.d3rlpy_trainers:NFQ",
    "d3rlpy_cql": "rl.trainers.d3rlpy_trainers:DiscreteCQL",
    "d3rlpy_bcq": "rl.trainers.d3rlpy_trainers:DiscreteBCQ",
    "d3rlpy_sac": "rl.trainers.d3rlpy_trainers:DiscreteSAC",
    "d3rlpy_decision_transformer": "rl.trainers.d3rlpy_transformer:DiscreteDecisionTransformer",
}
"""d3rlpy's algorithms by name: module and class of the `Trainer`."""


def trainer(algorithm: str) -> Trainer:
    """The trainer of that name. Raises KeyError if there is none; settings know valid names only."""
    found: Trainer
    if algorithm in D3RLPY:
        found = _load(D3RLPY[algorithm])()
    else:
        from rl.trainers.fit import MaskedTrainer

        found = MaskedTrainer(_load(ALGORITHMS[algorithm]))
    return found


def _load(place: str) -> type:
    module, _, name = place.partition(":")
    loaded: type = getattr(import_module(module), name)
    return loaded


__all__ = [
    "ALGORITHMS",
    "D3RLPY",
    "OnMetric",
    "Trainer",
    "TrainerSettings",
    "TrainingRecord",
    "trainer",
    "trainer_settings",
]
