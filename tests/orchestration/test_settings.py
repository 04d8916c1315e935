"""Settings: what wins over what, and the one message that a wrong one gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestration.settings import PROJECT_ROOT, TalktrackSettings, load, merged
from rl.errors import SettingsError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TALKTRACK_HOME", "TALKTRACK_CONFIG", "TALKTRACK_LOGS", "TALKTRACK_FORMAT"):
        monkeypatch.delenv(name, raising=False)


def written(folder: Path, text: str) -> Path:
    path = folder / "talktrack.yaml"
    path.write_text(text)
    return path


def test_the_shipped_file_states_the_defaults() -> None:
    shipped = yaml.safe_load((PROJECT_ROOT / "talktrack.yaml").read_text())
    assert TalktrackSettings.model_validate(shipped) == TalktrackSettings()


def test_an_unknown_key_is_refused_with_its_name_and_file(tmp_path: Path) -> None:
    path = written(tmp_path, "gate: {margn: 1}")
    with pytest.raises(SettingsError, match=r"gate\.margn") as caught:
        load(config=path)
    assert str(path) in str(caught.value)


def test_an_unknown_key_is_answered_with_the_name_that_looks_most_like_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"evaluaton: there is no such setting; did you mean evaluation\?"):
        load(config=written(tmp_path, "evaluaton: {confidence: 0.9}"))
    with pytest.raises(SettingsError, match=r"gate\.margn: there is no such setting; did you mean margin\?"):
        load(config=written(tmp_path, "gate: {margn: 1}"))


def test_a_value_out_of_range_is_refused_with_the_value(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"logs\.max_quarantined_share.*found 3"):
        load(config=written(tmp_path, "logs: {max_quarantined_share: 3}"))


def test_a_split_by_time_does_not_go_with_an_aggregate_policy(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"dataset\.split time does not go with policies\.aggregate\.enabled"):
        load(config=written(tmp_path, "dataset: {split: time}"))
    alone = written(tmp_path, "dataset: {split: time}\npolicies: {aggregate: {enabled: false}}")
    assert load(config=alone).dataset.split == "time"


def test_a_file_that_is_not_there_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="TALKTRACK_CONFIG"):
        load(config=tmp_path / "missing.yaml")


def test_broken_yaml_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not valid YAML"):
        load(config=written(tmp_path, "logs: [unclosed"))


def test_a_format_names_its_workspace_and_brings_its_profile() -> None:
    settings = load(log_format="persuasionforgood", logs="somewhere")
    assert settings.workspace == "persuasionforgood"
    assert settings.dataset.reward.unit == "USD"
    assert settings.model_name == "talktrack-persuasionforgood"


def test_a_format_without_logs_is_refused() -> None:
    with pytest.raises(SettingsError, match="LOGS="):
        load(log_format="sgd")


def test_the_users_file_wins_over_the_profile_of_its_own_format(tmp_path: Path) -> None:
    text = "logs: {format: sgd, path: somewhere}\nworkspace: bookings\ndataset: {turn_limit: 99}"
    settings = load(config=written(tmp_path, text))
    assert (settings.workspace, settings.dataset.turn_limit) == ("bookings", 99)
    assert settings.logs.catalogue == "sgd.csv"


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"no log format 'sgdd'.*sgd"):
        load(log_format="sgdd")


def test_the_environment_moves_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKTRACK_HOME", str(tmp_path))
    assert load().paths.landing == tmp_path / "storefront" / "landing"


def test_merging_goes_key_by_key_and_leaves_its_arguments_alone() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merged(base, {"a": {"b": 9}}) == {"a": {"b": 9, "c": 2}, "d": 3}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
