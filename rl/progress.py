"""How a heavy job speaks to whoever started it: one JSON object per line on standard output.

Here: the four kinds of line, and the wrapper that turns a user's mistake into one line and exit status 2.
Not here: what the lines are used for (a bar in the terminal, Dagster metadata, MLflow metrics: `orchestration`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rl.errors import SettingsError, TalktrackError

SettingsT = TypeVar("SettingsT", bound=BaseModel)

EXIT_USER_ERROR = 2


def _emit(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}, default=float), flush=True)


def report_progress(stage: str, done: int, total: int) -> None:
    """Say that `done` of `total` units of `stage` are finished."""
    _emit("progress", stage=stage, done=int(done), total=int(total))


def report_metric(name: str, value: float, step: int = 0) -> None:
    """Say one number of a curve; `name` may carry a path such as `losses/td`."""
    _emit("metric", name=name, value=float(value), step=int(step))


def report_message(text: str) -> None:
    """Say one sentence for the log. Never customer text, never an id."""
    _emit("message", text=text)


def report_result(**fields: Any) -> None:
    """Say the job's result: small, JSON-able, no customer text. Called once, last."""
    _emit("result", **fields)


def load_settings(kind: type[SettingsT], path: Path | None) -> SettingsT:
    """Read settings of one job from a JSON file; without a file, the defaults.

    Raises SettingsError with the field, the value found and what is allowed.
    """
    if path is None:
        return kind()
    try:
        return kind.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise SettingsError(f"The settings file {path} does not exist.") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"{path}: setting `{field}` is {first.get('input')!r}: {first['msg']}. Correct it and run again."
        ) from None


def run_job(
    main: Callable[[Path, Path, SettingsT], None],
    settings_kind: type[SettingsT],
    description: str,
    arguments: list[str] | None = None,
) -> int:
    """Parse `--input`, `--output`, `--settings` and run `main(input, output, settings)`.

    Returns the exit status: 0, or 2 after a TalktrackError, which is printed as one `error` line.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--input", type=Path, required=True, help="folder to read")
    parser.add_argument("--output", type=Path, required=True, help="folder to write (replaced as a whole)")
    parser.add_argument("--settings", type=Path, help="JSON file with the job's settings; default: defaults")
    parsed = parser.parse_args(arguments)
    try:
        main(parsed.input, parsed.output, load_settings(settings_kind, parsed.settings))
    except TalktrackError as error:
        _emit("error", kind=type(error).__name__, message=str(error))
        print(str(error), file=sys.stderr)
        return EXIT_USER_ERROR
    return 0
