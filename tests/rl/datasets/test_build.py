"""The build job on a small workspace: windows, exclusions, masks, and rows equal to the live encoder's."""

import json
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl.datasets.build import BuildSettings, build_transition_set
from rl.datasets.build import _main as run_build
from rl.datasets.transitions import TransitionSet
from rl.encoders.dialogue import DialogueContext, DialogueEncoder
from rl.errors import DataError
from rl.settings import RewardDefinition, RewardPart

MakeWorkspace = Callable[..., Any]


def build(workspace: Any, settings: BuildSettings | None = None, **more: Any) -> tuple[TransitionSet, DialogueEncoder]:
    return build_transition_set(workspace.folder, workspace.folder / "set", settings or workspace.settings, **more)


def change_steps(workspace: Any, day: str, column: str, row: int, value: Any) -> None:
    """Another value in one row of a day's fct_transitions."""
    path = workspace.folder / "marts" / "fct_transitions" / f"day={day}" / "part-0.parquet"
    table = pq.ParquetFile(path).read()
    values = table.column(column).to_pylist()
    values[row] = value
    index = table.column_names.index(column)
    pq.write_table(table.set_column(index, table.field(index), pa.array(values, table.field(index).type)), path)


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

    observed, mask = live.observe(contexts, with_past=True)
    logged = dataset.batch_observations(slice(None), with_history=True, with_past=True)

    np.testing.assert_allclose(observed.state, logged.state, atol=1e-6)
    np.testing.assert_array_equal(mask, dataset.action_mask)
    assert observed.history is not None
    assert logged.history is not None
    np.testing.assert_array_equal(observed.history.vectors, logged.history.vectors)
    np.testing.assert_array_equal(observed.history.offsets, logged.history.offsets)
    assert observed.past is not None
    assert logged.past is not None
    np.testing.assert_allclose(observed.past.states, logged.past.states, atol=1e-6)
    np.testing.assert_array_equal(observed.past.actions, logged.past.actions)
    np.testing.assert_array_equal(observed.past.offsets, logged.past.offsets)


