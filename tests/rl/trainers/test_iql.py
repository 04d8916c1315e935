"""IQL: hand-computed updates, masks, and what it learns."""

from __future__ import annotations

import math

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
from rl.trainers.iql import advantage_weight, expectile_loss

KNOBS = {"expectile": 0.8, "inverse_temperature": 0.5}


def test_a_value_that_is_too_low_costs_more_than_one_that_is_too_high() -> None:
    difference = torch.tensor([2.0, -2.0, 0.0])

    loss = expectile_loss(difference, torch.tensor(0.8))

    torch.testing.assert_close(loss, torch.tensor([0.8 * 4, 0.2 * 4, 0.0]))


def test_the_minimum_of_the_expectile_loss_moves_from_the_mean_to_the_largest_value() -> None:
    values = torch.tensor([0.0, 0.0, 0.0, 1.0])
    grid = torch.linspace(0, 1, 1001)

    def best(expectile: float) -> float:
        return float(grid[expectile_loss(values - grid[:, None], torch.tensor(expectile)).sum(1).argmin()])

    # The minimum solves τ (1 − v) = 3 (1 − τ) v.
    assert best(0.5) == pytest.approx(0.25, abs=1e-3)
    assert best(0.9) == pytest.approx(0.75, abs=1e-3)


def test_weights_grow_with_the_advantage_up_to_the_cut() -> None:
    advantage = torch.tensor([-1.0, 0.0, 0.5, 10.0], requires_grad=True)

    weight = advantage_weight(advantage, torch.tensor(2.0), 100.0)

    torch.testing.assert_close(weight, torch.tensor([math.exp(-2), 1.0, math.e, 100.0]))
    assert not weight.requires_grad


def test_a_hand_computed_update() -> None:
    iql = algorithm("iql", 4, 3)
    rows = batch([0, 1], [[1, 1, 0]] * 2, [[1, 1, 1]] * 2, rewards=[1.0, 0.0], discounts=[0.5, 0.0])
    odds = np.log([[3.0, 1, 1e9], [3, 1, 1e9], [1, 1, 1], [1, 1, 1]])
    online = {"q": [[[2.0, 0, 0], [0, 7, 0], [99] * 3, [99] * 3]], "v": [[[1.0], [5], [4], [99]]], "actor": [odds]}
    older = {"q": [[[3.0, 0, 0], [0, 4, 0], [99] * 3, [99] * 3]], "v": [[[99.0]] * 4]}

    loss, metrics, gradients = loss_and_gradients(iql, networks(iql, online, older), rows, **KNOBS)

    # Targets of Q: 1 + 0.5 · 4 and 0. Advantages: 3 − 1 and 4 − 5.
    weights = [math.e, math.exp(-0.5)]
    actor = -(weights[0] * math.log(0.75) + weights[1] * math.log(0.25)) / 2
    assert metrics["losses/td"].item() == pytest.approx((0.5 * 1 + 0.5 * 49) / 2)
    assert metrics["losses/value"].item() == pytest.approx((0.8 * 4 + 0.2 * 1) / 2)
    assert metrics["losses/actor"].item() == pytest.approx(actor)
    assert metrics["policy/weight"].item() == pytest.approx(sum(weights) / 2)
    assert metrics["values/state"].item() == pytest.approx(3.0)
    assert loss.item() == pytest.approx(12.5 + 1.7 + actor, rel=1e-6)
    assert gradients["q"][0].tolist() == [[-0.5, 0, 0], [0, 3.5, 0], [0, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(gradients["v"][0, :, 0], torch.tensor([-1.6, 0.2, 0, 0]))
    torch.testing.assert_close(gradients["actor"][0, 0], weights[0] / 2 * torch.tensor([-0.25, 0.25, 0]))
    torch.testing.assert_close(gradients["actor"][0, 1], weights[1] / 2 * torch.tensor([0.75, -0.75, 0]))


def test_the_weight_is_cut_at_its_setting() -> None:
    iql = algorithm("iql", 2, 2, largest_weight=7.0)
    rows = batch([0], [[1, 1]], [[1, 1]], rewards=[0.0], discounts=[0.0])
    tables = {"q": np.full((1, 2, 2), 50.0), "v": np.zeros((1, 2, 1)), "actor": np.zeros((1, 2, 2))}

    _, metrics, gradients = loss_and_gradients(iql, networks(iql, tables, tables), rows, **KNOBS)

    assert metrics["policy/weight"].item() == 7.0
    assert gradients["actor"][0, 0].tolist() == [-3.5, 3.5]


def test_what_stands_at_masked_actions_enters_nothing() -> None:
    assert_masked_outputs_change_nothing(algorithm("iql", 32, 5), **KNOBS)


@pytest.mark.parametrize("returns", [{}, {"return_lambda": 0.7}])
def test_it_finds_the_best_policy_where_the_log_covers_it(returns: dict[str, float]) -> None:
    process = TabularMDP.random(3, 3, horizon=2, seed=3, masked_share=0.2, reward_noise=0.1)

    value, _ = learned_value(
        process, process.uniform_policy(), algorithm="iql", expectile=0.9, inverse_temperature=10.0, **returns
    )

    uniform, optimum = process.value(process.uniform_policy()), process.optimal_value()
    assert value > uniform + 0.9 * (optimum - uniform)
