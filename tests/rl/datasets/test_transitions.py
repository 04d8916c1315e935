"""The transition set: what it refuses, what it keeps on disk, and how it is cut."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.datasets.splits import validation_members
from rl.datasets.transitions import ARRAYS, TransitionSet, write_transition_set
from rl.errors import DataError, PropensityError

LENGTHS = (2, 1, 3)


def arrays(**changed: Any) -> dict[str, Any]:
    """Three episodes of 2, 1 and 3 steps, three actions, two utterances before each step."""
    rng = np.random.default_rng(0)
    n = sum(LENGTHS)
    plain: dict[str, Any] = {
        "observations": rng.normal(size=(n, 4)),
        "actions": np.array([0, 1, 2, 0, 1, 0]),
        "rewards": np.arange(n, dtype=float),
        "episode_offsets": np.concatenate(([0], np.cumsum(LENGTHS))),
        "propensities": np.full(n, 0.25),
        "utterance_vectors": np.arange(2 * n)[:, None] * np.ones((1, 2)),
        "utterance_offsets": np.arange(n + 1) * 2,
        "n_actions": 3,
    }
    return plain | changed


def changed_at(name: str, row: int, value: Any) -> dict[str, Any]:
    array = np.array(arrays()[name], dtype=None if name != "rewards" else float)
    array[row] = value
    return arrays(**{name: array})


def test_what_is_written_is_what_opens(tmp_path: Path) -> None:
    dataset = TransitionSet.from_arrays(**arrays())
    write_transition_set(tmp_path / "set", dataset)

    opened = TransitionSet.open(tmp_path / "set")

    assert opened.manifest == dataset.manifest
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(opened, name), getattr(dataset, name), err_msg=name)
    with pytest.raises(ValueError, match="read-only"):
        opened.rewards[0] = 1


def test_steps_episodes_and_returns_are_indexed() -> None:
    dataset = TransitionSet.from_arrays(**arrays())
    np.testing.assert_array_equal(dataset.episode_index, [0, 0, 1, 2, 2, 2])
    np.testing.assert_array_equal(dataset.step_index, [0, 1, 0, 0, 1, 2])
    np.testing.assert_array_equal(dataset.is_last, [0, 1, 1, 0, 0, 1])
    np.testing.assert_array_equal(dataset.returns, [1, 2, 12])


def test_history_is_what_was_said_in_the_episode_before_the_step() -> None:
    dataset = TransitionSet.from_arrays(**arrays())
    history = dataset.batch_observations(np.array([4, 2]), with_history=True).history
    assert history is not None
    np.testing.assert_array_equal(history.offsets, [0, 4, 6])
    np.testing.assert_array_equal(history.vectors[:, 0], [6, 7, 8, 9, 4, 5])


def test_past_is_what_was_observed_and_done_in_the_episode_before_the_step() -> None:
    dataset = TransitionSet.from_arrays(**arrays())
    past = dataset.batch_observations(np.array([5, 2, 1]), with_past=True).past
    assert past is not None
    np.testing.assert_array_equal(past.offsets, [0, 2, 2, 3])
    np.testing.assert_array_equal(past.states, dataset.observations[[3, 4, 0]])
    np.testing.assert_array_equal(past.actions, dataset.actions[[3, 4, 0]])


def test_selected_episodes_keep_their_rows_and_history() -> None:
    dataset = TransitionSet.from_arrays(**arrays())
    chosen = dataset.select(np.array([2, 0]))
    np.testing.assert_array_equal(chosen.rewards, [3, 4, 5, 0, 1])
    np.testing.assert_array_equal(chosen.episode_offsets, [0, 3, 5])
    history = chosen.batch_observations(np.array([3]), with_history=True).history
    assert history is not None
    np.testing.assert_array_equal(history.vectors[:, 0], [0, 1])


def test_training_and_held_out_part_the_episodes_by_customer() -> None:
    n = 200
    dataset = TransitionSet.from_arrays(
        observations=np.zeros((n, 1)),
        actions=np.zeros(n),
        rewards=np.arange(n),
        episode_offsets=np.arange(n + 1),
        customer_index=np.arange(n) // 4,
        n_actions=2,
        validation_share=0.5,
    )
    training, held_out = dataset.training(), dataset.held_out()
    assert sorted([*training.rewards, *held_out.rewards]) == list(range(n))
    assert not set(training.customer_index) & set(held_out.customer_index)


def by_customer(n_customers: int, **changed: Any) -> TransitionSet:
    """Four episodes of one step of each customer."""
    n = 4 * n_customers
    return TransitionSet.from_arrays(
        observations=np.zeros((n, 1)),
        actions=np.zeros(n),
        rewards=np.arange(n),
        episode_offsets=np.arange(n + 1),
        customer_index=np.arange(n) // 4,
        n_actions=2,
        **changed,
    )


def test_checkpoints_are_chosen_by_training_customers_that_nothing_is_fitted_on() -> None:
    dataset = by_customer(400)
    training, chosen_by = dataset.selection_split(0.25)
    np.testing.assert_array_equal(training ^ chosen_by, ~dataset.validation)
    assert not set(dataset.customer_index[training]) & set(dataset.customer_index[chosen_by])
    # about 240 customers train: 4 standard deviations of a binomial share
    assert chosen_by.sum() / (~dataset.validation).sum() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 240) ** 0.5)
    larger = dataset.selection_split(0.5)[1]
    assert not (chosen_by & ~larger).any()


@pytest.mark.parametrize(("share", "message"), [(1e-6, "and 0 to choose by"), (1 - 1e-6, "leaves 0 to learn from")])
def test_a_selection_split_with_an_empty_part_is_refused(share: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        by_customer(20).selection_split(share)


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("actions", [0, 1.5, 0, 0], "1 of 4 numbers of actions are no whole numbers that fit int64; the first is at 1"),
        ("actions", [0, 0, np.nan, np.nan], "2 of 4 numbers of actions"),
        ("customer_index", [0, 0, 0, 2**32], "1 of 4 numbers of customer_index .* fit int32; the first is at 3"),
    ],
)
def test_whole_numbers_are_not_changed_in_silence(name: str, numbers: list[float], message: str) -> None:
    plain = {"observations": np.zeros((4, 1)), "actions": np.zeros(4), "rewards": np.zeros(4)}
    with pytest.raises(DataError, match=message):
        TransitionSet.from_arrays(**(plain | {name: np.array(numbers)}), episode_offsets=np.arange(5), n_actions=2)


def test_rows_are_taken_by_number_from_either_end_by_choice_and_by_slice() -> None:
    dataset = TransitionSet.from_arrays(**arrays())
    wanted = dataset.batch_observations(np.array([4, 5]), with_history=True)
    for rows in (np.array([-2, -1]), np.arange(6) >= 4, slice(4, None)):
        found = dataset.batch_observations(rows, with_history=True)
        np.testing.assert_array_equal(found.state, wanted.state)
        assert found.history is not None
        assert wanted.history is not None
        np.testing.assert_array_equal(found.history.vectors, wanted.history.vectors)
        np.testing.assert_array_equal(found.history.offsets, wanted.history.offsets)


def test_a_batch_costs_no_memory_of_the_size_of_the_set() -> None:
    n = 200_000
    dataset = TransitionSet.from_arrays(
        observations=np.zeros((n, 1)), actions=np.zeros(n), rewards=np.zeros(n), episode_offsets=np.arange(0, n + 1, 5),
        n_actions=2,
    )  # fmt: skip
    rows = np.arange(0, n, 1000)
    tracemalloc.start()
    dataset.batch_observations(rows, with_history=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < n


def test_the_share_of_held_out_customers_is_the_configured_one() -> None:
    members = validation_members((f"customer {i}" for i in range(20_000)), 0.3)
    assert members.mean() == pytest.approx(0.3, abs=0.015)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (changed_at("observations", 3, np.nan), "1 of 6 rows: observations is not finite; first at 3"),
        (changed_at("rewards", 2, np.inf), "rewards is not finite; first at 2"),
        (changed_at("actions", 4, 3), "the action is no id of the 3 actions; first at 4"),
        (arrays(logged_mask=np.eye(3, dtype=bool)[[0, 1, 2, 0, 1, 1]]), "outside logged_mask; first at 5"),
        (arrays(action_mask=np.zeros((6, 3), dtype=bool)), "6 of 6 rows: no action is legal"),
        (arrays(episode_offsets=np.array([0, 2, 2, 6])), "episode_offsets must grow by at least 1"),
        (arrays(episode_offsets=np.array([0, 2, 5])), "runs from 0 to 5; it must run from 0 to 6"),
        (arrays(terminated=np.ones(3), truncated=np.ones(3)), "either terminated or truncated"),
        (arrays(customer_index=np.zeros(3), validation=np.array([1, 0, 0])), "both sides of the validation split"),
        (arrays(reward_parts=np.ones((6, 1))), "the reward is not the weighted sum of its parts"),
        (arrays(segment=np.zeros(5)), r"segment is int32 \(5,\); it must be int32 \(6,\)"),
        (arrays(colour=np.zeros(5)), "No such arrays in a transition set: colour"),
        (arrays(n_actions=None), "needs n_actions"),
    ],
)  # fmt: skip
def test_broken_arrays_are_refused_with_their_rows(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TransitionSet.from_arrays(**changed)


@given(row=st.integers(0, 5), value=st.one_of(st.floats(-1e6, 0), st.floats(1.001, 1e6)))
@settings(max_examples=30, deadline=None)
def test_a_propensity_outside_its_range_is_refused_at_its_row(row: int, value: float) -> None:
    with pytest.raises(PropensityError, match=rf"1 of 6 propensities .* row {row} "):
        TransitionSet.from_arrays(**changed_at("propensities", row, value))


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=12), data=st.data())
@settings(max_examples=40, deadline=None)
def test_selecting_all_episodes_in_any_order_and_back_changes_nothing(lengths: list[int], data: Any) -> None:
    n = sum(lengths)
    rng = np.random.default_rng(n)
    counts = rng.integers(0, 3, size=n)
    dataset = TransitionSet.from_arrays(
        observations=rng.normal(size=(n, 2)),
        actions=rng.integers(0, 2, size=n),
        rewards=rng.normal(size=n),
        episode_offsets=np.concatenate(([0], np.cumsum(lengths))),
        utterance_vectors=rng.normal(size=(counts.sum(), 2)),
        utterance_offsets=np.concatenate(([0], np.cumsum(counts))),
        n_actions=2,
    )
    order = np.array(data.draw(st.permutations(range(len(lengths)))))

    back = dataset.select(order).select(np.argsort(order))

    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(back, name), getattr(dataset, name), err_msg=name)


def test_estimated_propensities_fill_the_unknown_ones_only() -> None:
    dataset = TransitionSet.from_arrays(**changed_at("propensities", 1, np.nan))
    filled = dataset.with_propensities(np.full(6, 0.75))
    np.testing.assert_array_equal(filled.propensities, [0.25, 0.75, 0.25, 0.25, 0.25, 0.25])
    np.testing.assert_array_equal(filled.propensity_source, [0, 1, 0, 0, 0, 0])


def test_no_episode_selected_is_an_error_and_not_an_empty_set() -> None:
    dataset = TransitionSet.from_arrays(**arrays())
    with pytest.raises(DataError, match="No episode was selected"):
        dataset.select(np.zeros(3, dtype=bool))


@pytest.mark.parametrize("kept", [4, 100, -1])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    write_transition_set(tmp_path / "set", TransitionSet.from_arrays(**arrays()))
    path = tmp_path / "set" / "transitions.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="cut off or not a safetensors file"):
        TransitionSet.open(tmp_path / "set")


def test_a_missing_folder_and_a_broken_manifest_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no data set at"):
        TransitionSet.open(tmp_path / "nothing")
    write_transition_set(tmp_path / "set", TransitionSet.from_arrays(**arrays()))
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(manifest | {"turn_limit": "many"}))
    with pytest.raises(DataError, match="first at `turn_limit`"):
        TransitionSet.open(tmp_path / "set")


def test_hashes_follow_content_and_meaning() -> None:
    plain = TransitionSet.from_arrays(**arrays()).manifest
    other_rewards = TransitionSet.from_arrays(**changed_at("rewards", 0, 9.0)).manifest
    wider = TransitionSet.from_arrays(**arrays(observations=np.zeros((6, 5)))).manifest
    assert plain.dataset_hash != other_rewards.dataset_hash
    assert plain.schema_hash == other_rewards.schema_hash != wider.schema_hash
