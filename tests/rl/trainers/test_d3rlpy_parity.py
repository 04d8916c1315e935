"""Where no action is masked our updates are d3rlpy's: the same loss and gradients for 100 steps.

d3rlpy is untouched. Its error is Huber's with β = 1, ours the squared one: they are the same while every error stays
below 1, which is asserted. It copies its target network when `grad_step % interval == 0` before it counts the step, so
after its first update and after every `interval` more; the test copies ours at the same moments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rl.trainers import trainer, trainer_settings
from rl.trainers.algorithm import Algorithm, Sizes
from rl.trainers.batches import Batch, Inputs
from rl.trainers.d3rlpy_adapter import algorithms, d3rlpy
from rl.trainers.learner import Learner
from rl.trainers.masked import at_action

N_FEATURES, N_ACTIONS, HIDDEN, BATCH, STEPS, INTERVAL = 6, 5, (16, 8), 32, 100, 20
DISCOUNT, RATE, ALPHA = 0.9, 3e-3, 0.5


def rows(random: np.random.Generator) -> dict[str, Any]:
    return {
        "observations": random.normal(size=(BATCH, N_FEATURES)).astype(np.float32),
        "next_observations": random.normal(size=(BATCH, N_FEATURES)).astype(np.float32),
        "actions": random.integers(N_ACTIONS, size=(BATCH, 1)),
        "rewards": (0.2 * random.normal(size=(BATCH, 1))).astype(np.float32),
        "terminals": (random.random((BATCH, 1)) < 0.3).astype(np.float32),
    }


def theirs_of(drawn: dict[str, Any]) -> Any:
    return d3rlpy.dataset.TransitionMiniBatch(
        **(drawn | {"actions": drawn["actions"].astype(np.float32)}),
        next_actions=drawn["actions"].astype(np.float32),
        intervals=np.ones((BATCH, 1), dtype=np.float32),
        transitions=(),
    )


def ours_of(drawn: dict[str, Any]) -> Batch:
    one = {name: torch.from_numpy(each).squeeze(-1).unsqueeze(0) for name, each in drawn.items() if each.shape[1] == 1}
    everything = torch.ones((1, BATCH, N_ACTIONS), dtype=torch.bool)
    return Batch(
        inputs=Inputs(torch.from_numpy(drawn["observations"]).unsqueeze(0)),
        actions=one["actions"],
        mask=everything,
        rewards=one["rewards"],
        discounts=DISCOUNT * (1 - one["terminals"]),
        next_inputs=Inputs(torch.from_numpy(drawn["next_observations"]).unsqueeze(0)),
        next_mask=everything,
        returns=torch.zeros((1, BATCH)),
    )


def their_algorithm(name: str) -> Any:
    common = {
        "learning_rate": RATE,
        "gamma": DISCOUNT,
        "target_update_interval": INTERVAL,
        "encoder_factory": d3rlpy.models.VectorEncoderFactory(hidden_units=list(HIDDEN)),
    }
    config = (
        algorithms.DiscreteCQLConfig(alpha=ALPHA, **common) if name == "cql" else algorithms.DoubleDQNConfig(**common)
    )
    made = config.create(device="cpu:0")
    made.create_impl((N_FEATURES,), N_ACTIONS)
    return made


def our_learner(name: str, linears: list[torch.nn.Linear]) -> Learner:
    settings: Any = trainer_settings(
        algorithm=name,
        n_members=1,
        hidden_units=HIDDEN,
        layer_norm=False,
        learning_rate=RATE,
        target_update_interval=10 * STEPS,
        **({"conservative_weight": ALPHA} if name == "cql" else {}),
    )
    algorithm: Algorithm = trainer(name).algorithm(settings, Sizes(N_FEATURES, N_ACTIONS))  # type: ignore[attr-defined]
    learner = Learner(algorithm, settings.members(DISCOUNT), settings, torch.device("cpu"))
    with torch.no_grad():
        for layer, linear in enumerate(linears):
            learner.networks.online["q"][f"weight_{layer}"].copy_(linear.weight.T.unsqueeze(0))
            learner.networks.online["q"][f"bias_{layer}"].copy_(linear.bias.unsqueeze(0))
    learner.targets.copy_(learner.flat)
    return learner


def largest_error(learner: Learner, batch: Batch) -> float:
    values = at_action(learner.networks("q", batch.inputs), batch.actions)
    targets = learner.algorithm.targets(learner.networks, batch, {}).squeeze(-1)
    return float((values - targets).detach().abs().max())


@pytest.mark.parametrize("name", ["double_dqn", "cql"])
def test_loss_and_gradients_are_those_of_d3rlpy_for_100_steps(name: str) -> None:
    torch.manual_seed(0)
    theirs = their_algorithm(name)
    linears = [layer for layer in theirs.impl.q_function.modules() if isinstance(layer, torch.nn.Linear)]
    learner = our_learner(name, linears)
    random = np.random.default_rng(1)
    for step in range(STEPS):
        drawn = rows(random)
        batch = ours_of(drawn)
        assert largest_error(learner, batch) < 1

        gradients, metrics = learner.gradients(batch)
        gradient = torch.cat([each.reshape(-1) for each in gradients.values()])
        learner.update(batch)
        if step % INTERVAL == 0:
            learner.targets.copy_(learner.flat)
        reported = theirs.update(theirs_of(drawn))

        assert metrics["losses/total"].item() == pytest.approx(reported["loss"], abs=1e-5)
        parts = [each for linear in linears for each in (linear.weight.grad.T, linear.bias.grad)]  # type: ignore[union-attr]
        expected = torch.cat([part.reshape(-1) for part in parts])
        torch.testing.assert_close(
            gradient, expected, rtol=0, atol=1e-5, msg=lambda text, at=step: f"Step {at}. {text}"
        )
    assert gradient.abs().max() > 1e-2
