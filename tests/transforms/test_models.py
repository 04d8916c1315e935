"""What the marts say about logs whose meaning is known by construction. Each build is a real `dbt build`."""

from __future__ import annotations

import shutil
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pytest

from orchestration.marts import DIMENSIONS, FACTS, behavior_summary
from orchestration.warehouse import plan_build, read_state, touched_days
from tests.transforms import landing_builder as logs
from tests.transforms.conftest import History, Workspace


@pytest.mark.parametrize("model", [*FACTS, *DIMENSIONS])
def test_a_history_built_night_by_night_equals_the_same_landing_built_at_once(history: History, model: str) -> None:
    nightly, at_once = history.nightly.mart(model), history.at_once.mart(model)

    assert nightly.schema == at_once.schema
    assert nightly.num_rows > 0
    assert nightly.to_pylist() == at_once.to_pylist()


def test_the_second_night_rebuilds_only_the_touched_days(history: History) -> None:
    _, second = history.plans
    before, after = history.files
    untouched = {name for name in before if date.fromisoformat(name[-10:]) not in (second.days or ())}

    assert history.plans[0].is_full
    assert second.days == (date(2026, 1, 1), date(2026, 1, 2), date(2026, 1, 3), date(2026, 1, 4))
    assert {name.partition("/")[0] for name in untouched} == set(FACTS)
    for name in untouched:
        assert after[name] == before[name], f"{name} was written again"


def test_a_late_outcome_touches_the_day_of_its_dialogue_and_no_other(history: History, tmp_path: Path) -> None:
    workspace = history.nightly
    paths = workspace.settings.paths
    landing = shutil.copytree(paths.landing, tmp_path / "landing")
    source = logs.land(landing, "2026-01-11", outcomes=[logs.outcome("b0", logs.START + timedelta(days=3))])

    days = touched_days(landing, paths.marts, [source], as_of=read_state(paths.root).as_of, attribution_days=7)

    assert days == [date(2026, 1, 2)]


def test_replies_of_days_that_were_not_rebuilt_are_kept(history: History) -> None:
    built = []
    for workspace in (history.nightly, history.at_once):
        with duckdb.connect(str(workspace.settings.paths.warehouse), read_only=True) as connection:
            built.append(connection.execute("from int_steps_answered order by all").fetchall())

    assert len(built[0]) > 0
    assert built[0] == built[1]


def test_a_night_without_new_records_has_nothing_to_do(history: History) -> None:
    plan = plan_build(history.nightly.settings, history.nightly.catalogue)

    assert plan.days == ()
    assert not plan.has_work


def test_a_dialogue_that_moved_to_an_earlier_day_leaves_no_trace_on_the_later_one(history: History) -> None:
    marts = history.nightly.settings.paths.marts

    days = {str(row["dialogue_id"]): row["dialogue_day"] for row in history.nightly.rows("fct_dialogues")}

    assert days["moves"] == date(2026, 1, 1)
    assert days["lone"] == date(2026, 1, 3)
    assert not (marts / "fct_dialogues" / "day=2026-01-04").exists()
    assert not (marts / "fct_turns" / "day=2026-01-04").exists()


def test_late_outcomes_are_counted_and_not_rewarded(history: History) -> None:
    dialogues = {row["dialogue_id"]: row for row in history.nightly.rows("fct_dialogues")}

    assert dialogues["a1"]["has_conversion"]
    assert dialogues["a1"]["conversion_value"] == 3.0
    assert not dialogues["a2"]["has_conversion"]
    assert dialogues["a2"]["n_late_outcomes"] == 1


def test_rewards_are_clipped_weighted_and_add_up(history: History) -> None:
    steps = [row for row in history.nightly.rows("fct_transitions") if row["dialogue_id"] == "a0"]
    (dialogue,) = (row for row in history.nightly.rows("fct_dialogues") if row["dialogue_id"] == "a0")

    assert [row["reward"] for row in steps] == [0.125, 0.125, 8.0 + 2.0 + 0.125]
    assert dialogue["conversion_value"] == 20.0
    assert dialogue["episode_return"] == 10.375


def test_a_decision_wins_over_its_turn_and_shadow_decisions_never_enter(history: History) -> None:
    steps = [row for row in history.nightly.rows("fct_transitions") if row["dialogue_id"] == "a1"]

    assert [row["strategy"] for row in steps] == ["inquire", "inquire", "offer"]
    assert [row["propensity"] for row in steps] == [0.4, 0.3, 0.4]
    assert [row["policy_version"] for row in steps] == ["v1", "v3", "v1"]
    assert [row["stage"] for row in steps] == [None, "canary", None]
    assert [row["previous_strategy"] for row in steps] == [None, "inquire", "inquire"]


def test_only_mature_complete_labelled_dialogues_are_usable(history: History) -> None:
    usable = {row["dialogue_id"] for row in history.nightly.rows("fct_dialogues") if row["is_usable"]}
    truncated = {row["dialogue_id"] for row in history.nightly.rows("fct_transitions") if row["is_truncated"]}

    assert usable == {"a0", "a1", "a2", "b0", "moves"}
    assert truncated == {"young", "lone"}


def test_no_mart_carries_text(history: History) -> None:
    for model in [*FACTS, *DIMENSIONS]:
        assert "text" not in history.nightly.mart(model).column_names


def test_times_leave_the_warehouse_as_utc_instants(history: History) -> None:
    assert str(history.nightly.mart("fct_turns").schema.field("occurred_at").type) == "timestamp[us, tz=UTC]"


def test_the_summary_counts_usable_dialogues_and_averages_their_returns(history: History) -> None:
    summary = behavior_summary(history.nightly.settings.paths.marts)

    returns = [row["episode_return"] for row in history.nightly.rows("fct_dialogues") if row["is_usable"]]
    assert (summary.n_dialogues, summary.n_usable, summary.n_immature) == (9, 5, 2)
    assert (summary.n_incomplete, summary.n_unlabelled) == (1, 1)
    assert summary.n_steps == 15
    assert summary.mean_return == pytest.approx(sum(returns) / 5)
    assert summary.mean_parts["conversion"] == pytest.approx(2 / 5)
    assert summary.mean_parts["cost"] == pytest.approx(-3.0)


def test_an_empty_landing_builds_and_every_unit_test_passes(empty: Workspace) -> None:
    assert "unit_test" in empty.last_output
    assert "ERROR=0" in empty.last_output
    assert not list(empty.settings.paths.marts.glob("fct_*/day=*"))
    assert len(empty.rows("dim_strategies")) == 5
    assert behavior_summary(empty.settings.paths.marts).mean_return is None
