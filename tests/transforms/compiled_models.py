"""The SQL of the real models, compiled once by dbt and run in this process on tables that a test makes.

A `dbt build` takes ten seconds; a property test needs thousands of builds. So dbt compiles, and DuckDB runs the same
text in memory, where `"memory"."main"."<model>"` names the same relation.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from orchestration import warehouse
from orchestration.settings import TalktrackSettings
from registry.privacy.settings import GridLevel
from registry.privacy.windows import Window
from tests.transforms.conftest import dbt_command

EXACT = {
    "exact_transitions": ("aggregate_bucket", "strategy", "next_bucket"),
    "exact_cells": ("aggregate_bucket", "strategy"),
    "exact_replies": ("reply_kind", "aggregate_bucket", "reply"),
}
"""The exact tables and their keys."""

_FILES = re.compile(r"read_(?:parquet|csv)\('[^']*?(\w+)(?:/\*/\*\.parquet|\.parquet|\.csv)',[^)]*\)")


@dataclass(frozen=True)
class CompiledModels:
    """Compiled SQL by model, in an order in which each comes after those it reads."""

    sql: Mapping[str, str]
    parents: Mapping[str, set[str]]
    """Every model that a model reads, directly or not."""

    @classmethod
    def compile(
        cls, scratch: Path, settings: TalktrackSettings, window: Window | None, grid: GridLevel, **variables: Any
    ) -> CompiledModels:
        """Compile every model under the vars of `settings`; a source is then the relation `landed_<table>`."""
        given = warehouse.dbt_vars(settings, window=window, grid=grid) | variables
        environment = {
            **os.environ,
            **warehouse.dbt_environment(settings, settings.paths.home / "catalogue.csv"),
            "TALKTRACK_WAREHOUSE": ":memory:",
            "DBT_TARGET_PATH": str(scratch),
            "DBT_LOG_PATH": str(scratch),
        }
        command = [dbt_command(), "compile", "--vars", json.dumps(given)]
        done = subprocess.run(
            command, cwd=warehouse.TRANSFORMS, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:]
        nodes = json.loads((scratch / "manifest.json").read_text())["nodes"]
        models = {key: node for key, node in nodes.items() if node["resource_type"] == "model"}
        compiled = scratch / "compiled" / "talktrack"
        sql: dict[str, str] = {}
        parents: dict[str, set[str]] = {}
        for key in _in_order(models):
            name, text = models[key]["name"], (compiled / models[key]["original_file_path"]).read_text()
            direct = {models[parent]["name"] for parent in models[key]["depends_on"]["nodes"] if parent in models}
            sql[name] = _FILES.sub(r"landed_\1", text)
            parents[name] = direct.union(*(parents[parent] for parent in direct))
        return cls(sql, parents)

    def before(self, model: str) -> list[str]:
        """Every model that has to be built before this one, in order."""
        return [name for name in self.sql if name in self.parents[model]]

    def mutated(self, model: str, old: str, new: str) -> CompiledModels:
        """The same with a fault planted in one model. `old` is a regular expression that must occur."""
        text, n = re.subn(old, new, self.sql[model], flags=re.DOTALL)
        assert n > 0, f"{old!r} is not in {model}"
        return replace(self, sql={**self.sql, model: text})

    def build(self, connection: duckdb.DuckDBPyConnection, models: Iterable[str]) -> None:
        """Make these models tables of the connection, replacing those of a run before."""
        chosen = set(models)
        for name, sql in self.sql.items():
            if name in chosen:
                connection.execute(f"create or replace table {name} as {sql}")


def _in_order(models: Mapping[str, Any]) -> list[str]:
    ordered: list[str] = []

    def visit(key: str) -> None:
        if key in models and key not in ordered:
            for parent in models[key]["depends_on"]["nodes"]:
                visit(parent)
            ordered.append(key)

    for key in models:
        visit(key)
    return ordered
