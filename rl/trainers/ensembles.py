"""From the weights of a learner to the policy of one setting: its members' networks as one ensemble that acts in numpy.

Here: which networks, in which unit. Not here: the head they act through (`rl.trainers.decision`), its choice among
settings (`rl.trainers.selection`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rl.policies.scores import Scores, Support
from rl.trainers.decision import Decided, Situations, decided_in
from rl.trainers.learner import Learner
from rl.trainers.prepared import Prepared
from rl.types import Float3D

Weights = dict[tuple[str, str], Tensor]
"""(M, …) by network and name."""


class Ensembles:
    """The settings of a learner; members of one setting stand together and act as one."""

    def __init__(self, learner: Learner, prepared: Prepared) -> None:
        self._learner, self._prepared = learner, prepared
        self._n_members = learner.settings.n_members

    def __len__(self) -> int:
        return len(self._learner.members) // self._n_members

    def members(self, setting: int) -> slice:
        """Which members share the setting."""
        return slice(setting * self._n_members, (setting + 1) * self._n_members)

    def decided(self, setting: int, situations: Situations) -> Decided:
        """The policy of the setting as its weights are now."""
        settings, algorithm = self._learner.settings, self._learner.algorithm
        is_actor = algorithm.decides_by == "actor"
        pessimism = 0.0 if is_actor else settings.pessimism
        scores = self._scores(setting, algorithm.decision_network, not is_actor, pessimism)
        support = None
        if algorithm.support_network:
            imitation = self._scores(setting, algorithm.support_network, in_reward_units=False)
            support = Support(imitation, settings.support_ratio)  # type: ignore[attr-defined]
        return decided_in(situations, scores, settings, is_actor=is_actor, support=support)

    def values(self, setting: int, situations: Situations, decided: Decided) -> Float3D | None:
        """(M, B, A) Q of the setting's members in reward units; None where the algorithm learns no Q."""
        algorithm = self._learner.algorithm
        if algorithm.decides_by == "values":
            return decided.member_scores
        critics = [self._scores(setting, name, in_reward_units=True) for name in algorithm.critic_networks]
        if not critics:
            return None
        return np.asarray(np.mean([situations.scores(each, situations.mask) for each in critics], axis=0))

    def weights(self) -> Weights:
        """A copy of all weights."""
        online = self._learner.networks.online
        return {
            (network, name): part.detach().clone() for network, parts in online.items() for name, part in parts.items()
        }

    def keep(self, setting: int, kept: Weights) -> None:
        """Write the setting's weights as they are now into a copy."""
        members = self.members(setting)
        for (network, name), part in kept.items():
            part[members] = self._learner.networks.online[network][name].detach()[members]

    def restore(self, kept: Mapping[tuple[str, str], Tensor]) -> None:
        """Take a copy's weights back."""
        with torch.no_grad():
            for (network, name), part in kept.items():
                self._learner.networks.online[network][name].copy_(part)

    def _scores(self, setting: int, network: str, in_reward_units: bool, pessimism: float = 0.0) -> Scores:
        shape = self._learner.networks.shapes[network]
        scale = self._prepared.scale if in_reward_units else 1.0
        members = range(*self.members(setting).indices(len(self._learner.members)))
        weights = (self._learner.weights(number, network) for number in members)
        return Scores(tuple(shape.stored(each, self._prepared.standardizer, scale) for each in weights), pessimism)
