"""The decision head: temperature from a divergence, and safe arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from rl.policies.networks import log_masked_softmax, mean_divergence
from rl.policies.regularized import find_temperature, tilted_probabilities
from rl.types import Bool2D, Float2D


def _rows(seed: int = 0) -> tuple[Float2D, Float2D, Bool2D]:
    """(behavior probabilities, Q, mask) of 500 rows and 6 actions, a third of them masked."""
    rng = np.random.default_rng(seed)
    mask = rng.random((500, 6)) > 0.3
    mask[:, 0] = True
    behavior = np.exp(log_masked_softmax(rng.normal(size=(500, 6)), mask))
    return behavior, 20.0 * rng.normal(size=(500, 6)), mask


@pytest.mark.parametrize("limit", [1e-4, 0.02, 0.08, 0.5])
def test_the_mean_divergence_is_the_limit(limit: float) -> None:
    behavior, q_values, mask = _rows()

    temperature, divergence = find_temperature(behavior, q_values, mask, limit)

    policy = tilted_probabilities(
        np.log(behavior, where=mask, out=np.full(mask.shape, -np.inf)), q_values, temperature, mask
    )
    with np.errstate(divide="ignore"):
        recomputed = mean_divergence(np.log(policy), np.log(behavior))
    assert divergence == pytest.approx(limit, rel=1e-6)
    assert recomputed == pytest.approx(limit, rel=1e-6)


def test_two_actions_have_the_divergence_of_the_formula() -> None:
    behavior, q_values = np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])

    temperature, _ = find_temperature(behavior, q_values, np.ones((1, 2), dtype=bool), 0.1)

    better = 1 / (1 + np.exp(-1 / temperature))
    assert better * np.log(2 * better) + (1 - better) * np.log(2 * (1 - better)) == pytest.approx(0.1)


def test_the_unit_of_the_reward_does_not_change_the_policy() -> None:
    behavior, q_values, mask = _rows()

    in_euros, _ = find_temperature(behavior, q_values, mask, 0.08)
    in_cents, _ = find_temperature(behavior, 100 * q_values, mask, 0.08)

    assert in_cents == pytest.approx(100 * in_euros, rel=1e-6)


def test_a_limit_out_of_reach_gives_the_greedy_policy_and_says_how_far_it_came() -> None:
    behavior, q_values, mask = _rows()

    temperature, divergence = find_temperature(behavior, q_values, mask, 50.0)

    with np.errstate(divide="ignore"):
        policy = tilted_probabilities(np.log(behavior), q_values, temperature, mask)
    best = np.where(mask, q_values, -np.inf).argmax(axis=1)
    assert 0 < divergence < 50
    assert policy[np.arange(500), best].mean() > 0.999


def test_equal_values_leave_the_behavior_policy_as_it_is() -> None:
    behavior, _, mask = _rows()

    temperature, divergence = find_temperature(behavior, np.full(mask.shape, 3.0), mask, 0.08)

    with np.errstate(divide="ignore"):
        policy = tilted_probabilities(np.log(behavior), np.full(mask.shape, 3.0), temperature, mask)
    assert divergence == 0.0
    np.testing.assert_allclose(policy, behavior, atol=1e-12)


def test_an_action_that_the_log_never_takes_stays_at_zero_even_when_its_value_is_huge() -> None:
    with np.errstate(divide="ignore"):
        log_behavior = np.log(np.array([[0.5, 0.5, 0.0]]))

    policy = tilted_probabilities(log_behavior, np.array([[1.0, 0.0, 1e30]]), 1e-9, np.ones((1, 3), dtype=bool))

    np.testing.assert_allclose(policy, [[1.0, 0.0, 0.0]], atol=1e-12)


def test_masked_values_do_not_count_however_large() -> None:
    behavior, q_values, mask = _rows()

    plain, _ = find_temperature(behavior, q_values, mask, 0.08)
    with_noise, _ = find_temperature(behavior, np.where(mask, q_values, 1e8), mask, 0.08)

    assert with_noise == pytest.approx(plain)