def test_rows_hold_what_the_marts_say(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    dataset, _ = build(workspace)
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
    dataset, _ = build(workspace)

    offer, inquire, close = 2, 1, 3
    logged = np.eye(4, dtype=bool)[dataset.actions]
    assert dataset.action_mask[:, [offer, inquire]].all()
    assert not dataset.action_mask[:, close].any()
    assert (dataset.logged_mask >= logged).all()


def test_rules_narrow_the_action_mask_but_leave_the_fallback(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    dataset, _ = build(workspace, rules=np.zeros_like)
    np.testing.assert_array_equal(dataset.action_mask, np.eye(4, dtype=bool)[np.full(dataset.n_steps, 1)])


def test_final_observations_follow_truncated_episodes_only(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    dataset, live = build(workspace)
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

    dataset, _ = build(workspace, settings)

    assert dataset.manifest.window == ("2026-03-02", "2026-03-03")
    assert dataset.n_episodes == 19
    assert dataset.manifest.counts["excluded_incomplete"] == 1


def test_a_customer_is_on_one_side_of_the_split_on_every_night(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    whole, _ = build(workspace)
    validation = np.array(whole.validation)
    shorter = workspace.settings.model_copy(update={"window_end": date(2026, 3, 2)})
    earlier, _ = build(workspace, shorter)

    np.testing.assert_array_equal(earlier.validation, validation[: earlier.n_episodes])
    assert 0.2 < validation.mean() < 0.6


def test_building_twice_gives_the_same_hash(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    first, second = (build(workspace)[0] for _ in range(2))
    assert first.manifest == second.manifest


def test_logs_without_mature_dialogues_are_refused_with_the_count(
    make_workspace: MakeWorkspace, new_dialogues: Callable[..., list[dict[str, Any]]]
) -> None:
    workspace = make_workspace([d | {"is_mature": False} for d in new_dialogues(1, 4)])
    with pytest.raises(DataError, match="None of 4 dialogues is mature"):
        build(workspace)


def test_a_window_without_usable_dialogues_is_refused_with_the_reasons(
    make_workspace: MakeWorkspace, new_dialogues: Callable[..., list[dict[str, Any]]]
) -> None:
    workspace = make_workspace([d | {"is_incomplete": True} for d in new_dialogues(1, 4)])
    with pytest.raises(DataError, match="left out: 4 incomplete"):
        build(workspace)


def test_missing_vectors_are_refused_with_the_command_that_makes_them(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    for shard in (workspace.folder / "features").glob("*/*.safetensors"):
        shard.unlink()
    with pytest.raises(DataError, match=r"python -m rl\.encoders\.encode"):
        build(workspace)


def test_marts_that_were_built_with_another_reward_are_refused(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    reward = RewardDefinition(parts=(RewardPart(name="conversion"),))
    dataset_settings = workspace.settings.dataset.model_copy(update={"reward": reward})
    with pytest.raises(DataError, match="Build the warehouse again with these weights"):
        build(workspace, workspace.settings.model_copy(update={"dataset": dataset_settings}))


def test_a_strategy_that_the_catalogue_lacks_is_refused(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    rows = json.loads((workspace.folder / "catalogue.json").read_text())
    (workspace.folder / "catalogue.json").write_text(json.dumps(rows[:1]))
    with pytest.raises(DataError, match="a strategy that the catalogue lacks"):
        build(workspace)


@pytest.mark.parametrize(
    ("column", "value"), [("step_index", 7), ("step_index", None), ("turn_index", 0), ("is_last_step", None)]
)
def test_steps_out_of_order_are_refused_with_their_rows(
    make_workspace: MakeWorkspace, new_dialogues: Callable[..., list[dict[str, Any]]], column: str, value: Any
) -> None:
    dialogues = new_dialogues(2, 1)
    for dialogue in dialogues:
        said = {"speaker": "agent", "text": "offer", "strategies": ["offer"]}
        dialogue["turns"] = [said, {"speaker": "customer", "text": "no"}, dict(said)]
    workspace = make_workspace(dialogues)
    # The marts are written backwards, so row 0 is the second and last step of the day's dialogue.
    change_steps(workspace, "2026-03-02", column, 0, value)
    with pytest.raises(DataError, match=r"2026-03-02: 1 of 2 steps are out of order: .* first at rows 0 of that day"):
        build(workspace)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("reward", float("nan"), r"rows from row \d+ on: rewards is not finite; first at \d+"),
        ("reward_conversion_value", float("inf"), "reward_parts is not finite"),
        ("propensity", 1.5, r"1 of \d+ propensities from row \d+ on lie outside \(0, 1\]; the first is row \d+ with"),
        ("propensity", 0.0, r"lie outside \(0, 1\]"),
        ("is_terminated", None, "either terminated or truncated"),
    ],
)
def test_broken_values_of_the_marts_are_refused_and_the_last_set_stays(
    make_workspace: MakeWorkspace, column: str, value: Any, message: str
) -> None:
    workspace = make_workspace()
    before = build(workspace)[0].manifest
    part = workspace.folder / "marts" / "fct_transitions" / "day=2026-03-02" / "part-0.parquet"
    row = pq.ParquetFile(part).read().column("is_terminated").to_pylist().index(True)
    change_steps(workspace, "2026-03-02", column, row, value)
    with pytest.raises(DataError, match=message):
        build(workspace)
    assert TransitionSet.open(workspace.folder / "set").manifest == before


def test_by_time_the_newest_dialogues_judge_and_no_customer_is_on_both_sides(make_workspace: MakeWorkspace) -> None:
    workspace = make_workspace()
    by_customer = build(workspace)[0].manifest
    by_time = workspace.settings.dataset.model_copy(update={"split": "time", "validation_share": 0.25})
    dataset, _ = build(workspace, workspace.settings.model_copy(update={"dataset": by_time}))

    began = [int(d["started_at"].timestamp() * 1e6) for d in workspace.dialogues]
    judges = {d["customer_id"] for d in workspace.dialogues[90:]} - {None}
    trains = [d for d in workspace.dialogues[:90] if d["customer_id"] not in judges]
    np.testing.assert_array_equal(dataset.started_at[dataset.validation], began[90:])
    np.testing.assert_array_equal(
        dataset.started_at[~dataset.validation], [int(d["started_at"].timestamp() * 1e6) for d in trains]
    )
    assert dataset.manifest.split == "time"
    assert dataset.manifest.counts["excluded_customer_judges"] == 90 - len(trains) > 0
    assert by_customer.split == "customer"
    assert "excluded_customer_judges" not in by_customer.counts


def test_a_day_without_usable_dialogues_leaves_no_trace(
    make_workspace: MakeWorkspace, new_dialogues: Callable[..., list[dict[str, Any]]]
) -> None:
    dialogues = [d | {"is_incomplete": 10 <= k < 20} for k, d in enumerate(new_dialogues(3, 10))]
    dataset, _ = build(make_workspace(dialogues))
    usable = [d for d in dialogues if not d["is_incomplete"]]
    assert [int(us) for us in dataset.started_at] == [int(d["started_at"].timestamp() * 1e6) for d in usable]


def test_only_a_day_is_in_memory(
    make_workspace: MakeWorkspace, new_dialogues: Callable[..., list[dict[str, Any]]]
) -> None:
    def peak(n_days: int) -> int:
        workspace = make_workspace(new_dialogues(n_days, 300))
        tracemalloc.start()
        build(workspace)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(1)
    few, many = peak(2), peak(11)
    # 5.5 times the steps; what grows is some 100 bytes of ids and times for each dialogue.
    assert many < 1.5 * few
