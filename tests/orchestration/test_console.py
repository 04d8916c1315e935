"""What a night shows: bars in a terminal, one line per stage anywhere else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from orchestration.console import night_display, progress

NIGHT = """
import os, sys
from orchestration.console import night_display, progress
with night_display():
    progress("ingest", 0, 70)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as Dagster does while a step runs
    progress("ingest", 70, 70)
    progress("dbt build")
"""


def test_without_a_terminal_each_stage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with night_display():
        progress("ingest")
        for done in range(1, 1001):
            progress("ingest", done, 1000)
        progress("dbt build")

    lines = capsys.readouterr().err.splitlines()
    assert [line.split() for line in lines] == [["✓", "ingest", "1,000", "0:00"], ["✓", "dbt", "build", "0:00"]]


def test_the_stage_that_failed_is_crossed_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        _failing_night()

    assert [line[0] for line in capsys.readouterr().err.splitlines()] == ["✓", "✗"]


def _failing_night() -> None:
    with night_display():
        progress("ingest")
        progress("dbt build")
        raise ZeroDivisionError


def test_outside_a_display_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress("ingest", 1, 2)

    assert capsys.readouterr().err == ""


def test_bars_move_on_while_a_step_has_taken_standard_error() -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", NIGHT], stderr=follower, env={**os.environ, "COLUMNS": "100"})
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:  # Linux reports the end of a terminal as an error
        pass
    assert process.wait() == 0
    last = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode().splitlines()
    ticked = [line for line in last if "✓" in line]
    assert any("ingest" in line and "70" in line for line in ticked)
    assert any("dbt build" in line for line in ticked)
