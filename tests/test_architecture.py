"""The map of the house: who may import whom, and what each file must say of itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("rl", "registry", "orchestration")
FORBIDDEN = {
    "rl": {"registry", "orchestration", "dagster", "dagster_dbt", "mlflow", "dbt", "duckdb"},
    "registry": {"orchestration", "dagster", "dagster_dbt", "dbt", "duckdb"},
    "orchestration": {"tests"},
}
HEAVY = {"torch", "transformers", "mlflow", "d3rlpy", "model2vec", "sklearn"}
FILES = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of all imports below a node."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(REPOSITORY).parts[0]
    assert not imported(ast.parse(path.read_text())) & FORBIDDEN[package]


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.read_text().strip()], ids=lambda p: str(p.relative_to(REPOSITORY))
)
def test_each_file_says_what_belongs_in_it(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    "path", [p for p in FILES if "orchestration" in p.parts], ids=lambda p: str(p.relative_to(REPOSITORY))
)
def test_the_code_location_loads_without_heavy_libraries(path: Path) -> None:
    top_level = ast.Module(
        [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)], []
    )
    assert not imported(top_level) & HEAVY
