"""Fixtures that every test may use: the real public logs, and torch on one thread."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: a loaded machine is no fault of the code. Derandomized: the same examples everywhere.
hypothesis.settings.register_profile("talktrack", deadline=None, derandomize=True)
hypothesis.settings.load_profile("talktrack")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the public logs: `TALKTRACK_TEST_DATA`, or `shared/data` beside the repository.

    They are not in the repository. Where `CI` is set their absence is a failure, elsewhere a skip.
    """
    folder = Path(os.environ.get("TALKTRACK_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        message = f"No public logs at {folder}. Set TALKTRACK_TEST_DATA to the folder that holds them."
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
