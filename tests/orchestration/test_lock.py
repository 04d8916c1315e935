"""One night at a time: a second process is refused, and a dead one holds nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestration.lock import WorkspaceBusyError, workspace_lock

HOLDER = """
import sys, time
from pathlib import Path
from orchestration.lock import workspace_lock
with workspace_lock(Path(sys.argv[1]), exclusive=True):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_holds_the_workspace(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with (
        pytest.raises(WorkspaceBusyError, match=f"process {holder.pid}"),
        workspace_lock(tmp_path, exclusive=True),
    ):
        pass


def test_a_step_from_the_ui_is_refused_during_a_night(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(WorkspaceBusyError), workspace_lock(tmp_path, exclusive=False):
        pass


def test_a_killed_holder_leaves_the_workspace_free(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    with workspace_lock(tmp_path, exclusive=True):
        pass


def test_steps_of_the_night_itself_pass(tmp_path: Path) -> None:
    with workspace_lock(tmp_path, exclusive=True), workspace_lock(tmp_path, exclusive=False):
        pass
