"""The training job: folders in, a folder out, JSON lines on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.datasets.transitions import TransitionSet, write_transition_set
from rl.environments.tabular import TabularMDP
from rl.errors import PolicyError
from rl.policies import UniformPolicy, load_policy
from rl.trainers import checkpoints
from rl.trainers.checkpoints import Checkpoint
from rl.trainers.train import TrainingJobSettings, main, within_epochs
from rl.types import Observations


@pytest.fixture
def dataset(tmp_path: Path) -> TransitionSet:
    process = TabularMDP.random(3, 3, horizon=2, seed=0)
    dataset = process.sample(process.uniform_policy(), n_episodes=200, seed=0)
    write_transition_set(tmp_path / "dataset", dataset)
    UniformPolicy(3, dataset.observation_size, "behavior").save(tmp_path / "models" / "behavior")
    return dataset


def _job(**fields: Any) -> TrainingJobSettings:
    small = {"algorithm": "cql", "n_steps": 30, "max_epochs": 1000, "hidden_units": (16,), "n_members": 2, "n_looks": 3}
    return TrainingJobSettings.model_validate({"trainer": small | fields})


def test_the_job_writes_policy_and_training_record_and_runs_again(
    tmp_path: Path, dataset: TransitionSet, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "models" / "careful"
    # What a killed run leaves behind: a half-written folder that the next run clears away.
    (tmp_path / "models" / ".careful.0123.tmp").mkdir()
    job = _job(seed=1, selection_share=0.4, sweep={"conservative_weight": [0.1, 1.0]})

    for _ in range(2):
        main(tmp_path / "dataset", output, job)

    captured = capfd.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    training = json.loads((output / "training.json").read_text())
    policy = load_policy(output)
    assert captured.err == ""
    assert {line["event"] for line in lines} == {"progress", "metric", "result"}
    assert [line["done"] for line in lines if line["event"] == "progress"] == [10, 20, 30, 10, 20, 30]
    assert lines[-1]["name"] == policy.name == "careful"
    assert lines[-1]["lower_bound"] == training["selection"]["low"] == training["leaderboard"][0]["low"]
    assert lines[-1]["selected_step"] == training["selected_step"] in (10, 20, 30)
    assert training["steps"] == 30
    assert training["settings"]["seed"] == 1
    assert [member["seed"] for member in training["members"]] == [1, 2, 1, 2]
    assert len(training["member_curves"]) == 4
    assert len(training["leaderboard"]) == 2
    assert training["divergence"] == pytest.approx(0.08, rel=1e-3)
    assert training["temperature"] == policy.document()["temperature"]
    assert training["dataset_hash"] == dataset.manifest.dataset_hash
    assert training["curves"]["losses/td"]["steps"][-1] == 30
    assert "chosen by the lower bound" in training["notes"][0]
    assert "2 networks act as one" in training["notes"][1]
    assert sorted(path.name for path in output.parent.iterdir()) == ["behavior", "careful"]
    mask = np.ones((dataset.n_steps, 3), dtype=bool)
    assert policy.action_probabilities(Observations(dataset.observations), mask).shape == (dataset.n_steps, 3)


def test_a_killed_job_goes_on_beside_the_output_and_says_all_metrics_once_more(
    tmp_path: Path, dataset: TransitionSet, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "models" / "careful"
    monkeypatch.setattr(checkpoints, "LARGEST_SHARE", 1e9)
    write = Checkpoint.write

    def killed_at_twenty(self: Checkpoint, tensors: Any, document: Any) -> None:
        write(self, tensors, document)
        if int(tensors["learner.step"]) == 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "write", killed_at_twenty)
        with pytest.raises(KeyboardInterrupt):
            main(tmp_path / "dataset", output, _job())
    left = sorted(path.name for path in output.parent.iterdir())
    capfd.readouterr()
    main(tmp_path / "dataset", output, _job())

    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert left == [".careful.checkpoint.safetensors", "behavior"]
    assert [line["step"] for line in lines if line.get("name") == "losses/td"] == [10, 20, 30]
    assert sorted(path.name for path in output.parent.iterdir()) == ["behavior", "careful"]


def test_a_job_that_cannot_store_its_policy_keeps_what_it_learned(
    tmp_path: Path, dataset: TransitionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "models" / "careful"
    monkeypatch.setattr(checkpoints, "LARGEST_SHARE", 1e9)

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("rl.trainers.train.write_json", full)
        with pytest.raises(OSError, match="No space"):
            main(tmp_path / "dataset", output, _job())

    assert sorted(path.name for path in output.parent.iterdir()) == [".careful.checkpoint.safetensors", "behavior"]


def test_a_missing_behavior_model_is_one_line_and_exit_status_2(tmp_path: Path, dataset: TransitionSet) -> None:
    (tmp_path / "job.json").write_text(json.dumps({"trainer": {"algorithm": "iql"}}))
    command = [sys.executable, "-m", "rl.trainers.train", "--input", str(tmp_path / "dataset")]
    command += ["--output", str(tmp_path / "elsewhere" / "policy"), "--settings", str(tmp_path / "job.json")]

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 2
    assert json.loads(done.stdout.splitlines()[-1])["kind"] == "PolicyError"
    assert "policy.json is missing" in done.stderr


def test_a_behavior_model_of_another_data_set_is_refused(tmp_path: Path, dataset: TransitionSet) -> None:
    UniformPolicy(9, 2).save(tmp_path / "other")
    job = TrainingJobSettings(behavior=tmp_path / "other")

    with pytest.raises(PolicyError, match=r"has \(features, actions\) \(2, 9\) and the data set \(5, 3\)"):
        main(tmp_path / "dataset", tmp_path / "models" / "policy", job)


@pytest.mark.parametrize(("max_epochs", "n_steps", "interval"), [(1000.0, 400, 20), (100.0, 200, 10), (0.1, 1, 1)])
def test_a_small_log_is_not_read_more_often_than_asked(
    dataset: TransitionSet, max_epochs: float, n_steps: int, interval: int
) -> None:
    learning, _ = dataset.selection_split(0.2)
    half = -(-int(np.diff(dataset.episode_offsets)[learning].sum()) // 2)
    job = _job(n_steps=400, target_update_interval=20, batch_size=half, max_epochs=max_epochs, selection_share=0.2)

    limited: Any = within_epochs(job.trainer, dataset)

    assert (limited.n_steps, limited.target_update_interval) == (n_steps, interval)


def test_a_trainer_without_target_networks_is_limited_too(dataset: TransitionSet) -> None:
    job = TrainingJobSettings.model_validate({"trainer": {"algorithm": "d3rlpy_bc", "batch_size": 50}})

    n_steps = within_epochs(job.trainer, dataset).n_steps

    assert n_steps == -(-20 * dataset.training().n_steps // 50)
