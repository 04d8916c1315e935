"""The tabular process: exact values against sampled ones, and legality."""

import numpy as np
import pytest

from rl.environments.tabular import TabularMDP


@pytest.fixture
def mdp() -> TabularMDP:
    return TabularMDP.random(5, 4, 6, seed=3, masked_share=0.3, ending_rate=0.3, reward_noise=0.1)


def test_the_exact_value_is_the_mean_return_of_sampled_episodes(mdp: TabularMDP) -> None:
    policy = mdp.softmax_policy(mdp.optimal_q_values(), temperature=0.5)

    returns = mdp.sample(policy, 40_000, seed=1).returns

    assert returns.mean() == pytest.approx(mdp.value(policy), abs=4 * returns.std() / 200)


def test_the_value_of_a_one_step_process_is_the_mean_reward() -> None:
    mdp = TabularMDP.random(2, 3, 1, seed=0)
    assert mdp.value(mdp.uniform_policy()) == pytest.approx(mdp.initial @ mdp.rewards.mean(axis=1))


def test_the_optimal_policy_reaches_the_optimal_value_and_no_other_policy_exceeds_it(mdp: TabularMDP) -> None:
    assert mdp.value(mdp.optimal_policy()) == pytest.approx(mdp.optimal_value())
    assert mdp.value(mdp.uniform_policy()) < mdp.optimal_value()


def test_sampled_actions_are_legal_and_their_propensities_true(mdp: TabularMDP) -> None:
    policy = mdp.uniform_policy()
    logs = mdp.sample(policy, 500, seed=2)

    expected = 1 / mdp.legal[logs.state_bucket].sum(axis=1)

    np.testing.assert_allclose(logs.propensities, expected, rtol=1e-6)
    assert logs.logged_mask[np.arange(logs.n_steps), logs.actions].all()


def test_the_same_seed_gives_the_same_data_set(mdp: TabularMDP) -> None:
    first, again, other = (mdp.sample(mdp.uniform_policy(), 50, seed=s).manifest for s in (1, 1, 2))
    assert first.dataset_hash == again.dataset_hash != other.dataset_hash
