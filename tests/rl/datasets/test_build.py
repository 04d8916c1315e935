"""The build job on a small workspace: windows, exclusions, masks, and rows equal to the live encoder's."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl.datasets.build import _main as run_build
from rl.datasets.build import build_transition_set
from rl.datasets.transitions import TransitionSet
from rl.encoders.dialogue import DialogueContext, DialogueEncoder
from rl.errors import DataError
from rl.settings import RewardDefinition, RewardPart

MakeWorkspace = Callable[..., Any]


def _prefixes(dialogue: dict[str, Any]) -> list[DialogueContext]:
    """What a live caller would hand over before each agent turn of the dialogue."""
    agent = [i for i, turn in enumerate(dialogue["turns"]) if turn["speaker"] == "agent"]
    known = {"segment": dialogue["segment"], "eligible_strategies": dialogue["eligible"]}
    return [DialogueContext(turns=dialogue["turns"][:i], **known) for i in agent]


def test_a_live_observation_equals_the_data_set_row_of_the_same_prefix(
    make_workspace: MakeWorkspace, tmp_path: Path
) -> None:
    workspace = make_workspace()
    run_build(workspace.folder, tmp_path / "set", workspace.settings)
    dataset = TransitionSet.open(tmp_path / "set")
    live = DialogueEncoder.load(tmp_path / "set" / "dialogue")
    contexts = [context for dialogue in workspace.dialogues for context in _prefixes(dialogue)]

    observed, mask = live.observe(contexts)
    logged = dataset.batch_observations(slice(None), with_history=True)

    np.testing.assert_allclose(observed.state, logged.state, atol=1e-6)
    np.testing.assert_array_equal(mask, dataset.action_mask)
    assert observed.history is not None
    assert logged.history is not None
    np.testing.assert_array_equal(observed.history.vectors, logged.history.vectors)
    np.testing.assert_array_equal(observed.history.offsets, logged.history.offsets)


def test_rows_hold_what_the_marts_say(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    dataset, _ = build_transition_set(workspace.folder, workspace.settings)
    dialogues = workspace.dialogues

    n_steps = [sum(turn["speaker"] == "agent" for turn in d["turns"]) for d in dialogues]
    np.testing.assert_array_equal(np.diff(dataset.episode_offsets), n_steps)
    np.testing.assert_array_equal(dataset.returns, 2.0)
    np.testing.assert_array_equal(dataset.truncated, [d["is_truncated"] for d in dialogues])
    assert [int(us) for us in dataset.started_at] == [int(d["started_at"].timestamp() * 1e6) for d in dialogues]
    unknown = [d["propensity"] is None for d in dialogues]
    np.testing.assert_array_equal(np.isnan(dataset.propensities), np.array(unknown)[dataset.episode_index])
    assert dataset.manifest.items == ("item",)
    np.testing.assert_array_equal(dataset.item_action, np.where(dataset.step_index == 0, -1, 0))
    assert dataset.manifest.counts == {
        "dialogues": 120, "steps": sum(n_steps), "excluded_not_mature": 0, "excluded_incomplete": 0,
        "excluded_unlabelled": 0, "excluded_no_steps": 0,
    }  # fmt: skip


def test_masks_hold_the_eligible_actions_and_never_one_that_cannot_be_chosen(
    make_workspace: MakeWorkspace, new_dialogues: Callable[..., list[dict[str, Any]]]
) -> None:
    dialogues = new_dialogues(1, 10)
    for dialogue in dialogues:
        dialogue["eligible"] = ["offer", "close", "unheard of"]
    workspace = make_workspace(dialogues)
    dataset, _ = build_transition_set(workspace.folder, workspace.settings)

    offer, inquire, close = 2, 1, 3
    logged = np.eye(4, dtype=bool)[dataset.actions]
    assert dataset.action_mask[:, [offer, inquire]].all()
    assert not dataset.action_mask[:, close].any()
    assert (dataset.logged_mask >= logged).all()


def test_rules_narrow_the_action_mask_but_leave_the_fallback(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    dataset, _ = build_transition_set(workspace.folder, workspace.settings, rules=np.zeros_like)
    np.testing.assert_array_equal(dataset.action_mask, np.eye(4, dtype=bool)[np.full(dataset.n_steps, 1)])


def test_final_observations_follow_truncated_episodes_only(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    dataset, live = build_transition_set(workspace.folder, workspace.settings)
    truncated = [d for d in workspace.dialogues if d["is_truncated"]]
    contexts = [DialogueContext(turns=d["turns"], segment=d["segment"]) for d in truncated]

    expected, _ = live.observe(contexts)

    np.testing.assert_allclose(dataset.final_observations[dataset.truncated], expected.state, atol=1e-6)
    assert not dataset.final_observations[dataset.terminated].any()
    assert not dataset.final_action_mask[dataset.terminated].any()


def test_the_window_ends_at_the_newest_day_whose_dialogues_are_all_mature(
    make_workspace: MakeWorkspace, new_dialogues: Callable[..., list[dict[str, Any]]]
) -> None:
    dialogues = new_dialogues(4, 10)
    dialogues[35]["is_mature"] = False
    dialogues[12]["is_incomplete"] = True
    workspace = make_workspace(dialogues)
    dataset_settings = workspace.settings.dataset.model_copy(update={"window_days": 2})
    settings = workspace.settings.model_copy(update={"dataset": dataset_settings})

    dataset, _ = build_transition_set(workspace.folder, settings)

    assert dataset.manifest.window == ("2026-03-02", "2026-03-03")
    assert dataset.n_episodes == 19
    assert dataset.manifest.counts["excluded_incomplete"] == 1


def test_a_customer_is_on_one_side_of_the_split_on_every_night(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    whole, _ = build_transition_set(workspace.folder, workspace.settings)
    shorter = workspace.settings.model_copy(update={"window_end": date(2026, 3, 2)})
    earlier, _ = build_transition_set(workspace.folder, shorter)

    np.testing.assert_array_equal(earlier.validation, whole.validation[: earlier.n_episodes])
    assert 0.2 < whole.validation.mean() < 0.6


def test_building_twice_gives_the_same_hash(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    first, second = (build_transition_set(workspace.folder, workspace.settings)[0] for _ in range(2))
    assert first.manifest == second.manifest


def test_logs_without_mature_dialogues_are_refused_with_the_count(
    make_workspace: MakeWorkspace, new_dialogues: Callable[..., list[dict[str, Any]]]
) -> None:
    workspace = make_workspace([d | {"is_mature": False} for d in new_dialogues(1, 4)])
    with pytest.raises(DataError, match="None of 4 dialogues is mature"):
        build_transition_set(workspace.folder, workspace.settings)


def test_a_window_without_usable_dialogues_is_refused_with_the_reasons(
    make_workspace: MakeWorkspace, new_dialogues: Callable[..., list[dict[str, Any]]]
) -> None:
    workspace = make_workspace([d | {"is_incomplete": True} for d in new_dialogues(1, 4)])
    with pytest.raises(DataError, match="left out: 4 incomplete"):
        build_transition_set(workspace.folder, workspace.settings)


def test_missing_vectors_are_refused_with_the_command_that_makes_them(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    for shard in (workspace.folder / "features").glob("*/*.safetensors"):
        shard.unlink()
    with pytest.raises(DataError, match=r"python -m rl\.encoders\.encode"):
        build_transition_set(workspace.folder, workspace.settings)


def test_marts_that_were_built_with_another_reward_are_refused(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    reward = RewardDefinition(parts=(RewardPart(name="conversion"),))
    dataset_settings = workspace.settings.dataset.model_copy(update={"reward": reward})
    with pytest.raises(DataError, match="Build the warehouse again with these weights"):
        build_transition_set(workspace.folder, workspace.settings.model_copy(update={"dataset": dataset_settings}))


def test_a_strategy_that_the_catalogue_lacks_is_refused(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    rows = json.loads((workspace.folder / "catalogue.json").read_text())
    (workspace.folder / "catalogue.json").write_text(json.dumps(rows[:1]))
    with pytest.raises(DataError, match="a strategy that the catalogue lacks"):
        build_transition_set(workspace.folder, workspace.settings)
