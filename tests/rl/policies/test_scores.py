"""What learned policies rank actions by: ensembles, dueling networks, layer norm, support; with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rl.errors import PolicyError
from rl.policies import RegularizedQPolicy, Scores, SoftmaxPolicy, UniformPolicy
from rl.policies.networks import MLP, ScoreNetwork, Standardizer, dueling_values, layer_normed, network_from_state
from rl.policies.scores import Support
from rl.types import Bool2D, Observations

ONE_ROW = Observations(np.zeros((1, 2), dtype=np.float32))


def _constant(*scores: float, **changes: bool) -> MLP:
    """A network that gives the same scores everywhere."""
    weights = (np.zeros((len(scores), 2), dtype=np.float32),)
    plain = Standardizer(np.zeros(2, dtype=np.float32), np.ones(2, dtype=np.float32))
    return MLP(plain, weights, (np.array(scores, dtype=np.float32),), (), **changes)


def _mask(*legal: bool) -> Bool2D:
    return np.array([legal])


def test_an_ensemble_scores_its_mean_minus_its_spread() -> None:
    members = (_constant(1.0, 5.0), _constant(3.0, 5.0))

    scores = Scores.of(*members, pessimism=2.0)(ONE_ROW, _mask(True, True))

    np.testing.assert_allclose(scores, [[2.0 - 2.0 * np.sqrt(2.0), 5.0]])


def test_one_member_has_no_spread() -> None:
    np.testing.assert_allclose(Scores.of(_constant(1.0, 5.0), pessimism=9.0)(ONE_ROW, _mask(True, True)), [[1.0, 5.0]])


def test_pessimism_turns_a_greedy_policy_away_from_what_members_disagree_on() -> None:
    members = (_constant(0.0, 1.0), _constant(4.0, 1.0))
    behavior = UniformPolicy(2, 2)

    bold, careful = (
        RegularizedQPolicy(Scores.of(*members, pessimism=pessimism), behavior, 0.0, "greedy") for pessimism in (0, 1)
    )

    np.testing.assert_array_equal(bold.action_probabilities(ONE_ROW, _mask(True, True)), [[1.0, 0.0]])
    np.testing.assert_array_equal(careful.action_probabilities(ONE_ROW, _mask(True, True)), [[0.0, 1.0]])


def test_members_of_other_sizes_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"there are 2 with the sizes \(features, actions\) \[\(2, 2\), \(2, 3\)\]"):
        Scores.of(_constant(1.0, 2.0), _constant(1.0, 2.0, 3.0))


def test_a_dueling_network_takes_off_the_mean_advantage_of_legal_actions() -> None:
    network = _constant(10.0, 1.0, 3.0, 500.0, is_dueling=True)

    assert network.n_actions == 3
    np.testing.assert_allclose(network(ONE_ROW, _mask(True, True, False))[0, :2], [9.0, 11.0])
    outputs = np.array([[10.0, 1.0, 3.0]], dtype=np.float32)
    np.testing.assert_array_equal(dueling_values(outputs, _mask(True, True, True), is_dueling=False), outputs)


def test_a_scaled_dueling_network_scales_values() -> None:
    network = _constant(10.0, 1.0, 3.0, is_dueling=True)

    np.testing.assert_allclose(network.scaled(2.0)(ONE_ROW, _mask(True, True)), [[18.0, 22.0]])


def test_layer_norm_has_mean_0_and_deviation_1_then_scale_and_shift() -> None:
    hidden = np.array([[1.0, 2.0, 3.0, 6.0]], dtype=np.float32)
    scale, shift = np.full(4, 2.0, dtype=np.float32), np.full(4, 7.0, dtype=np.float32)

    normed = layer_normed(hidden, scale, shift)

    assert normed.mean() == pytest.approx(7.0)
    assert normed.std() == pytest.approx(2.0, rel=1e-4)


def test_greedy_takes_the_first_of_equal_values_and_no_masked_one() -> None:
    policy = RegularizedQPolicy(Scores.of(_constant(9.0, 5.0, 5.0)), UniformPolicy(3, 2), 0.0, "greedy")

    np.testing.assert_array_equal(policy.action_probabilities(ONE_ROW, _mask(False, True, True)), [[0.0, 1.0, 0.0]])


def test_support_leaves_out_what_the_imitation_finds_unlikely_and_never_all() -> None:
    imitation = Scores.of(_constant(*np.log([0.6, 0.3, 0.1])))
    support = Support(imitation, 0.4)

    np.testing.assert_array_equal(support(ONE_ROW, _mask(True, True, True)), [[True, True, False]])
    np.testing.assert_array_equal(support(ONE_ROW, _mask(False, True, True)), [[False, True, False]])
    np.testing.assert_array_equal(support(ONE_ROW, _mask(False, False, True)), [[False, False, True]])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_supported_policy_never_leaves_the_support(temperature: float) -> None:
    support = Support(Scores.of(_constant(*np.log([0.6, 0.3, 0.1]))), 0.4)
    policy = RegularizedQPolicy(Scores.of(_constant(0.0, 1.0, 99.0)), UniformPolicy(3, 2), temperature, "bcq", support)

    found = policy.action_probabilities(ONE_ROW, _mask(True, True, True))

    better = 1.0 if temperature == 0 else 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(found, [[1 - better, better, 0.0]])


def test_actors_of_an_ensemble_act_on_their_mean_score() -> None:
    policy = SoftmaxPolicy(Scores.of(_constant(0.0, 0.0), _constant(2.0, 0.0)), "actor")

    found = policy.action_probabilities(ONE_ROW, _mask(True, True))

    np.testing.assert_allclose(found, [[1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(1.0))]])


class _Recalling(ScoreNetwork):
    """Stands for a network that reads the utterances."""

    kind = "recalling"
    reads_history = True
    observation_size, n_actions = 2, 2

    def __call__(self, observations: Observations, action_mask: Bool2D) -> NDArray[np.float32]:
        raise AssertionError("asked without the utterances")

    def fields(self) -> dict[str, object]:
        return {}

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        return {}

    @classmethod
    def from_state(cls, fields: object, arrays: object) -> _Recalling:
        return cls()


def test_a_policy_that_reads_utterances_says_so_when_they_are_missing() -> None:
    policies = [
        SoftmaxPolicy(Scores.of(_Recalling()), "sasrec"),
        RegularizedQPolicy(Scores.of(_Recalling()), UniformPolicy(2, 2), 1.0, "sasrec"),
    ]

    for policy in policies:
        with pytest.raises(PolicyError, match="'sasrec' reads the history of each dialogue, and the observations lack"):
            policy.action_probabilities(ONE_ROW, _mask(True, True))


def test_an_unknown_kind_of_network_is_named() -> None:
    with pytest.raises(PolicyError, match=r"of the kind 'oracle'; known are .*mlp"):
        network_from_state({"kind": "oracle"}, {})


def test_a_policy_without_networks_is_refused() -> None:
    with pytest.raises(PolicyError, match="has no network"):
        Scores.from_state({"pessimism": 0.0, "networks": []}, {})
