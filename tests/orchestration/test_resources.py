"""Heavy jobs: progress and metrics come back, a mistake is one message, unchanged work is reused."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from orchestration.resources import JobRunner
from rl.errors import TalktrackError

JOB = '''
"""A job for tests: counts its runs in the output folder."""
from pathlib import Path
from rl.errors import DataError
from rl.progress import report_metric, report_progress, report_result, run_job
from rl.settings import Settings
import sys

class JobSettings(Settings):
    fail: bool = False
    crash: bool = False

def main(inputs: Path, output: Path, settings: JobSettings) -> None:
    if settings.fail:
        raise DataError("Row 3 is wrong. Mend it.")
    if settings.crash:
        raise ValueError("unexpected")
    output.mkdir(exist_ok=True)
    runs = output / "runs"
    runs.write_text(str(int(runs.read_text()) + 1 if runs.exists() else 1))
    report_progress("work", 1, 2)
    report_metric("losses/td", 0.5, step=10)
    report_result(answer=42)

if __name__ == "__main__":
    sys.exit(run_job(main, JobSettings, "test"))
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "counting_job.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    return "counting_job"


def run(module: str, tmp_path: Path, key: str | None = None, **settings: bool):
    context = dg.build_asset_context()
    return JobRunner().run(
        context,
        module,
        stage="job",
        inputs=tmp_path,
        output=tmp_path / "out",
        settings=settings,
        input_key=key,
    )


def test_result_and_metrics_come_back(module: str, tmp_path: Path) -> None:
    outcome = run(module, tmp_path)
    assert outcome.result == {"answer": 42}
    assert outcome.metrics == {"losses/td": [(10, 0.5)]}


def test_a_users_mistake_is_the_jobs_own_message(module: str, tmp_path: Path) -> None:
    with pytest.raises(TalktrackError, match=r"^Row 3 is wrong\. Mend it\.$"):
        run(module, tmp_path, fail=True)


def test_a_wrong_setting_is_named(module: str, tmp_path: Path) -> None:
    with pytest.raises(TalktrackError, match="`typo`"):
        run(module, tmp_path, typo=True)


def test_our_own_fault_shows_the_end_of_its_trace(module: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ValueError: unexpected"):
        run(module, tmp_path, crash=True)


def test_unchanged_work_is_reused_and_changed_input_is_not(module: str, tmp_path: Path) -> None:
    first, again = run(module, tmp_path, key="a"), run(module, tmp_path, key="a")
    assert (first.reused, again.reused, again.result, again.metrics) == (
        False,
        True,
        first.result,
        first.metrics,
    )
    assert not run(module, tmp_path, key="b").reused
    assert (tmp_path / "out" / "runs").read_text() == "2"


def test_work_is_done_again_when_its_output_is_gone(module: str, tmp_path: Path) -> None:
    run(module, tmp_path, key="a")
    (tmp_path / "out" / "runs").unlink()
    (tmp_path / "out").rmdir()
    assert not run(module, tmp_path, key="a").reused


RUNNER = """
import sys
from pathlib import Path
import dagster as dg
from orchestration.resources import JobRunner
folder = Path(sys.argv[1])
JobRunner().run(
    dg.build_asset_context(), "slow_job", stage="job", inputs=folder, output=folder / "out", settings={}, input_key="a"
)
"""

SLOW_JOB = '''
"""A job for tests: says that it runs, and writes its output a while later."""
import os, sys, time
from pathlib import Path
from rl.files import replaced_folder
from rl.progress import report_result, run_job
from rl.settings import Settings

def main(inputs: Path, output: Path, settings: Settings) -> None:
    with replaced_folder(output) as folder:
        (folder / "half").write_text("x")
        (inputs / "pid").write_text(str(os.getpid()))
        time.sleep(float(os.environ.get("SLOW_JOB_SECONDS", "60")))
    report_result(answer=42)

if __name__ == "__main__":
    sys.exit(run_job(main, Settings, "test"))
'''


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal to orphans is Linux's")
def test_a_job_dies_with_the_night_that_is_killed_and_runs_again(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code" / "slow_job.py").write_text(SLOW_JOB)
    night = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path)])
    job = int(_soon(lambda: (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else ""))

    night.kill()
    night.wait()

    _soon(lambda: not _is_running(job))
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("SLOW_JOB_SECONDS", "0")
    outcome = run("slow_job", tmp_path, key="a")
    assert (outcome.reused, outcome.result) == (False, {"answer": 42})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["half"]
    assert not list(tmp_path.glob(".out.*.tmp"))


def test_a_child_of_a_process_that_is_gone_ends_at_once() -> None:
    child = subprocess.run(
        [sys.executable, "-c", "from orchestration.processes import die_with_parent as die; die(1); print('alive')"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout == ("" if sys.platform == "linux" else "alive\n")


def _soon(found: Callable[[], Any]) -> Any:
    """The first true value of `found` within half a minute."""
    deadline = time.monotonic() + 30
    while not (value := found()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    return value


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
