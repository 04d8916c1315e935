"""The command line: it explains itself, and a user's mistake is one message and exit status 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from orchestration.cli import main
from orchestration.settings import PROJECT_ROOT, load
from rl.datasets.transitions import TransitionSet, write_transition_set

WORKSPACE_COMMANDS = ("nightly", "sample-logs", "status", "promote", "rollback", "ui", "mlflow", "serve", "check")
COMMANDS = (*WORKSPACE_COMMANDS, "export", "erase", "retention", "rekey", "privacy", "dataset")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TALKTRACK_CONFIG", "TALKTRACK_LOGS", "TALKTRACK_FORMAT"):
        monkeypatch.setenv(name, "")  # set first, so that what a command writes there is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("TALKTRACK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(PROJECT_ROOT)


def talktrack(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def message_of(result: Result) -> str:
    """The one message of a command that was stopped."""
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.count("Stopped.") == 1
    return " ".join(result.stderr.split())


def test_help_lists_every_command_with_what_it_does() -> None:
    result = talktrack("--help")
    assert result.exit_code == 0
    listed = dict(line.split(maxsplit=1) for line in result.stdout.split("Commands:")[1].strip().splitlines())
    assert sorted(listed) == sorted(COMMANDS)
    assert all(listed.values())


def test_an_unknown_format_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    said = message_of(talktrack("nightly", "--format", "fax", "--logs", str(tmp_path)))
    assert "There is no log format 'fax'" in said
    assert "persuasionforgood" in said


def test_a_format_without_logs_says_how_to_name_them() -> None:
    assert "Format 'sgd' needs logs to read" in message_of(talktrack("nightly", "--format", "sgd"))


def test_an_export_before_the_first_release_says_when_there_is_one(tmp_path: Path) -> None:
    said = message_of(talktrack("export", str(tmp_path / "out")))
    assert "Nothing was released in workspace 'storefront' yet. `talktrack privacy status` says when" in said
    assert not (tmp_path / "out").exists()


def test_an_export_of_a_version_that_is_not_there_says_where_versions_are_listed(tmp_path: Path) -> None:
    said = message_of(talktrack("export", str(tmp_path / "out"), "--version", "7"))
    assert "talktrack-storefront has no version 7. `talktrack status` lists the versions in use" in said


def test_a_wrong_path_is_named(tmp_path: Path) -> None:
    said = message_of(talktrack("nightly", "--logs", str(tmp_path / "nowhere")))
    assert f"There are no logs at {tmp_path}/nowhere." in said


def test_a_folder_without_logs_of_the_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    assert "has no file that the format" in message_of(talktrack("nightly", "--logs", str(tmp_path / "logs")))


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "No settings at" in message_of(talktrack("status", "--config", str(tmp_path / "missing.yaml")))


def test_brackets_in_a_message_are_shown_and_not_taken_for_markup(tmp_path: Path) -> None:
    config = tmp_path / "talktrack.yaml"
    config.write_text("policies: {candidates: [{algorithm: cql, hidden_units: [bold, red]}]}")
    assert "(found 'bold')" in message_of(talktrack("status", "--config", str(config)))
    config.write_text("gate: [red]")
    assert "gate" in (said := message_of(talktrack("status", "--config", str(config))))
    assert "(found ['red'])" in said


def test_logs_from_before_the_first_partition_say_what_to_set(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "arrival_day=2025-12-31"
    folder.mkdir(parents=True)
    (folder / "turns.jsonl").write_text("{}\n")
    assert "Set logs.start_date in talktrack.yaml" in message_of(talktrack("nightly", "--logs", str(tmp_path / "logs")))


def test_a_day_without_logs_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "arrival_day=2026-01-05"
    folder.mkdir(parents=True)
    (folder / "turns.jsonl").write_text("{}\n")
    said = message_of(talktrack("nightly", "--logs", str(tmp_path / "logs"), "--day", "2026-01-04"))
    assert "There are no logs up to 2026-01-04" in said


def test_status_before_the_first_night_says_what_to_do() -> None:
    assert "Run a night first" in message_of(talktrack("status"))


def test_sample_logs_are_written_and_continued(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    assert talktrack("sample-logs", "--dialogues", "20", "--days", "2", "--output", str(folder)).exit_code == 0
    before = {path: path.read_bytes() for path in folder.rglob("*.gz")}
    config = tmp_path / "talktrack.yaml"
    config.write_text("sample: {dialogues: 80, days: 8}")
    more = talktrack("sample-logs", "--more-days", "2", "--output", str(folder), "--config", str(config))
    assert more.exit_code == 0
    days = sorted(path.name for path in folder.iterdir())
    assert days == [f"arrival_day=2026-01-0{day}" for day in range(1, 5)]
    assert {path: path.read_bytes() for path in before} == before


# ---------- exchange with d3rlpy


@pytest.fixture
def transitions() -> TransitionSet:
    """Two dialogues over four actions, of which the last was never logged."""
    return TransitionSet.from_arrays(
        observations=np.arange(10, dtype=np.float32).reshape(5, 2),
        actions=np.array([0, 1, 2, 0, 1]),
        rewards=np.array([0.0, 0.0, 5.0, 0.0, 0.0]),
        episode_offsets=np.array([0, 3, 5]),
        n_actions=4,
    )


def test_an_exported_data_set_comes_back_with_all_its_actions(transitions: TransitionSet, tmp_path: Path) -> None:
    write_transition_set(load().paths.datasets / "transitions", transitions)
    file, folder = tmp_path / "set.h5", tmp_path / "imported"

    exported = talktrack("dataset", "export", str(file))
    assert exported.exit_code == 0, exported.stderr
    imported = talktrack("dataset", "import", str(file), str(folder))
    assert imported.exit_code == 0, imported.stderr

    back = TransitionSet.open(folder)
    assert back.n_actions == 4
    for name in ("observations", "actions", "rewards", "episode_offsets"):
        np.testing.assert_array_equal(getattr(back, name), getattr(transitions, name), err_msg=name)


def test_a_file_that_does_not_say_how_many_actions_there_are_needs_the_option(
    transitions: TransitionSet, tmp_path: Path
) -> None:
    write_transition_set(load().paths.datasets / "transitions", transitions)
    file = tmp_path / "set.h5"
    talktrack("dataset", "export", str(file))
    (tmp_path / "set.h5.json").unlink()

    assert "Give --n-actions" in message_of(talktrack("dataset", "import", str(file), str(tmp_path / "imported")))
    assert talktrack("dataset", "import", str(file), str(tmp_path / "imported"), "--n-actions", "4").exit_code == 0
    assert TransitionSet.open(tmp_path / "imported").n_actions == 4


def test_too_few_actions_are_refused(transitions: TransitionSet, tmp_path: Path) -> None:
    write_transition_set(load().paths.datasets / "transitions", transitions)
    talktrack("dataset", "export", str(tmp_path / "set.h5"))
    message_of(talktrack("dataset", "import", str(tmp_path / "set.h5"), str(tmp_path / "imported"), "--n-actions", "2"))


def test_an_export_before_the_first_night_says_what_to_do(tmp_path: Path) -> None:
    assert "Run `talktrack nightly` first" in message_of(talktrack("dataset", "export", str(tmp_path / "set.h5")))


def test_an_import_replaces_no_folder_that_holds_something_else(transitions: TransitionSet, tmp_path: Path) -> None:
    write_transition_set(load().paths.datasets / "transitions", transitions)
    talktrack("dataset", "export", str(tmp_path / "set.h5"))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("dear")

    said = message_of(talktrack("dataset", "import", str(tmp_path / "set.h5"), str(tmp_path / "letters")))

    assert "Name a new folder" in said
    assert (tmp_path / "letters" / "one.txt").read_text() == "dear"
