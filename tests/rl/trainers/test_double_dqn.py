"""Double DQN and its heads: hand-computed updates, masks, and the way into a stored network."""

from __future__ import annotations

from dataclasses import replace
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
from rl.policies.networks import Standardizer
from rl.trainers.batches import Inputs
from rl.trainers.heads import HUBER_KAPPA, Head, dueling, quantile_huber
from rl.trainers.networks import MLPShape
from rl.types import Observations

HEADS = ("mean", "dueling", "quantile")


def test_the_online_network_chooses_and_the_older_copy_values() -> None:
    double_dqn = algorithm("double_dqn", 2, 3)
    rows = batch([0], [[1, 1, 1]], [[1, 1, 0]], rewards=[1.0], discounts=[0.5])
    online, older = [[[3.0, 7, 0], [1, 5, 9]]], [[[0.0, 0, 0], [10, 20, 30]]]

    loss, metrics, gradients = loss_and_gradients(double_dqn, networks(double_dqn, {"q": online}, {"q": older}), rows)

    # Of the next actions 0 and 1 the online network prefers 1, worth 20: y = 1 + 0.5 · 20 = 11, and Q = 3.
    assert loss.item() == pytest.approx(0.5 * 8**2)
    assert gradients["q"].tolist() == [[[-8.0, 0, 0], [0, 0, 0]]]
    assert metrics["values/greedy"].item() == 7


def test_the_loss_is_a_mean_over_rows_of_each_member_alone() -> None:
    double_dqn = algorithm("double_dqn", 4, 2)
    rows = batch([0, 1], np.ones((2, 2)), np.ones((2, 2)), rewards=[1.0, 2.0], discounts=[0.0, 0.0], n_members=2)
    tables = np.zeros((2, 4, 2))
    tables[1] = 5.0

    loss, _, gradients = loss_and_gradients(double_dqn, networks(double_dqn, {"q": tables}, {"q": tables}), rows)

    assert loss.tolist() == pytest.approx([0.5 * (1 + 4) / 2, 0.5 * (16 + 9) / 2])
    assert gradients["q"][:, :2].tolist() == [[[-0.5, 0], [0, -1]], [[2, 0], [0, 1.5]]]


@pytest.mark.parametrize("head", HEADS)
def test_what_stands_at_masked_actions_enters_nothing(head: str) -> None:
    assert_masked_outputs_change_nothing(algorithm("double_dqn", 32, 5, head=head, n_quantiles=3))


def test_a_dueling_mean_is_over_the_legal_actions() -> None:
    outputs = torch.tensor([2.0, 1.0, 3.0, 100.0])

    values = dueling(outputs, torch.tensor([True, True, False]))

    assert values[:2].tolist() == [1.0, 3.0]


def test_the_quantile_loss_of_numbers_by_hand() -> None:
    # Levels 1/4 and 3/4. Errors of quantile 0: 1 and -0.1; of quantile 1: -1 and -2.1.
    loss = quantile_huber(torch.tensor([0.0, 2.0]), torch.tensor([1.0, -0.1]))

    linear, quadratic = (lambda error: error - HUBER_KAPPA / 2), (lambda error: error**2 / (2 * HUBER_KAPPA))
    by_hand = [0.25 * linear(1.0), 0.75 * quadratic(0.1), 0.25 * linear(1.0), 0.25 * linear(2.1)]
    assert loss.item() == pytest.approx(np.mean(by_hand))


def test_the_gradient_of_the_quantile_loss_is_its_derivative() -> None:
    generator = torch.Generator().manual_seed(0)
    quantiles = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(3, 5, generator=generator, dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda each: quantile_huber(each, targets), quantiles, eps=1e-6, atol=1e-6)


def test_quantiles_learn_the_quantiles_of_what_they_see() -> None:
    quantiles = torch.zeros(4, requires_grad=True)
    samples = torch.linspace(0, 100, 1001)
    optimizer = torch.optim.Adam([quantiles], lr=0.5)
    for _ in range(1500):
        optimizer.zero_grad()
        quantile_huber(quantiles, samples).backward()
        optimizer.step()

    assert quantiles.tolist() == pytest.approx([12.5, 37.5, 62.5, 87.5], abs=0.3)


def test_quantiles_bootstrap_from_the_quantiles_of_the_chosen_action() -> None:
    double_dqn = algorithm("double_dqn", 2, 2, head="quantile", n_quantiles=2)
    rows = batch([0], [[1, 1]], [[1, 1]], rewards=[1.0], discounts=[0.5])
    online, older = [[[0.0, 0, 0, 0], [3, 3, 1, 6]]], [[[0.0, 0, 0, 0], [9, 9, 2, 4]]]

    targets = double_dqn.targets(networks(double_dqn, {"q": online}, {"q": older}), rows, {})

    # Means 3 and 3.5: action 1, whose older quantiles are 2 and 4.
    assert targets.tolist() == [[[2.0, 3.0]]]


def test_a_lambda_return_stands_for_the_target_and_needs_no_next_observation() -> None:
    double_dqn = algorithm("double_dqn", 2, 2)
    rows = batch([0], [[1, 1]], [[1, 1]], rewards=[100.0], discounts=[1.0])
    missing: Any = None
    rows = replace(rows, lambda_returns=torch.tensor([[4.0]]), next_inputs=missing, next_mask=missing)
    table = [[[3.0, 0], [0, 0]]]

    loss, _, _ = loss_and_gradients(double_dqn, networks(double_dqn, {"q": table}, {"q": table}), rows)

    assert loss.item() == 0.5


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_the_stored_network_gives_the_values_of_the_learned_one(kind: Any, layer_norm: bool) -> None:
    random = np.random.default_rng(0)
    states, mask = random.normal(size=(64, 6)).astype(np.float32), random.random((64, 5)) < 0.5
    mask[:, 0] = True
    head = Head(kind, 5, 4 if kind == "quantile" else 1)
    shape = MLPShape(6, (7, 8), head.n_outputs, layer_norm, kind == "dueling", head.n_quantiles)
    parameters = shape.initial(torch.Generator().manual_seed(1))
    standardizer = Standardizer.fit(states)

    stored = shape.stored({name: each.numpy() for name, each in parameters.items()}, standardizer, scale=3.0)

    inputs = Inputs(torch.from_numpy(standardizer(states)).unsqueeze(0))
    outputs = shape({name: each.unsqueeze(0) for name, each in parameters.items()}, inputs)
    learned = 3.0 * head.values(outputs, torch.from_numpy(mask)).squeeze(0).numpy()
    np.testing.assert_allclose(stored(Observations(states), mask)[mask], learned[mask], rtol=1e-5, atol=1e-5)
    assert stored.n_actions == 5


@pytest.mark.parametrize("head", HEADS)
def test_it_finds_the_best_policy_of_a_small_process(head: str) -> None:
    process = TabularMDP.random(3, 3, horizon=2, seed=3, masked_share=0.2, reward_noise=0.1)

    value, _ = learned_value(process, process.uniform_policy(), algorithm="double_dqn", head=head, n_quantiles=8)

    uniform, optimum = process.value(process.uniform_policy()), process.optimal_value()
    assert value > uniform + 0.95 * (optimum - uniform)
