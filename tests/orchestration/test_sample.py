"""Sample logs: all of them or none, however the run that makes them ends."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from orchestration import sample
from orchestration.sample import add_sample_days, log_source, sample_folder
from orchestration.settings import LogsSettings, SampleSettings, TalktrackSettings
from rl.environments import sample_logs


@pytest.fixture
def settings(tmp_path: Path) -> TalktrackSettings:
    return TalktrackSettings(
        home=tmp_path, sample=SampleSettings(dialogues=24, days=8), logs=LogsSettings(start_date=date(2026, 1, 1))
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.gz")}


def kill_after(n_days: int, monkeypatch: pytest.MonkeyPatch, *, in_the_day: bool = False) -> None:
    """Make the writer stop at day `n_days`; `in_the_day`: between its two files."""
    whole_day, calls = sample_logs._write_day, iter(range(n_days))

    def write_day(folder: Path, *arguments: object) -> None:
        is_last = next(calls, None) is None
        if not is_last or in_the_day:
            whole_day(folder, *arguments)
        if is_last:
            newest = max(folder.glob("arrival_day=*"))
            (newest / sample_logs.LAST_FILE_OF_A_DAY).unlink(missing_ok=True)
            raise KeyboardInterrupt

    monkeypatch.setattr(sample_logs, "_write_day", write_day)


def test_logs_whose_making_was_killed_are_made_again_as_a_whole(
    settings: TalktrackSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            log_source(settings)

    log_source(settings)

    expected = tmp_path / "expected"
    sample.make_sample_logs(settings, expected)
    assert content(sample_folder(settings)) == content(expected)
    assert len(content(expected)) == 16


def test_a_day_that_was_half_written_is_written_again(
    settings: TalktrackSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = Path(log_source(settings)), tmp_path / "expected"
    sample.make_sample_logs(settings, expected)
    add_sample_days(settings, expected, 1)
    with monkeypatch.context() as patch:
        kill_after(0, patch, in_the_day=True)
        with pytest.raises(KeyboardInterrupt):
            add_sample_days(settings, folder, 1)

    add_sample_days(settings, folder, 1)

    assert content(folder) == content(expected)
