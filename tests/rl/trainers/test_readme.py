"""The example in rl/README.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_the_first_example_learns_saves_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[3] / "rl" / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)

    assert example is not None
    exec(compile(example.group(1), "rl/README.md", "exec"), {})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["my_policy"]
