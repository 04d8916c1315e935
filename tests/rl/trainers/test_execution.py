"""Compiled and captured updates against eager ones, precision, and what is said where a mode cannot work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_learner import MARKOV, learner_of, rows_of

from rl.datasets.transitions import TransitionSet
from rl.environments.tabular import TabularMDP
from rl.errors import TrainingError
from rl.policies import UniformPolicy
from rl.trainers import execution, trainer, trainer_settings
from rl.trainers.execution import Compiled, Eager, matrix_products, missing_for_compiling

CPU = torch.device("cpu")
N_STEPS = 200
TOLERANCE = 1e-4
"""Largest difference of a weight after 200 steps at rate 1e-3. Measured 1e-7 on networks of 256 × 256 for three
algorithms; the rest is room for sums in another order near a kink."""

needs_compiler = pytest.mark.skipif(missing_for_compiling(CPU) is not None, reason="no C++ compiler or Python headers")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def dataset() -> TransitionSet:
    process = TabularMDP.random(5, 4, horizon=4, seed=1, masked_share=0.25, ending_rate=0.2, reward_noise=0.2)
    return process.sample(process.uniform_policy(), n_episodes=300, seed=0)


def assert_parity(dataset: TransitionSet, algorithm: str, mode: str, **changes: Any) -> None:
    eager = learner_of(dataset, algorithm, n_members=2, **changes)
    other = learner_of(dataset, algorithm, n_members=2, mode=mode, **changes)
    expected = eager.advance(rows_of(dataset, eager), N_STEPS)
    found = other.advance(rows_of(dataset, other), N_STEPS)
    torch.testing.assert_close(other.flat, eager.flat, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(other.targets, eager.targets, rtol=0, atol=TOLERANCE)
    assert other.step == eager.step == N_STEPS
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4)


@needs_compiler
def test_compiled_updates_are_the_eager_ones(dataset: TransitionSet) -> None:
    assert_parity(dataset, "double_dqn", "compiled", hidden_units=(4,))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("algorithm", MARKOV)
def test_compiled_updates_of_all_algorithms_are_the_eager_ones(dataset: TransitionSet, algorithm: str) -> None:
    assert_parity(dataset, algorithm, "compiled")


@needs_gpu
@pytest.mark.parametrize("mode", ["compiled", "graph"])
@pytest.mark.parametrize("algorithm", MARKOV)
def test_updates_on_a_gpu_are_the_eager_ones(dataset: TransitionSet, algorithm: str, mode: str) -> None:
    from rl.trainers.learner import Learner

    sides = []
    for each in ("eager", mode):
        on_cpu = learner_of(dataset, algorithm, n_members=2, mode=each)
        learner = Learner(on_cpu.algorithm, on_cpu.members, on_cpu.settings, torch.device("cuda"))
        learner.advance(rows_of(dataset, learner), N_STEPS)
        sides.append(learner.flat)
    torch.testing.assert_close(sides[1], sides[0], rtol=0, atol=TOLERANCE)


def test_bfloat16_products_stay_near_float32_and_weights_stay_float32(dataset: TransitionSet) -> None:
    exact, coarse = learner_of(dataset, "cql"), learner_of(dataset, "cql", precision="bfloat16")
    expected = exact.advance(rows_of(dataset, exact), 100)
    found = coarse.advance(rows_of(dataset, coarse), 100)
    assert coarse.flat.dtype == torch.float32
    assert not torch.equal(coarse.flat, exact.flat)
    assert found["losses/total"] == pytest.approx(expected["losses/total"], rel=0.02)


@pytest.mark.slow
def test_bfloat16_products_learn_the_same_value() -> None:
    process = TabularMDP.random(8, 5, horizon=4, seed=2, masked_share=0.25)
    dataset = process.sample(process.uniform_policy(), n_episodes=5_000, seed=0)
    values = {}
    for precision in ("float32", "bfloat16"):
        settings = trainer_settings(
            algorithm="cql",
            n_members=1,
            n_steps=2_000,
            max_epochs=100,
            hidden_units=(64, 64),
            layer_norm=False,
            learning_rate=1e-3,
            conservative_weight=0.02,
            target_update_interval=100,
            divergence_limit=None,
            selection_share=0.0,
            mode="eager",
            precision=precision,
        )
        policy = trainer("cql").fit(dataset, settings, UniformPolicy(5, dataset.observation_size))
        values[precision] = process.value(process.policy_table(policy))
    floor, best = process.value(process.uniform_policy()), process.optimal_value()
    assert values["float32"] - floor > 0.9 * (best - floor)
    assert values["bfloat16"] == pytest.approx(values["float32"], rel=0.02)


def test_auto_is_decided_by_the_settings_alone(dataset: TransitionSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "missing_for_compiling", lambda device: None)
    long: dict[str, Any] = {"mode": "auto", "n_steps": 10**6}
    assert isinstance(execution.execution(learner_of(dataset, "cql", **long)), Compiled)
    assert isinstance(execution.execution(learner_of(dataset, "cql", **(long | {"n_steps": 1000}))), Eager)
    monkeypatch.setattr(execution, "missing_for_compiling", lambda device: "a C++ compiler")
    assert isinstance(execution.execution(learner_of(dataset, "cql", **long)), Eager)


def test_a_mode_that_cannot_work_says_what_is_missing(dataset: TransitionSet, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = learner_of(dataset, "cql", mode="graph")
    with pytest.raises(TrainingError, match="the device is cpu"):
        learner.advance(rows_of(dataset, learner), 1)
    monkeypatch.setenv("CXX", "no-such-compiler")
    learner = learner_of(dataset, "cql", mode="compiled")
    with pytest.raises(TrainingError, match="no-such-compiler"):
        learner.advance(rows_of(dataset, learner), 1)


def test_tf32_is_set_for_gpus_only_and_only_while_it_lasts() -> None:
    before = torch.get_float32_matmul_precision()
    with matrix_products("tf32", SimpleNamespace(type="cuda")):  # type: ignore[arg-type]
        assert torch.get_float32_matmul_precision() == "high"
    with matrix_products("tf32", CPU):
        assert torch.get_float32_matmul_precision() == before
    assert torch.get_float32_matmul_precision() == before
