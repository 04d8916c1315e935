"""Real nights for tests: `talktrack nightly` in a process of its own, watched, killed, and what it left compared.

Here: starting, watching and reading a home folder. Not here: tests.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from orchestration.settings import PROJECT_ROOT
from registry.privacy.release import released_records
from rl.encoders.encode import VectorCache
from rl.environments.sample_logs import write_sample_logs
from rl.files import content_hash

WORKSPACE = "storefront"
SETTINGS: dict[str, Any] = {
    "workspace": WORKSPACE,
    "policies": {
        "candidates": [
            {"algorithm": "behavior_cloning", "n_steps": 150, "n_members": 1},
            {"algorithm": "cql", "n_steps": 150, "n_members": 2, "sweep": {"conservative_weight": [0.1, 1.0]}},
            {"algorithm": "d3rlpy_double_dqn", "n_steps": 150},
        ],
        # Nights are compared, and a policy learned from a release differs with its noise.
        "aggregate": {"enabled": False},
    },
    "evaluation": {"fqe_steps": 150, "n_bootstrap": 100},
    "gate": {"mode": "dry_run"},  # with so few dialogues nothing passes, and the release is to be tried too
    # Windows of 7 days, so that one is due after 12 and is released.
    "logs": {"attribution_days": 3},
    "privacy": {"window_days": 7, "grid": "turn", "segments": []},
}
LONGEST_NIGHT_SECONDS = 600


class Night:
    """A home folder, and nights that run in it on shared logs and settings."""

    def __init__(self, home: Path, config: Path, logs: Path) -> None:
        self.home = home
        self.config = config
        self.logs = logs

    @property
    def root(self) -> Path:
        """The workspace's folder."""
        return self.home / WORKSPACE

    def start(self) -> subprocess.Popen[str]:
        """Start a night in a session of its own, as a shell or cron would."""
        command = [sys.executable, "-m", "orchestration.cli", "nightly", "--config", str(self.config)]
        return subprocess.Popen(
            [*command, "--logs", str(self.logs)],
            cwd=PROJECT_ROOT,
            env={**_environment(), "TALKTRACK_HOME": str(self.home), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self) -> tuple[int, str]:
        """Run a night to its end: exit status, and what the user saw."""
        process = self.start()
        _, seen = process.communicate(timeout=LONGEST_NIGHT_SECONDS)
        return process.returncode, seen

    def kill_when(self, is_there: Callable[[Night, int], bool], delay: float = 0.0) -> bool:
        """Start a night and end its main process with SIGKILL; False if the night ended before.

        `is_there(night, pid)` says that the moment has come, `delay` seconds before the kill.
        """
        process = self.start()
        deadline = time.monotonic() + LONGEST_NIGHT_SECONDS
        while process.poll() is None and not is_there(self, process.pid):
            assert time.monotonic() < deadline, "the moment of the kill never came"
            time.sleep(0.02)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL

    def kill_child_when(self, command: str) -> tuple[int, str]:
        """Start a night and end its child process that runs `command` with SIGKILL, as a system without memory does.

        Exit status of the night, and what the user saw.
        """
        process = self.start()
        deadline = time.monotonic() + LONGEST_NIGHT_SECONDS
        while not (found := [pid for pid, line in _children_of(process.pid) if command in line]):
            assert process.poll() is None, "the night ended before its child could be killed"
            assert time.monotonic() < deadline, "the child never came"
            time.sleep(0.02)
        time.sleep(1)
        os.kill(found[0], signal.SIGKILL)
        _, seen = process.communicate(timeout=LONGEST_NIGHT_SECONDS)
        return process.returncode, seen

    def copy(self, home: Path, *without: str) -> Night:
        """A home like this one, as if the stages that wrote `without` (globs in the workspace) had not run."""
        shutil.copytree(self.home, home, ignore=shutil.ignore_patterns("dagster", "mlflow.db*", "mlartifacts"))
        for pattern in ("models/.*.mlflow.json", *without):  # MLflow stays behind, so its run ids do too
            for path in (home / WORKSPACE).glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return Night(home, self.config, self.logs)

    # What is there

    def state(self) -> dict[str, Any]:
        """Everything of which a night must lose and double nothing, comparable between homes."""
        return {
            "landing": _bytes(self.root, "landing/*/*/*.parquet", "landing/_files/*.json", "quarantine/*/*.jsonl"),
            "marts": {str(p.relative_to(self.root)): _rows(p) for p in sorted(self.root.glob("marts/**/*.parquet"))},
            "vectors": self._vectors(),
            "data set": _bytes(self.root, "datasets/transitions/*.safetensors", "datasets/transitions/*.npy"),
            "dataset_hash": self._json("datasets/transitions/manifest.json")["dataset_hash"],
            "policies": _bytes(self.root, "models/*/policy.json", "models/*/policy.safetensors"),
            "evidence": self._json("evaluation/evidence.json"),
            "cards": sorted(path.name for path in self.root.glob("cards/*")),
            "versions": self.query("select name, version from model_versions order by version"),
            "aliases": self.query("select name, alias, version from registered_model_aliases order by alias"),
            "ledger": _select(
                self.root / "ledger" / "rollout.db",
                "select seq, action, alias, from_version, to_version from transitions order by seq",
            ),
            "releases": [(record.window, record.rho) for record in released_records(self.root / "released")],
            "privacy ledger": _select(
                self.root / "ledger" / "privacy_budget.db",
                "select seq, kind, window_start, purpose, micro_rho from entries order by seq",
            ),
            "aggregates": sorted(path.parent.name for path in self.root.glob("released/aggregates/*/part-0.parquet")),
            "finished runs": self.query(
                "select name, count(*) from runs where status = 'FINISHED' group by name order by name"
            ),
        }

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of MLflow's database; none while it has no such table."""
        return _select(self.home / "mlflow.db", sql)

    def leftovers(self) -> list[str]:
        """Temporary files and folders that nobody cleared away."""
        return sorted(
            str(path.relative_to(self.root))
            for pattern in ("**/.*.tmp", "**/.*.previous", "landing/.staging/*")
            for path in self.root.glob(pattern)
        )

    def _json(self, name: str) -> Any:
        return json.loads((self.root / name).read_text())

    def _vectors(self) -> str:
        (folder,) = (path for path in (self.root / "features").iterdir() if path.is_dir())
        cache = VectorCache.open(folder)
        return content_hash(
            np.ascontiguousarray(cache.hashes).tobytes() + np.ascontiguousarray(cache.vectors).tobytes()
        )


def job_runs(module: str) -> Callable[[Night, int], bool]:
    """Whether the heavy job `module` is a child of the night."""

    def runs(night: Night, pid: int) -> bool:
        return any(module in command for _, command in _children_of(pid))

    return runs


def exists(pattern: str, n: int = 1) -> Callable[[Night, int], bool]:
    """Whether at least `n` paths of the workspace match a glob."""
    return lambda night, pid: len(list(night.root.glob(pattern))) >= n


def prepared(folder: Path) -> Night:
    """A home with logs of 600 dialogues in 12 days, ready for its first night."""
    write_sample_logs(folder / "logs", dialogues=600, days=12)
    config = folder / "talktrack.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    return Night(folder / "home", config, folder / "logs")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TALKTRACK_")}


def _children_of(pid: int) -> list[tuple[int, str]]:
    """Process id and command line of the children of a process (Linux)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [(int(c), Path(f"/proc/{c}/cmdline").read_text().replace("\0", " ")) for c in children]
    except OSError:  # one of them ended meanwhile
        return []


def _bytes(root: Path, *patterns: str) -> dict[str, str]:
    paths = (path for pattern in patterns for path in root.glob(pattern))
    return {str(path.relative_to(root)): content_hash(path.read_bytes()) for path in sorted(paths)}


def _rows(path: Path) -> str:
    """Hash of a table's rows in any order: DuckDB may order equal keys differently."""
    rows = pq.read_table(path, partitioning=None).to_pylist()
    return content_hash("\n".join(sorted(map(repr, rows))).encode())


def _select(database: Path, sql: str) -> list[tuple[Any, ...]]:
    if not database.exists():
        return []
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            return connection.execute(sql).fetchall()
        except sqlite3.OperationalError:
            return []
