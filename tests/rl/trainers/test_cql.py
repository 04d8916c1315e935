"""CQL, its Lagrange form, and the calibrated form: hand-computed updates, masks, and what they learn."""

from __future__ import annotations

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
from rl.errors import SettingsError
from rl.policies import UniformPolicy
from rl.trainers import TrainingRecord, trainer, trainer_settings

LOG_2 = float(np.log(2.0))


def _row(returns: float = 0.0, n_members: int = 1):  # type: ignore[no-untyped-def]
    """One terminal step of action 0 with reward 0; action 2 is masked."""
    return batch([0], [[1, 1, 0]], [[1, 1, 1]], rewards=[0.0], discounts=[0.0], returns=[returns], n_members=n_members)


def _tables(values: list[float], n_members: int = 1):  # type: ignore[no-untyped-def]
    return {"q": np.stack([[values, [0.0, 0, 0]]] * n_members)}


def test_the_penalty_is_log_sum_exp_over_legal_actions_minus_the_logged_value() -> None:
    cql = algorithm("cql", 2, 3)
    table = _tables([LOG_2, 0.0, 50.0])

    loss, metrics, gradients = loss_and_gradients(cql, networks(cql, table, table), _row(), conservative_weight=0.5)

    # exp(Q) = 2 and 1: log 3 − log 2; the softmax is 2/3, 1/3.
    assert metrics["losses/conservative"].item() == pytest.approx(np.log(1.5))
    assert loss.item() == pytest.approx(0.5 * LOG_2**2 + 0.5 * np.log(1.5))
    assert gradients["q"][0, 0].tolist() == pytest.approx([LOG_2 + 0.5 * (2 / 3 - 1), 0.5 / 3, 0])


@pytest.mark.parametrize("head", ["mean", "dueling", "quantile"])
@pytest.mark.parametrize("name", ["cql", "calibrated_cql"])
@pytest.mark.parametrize("gap", [None, 1.0])
def test_what_stands_at_masked_actions_enters_nothing(name: str, head: str, gap: float | None) -> None:
    conservative = algorithm(name, 32, 5, head=head, n_quantiles=3, conservative_gap=gap)

    assert_masked_outputs_change_nothing(conservative, conservative_weight=0.7)


def test_a_learned_weight_starts_as_set_and_moves_the_networks_as_a_fixed_one_does() -> None:
    table = _tables([LOG_2, 0.0, 50.0])
    fixed, learned = algorithm("cql", 2, 3), algorithm("cql", 2, 3, conservative_gap=0.1)

    _, _, expected = loss_and_gradients(fixed, networks(fixed, table, table), _row(), conservative_weight=0.5)
    _, metrics, found = loss_and_gradients(learned, networks(learned, table, table), _row(), conservative_weight=0.5)

    assert metrics["losses/conservative_weight"].item() == pytest.approx(0.5)
    torch.testing.assert_close(found["q"], expected["q"])


@pytest.mark.parametrize(("gap", "sign"), [(0.1, -1), (1.0, 1)])
def test_a_learned_weight_rises_while_the_gap_is_too_wide_and_falls_otherwise(gap: float, sign: int) -> None:
    cql = algorithm("cql", 2, 3, conservative_gap=gap)
    table = _tables([LOG_2, 0.0, 50.0])

    _, _, gradients = loss_and_gradients(cql, networks(cql, table, table), _row(), conservative_weight=0.5)

    # The derivative of −α (gap − wanted) by α's parameter, where α = 0.5 · exp(10 · tanh(0)).
    assert gradients["log_weight"].item() == pytest.approx(-0.5 * 10 * (np.log(1.5) - gap), rel=1e-5)
    assert np.sign(gradients["log_weight"].item()) == sign


@pytest.mark.parametrize("start", [{"conservative_weight": 0}, {"sweep": {"conservative_weight": (0.0, 1.0)}}])
def test_a_learned_weight_that_starts_at_0_is_refused(start: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="learns a multiple of `conservative_weight`, which is 0"):
        trainer_settings(algorithm="cql", conservative_gap=1.0, **start)


def test_a_learned_weight_brings_the_gap_to_where_it_is_wanted() -> None:
    process = TabularMDP.random(3, 3, horizon=2, seed=3, reward_noise=0.1)
    behavior = process.softmax_policy(-process.optimal_q_values(), temperature=0.05)  # the worst action, mostly
    dataset = process.sample(behavior, n_episodes=2000, seed=0)
    common = {"algorithm": "cql", "n_steps": 800, "batch_size": 128, "hidden_units": (16,), "learning_rate": 3e-3,
              "n_members": 2, "conservative_weight": 1.0, "mode": "eager", "selection_share": 0.0}  # fmt: skip
    record = TrainingRecord()

    policy = UniformPolicy(process.n_actions, process.observation_size)
    trainer("cql").fit(dataset, trainer_settings(**common, conservative_gap=0.5), policy, record)

    assert record.last("losses/conservative") == pytest.approx(0.5, abs=0.03)
    assert record.last("losses/conservative_weight") == pytest.approx(0.2, abs=0.15)


def test_a_calibrated_value_is_not_pushed_below_the_logged_return() -> None:
    calibrated = algorithm("calibrated_cql", 2, 3)
    table = _tables([LOG_2, 0.0, 50.0])

    loss, metrics, gradients = loss_and_gradients(
        calibrated, networks(calibrated, table, table), _row(returns=5.0), conservative_weight=0.5
    )

    # Both legal values lie below 5: log(2 exp 5) − log 2, which pushes nothing down.
    assert metrics["losses/conservative"].item() == pytest.approx(5.0)
    assert metrics["losses/protected_share"].item() == 1
    assert loss.item() == pytest.approx(0.5 * LOG_2**2 + 0.5 * 5)
    assert gradients["q"][0, 0].tolist() == pytest.approx([LOG_2 - 0.5, 0, 0])


def test_a_calibrated_value_above_the_logged_return_is_pushed_down_as_any() -> None:
    table = _tables([LOG_2, 0.0, 50.0])
    cql, calibrated = algorithm("cql", 2, 3), algorithm("calibrated_cql", 2, 3)

    expected = loss_and_gradients(cql, networks(cql, table, table), _row(), conservative_weight=0.5)
    found = loss_and_gradients(
        calibrated, networks(calibrated, table, table), _row(returns=-1.0), conservative_weight=0.5
    )

    torch.testing.assert_close((found[0], found[2]), (expected[0], expected[2]))
    assert found[1]["losses/protected_share"].item() == 0


@pytest.mark.parametrize("name", ["cql", "calibrated_cql"])
@pytest.mark.parametrize("head", ["mean", "dueling", "quantile"])
def test_it_finds_the_best_policy_where_the_log_covers_it(name: str, head: str) -> None:
    process = TabularMDP.random(3, 3, horizon=2, seed=3, masked_share=0.2, reward_noise=0.1)

    value, _ = learned_value(process, process.uniform_policy(), algorithm=name, head=head, n_quantiles=8)

    uniform, optimum = process.value(process.uniform_policy()), process.optimal_value()
    assert value > uniform + 0.95 * (optimum - uniform)
