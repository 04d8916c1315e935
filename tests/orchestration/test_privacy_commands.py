"""`talktrack privacy`: what was spent, what it bought, what a release would cost, in words that fit a terminal."""

from __future__ import annotations

import json
import shutil
import sqlite3
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from orchestration.aggregates import places, release_plan
from orchestration.cli import main
from orchestration.settings import PROJECT_ROOT, TalktrackSettings, load
from registry.privacy.budget import COMPROMISED_KEY, Cost
from registry.privacy.release import open_budget, release_tables
from registry.privacy.tables import ExactTables
from registry.privacy.windows import Window

FIRST = Window(date(2026, 1, 1), date(2026, 1, 29))


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TALKTRACK_CONFIG", "TALKTRACK_LOGS", "TALKTRACK_FORMAT"):
        monkeypatch.setenv(name, "")  # set first, so that what a command writes there is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("TALKTRACK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(PROJECT_ROOT)


@pytest.fixture
def settings() -> TalktrackSettings:
    return load()


def privacy(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["privacy", *arguments])


def shown(*arguments: str) -> str:
    """What a person sees of a command that succeeds; nothing of it is wider than 100 columns."""
    result = privacy(*arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert max(len(line.rstrip()) for line in result.stderr.splitlines()) <= 100
    return result.stderr


def stopped(*arguments: str) -> str:
    """What a command that was stopped says, on one line."""
    result = privacy(*arguments)
    assert result.exit_code == 1
    assert result.stderr.count("Stopped.") == 1
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def land(settings: TalktrackSettings, newest: str) -> None:
    """Logs that go up to a day: what the data's clock is read from."""
    (settings.paths.landing / "turns" / f"arrival_day={newest}").mkdir(parents=True)


def release(settings: TalktrackSettings, window: Window) -> None:
    """Release a window in which one customer took one step."""
    plan = release_plan(settings)
    bucket, strategy = next(plan.grid.cells())
    cell = {"aggregate_bucket": [bucket], "strategy": [strategy]}
    exact = ExactTables(
        pa.table({**cell, "next_bucket": ["ended"], "n_steps": [1]}),
        pa.table({**cell, "n_customers": [1], "n_conversions": [0], "reward_milli": [0]}),
        pa.table(
            {"reply_kind": ["text"], "aggregate_bucket": ["any|any|any|any"], "reply": ["no"], "n_customers": [1]}
        ),
    )
    release_tables(exact, plan=plan, window=window, places=places(settings), code_revision="abc")


def evaluate(settings: TalktrackSettings, window: Window, candidate: str) -> None:
    ledger = open_budget(places(settings))
    budget = Cost.of(settings.privacy.rho, settings.privacy.delta)
    ledger.reserve(window, f"gate:{candidate}:aaaaaaaa", release_id="a" * 32, cost=Cost.of(0.005), budget=budget)


@pytest.fixture
def released(settings: TalktrackSettings) -> TalktrackSettings:
    """One window released and judged twice, the next one due, one under way."""
    land(settings, "2026-03-10")
    release(settings, FIRST)
    evaluate(settings, FIRST, "aggregate_cql")
    evaluate(settings, FIRST, "aggregate_dqn")
    return settings


def row_of(said: str, start: str) -> list[str]:
    return next(line for line in said.splitlines() if line.startswith(start)).split()


# ---------- status


def test_before_the_first_night_status_states_the_promise_and_makes_nothing(settings: TalktrackSettings) -> None:
    said = shown("status")
    assert "no logs have landed, and nothing was booked" in said
    assert "at most ρ 0.1 in a window of 28 days: ε 2.14 at δ 2e-6" in said
    assert not settings.paths.privacy_budget.exists()


def test_status_shows_what_each_window_spent_and_has_left(released: TalktrackSettings) -> None:
    said = shown("status")
    assert row_of(said, "2026-01-01")[3:] == ["released", "0.08", "0.01", "(2", "×)", "0.01", "2.02"]
    assert row_of(said, "2026-01-29")[3:] == ["due", "now", "–", "–", "0.1", "–"]
    assert row_of(said, "2026-02-26")[3:] == ["due", "on", "2026-04-03", "–", "–", "0.1", "–"]
    assert "2026-03-26" not in said
    assert "✓ Ledger (4 rows) and releases (1) are as they were written." in said
    assert "in 2 windows, a year in 14" in " ".join(said.split())


def test_a_window_that_was_passed_over_and_one_that_was_lost_say_so(released: TalktrackSettings) -> None:
    land(released, "2026-05-01")
    window = FIRST.next().next()
    plan = release_plan(released)
    open_budget(places(released)).reserve(window, "tables", release_id="a" * 32, cost=plan.cost, budget=plan.budget)
    said = shown("status")
    assert "was not released" in next(line for line in said.splitlines() if line.startswith("2026-01-29"))
    assert "spent, figures lost" in next(line for line in said.splitlines() if line.startswith("2026-02-26"))


def test_status_says_what_is_left_by_todays_budget_and_never_less_than_nothing(
    released: TalktrackSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for rho, left in ((0.5, "0.01"), (0.05, "–")):
        (tmp_path / "talktrack.yaml").write_text(f"privacy: {{rho: {rho}, expected_dialogues: 1000000}}\n")
        monkeypatch.setenv("TALKTRACK_CONFIG", str(tmp_path / "talktrack.yaml"))
        assert row_of(shown("status"), "2026-01-01")[-2] == left


def test_a_window_that_a_compromised_key_closed_says_so_and_counts_it_as_no_evaluation(
    released: TalktrackSettings,
) -> None:
    ledger, budget = open_budget(places(released)), Cost.of(0.1, 1e-6)
    for window in (FIRST, FIRST.next()):
        left = ledger.left(window.start, budget)
        ledger.reserve(window, COMPROMISED_KEY, release_id="k", cost=left, budget=budget)
    said = shown("status")
    assert row_of(said, "2026-01-01")[3:] == ["released", "0.08", "0.01", "(2", "×)", "–", "2.14"]
    assert row_of(said, "2026-01-29")[3:] == ["closed:", "key", "compromised", "–", "–", "–", "2.14"]


def test_status_as_json_has_the_same_figures(released: TalktrackSettings) -> None:
    result = privacy("status", "--json")
    assert result.exit_code == 0
    status = json.loads(result.stdout)
    window = status["windows"][0]
    assert window["spent"] == {
        "tables": 0.08,
        "gate:aggregate_cql:aaaaaaaa": 0.005,
        "gate:aggregate_dqn:aaaaaaaa": 0.005,
    }
    assert window["rho_left"] == pytest.approx(0.01)
    assert window["state"] == "released"
    assert status["verified"] == {"ledger_rows": 4, "releases": 1}
    assert status["cost"]["year"]["rho"] == pytest.approx(1.4)


def test_windows_of_a_year_are_listed_and_older_ones_counted(settings: TalktrackSettings) -> None:
    land(settings, "2027-12-31")
    said = shown("status")
    assert sum(line[:2] == "20" for line in said.splitlines()) == 14
    assert "13 earlier windows" in said


def test_after_a_change_of_window_days_only_windows_with_a_budget_are_listed(
    released: TalktrackSettings, tmp_path: Path
) -> None:
    config = tmp_path / "talktrack.yaml"
    config.write_text("privacy: {window_days: 10}")
    said = shown("status", "--config", str(config))
    starts = [line[:10] for line in said.splitlines() if line.startswith("2026")]
    # Ten-day windows from 21 January and from 11 January share days with the one that was booked.
    assert starts[:2] == ["2026-01-01", "2026-01-31"]


def test_an_edited_ledger_is_shown_and_then_refused(released: TalktrackSettings) -> None:
    connection = sqlite3.connect(released.paths.privacy_budget)
    connection.executescript("DROP TRIGGER entries_are_never_updated; UPDATE entries SET micro_rho = 1 WHERE seq = 1")
    connection.close()
    said = stopped("status")
    assert "not verified" in said
    assert "row 1 was changed after it was recorded" in said
    assert "Restore the file from a backup" in said
    assert "row 1 was changed" in stopped("ledger")
    assert privacy("status", "--json").stdout == ""


def test_a_ledger_that_vanished_and_a_release_that_was_changed_are_refused(released: TalktrackSettings) -> None:
    path = released.paths.released / "releases" / "2026-01-01" / "cells.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert "are not those that were released" in stopped("status")
    path.write_bytes(content)
    shutil.rmtree(released.paths.privacy_budget.parent)
    assert "There is no privacy ledger at" in stopped("status")


# ---------- ledger


def test_the_ledger_is_listed_row_by_row(released: TalktrackSettings) -> None:
    said = shown("ledger")
    assert row_of(said, "1 ")[3:7] == ["2026-01-01", "tables", "reserved", "0.08"]
    assert row_of(said, "2 ")[3:6] == ["2026-01-01", "tables", "kept"]
    assert row_of(said, "3 ")[4:7] == ["gate:aggregate_cql", "reserved", "0.005"]
    assert "The 4 rows form one chain." in said


def test_the_ledger_as_json_has_every_column(released: TalktrackSettings) -> None:
    result = privacy("ledger", "--json")
    rows = json.loads(result.stdout)
    assert [row["seq"] for row in rows] == [1, 2, 3, 4]
    assert rows[1]["output_hash"]
    assert rows[0]["micro_rho"] == 80_000
    assert rows[1]["previous_hash"] == rows[0]["hash"]


def test_an_empty_ledger_says_so(settings: TalktrackSettings) -> None:
    assert "nothing was booked yet" in shown("ledger")


# ---------- plan


def test_the_plan_shows_every_grid_the_noise_and_the_price(settings: TalktrackSettings) -> None:
    said = shown("plan")
    assert "turn_segment_act_strategy" in said
    chosen = [line for line in said.splitlines() if "← chosen" in line]
    assert [line.split()[0] for line in chosen] == [release_plan(settings).grid.level]
    assert row_of(said, "steps, by what came next")[-5:] == ["0.028", "8", "1", "12.0", "steps"]
    assert row_of(said, "tables of a window")[-3:] == ["0.08", "1.90", "2e-6"]
    assert row_of(said, "all of a window")[-3:] == ["0.1", "2.14", "2e-6"]
    assert row_of(said, "the 14 windows that a year can touch")[-3:] == ["1.4", "9.46", "1.5e-5"]
    assert not settings.paths.privacy_budget.exists()


def test_other_budgets_sizes_and_grids_can_be_explored() -> None:
    plans = {
        name: json.loads(privacy("plan", "--json", *arguments).stdout)
        for name, arguments in {
            "as configured": (),
            "more": ("--rho", "0.5"),
            "as ε": ("--epsilon", "5.2215"),
            "large": ("--dialogues", "20000000"),
            "coarse": ("--level", "turn"),
        }.items()
    }
    sigma = {name: plan["measures"][0]["sigma"] for name, plan in plans.items()}
    assert sigma["more"] < sigma["as configured"] == sigma["large"]
    assert plans["more"]["cost"]["window"]["rho"] == 0.5
    assert plans["as ε"]["cost"]["window"]["rho"] == pytest.approx(0.5, abs=1e-4)
    assert plans["large"]["grid"]["n_transitions"] > plans["as configured"]["grid"]["n_transitions"]
    assert plans["coarse"]["grid"]["level"] == "turn"


def test_a_plan_that_is_mostly_noise_is_shown_and_refused_with_what_would_fit() -> None:
    said = stopped("plan", "--level", "turn_segment_act_strategy")
    assert "noise" in said
    assert "Any of these would fit: privacy.grid: turn_segment" in said
    assert privacy("plan", "--level", "turn_segment_act_strategy", "--json").stdout == ""


def test_a_budget_can_be_given_as_epsilon() -> None:
    plan = json.loads(privacy("plan", "--json", "--epsilon", "5.22").stdout)
    assert plan["cost"]["window"]["rho"] == pytest.approx(0.5, abs=0.005)
    assert plan["cost"]["window"]["epsilon"] == pytest.approx(5.22, abs=0.01)
    both = privacy("plan", "--rho", "0.5", "--epsilon", "5")
    assert both.exit_code == 2
    assert "Give --rho or --epsilon, not both." in both.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rho", "0.01"), "gate_rho 0.02 leaves nothing of rho 0.01"),
        (("--rho", "-1"), "greater than 0"),
        (("--epsilon", "0"), "epsilon 0 buys nothing"),
    ],
)
def test_what_cannot_be_planned_is_one_message(arguments: tuple[Any, ...], message: str) -> None:
    assert message in stopped("plan", *arguments)


def test_a_budget_is_given_once() -> None:
    result = privacy("plan", "--epsilon", "1", "--rho", "0.1")
    assert result.exit_code == 2
    assert "--rho or --epsilon, not both" in result.stderr


@pytest.mark.parametrize("log_format", ["chat", "convokit", "inspired", "persuasionforgood", "redial", "sgd"])
def test_other_logs_are_not_planned_with_the_segments_and_rewards_of_the_storefront(log_format: str) -> None:
    privacy_settings = load(log_format=log_format, logs="logs").privacy
    assert privacy_settings.segments == ()
    assert privacy_settings.reward_high <= 2


def test_a_public_corpus_too_small_for_private_tables_is_told_so() -> None:
    said = stopped("plan", "--format", "persuasionforgood", "--logs", "logs")
    assert "windows of 2,200 dialogues instead of the expected 300" in said


def test_help_lists_the_commands_of_the_group() -> None:
    listed = privacy("--help").stdout
    assert all(name in listed for name in ("status", "ledger", "plan"))
