"""What assets reach the outside through: the workspace's folders, heavy jobs, dbt, and experiment tracking.

One seam each, so that a test or a larger machine replaces one object. A heavy job reads a folder and writes a folder
(`python -m rl.… --input … --output …`), so the same call can become a job on a cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import dagster as dg
from pydantic import BaseModel

import rl.errors
from orchestration.console import progress
from orchestration.disk import full_disk, is_full_disk
from orchestration.lock import workspace_lock
from orchestration.processes import die_with_parent
from orchestration.settings import PROJECT_ROOT, TalktrackSettings, WorkspacePaths
from rl.errors import TalktrackError
from rl.files import content_hash, write_json
from rl.progress import EXIT_USER_ERROR


@dataclass(frozen=True)
class Workspace:
    """The settings and folders that the assets of this code location work on."""

    settings: TalktrackSettings

    @property
    def paths(self) -> WorkspacePaths:
        return self.settings.paths

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Hold the workspace, and turn a user's mistake or a full disk into a failure with one message and no retry."""
        try:
            with workspace_lock(self.paths.root, exclusive=False):
                yield
        except TalktrackError as error:
            raise _failure(error) from None
        except Exception as error:
            if is_full_disk(error):
                raise _failure(full_disk(self.paths.home)) from None
            raise


def _failure(error: TalktrackError) -> dg.Failure:
    return dg.Failure(description=str(error), metadata={"error": type(error).__name__}, allow_retries=False)


@dataclass
class JobOutcome:
    """What a heavy job said: its result, its curves, and whether an earlier output was good enough."""

    result: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    reused: bool = False


@dataclass(frozen=True)
class JobRunner:
    """Runs `python -m <module> --input --output --settings` in a process of its own and follows its progress."""

    def run(
        self,
        context: dg.AssetExecutionContext,
        module: str,
        *,
        stage: str,
        inputs: Path,
        output: Path,
        settings: BaseModel | dict[str, Any],
        input_key: str | None = None,
    ) -> JobOutcome:
        """Run the job; with `input_key`, reuse its output if module, code, settings and key are unchanged.

        Raises TalktrackError with the job's own message after a user's mistake, RuntimeError with the end of its
        standard error after anything else.
        """
        values = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else settings
        stamp = output.with_name(f".{output.name}.job.json")
        key = content_hash([module, values, input_key, code_version("rl")])
        if input_key and (known := _known_outcome(stamp, key, output)):
            context.log.info(f"{module}: inputs, settings and code are unchanged; its output is reused.")
            progress(f"{stage} (unchanged)", 1, 1)
            return known
        stamp.unlink(missing_ok=True)
        outcome = self._execute(context, module, stage, inputs, output, values)
        write_json(stamp, {"key": key, "result": outcome.result, "metrics": outcome.metrics})
        return outcome

    def _execute(
        self,
        context: dg.AssetExecutionContext,
        module: str,
        stage: str,
        inputs: Path,
        output: Path,
        settings: dict[str, Any],
    ) -> JobOutcome:
        output.parent.mkdir(parents=True, exist_ok=True)
        progress(stage)
        with (
            tempfile.NamedTemporaryFile("w", suffix=".json") as settings_file,
            tempfile.TemporaryFile("w+") as errors,
        ):
            json.dump(settings, settings_file)
            settings_file.flush()
            command = [sys.executable, "-m", module, "--input", str(inputs), "--output", str(output)]
            process = subprocess.Popen(
                [*command, "--settings", settings_file.name],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=PROJECT_ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
            outcome, error = _follow(process, context, stage)
            status = process.wait()
            errors.seek(0)
            tail = "".join(deque(errors, maxlen=20))
        if status == EXIT_USER_ERROR and error is not None:
            raise error
        if status:
            raise RuntimeError(f"{module} ended with status {status}. The end of its standard error:\n{tail}")
        return outcome


def _follow(
    process: subprocess.Popen[str], context: dg.AssetExecutionContext, stage: str
) -> tuple[JobOutcome, TalktrackError | None]:
    outcome, error = JobOutcome(), None
    assert process.stdout is not None
    for line in process.stdout:
        try:
            event = json.loads(line)
        except ValueError:
            context.log.debug(line.rstrip())  # a library that prints; never customer text (rl.progress)
            continue
        kind = event.get("event")
        if kind == "progress":
            progress(stage, event["done"], event["total"])
        elif kind == "metric":
            outcome.metrics.setdefault(event["name"], []).append((event["step"], event["value"]))
        elif kind == "message":
            context.log.info(event["text"])
        elif kind == "result":
            outcome.result = {k: v for k, v in event.items() if k != "event"}
        elif kind == "error":
            error = _error_of(event)
    return outcome, error


def _error_of(event: dict[str, Any]) -> TalktrackError:
    """The job's own error, for those who go on without its output."""
    kind = getattr(rl.errors, str(event.get("kind")), TalktrackError)
    return cast("TalktrackError", kind(event["message"]))


def _known_outcome(stamp: Path, key: str, output: Path) -> JobOutcome | None:
    if not (stamp.exists() and output.exists()):
        return None
    known = json.loads(stamp.read_text())
    if known["key"] != key:
        return None
    metrics = {name: [(s, v) for s, v in curve] for name, curve in known["metrics"].items()}
    return JobOutcome(known["result"], metrics, reused=True)


def code_version(package: str) -> str:
    """Hash of a package's Python files: what decides whether an earlier output still counts."""
    files = sorted((PROJECT_ROOT / package).rglob("*.py"))
    return content_hash([[str(f.relative_to(PROJECT_ROOT)), content_hash(f.read_bytes())] for f in files])
