"""The behavior model on logs whose true probabilities are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from rl.datasets.transitions import TransitionSet, write_transition_set
from rl.errors import DataError
from rl.policies import fit_behavior_model, load_policy
from rl.policies.behavior import customer_folds, floored
from rl.policies.calibration import best_temperature, expected_calibration_error, reliability_curve
from rl.policies.fit_behavior import main
from rl.policies.networks import masked_softmax
from rl.settings import BehaviorModelSettings
from rl.types import Float2D, Observations

N_FEATURES, N_ACTIONS = 8, 5


def _log(n_rows: int = 4000, seed: int = 0, **arrays: NDArray[np.generic]) -> tuple[TransitionSet, Float2D]:
    """A log of a multinomial logistic policy over random masks, and its (N, A) true probabilities."""
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(n_rows, N_FEATURES)).astype(np.float32)
    mask = rng.random((n_rows, N_ACTIONS)) > 0.25
    mask[:, 0] = True
    logits = observations @ np.random.default_rng(99).normal(0, 0.7, size=(N_FEATURES, N_ACTIONS))
    probabilities = masked_softmax(logits, mask)
    actions = (rng.random((n_rows, 1)) > probabilities.cumsum(axis=1)).sum(axis=1).clip(max=N_ACTIONS - 1)
    logged = {
        "actions": actions,
        "logged_mask": mask,
        "propensities": probabilities[np.arange(n_rows), actions],
    }
    dataset = TransitionSet.from_arrays(
        observations=3 * observations + 5,
        rewards=np.zeros(n_rows, dtype=np.float32),
        episode_offsets=np.arange(0, n_rows + 1, 4),
        n_actions=N_ACTIONS,
        **(logged | arrays),
    )
    return dataset, probabilities


def test_out_of_fold_probabilities_are_near_the_truth() -> None:
    dataset, truth = _log()

    fitted = fit_behavior_model(dataset, BehaviorModelSettings(l2=1.0))

    assert np.abs(fitted.out_of_fold - truth).mean() < 0.02
    np.testing.assert_allclose(fitted.out_of_fold.sum(axis=1), 1.0, atol=1e-5)
    assert (fitted.out_of_fold[~dataset.logged_mask] == 0).all()
    assert fitted.calibration_error < 0.01
    assert fitted.logged_propensity_difference == pytest.approx(
        np.abs(fitted.out_of_fold - truth)[np.arange(4000), dataset.actions].mean(), abs=1e-4
    )
    true_loss = -np.log(truth[np.arange(4000), dataset.actions]).mean()
    assert true_loss - 0.01 < fitted.log_loss < true_loss + 0.03


def test_the_policy_is_fitted_on_training_episodes_alone() -> None:
    dataset, _ = _log()
    held_out = dataset.validation[dataset.episode_index]
    others = np.where(held_out, dataset.logged_mask.argmax(axis=1), dataset.actions)
    changed, _ = _log(actions=others, propensities=np.full(4000, np.nan))

    # One temperature is chosen on all rows out of fold; weights up to that factor may not differ.
    first = fit_behavior_model(dataset, BehaviorModelSettings()).policy
    second = fit_behavior_model(changed, BehaviorModelSettings()).policy

    ratio = first.weights / second.weights
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-3)


def test_the_same_seed_gives_the_same_model() -> None:
    dataset, _ = _log(1200)

    first = fit_behavior_model(dataset, BehaviorModelSettings(seed=3))
    second = fit_behavior_model(dataset, BehaviorModelSettings(seed=3))
    other = fit_behavior_model(dataset, BehaviorModelSettings(seed=4))

    np.testing.assert_array_equal(first.out_of_fold, second.out_of_fold)
    assert (first.out_of_fold != other.out_of_fold).any()


def test_a_row_is_never_predicted_by_a_model_that_saw_its_customer() -> None:
    # Every customer always repeats an action of its own, and the observation gives the customer away.
    n_customers = 40
    customers = np.repeat(np.arange(n_customers), 5)
    actions = np.repeat(np.random.default_rng(0).integers(N_ACTIONS, size=n_customers), 5)
    dataset = TransitionSet.from_arrays(
        observations=10 * np.eye(n_customers, dtype=np.float32)[customers],
        actions=actions,
        rewards=np.zeros(200, dtype=np.float32),
        episode_offsets=np.arange(201),
        n_actions=N_ACTIONS,
        customer_index=customers,
    )

    fitted = fit_behavior_model(dataset, BehaviorModelSettings(l2=0.01))

    assert fitted.out_of_fold[np.arange(200), actions].mean() < 0.3
    folds = customer_folds(customers, 5, seed=0)
    assert all(len(set(folds[customers == customer])) == 1 for customer in range(n_customers))
    assert np.bincount(folds).tolist() == [40] * 5


def test_without_logged_propensities_there_is_no_difference_to_report() -> None:
    dataset, _ = _log(800, propensities=np.full(800, np.nan))

    assert fit_behavior_model(dataset, BehaviorModelSettings()).logged_propensity_difference is None


def test_no_legal_action_is_less_likely_than_the_floor() -> None:
    probabilities, mask = (
        np.array([[1.0, 0.0, 0.0], [0.4, 0.6, 0.0]]),
        np.array([[1, 1, 1], [1, 1, 0]], dtype=bool),
    )

    result = floored(probabilities, mask, 0.05)

    np.testing.assert_allclose(result, [[0.9, 0.05, 0.05], [0.41, 0.59, 0.0]])
    np.testing.assert_allclose(floored(np.eye(20)[:1], np.ones((1, 20), dtype=bool), 0.09).sum(), 1.0)


def test_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4))
    mask = np.ones(logits.shape, dtype=bool)
    actions = (rng.random((20_000, 1)) > masked_softmax(logits, mask).cumsum(axis=1)).sum(axis=1)

    assert best_temperature(3.0 * logits, actions, mask) == pytest.approx(3.0, rel=0.05)


def test_an_isotonic_map_mends_what_a_temperature_cannot_and_is_stored(tmp_path: Path) -> None:
    # The truth is mixed with uniform choice: probabilities are bounded, which no linear model with a temperature gives.
    dataset, truth = _log(12_000)
    mixed = 0.5 * truth + 0.5 * dataset.logged_mask / dataset.logged_mask.sum(axis=1, keepdims=True)
    draws = np.random.default_rng(1).random((12_000, 1))
    actions = (draws > mixed.cumsum(axis=1)).sum(axis=1).clip(max=N_ACTIONS - 1)
    dataset, _ = _log(12_000, actions=actions, propensities=mixed[np.arange(12_000), actions])

    by_temperature = fit_behavior_model(dataset, BehaviorModelSettings(l2=1.0))
    by_map = fit_behavior_model(dataset, BehaviorModelSettings(l2=1.0, calibration="isotonic"))
    by_map.policy.save(tmp_path)

    assert by_map.calibration_error < 0.8 * by_temperature.calibration_error
    assert np.abs(by_map.out_of_fold - mixed).mean() < np.abs(by_temperature.out_of_fold - mixed).mean()
    observations = Observations(dataset.observations[:50])
    np.testing.assert_array_equal(
        load_policy(tmp_path).action_probabilities(observations, dataset.logged_mask[:50]),
        by_map.policy.action_probabilities(observations, dataset.logged_mask[:50]),
    )


def test_calibration_error_of_a_known_miscalibration() -> None:
    # Says 0.9 and 0.1, is right half of the time: every pair is off by 0.4.
    probabilities = np.tile([0.9, 0.1], (1000, 1))
    actions = np.arange(1000) % 2

    curve = reliability_curve(probabilities, actions, np.ones((1000, 2), dtype=bool), n_bins=2)

    assert expected_calibration_error(curve) == pytest.approx(0.4)
    assert curve.n_pairs.sum() == 2000


def test_one_customer_and_no_training_episodes_are_refused() -> None:
    with pytest.raises(DataError, match="of one customer"):
        customer_folds(np.zeros(10), 5, seed=0)
    dataset, _ = _log(400, validation=np.ones(100, dtype=bool))
    with pytest.raises(DataError, match="No episode of the data set is for training"):
        fit_behavior_model(dataset, BehaviorModelSettings())


def test_the_job_writes_a_policy_that_loads_and_a_second_run_replaces_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, _ = _log(800)
    write_transition_set(tmp_path / "dataset", dataset)

    for _ in range(2):
        main(tmp_path / "dataset", tmp_path / "models" / "behavior", BehaviorModelSettings())

    folder = tmp_path / "models" / "behavior"
    policy = load_policy(folder)
    probabilities = policy.action_probabilities(Observations(dataset.observations), dataset.logged_mask)
    out_of_fold = load_file(folder / "out_of_fold.safetensors")["probabilities"]
    training = json.loads((folder / "training.json").read_text())
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert probabilities.shape == out_of_fold.shape == (800, N_ACTIONS)
    assert training["dataset_hash"] == dataset.manifest.dataset_hash
    assert training["settings"]["n_folds"] == 5
    assert lines[-1]["event"] == "result"
    assert lines[-1]["calibration_error"] == training["calibration_error"]
    assert [path.name for path in folder.parent.iterdir()] == ["behavior"]
