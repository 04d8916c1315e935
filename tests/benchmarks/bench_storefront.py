"""The sample world: how fast it writes canonical logs, and how fast it plays dialogues."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from rl.environments.sample_logs import write_sample_logs
from rl.environments.storefront import policy_value
from rl.environments.storefront_policies import behavior_policy
from tests.benchmarks.rows import Row

DIALOGUES, DAYS = 10_000, 10
LOG_AIM = 60_000
STEP_AIM = 100_000


def run() -> list[Row]:
    """Dialogues a minute into log files, and agent steps a second by rollout; both beside a stated aim."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        written = write_sample_logs(Path(folder), dialogues=DIALOGUES, days=DAYS)
        per_minute = written.n_dialogues / (time.perf_counter() - started) * 60
    started = time.perf_counter()
    played = policy_value(behavior_policy("storefront-v1"), 0.005)
    per_second = played.n_steps / (time.perf_counter() - started)
    return [
        Row("writing sample logs", per_minute, LOG_AIM, "stated aim", "dialogues/min", ">= 1"),
        Row("storefront rollout", per_second, STEP_AIM, "stated aim", "agent steps/s", ">= 1"),
    ]
