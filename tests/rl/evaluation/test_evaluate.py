"""The evaluation job from a data set to evidence, on a world with known values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_worlds import TablePolicy, World, world
from safetensors.numpy import load_file, save_file

from rl.datasets.transitions import TransitionSet, write_transition_set
from rl.errors import DataError
from rl.evaluation.evaluate import (
    STAGES,
    CandidateDescription,
    EvaluationJobSettings,
    EvaluationResult,
    evaluate_policies,
    run,
    write_result,
)
from rl.evaluation.evidence import Evidence
from rl.policies import UniformPolicy
from rl.settings import EvaluationSettings

SETTINGS = EvaluationSettings(n_bootstrap=300, fqe_steps=400, fqe_hidden_units=(32, 32))


def behavior_of(here: World, dataset: TransitionSet) -> np.ndarray:
    return np.asarray(here.behavior)[dataset.step_index, dataset.state_bucket]


@pytest.fixture(scope="module")
def here() -> World:
    return world(0, horizon=6, distance=0.6)


@pytest.fixture(scope="module")
def dataset(here: World) -> TransitionSet:
    return here.process.sample(here.behavior, 8000, seed=0)


@pytest.fixture(scope="module")
def result(here: World, dataset: TransitionSet) -> EvaluationResult:
    never = np.zeros_like(np.asarray(here.evaluation))
    never[...] = np.eye(3)[0]
    policies = {
        "better": TablePolicy(here.evaluation),
        "same": TablePolicy(here.behavior),
        "deterministic": TablePolicy(never),
    }
    note = CandidateDescription(algorithm="tables", policy_note="A table.")
    return evaluate_policies(dataset, policies, behavior_of(here, dataset), SETTINGS, 0.01, {"better": note})


def test_every_estimate_and_the_advantage_hold_the_truth(here: World, result: EvaluationResult) -> None:
    better = result.evidence.candidates[0]
    for name in ("wis", "pdis", "dr"):
        found = better.estimates[name]
        assert found.low <= here.truth <= found.high, name
    assert better.estimates["fqe"].value == pytest.approx(here.truth, rel=0.03)
    assert better.advantage.low <= here.true_advantage <= better.advantage.high
    behavior = result.evidence.behavior
    assert behavior.low <= here.process.value(here.behavior) <= behavior.high


def test_the_behavior_policy_gets_its_mean_return_and_no_advantage(
    dataset: TransitionSet, result: EvaluationResult
) -> None:
    same = result.evidence.candidates[1]
    held_out = dataset.held_out().returns.mean()
    assert same.estimates["wis"].value == pytest.approx(held_out)
    assert same.estimates["pdis"].value == pytest.approx(held_out)
    assert same.effective_share == pytest.approx(1.0)
    assert same.diagnostics["divergence"] == pytest.approx(0.0, abs=1e-9)
    assert same.advantage.low < 0 < same.advantage.high


def test_what_was_counted_is_written_down(dataset: TransitionSet, result: EvaluationResult) -> None:
    evidence = result.evidence
    assert (evidence.n_episodes, evidence.n_steps) == (dataset.n_episodes, dataset.n_steps)
    assert evidence.n_validation_episodes == dataset.validation.sum()
    assert evidence.dataset_hash == dataset.manifest.dataset_hash
    assert evidence.propensities_estimated_share == 0.0
    assert evidence.behavior_parts["conversion_value"] == pytest.approx(dataset.returns.mean(), rel=1e-5)
    assert evidence.candidates[0].algorithm == "tables"
    assert evidence.candidates[0].policy_note == "A table."
    assert evidence.candidates[1].algorithm == "table"


def test_strategy_use_adds_up_at_each_stage(result: EvaluationResult) -> None:
    for candidate in result.evidence.candidates:
        for stage in STAGES:
            use = [each for each in candidate.strategy_use if each.stage == stage]
            assert sum(each.behavior_rate for each in use) == pytest.approx(1.0)
            assert sum(each.candidate_rate for each in use) == pytest.approx(1.0)


def test_contributions_average_to_the_estimates(result: EvaluationResult) -> None:
    for candidate in result.evidence.candidates:
        for name, found in candidate.estimates.items():
            assert result.contributions[f"{candidate.name}.{name}"].mean() == pytest.approx(found.value)


def test_a_deterministic_policy_rests_on_few_dialogues_and_has_the_widest_interval(
    result: EvaluationResult,
) -> None:
    better, _, deterministic = result.evidence.candidates
    assert deterministic.effective_share < 0.5 * better.effective_share
    width = deterministic.advantage.high - deterministic.advantage.low
    assert width > better.advantage.high - better.advantage.low


def test_a_candidate_without_support_is_refused_and_the_others_are_judged(here: World) -> None:
    table = np.zeros_like(np.asarray(here.behavior))
    table[..., :2] = 0.5
    log = here.process.sample(table, 400, seed=1)
    third = TablePolicy(np.broadcast_to(np.eye(3)[2], table.shape))
    both = {"unseen": third, "seen": TablePolicy(table)}
    evidence = evaluate_policies(log, both, table[log.step_index, log.state_bucket], SETTINGS).evidence
    unseen, seen = evidence.candidates
    assert "gives no probability to any of the" in unseen.refusal
    assert unseen.estimates == {}
    assert unseen.effective_sample_size == 0.0
    assert unseen.advantage.low < 0 < unseen.advantage.high
    assert not seen.refusal


def test_missing_propensities_are_taken_from_the_behavior_model(here: World) -> None:
    log = here.process.sample(here.behavior, 3000, seed=2)
    behavior = behavior_of(here, log)
    missing = log.propensities.copy()
    missing[::2] = np.nan
    holes = here.process.sample(here.behavior, 3000, seed=2, propensities=missing)
    policies = {"better": TablePolicy(here.evaluation)}
    whole, mended = (evaluate_policies(each, policies, behavior, SETTINGS).evidence for each in (log, holes))
    assert mended.propensities_estimated_share == pytest.approx(0.5, abs=0.01)
    assert mended.candidates[0].estimates["wis"].value == pytest.approx(
        whole.candidates[0].estimates["wis"].value, rel=1e-5
    )


def test_logged_actions_that_are_no_longer_allowed_count_as_never_chosen(here: World) -> None:
    log = here.process.sample(here.behavior, 2000, seed=3)
    mask = log.logged_mask.copy()
    mask[:, 2] = False
    today = here.process.sample(here.behavior, 2000, seed=3, action_mask=mask)
    evidence = evaluate_policies(
        today, {"better": TablePolicy(here.evaluation)}, behavior_of(here, log), SETTINGS
    ).evidence
    diagnostics = evidence.candidates[0].diagnostics
    held_out = today.held_out()
    assert diagnostics["logged_outside_mask_share"] == pytest.approx((held_out.actions == 2).mean())
    assert diagnostics["out_of_mask_share"] == 0.0


def test_a_hundred_dialogues_give_wide_intervals_and_no_failure(here: World) -> None:
    log = here.process.sample(here.behavior, 250, seed=4)
    evidence = evaluate_policies(
        log, {"better": TablePolicy(here.evaluation)}, behavior_of(here, log), SETTINGS
    ).evidence
    found = evidence.candidates[0].advantage
    assert evidence.n_validation_episodes < 130
    assert found.low <= here.true_advantage <= found.high
    assert found.high - found.low > 2 * abs(here.true_advantage)


def test_a_set_without_held_out_dialogues_says_so(here: World) -> None:
    log = here.process.sample(here.behavior, 50, seed=5, validation=np.zeros(50, dtype=bool))
    with pytest.raises(DataError, match="0 of 50 dialogues are held out"):
        evaluate_policies(log, {}, behavior_of(here, log), SETTINGS)


def test_probabilities_of_another_data_set_are_refused(here: World, dataset: TransitionSet) -> None:
    with pytest.raises(DataError, match="Fit the behavior model on this data set"):
        evaluate_policies(dataset, {}, np.ones((3, 3)), SETTINGS)


def test_the_job_reads_folders_and_writes_evidence(
    here: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = here.process.sample(here.behavior, 300, seed=6)
    write_transition_set(tmp_path / "dataset", log)
    UniformPolicy(3, log.observation_size).save(tmp_path / "uniform")
    (tmp_path / "uniform" / "training.json").write_text('{"settings": {"algorithm": "none"}}')
    (tmp_path / "behavior").mkdir()
    save_file({"out_of_fold": behavior_of(here, log)}, tmp_path / "behavior" / "out_of_fold.safetensors")
    (tmp_path / "behavior" / "training.json").write_text('{"calibration_error": 0.02}')
    settings = EvaluationJobSettings(
        policies={"uniform": tmp_path / "uniform"}, behavior=tmp_path / "behavior", evaluation=SETTINGS
    )
    run(tmp_path / "dataset", tmp_path / "evaluation", settings)
    evidence = Evidence.model_validate_json((tmp_path / "evaluation" / "evidence.json").read_text())
    assert evidence.propensity_calibration_error == 0.02
    assert evidence.candidates[0].algorithm == "none"
    arrays = load_file(tmp_path / "evaluation" / "contributions.safetensors")
    assert arrays["uniform.dr"].mean() == pytest.approx(evidence.candidates[0].estimates["dr"].value)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"progress", "metric", "result"} <= {line["event"] for line in lines}


def test_evidence_survives_a_round_trip(tmp_path: Path, result: EvaluationResult) -> None:
    write_result(tmp_path / "evaluation", result)
    assert Evidence.model_validate_json((tmp_path / "evaluation" / "evidence.json").read_text()) == result.evidence
