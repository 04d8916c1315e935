"""Conservative actor-critic: hand-computed updates, masks, and what it learns."""

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

NAME = "conservative_actor_critic"
KNOBS = {"conservative_weight": 0.3, "entropy_weight": 0.2}


def test_a_hand_computed_update() -> None:
    made = algorithm(NAME, 2, 3)
    rows = batch([0], [[1, 1, 0]], [[1, 1, 0]], rewards=[1.0], discounts=[0.5])
    actor = np.log([[[3.0, 1, 1e9], [1, 3, 1e9]]])
    online = {"q_1": [[[2.0, 1, 1e6], [99] * 3]], "q_2": [[[3.0, 0, 1e6], [99] * 3]], "actor": actor}
    older = {"q_1": [[[99.0] * 3, [2, 6, 1e6]]], "q_2": [[[99.0] * 3, [1, 8, 1e6]]], "actor": np.zeros((1, 2, 3))}

    loss, metrics, gradients = loss_and_gradients(made, networks(made, online, older), rows, **KNOBS)

    # Next state: the lower values are 1 and 6, so ¼ · 1 + ¾ · 6 = 4.75 and the target 1 + 0.5 · 4.75 = 3.375.
    td = 0.5 * (2 - 3.375) ** 2 + 0.5 * (3 - 3.375) ** 2
    conservative = math.log(math.exp(2) + math.e) - 2 + math.log(math.exp(3) + 1) - 3
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    value = 0.75 * 2  # the lower values here are 2 and 0
    assert metrics["losses/td"].item() == pytest.approx(td)
    assert metrics["losses/conservative"].item() == pytest.approx(conservative)
    assert metrics["values/state"].item() == pytest.approx(value)
    assert metrics["policy/entropy"].item() == pytest.approx(entropy)
    assert metrics["losses/actor"].item() == pytest.approx(-(value + 0.2 * entropy))
    assert loss.item() == pytest.approx(td + 0.3 * conservative - value - 0.2 * entropy)

    first, second = torch.tensor([2.0, 1]).softmax(0), torch.tensor([3.0, 0]).softmax(0)
    taken, probabilities = torch.tensor([1.0, 0]), torch.tensor([0.75, 0.25])
    torch.testing.assert_close(gradients["q_1"][0, 0, :2], (2 - 3.375) * taken + 0.3 * (first - taken))
    torch.testing.assert_close(gradients["q_2"][0, 0, :2], (3 - 3.375) * taken + 0.3 * (second - taken))
    soft = torch.tensor([2.0, 0]) - 0.2 * probabilities.log()
    torch.testing.assert_close(gradients["actor"][0, 0, :2], -probabilities * (soft - probabilities @ soft))
    for gradient in gradients.values():
        assert not gradient[0, 0, 2].any()
        assert not gradient[0, 1].any()


def test_what_stands_at_masked_actions_enters_nothing() -> None:
    assert_masked_outputs_change_nothing(algorithm(NAME, 32, 5), **KNOBS)


@pytest.mark.parametrize("returns", [{}, {"return_lambda": 0.3}])
def test_it_finds_the_best_policy_where_the_log_covers_it(returns: dict[str, float]) -> None:
    process = TabularMDP.random(3, 3, horizon=2, seed=3, masked_share=0.2, reward_noise=0.1)

    value, _ = learned_value(
        process, process.uniform_policy(), algorithm=NAME, conservative_weight=0.02, entropy_weight=0.01, **returns
    )

    uniform, optimum = process.value(process.uniform_policy()), process.optimal_value()
    assert value > uniform + 0.9 * (optimum - uniform)


def test_a_larger_entropy_weight_gives_more_even_choices() -> None:
    process = TabularMDP.random(3, 3, horizon=2, seed=3)

    def entropy(weight: float) -> float:
        chosen = {"entropy_weight": weight, "n_steps": 100}
        _, policy = learned_value(process, process.uniform_policy(), algorithm=NAME, **chosen)
        table = process.policy_table(policy)
        return float(-(table * np.log(np.maximum(table, 1e-12))).sum(axis=-1).mean())

    assert entropy(0.01) + 0.3 < entropy(1.0) <= math.log(3)
