"""Exchange with d3rlpy: nothing is lost that its format can hold."""

from pathlib import Path

import numpy as np
import pytest

from rl.datasets.mdp import export_mdp_dataset, import_mdp_dataset, read_mdp_file, write_mdp_file
from rl.datasets.transitions import TransitionSet
from rl.errors import DataError

KEPT = (
    "observations",
    "actions",
    "rewards",
    "episode_offsets",
    "terminated",
    "truncated",
    "final_observations",
)


@pytest.fixture
def dataset() -> TransitionSet:
    """Five actions of which the last was never logged; one-step, terminated and truncated episodes."""
    rng = np.random.default_rng(0)
    lengths = [3, 1, 4, 1]
    truncated = np.array([False, False, True, True])
    return TransitionSet.from_arrays(
        observations=rng.normal(size=(9, 2)),
        actions=rng.integers(0, 4, size=9),
        rewards=rng.random(9),
        episode_offsets=np.concatenate(([0], np.cumsum(lengths))),
        truncated=truncated,
        final_observations=rng.normal(size=(4, 2)) * truncated[:, None],
        final_action_mask=np.repeat(truncated[:, None], 5, axis=1),
        n_actions=5,
    )


def test_a_round_trip_through_an_hdf5_file_keeps_steps_ends_and_the_number_of_actions(
    dataset: TransitionSet, tmp_path: Path
) -> None:
    write_mdp_file(tmp_path / "logs.h5", dataset)
    back = read_mdp_file(tmp_path / "logs.h5", manifest=dataset.manifest)

    assert back.n_actions == 5
    for name in KEPT:
        np.testing.assert_array_equal(getattr(back, name), getattr(dataset, name), err_msg=name)


def test_d3rlpy_sees_every_step_of_truncated_episodes_and_all_actions(dataset: TransitionSet) -> None:
    exported = export_mdp_dataset(dataset)

    assert exported.transition_count == dataset.n_steps
    assert exported.dataset_info.action_size == 5


def test_an_import_takes_the_propensities_it_is_given(dataset: TransitionSet) -> None:
    propensities = np.full(9, 0.5)
    back = import_mdp_dataset(export_mdp_dataset(dataset), n_actions=5, propensities=propensities)
    np.testing.assert_array_equal(back.propensities, propensities)


def test_foreign_truncated_episodes_keep_their_last_step_on_request(dataset: TransitionSet) -> None:
    back = import_mdp_dataset(export_mdp_dataset(dataset), n_actions=5, has_final_rows=False)
    assert back.n_steps == dataset.n_steps + dataset.truncated.sum()


def test_a_file_that_is_not_hdf5_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "logs.h5").write_bytes(b"no")
    with pytest.raises(DataError, match=r"logs\.h5 is not an HDF5 file"):
        read_mdp_file(tmp_path / "logs.h5", n_actions=2)
