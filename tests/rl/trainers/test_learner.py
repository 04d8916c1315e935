"""The learner: Adam against torch's, members against themselves alone, resumption to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rl.datasets.transitions import TransitionSet
from rl.environments.tabular import TabularMDP
from rl.policies.networks import Standardizer
from rl.trainers import ALGORITHMS, trainer, trainer_settings
from rl.trainers.algorithm import Sizes
from rl.trainers.batches import ResidentRows
from rl.trainers.learner import Learner, bias_corrections, descend
from rl.trainers.settings import Member

CPU = torch.device("cpu")
MARKOV = sorted(set(ALGORITHMS) - {"decision_transformer"})
"""The algorithms that learn from single transitions."""


@pytest.fixture(scope="module")
def dataset() -> TransitionSet:
    process = TabularMDP.random(5, 4, horizon=4, seed=1, masked_share=0.25, ending_rate=0.2, reward_noise=0.2)
    return process.sample(process.uniform_policy(), n_episodes=300, seed=0)


def learner_of(dataset: TransitionSet, algorithm: str, members: tuple[Member, ...] = (), **changes: Any) -> Learner:
    fields: dict[str, Any] = {"batch_size": 16, "hidden_units": (16, 8), "learning_rate": 1e-3, "mode": "eager"}
    if algorithm != "behavior_cloning":
        fields["target_update_interval"] = 13
    settings: Any = trainer_settings(algorithm=algorithm, **(fields | {"n_members": 1} | changes))
    made = trainer(algorithm).algorithm(settings, Sizes(dataset.observation_size, dataset.n_actions))  # type: ignore[attr-defined]
    return Learner(made, members or settings.members(0.95), settings, CPU)


def rows_of(dataset: TransitionSet, learner: Learner) -> ResidentRows:
    discounts = tuple(member.knobs["discount"] for member in learner.members)
    return learner.algorithm.rows(dataset, Standardizer.fit(dataset.observations), 1.0, discounts, learner.device)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_step_is_that_of_torchs_adamw(weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(50, generator=generator)
    theirs = ours.clone().requires_grad_()
    optimizer = torch.optim.AdamW([theirs], lr=0.01, weight_decay=weight_decay)
    first, second = torch.zeros(50), torch.zeros(50)
    for corrections in bias_corrections(1, 100):
        theirs.grad = torch.randn(50, generator=generator)
        descend(ours, first, second, theirs.grad, torch.tensor([0.01]), corrections, weight_decay)
        optimizer.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("algorithm", MARKOV)
def test_a_member_of_a_sweep_equals_the_same_member_alone(dataset: TransitionSet, algorithm: str) -> None:
    base = learner_of(dataset, algorithm).members[0].knobs
    members = (
        Member(0, base),
        Member(3, {name: value * 0.9 for name, value in base.items()}),
        Member(5, base | {"learning_rate": 3e-3, "discount": 0.5}),
    )
    together = learner_of(dataset, algorithm, members)
    reported = together.advance(rows_of(dataset, together), 60)
    for number, member in enumerate(members):
        alone = learner_of(dataset, algorithm, (member,))
        metrics = alone.advance(rows_of(dataset, alone), 60)
        for network in alone.networks.online:
            for name, weight in alone.weights(0, network).items():
                # Sums in another order differ by 1e-7; 60 steps of Adam, up to 3e-3 long, carry that on.
                np.testing.assert_allclose(together.weights(number, network)[name], weight, rtol=0, atol=2e-4)
        for name, values in metrics.items():
            assert reported[name][number] == pytest.approx(values[0], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("algorithm", ["cql", "behavior_cloning"])
def test_a_resumed_training_has_the_same_weights_to_the_last_bit(dataset: TransitionSet, algorithm: str) -> None:
    whole, begun, resumed = (learner_of(dataset, algorithm, batch_size=17, n_members=2) for _ in range(3))
    whole.advance(rows_of(dataset, whole), 150)
    begun.advance(rows_of(dataset, begun), 71)
    resumed.load_state({name: tensor.clone() for name, tensor in begun.state().items()})
    resumed.advance(rows_of(dataset, resumed), 79)
    for name, tensor in whole.state().items():
        assert torch.equal(resumed.state()[name], tensor), name
