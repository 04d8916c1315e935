"""BCQ: hand-computed updates, masks, and what it learns."""

from __future__ import annotations

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
from rl.policies.regularized import RegularizedQPolicy


def test_only_supported_actions_are_chosen_for_a_target() -> None:
    bcq = algorithm("bcq", 2, 4, support_ratio=0.3)
    rows = batch([0], [[1, 1, 1, 1]], [[1, 1, 1, 0]], rewards=[1.0], discounts=[0.5])
    # Next state: probabilities 5 : 2 : 1 of the legal actions, so that 5 and 2 are supported.
    log_odds = np.log([[[1.0, 1, 1, 1], [5, 2, 1, 1000]]])
    online, older = [[[3.0, 0, 0, 0], [1, 2, 8, 9]]], [[[0.0, 0, 0, 0], [10, 20, 30, 40]]]
    tables, older_tables = {"q": online, "imitation": log_odds}, {"q": older, "imitation": log_odds}

    loss, metrics, gradients = loss_and_gradients(bcq, networks(bcq, tables, older_tables), rows)

    assert metrics["losses/td"].item() == pytest.approx(0.5 * (3 - 11) ** 2)
    assert metrics["losses/imitation"].item() == pytest.approx(np.log(4))
    assert loss.item() == pytest.approx(32 + np.log(4))
    assert gradients["q"][0].tolist() == [[-8.0, 0, 0, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(gradients["imitation"][0, 0], torch.tensor([-0.75, 0.25, 0.25, 0.25]))
    assert not gradients["imitation"][0, 1].any()


def test_what_stands_at_masked_actions_enters_nothing() -> None:
    assert_masked_outputs_change_nothing(algorithm("bcq", 32, 5))


def test_it_finds_the_best_policy_where_the_log_covers_it() -> None:
    process = TabularMDP.random(3, 3, horizon=2, seed=3, masked_share=0.2, reward_noise=0.1)

    value, _ = learned_value(process, process.uniform_policy(), algorithm="bcq")

    uniform, optimum = process.value(process.uniform_policy()), process.optimal_value()
    assert value > uniform + 0.95 * (optimum - uniform)


def test_its_policy_takes_no_action_that_the_log_hardly_takes() -> None:
    process = TabularMDP.random(3, 4, horizon=2, seed=5)
    worst = np.argsort(process.rewards, axis=1) < 2
    behavior = np.broadcast_to(np.where(worst, 0.49, 0.01), (2, 3, 4))

    _, policy = learned_value(process, behavior, algorithm="bcq", support_ratio=0.3)

    assert isinstance(policy, RegularizedQPolicy)
    chosen = process.policy_table(policy).argmax(axis=-1)
    assert (behavior[np.arange(2)[:, None], np.arange(3), chosen] == 0.49).all()
