"""The contract that every stored policy keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rl.errors import PolicyError
from rl.policies import (
    BehaviorModel,
    RegularizedQPolicy,
    Scores,
    SoftmaxPolicy,
    StoredPolicy,
    UniformPolicy,
    load_policy,
)
from rl.policies.networks import MLP, Standardizer
from rl.policies.scores import Support
from rl.types import Bool2D, Observations, Policy

N_FEATURES, N_ACTIONS = 6, 5


def _network(seed: int, is_dueling: bool = False, has_norms: bool = False) -> MLP:
    rng = np.random.default_rng(seed)
    standardizer = Standardizer.fit(rng.normal(2.0, 3.0, size=(50, N_FEATURES)).astype(np.float32))
    sizes = [(8, N_FEATURES), (N_ACTIONS + is_dueling, 8)]
    weights = tuple(rng.normal(size=size).astype(np.float32) for size in sizes)
    biases = tuple(np.zeros(size[0], dtype=np.float32) for size in sizes)
    norms = (rng.normal(1.0, 0.3, size=(2, 8)).astype(np.float32),) if has_norms else ()
    return MLP(standardizer, weights, biases, norms, is_dueling)


def _behavior(seed: int = 0) -> BehaviorModel:
    network = _network(seed)
    weights = np.random.default_rng(seed).normal(size=(N_ACTIONS, N_FEATURES)).astype(np.float32)
    return BehaviorModel(network.standardizer, weights, np.zeros(N_ACTIONS, dtype=np.float32), floor=0.01)


IMITATION = SoftmaxPolicy(Scores.of(_network(1)), "imitation")
ENSEMBLE = Scores.of(*(_network(seed, is_dueling=True, has_norms=True) for seed in (2, 3, 4)), pessimism=1.5)

POLICIES: dict[str, StoredPolicy] = {
    "uniform": UniformPolicy(N_ACTIONS, N_FEATURES),
    "behavior_model": _behavior(),
    "softmax": IMITATION,
    "softmax_of_many": SoftmaxPolicy(Scores.of(_network(1), _network(2, has_norms=True)), "actors"),
    "regularized_q": RegularizedQPolicy(Scores.of(_network(2)), _behavior(3), temperature=0.7, name="cql"),
    "nearly_greedy": RegularizedQPolicy(Scores.of(_network(2).scaled(1e6)), _behavior(3), 1e-6, "nearly_greedy"),
    "greedy": RegularizedQPolicy(ENSEMBLE, _behavior(3), temperature=0.0, name="greedy"),
    "ensemble": RegularizedQPolicy(ENSEMBLE, _behavior(3), temperature=0.7, name="ensemble"),
    "supported": RegularizedQPolicy(ENSEMBLE, _behavior(3), 0.7, "supported", Support(IMITATION.scores, 0.3)),
    "nested": RegularizedQPolicy(Scores.of(_network(4)), IMITATION, temperature=2.0, name="nested"),
}


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> StoredPolicy:
    return POLICIES[request.param]


def _inputs(n_rows: int = 200) -> tuple[Observations, Bool2D]:
    rng = np.random.default_rng(7)
    mask = rng.random((n_rows, N_ACTIONS)) < 0.5
    mask[np.arange(n_rows), rng.integers(N_ACTIONS, size=n_rows)] = True
    return Observations(rng.normal(size=(n_rows, N_FEATURES)).astype(np.float32) * 100), mask


def test_rows_sum_to_one_and_masked_actions_have_no_probability(policy: StoredPolicy) -> None:
    observations, mask = _inputs()

    probabilities = policy.action_probabilities(observations, mask)

    assert isinstance(policy, Policy)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-12)
    assert (probabilities[~mask] == 0).all()
    assert (probabilities >= 0).all()


def test_a_single_legal_action_is_certain(policy: StoredPolicy) -> None:
    observations, _ = _inputs(N_ACTIONS)

    probabilities = policy.action_probabilities(observations, np.eye(N_ACTIONS, dtype=bool))

    np.testing.assert_allclose(probabilities, np.eye(N_ACTIONS), atol=1e-12)


def test_a_saved_policy_acts_as_before(policy: StoredPolicy, tmp_path: Path) -> None:
    observations, mask = _inputs()

    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")

    written = sorted(path.name for path in (tmp_path / "policy").iterdir())
    assert written == ["policy.json", "policy.safetensors"]
    assert (loaded.name, loaded.kind, loaded.n_actions) == (policy.name, policy.kind, N_ACTIONS)
    np.testing.assert_array_equal(
        loaded.action_probabilities(observations, mask), policy.action_probabilities(observations, mask)
    )


def test_a_row_is_decided_alone_as_in_a_batch(policy: StoredPolicy) -> None:
    observations, mask = _inputs(20)

    together = policy.action_probabilities(observations, mask)
    alone = policy.action_probabilities(observations[3:4], mask[3:4])

    np.testing.assert_allclose(alone[0], together[3], atol=1e-5)


def test_a_wrong_width_is_refused(policy: StoredPolicy) -> None:
    observations, mask = _inputs()

    with pytest.raises(PolicyError, match=r"reads 6 observation features .*\(200, 5\)"):
        policy.action_probabilities(Observations(observations.state[:, :-1]), mask)
    with pytest.raises(PolicyError, match=r"has 5 actions .*mask of shape \(200, 4\)"):
        policy.action_probabilities(observations, mask[:, :-1])


def test_a_row_without_a_legal_action_is_refused(policy: StoredPolicy) -> None:
    observations, mask = _inputs()
    mask[[17, 40]] = False

    with pytest.raises(PolicyError, match="2 of 200 rows have no legal action; the first is row 17"):
        policy.action_probabilities(observations, mask)


def test_a_missing_policy_says_which_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"policy\.json is missing"):
        load_policy(tmp_path)

    UniformPolicy(2, 3).save(tmp_path)
    (tmp_path / "policy.safetensors").unlink()
    with pytest.raises(PolicyError, match=r"policy\.safetensors is missing"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "oracle"}, "names the kind 'oracle'; known are .*uniform"),
        ({"format": 99}, "format 99; this version reads 2"),
        ({"name": None}, "lacks the field 'name'"),
    ],
)
def test_a_foreign_policy_is_refused_with_what_was_found(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    UniformPolicy(2, 3).save(tmp_path)
    document = json.loads((tmp_path / "policy.json").read_text()) | change
    kept = {key: value for key, value in document.items() if value is not None}
    (tmp_path / "policy.json").write_text(json.dumps(kept))

    with pytest.raises(PolicyError, match=message):
        load_policy(tmp_path)


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_a_file_cut_in_the_middle_is_refused(tmp_path: Path, name: str) -> None:
    POLICIES["regularized_q"].save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])

    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path)


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    POLICIES["behavior_model"].save(tmp_path)
    arrays = load_file(tmp_path / "policy.safetensors")
    arrays.pop("bias")
    save_file(arrays, tmp_path / "policy.safetensors")

    with pytest.raises(PolicyError, match="no array 'bias'"):
        load_policy(tmp_path)


def test_policies_load_and_act_without_torch(tmp_path: Path) -> None:
    POLICIES["supported"].save(tmp_path)
    script = (
        "import sys, numpy, pathlib; sys.modules['torch'] = None; sys.modules['d3rlpy'] = None\n"
        "from rl.policies import load_policy; from rl.types import Observations\n"
        f"policy = load_policy(pathlib.Path({str(tmp_path)!r}))\n"
        f"states = Observations(numpy.zeros((1, {N_FEATURES}), 'float32'))\n"
        f"mask = numpy.ones((1, {N_ACTIONS}), bool)\n"
        "assert abs(policy.action_probabilities(states, mask).sum() - 1) < 1e-9"
    )

    subprocess.run([sys.executable, "-c", script], check=True)
