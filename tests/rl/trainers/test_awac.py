"""AWAC and CRR: hand-computed updates, masks, and what they learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import (
    algorithm,
    assert_masked_outputs_change_nothing,
    batch,
    learned_value,
    loss_and_gradients,
    networks,
)

from rl.environments.tabular import TabularMDP
from rl.trainers.algorithm import Algorithm

KNOBS = {"awac": {"inverse_temperature": 4.0}, "crr": {}}
NAMES = sorted(KNOBS)


def update(name: str, action: int) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One row: Q 2 and 1 and a probability of ¾ and ¼ of the legal actions, a reward of 1 and a discount of ½."""
    made: Algorithm = algorithm(name, 2, 3)
    rows = batch([action], [[1, 1, 0]], [[1, 1, 0]], rewards=[1.0], discounts=[0.5])
    actor = np.log([[[3.0, 1, 1e9], [1, 3, 1e9]]])
    online = {"q": [[[2.0, 1, 1e6], [99, 99, 99]]], "actor": actor}
    older = {"q": [[[99.0, 99, 99], [2, 6, 1e6]]], "actor": np.zeros((1, 2, 3))}
    return loss_and_gradients(made, networks(made, online, older), rows, **KNOBS[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_critic_learns_what_the_actor_is_expected_to_reach(name: str) -> None:
    _, metrics, gradients = update(name, action=0)

    # Next state: ¼ · 2 + ¾ · 6 = 5, so the target is 1 + 0.5 · 5.
    assert metrics["losses/td"].item() == pytest.approx(0.5 * 1.5**2)
    assert metrics["values/state"].item() == pytest.approx(1.75)
    torch.testing.assert_close(gradients["q"][0], torch.tensor([[-1.5, 0, 0], [0, 0, 0]]))


@pytest.mark.parametrize(
    ("name", "action", "weight"),
    [("awac", 0, math.e), ("awac", 1, math.exp(-3)), ("crr", 0, 1.0), ("crr", 1, 0.0)],
)
def test_the_actor_imitates_with_the_weight_of_the_advantage(name: str, action: int, weight: float) -> None:
    loss, metrics, gradients = update(name, action)

    probabilities, taken = torch.tensor([0.75, 0.25, 0]), torch.eye(3)[action]
    actor = -weight * math.log(probabilities[action])
    assert metrics["policy/weight"].item() == pytest.approx(weight)
    assert metrics["losses/actor"].item() == pytest.approx(actor)
    assert loss.item() == pytest.approx(metrics["losses/td"].item() + actor)
    torch.testing.assert_close(gradients["actor"][0, 0], weight * (probabilities - taken))
    assert not gradients["actor"][0, 1].any()


def test_the_weight_is_cut_at_its_setting() -> None:
    awac = algorithm("awac", 2, 2, largest_weight=7.0)
    rows = batch([0], [[1, 1]], [[1, 1]], rewards=[0.0], discounts=[0.0])
    tables = {"q": [[[50.0, 0], [0, 0]]], "actor": np.zeros((1, 2, 2))}

    _, metrics, gradients = loss_and_gradients(awac, networks(awac, tables, tables), rows, **KNOBS["awac"])

    assert metrics["policy/weight"].item() == 7.0
    assert gradients["actor"][0, 0].tolist() == [-3.5, 3.5]


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_at_masked_actions_enters_nothing(name: str) -> None:
    assert_masked_outputs_change_nothing(algorithm(name, 32, 5), **KNOBS[name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("returns", [{}, {"return_lambda": 0.3}])
def test_they_find_the_best_policy_where_the_log_covers_it(name: str, returns: dict[str, float]) -> None:
    process = TabularMDP.random(3, 3, horizon=2, seed=3, masked_share=0.2, reward_noise=0.1)
    chosen = {"inverse_temperature": 10.0} if name == "awac" else {}

    value, _ = learned_value(process, process.uniform_policy(), algorithm=name, **chosen, **returns)

    uniform, optimum = process.value(process.uniform_policy()), process.optimal_value()
    assert value > uniform + 0.9 * (optimum - uniform)
