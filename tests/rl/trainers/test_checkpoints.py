"""Trainings that are killed and started again, and trainings of sets that exceed the memory limit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from rl.datasets.chunks import EpisodeChunks
from rl.datasets.transitions import TransitionSet, write_transition_set
from rl.environments.tabular import TabularMDP
from rl.errors import DataError
from rl.policies import Scores, SoftmaxPolicy, StoredPolicy, UniformPolicy
from rl.policies.networks import MLP, Standardizer
from rl.trainers import TrainingRecord, checkpoints, trainer, trainer_settings
from rl.trainers.batches import Draws, reward_scale
from rl.trainers.checkpoints import Checkpoint
from rl.trainers.feed import Feed
from rl.trainers.prepared import Prepared

PROCESS = TabularMDP.random(4, 3, horizon=3, seed=2, reward_noise=0.1)
UNIFORM = UniformPolicy(PROCESS.n_actions, PROCESS.observation_size)
SMALL_CHUNKS = 2e-4
"""GiB: about five chunks of the training steps of `_log()`."""

CHILD = """
import sys, time
from pathlib import Path
from rl.datasets.transitions import TransitionSet
from rl.policies import UniformPolicy
from rl.trainers import TrainingRecord, checkpoints, fit, trainer, trainer_settings

folder = Path(sys.argv[1])
checkpoints.LEAST_SECONDS, checkpoints.LARGEST_SHARE, fit.STEPS_AT_ONCE = 0.0, 1e9, 64
dataset = TransitionSet.open(folder / "dataset")
settings = trainer_settings(**eval(sys.argv[2]))
behavior = UniformPolicy(dataset.n_actions, dataset.observation_size)
print("begins", flush=True)
record = TrainingRecord(checkpoint=folder / "checkpoint")
trainer(settings.algorithm).fit(dataset, settings, behavior, record).save(folder / "policy")
"""


def _log(n_episodes: int = 1500) -> TransitionSet:
    return PROCESS.sample(PROCESS.uniform_policy(), n_episodes, seed=0)


def _fields(**changes: Any) -> dict[str, Any]:
    return {
        "algorithm": "cql",
        "n_steps": 640,
        "n_looks": 4,
        "batch_size": 64,
        "hidden_units": (16,),
        "n_members": 2,
        "learning_rate": 5e-3,
        **changes,
    }


def _train(dataset: TransitionSet, record: TrainingRecord | None = None, **changes: Any) -> Any:
    settings = trainer_settings(**_fields(**changes))
    return trainer(settings.algorithm).fit(dataset, settings, UNIFORM, record)


def _without_times(record: TrainingRecord) -> Any:
    curves = {name: curve for name, curve in record.curves.items() if not name.startswith("seconds/")}
    return curves, record.member_curves, record.leaderboard, record.selection


@pytest.mark.parametrize("memory_limit_gb", [4.0, SMALL_CHUNKS], ids=["one chunk", "chunks"])
def test_a_training_stopped_between_two_looks_ends_as_if_it_had_not_been(
    memory_limit_gb: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, changes = _log(), {"memory_limit_gb": memory_limit_gb, "return_lambda": 0.7}
    whole, resumed = TrainingRecord(), TrainingRecord(checkpoint=tmp_path / "checkpoint")
    expected = _train(dataset, whole, **changes)
    monkeypatch.setattr(checkpoints, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "LARGEST_SHARE", 1e9)
    written: list[int] = []
    write = Checkpoint.write

    def killed_after_the_third(self: Checkpoint, tensors: Any, document: Any) -> None:
        write(self, tensors, document)
        written.append(int(tensors["learner.step"]))
        if len(written) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "write", killed_after_the_third)
        with pytest.raises(KeyboardInterrupt):
            _train(dataset, TrainingRecord(checkpoint=tmp_path / "checkpoint"), **changes)
    policy = _train(dataset, resumed, **changes)

    assert not set(written) <= {128, 320, 512, 640}  # between looks, too
    for name, values in expected.arrays().items():
        np.testing.assert_array_equal(policy.arrays()[name], values)
    assert _without_times(resumed) == _without_times(whole)


@pytest.mark.slow
def test_a_process_killed_at_random_moments_ends_with_the_same_policy(tmp_path: Path) -> None:
    fields = repr(_fields(n_steps=6400, sweep={"conservative_weight": (0.1, 1.0)}, memory_limit_gb=SMALL_CHUNKS))
    policies = []
    for name, n_kills in (("whole", 0), ("killed", 4)):
        folder = tmp_path / name
        write_transition_set(folder / "dataset", _log())
        moments = random.Random(0)
        for kill in range(n_kills + 1):
            child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), fields], stdout=subprocess.PIPE)
            assert child.stdout is not None
            assert child.stdout.readline() == b"begins\n"
            if kill < n_kills:
                time.sleep(moments.uniform(0.5, 2.0))
                assert child.poll() is None
                child.send_signal(signal.SIGKILL)
                goes_on = (folder / "checkpoint").exists()
            child.wait(timeout=120)
            child.stdout.close()
        assert n_kills == 0 or goes_on
        policies.append(load_file(folder / "policy" / "policy.safetensors"))

    for name, values in policies[0].items():
        np.testing.assert_array_equal(policies[1][name], values)


def test_a_checkpoint_of_another_training_is_left_aside_with_a_message(tmp_path: Path) -> None:
    dataset, path = _log(300), tmp_path / "checkpoint"
    heard: list[str] = []
    Checkpoint(path, "another", heard.append).write({}, {})
    expected = _train(dataset, n_steps=64)

    policy = _train(dataset, TrainingRecord(checkpoint=path, say=heard.append), n_steps=64)

    assert len(heard) == 1
    assert "is of other settings, data or behavior model; the training begins anew" in heard[0]
    np.testing.assert_array_equal(policy.arrays()["q.0.weight_0"], expected.arrays()["q.0.weight_0"])


def test_a_checkpoint_that_cannot_be_read_is_left_aside_with_a_message(tmp_path: Path) -> None:
    heard: list[str] = []
    (tmp_path / "checkpoint").write_bytes(b"half")

    assert Checkpoint(tmp_path / "checkpoint", "key", heard.append).read() is None

    assert "cannot be read" in heard[0]


def test_the_key_tells_settings_data_and_behavior_apart_but_not_names() -> None:
    dataset, behavior = _log(50), UNIFORM

    def learned(weight: float) -> SoftmaxPolicy:
        plain = Standardizer(np.zeros(7, dtype=np.float32), np.ones(7, dtype=np.float32))
        network = MLP(plain, (np.full((3, 7), weight, dtype=np.float32),), (np.zeros(3, dtype=np.float32),))
        return SoftmaxPolicy(Scores.of(network), "behavior")

    def key(dataset: TransitionSet = dataset, behavior: StoredPolicy = behavior, **changes: Any) -> str:
        return checkpoints.training_key(dataset, trainer_settings(**_fields(**changes)), behavior)

    assert key() == key(name="other")
    others = {key(seed=1), key(_log(51)), key(behavior=UniformPolicy(3, 9)), key(dataset.select(np.arange(40)))}
    others |= {key(behavior=learned(0.0)), key(behavior=learned(1.0))}
    others |= {key(replace(dataset, validation=~dataset.validation))}
    assert len(others | {key()}) == 8


def test_writing_takes_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    checkpoint = Checkpoint(tmp_path / "checkpoint", "key", lambda text: None)
    assert checkpoint.is_due(at_look=True)
    assert not checkpoint.is_due(at_look=False)
    save = checkpoints.save_file

    def slow(*arguments: Any) -> None:
        now[0] += 1.0
        save(*arguments)

    monkeypatch.setattr(checkpoints, "save_file", slow)
    checkpoint.write({}, {})

    now[0] += 49.0
    assert not checkpoint.is_due(at_look=True)
    now[0] += 1.0
    assert checkpoint.is_due(at_look=True)
    assert checkpoint.is_due(at_look=False)
    assert not Checkpoint(None, "key", lambda text: None).is_due(at_look=True)


def test_in_chunks_the_same_world_is_learned_about_as_well() -> None:
    dataset = _log(4000)
    behavior, optimum = PROCESS.value(PROCESS.uniform_policy()), PROCESS.optimal_value()
    whole, record = TrainingRecord(), TrainingRecord()
    changes = {"divergence_limit": None, "n_steps": 960, "target_update_interval": 50}

    together = _train(dataset, whole, **changes)
    in_chunks = _train(dataset, record, memory_limit_gb=5 * SMALL_CHUNKS, **changes)

    shares = [
        (PROCESS.value(PROCESS.policy_table(policy)) - behavior) / (optimum - behavior)
        for policy in (together, in_chunks)
    ]
    assert min(shares) > 0.95
    assert whole.last("data/chunks") == 1
    assert record.last("data/chunks") > 2
    assert record.last("data/passes") == pytest.approx(whole.last("data/passes"))
    assert any("exceed the memory limit" in note for note in record.notes)
    assert not any("memory" in note for note in whole.notes)


def test_each_chunk_serves_as_many_steps_as_its_rows_are_worth() -> None:
    dataset = _log(3000)
    chunks = EpisodeChunks(dataset, ~dataset.validation, 200_000, seed=0)
    loaded: list[int] = []

    class Rows:
        def __init__(self, chunk: TransitionSet) -> None:
            loaded.append(chunk.n_steps)
            self.starts = np.arange(chunk.n_steps)

    feed = Feed(chunks, 4, Rows)  # type: ignore[arg-type]
    ends = {feed.until for step in range(4000) if feed.rows(step)}

    assert chunks.n_chunks > 1
    assert len(ends) == len(loaded)
    spans = np.diff([0, *sorted(end for end in ends if end)])
    assert (spans % Draws.PER_BLOCK == 0).all()
    np.testing.assert_allclose(spans * 4, loaded, atol=2 * Draws.PER_BLOCK)


def test_rows_are_measured_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from rl.datasets import layout

    dataset = _log(700)
    training = dataset.training()
    monkeypatch.setattr(layout.ranges, "__defaults__", (100,))

    prepared = Prepared.of(dataset, ~dataset.validation, np.zeros(700, dtype=bool))

    expected = Standardizer.fit(training.observations)
    np.testing.assert_allclose(prepared.standardizer.shift, expected.shift, rtol=1e-6)
    np.testing.assert_allclose(prepared.standardizer.scale, expected.scale, rtol=1e-6)
    assert prepared.scale == pytest.approx(reward_scale(training.rewards, training.episode_offsets))
    assert prepared.n_rows == training.n_steps


def test_a_broken_row_of_the_selection_dialogues_is_named_too() -> None:
    dataset = _log(50)
    choosing = np.arange(50) == 49
    rewards = dataset.rewards.copy()
    rewards[-1] = np.nan
    broken = TransitionSet(**(dataset.arrays() | {"rewards": rewards}), manifest=dataset.manifest)

    with pytest.raises(DataError, match=r"1 of 150 rows of `rewards` hold NaN or infinity; the first is row 149"):
        Prepared.of(broken, ~choosing, choosing)
    assert Prepared.of(broken, ~choosing, np.zeros(50, dtype=bool)).n_rows == 147
