"""The aggregates' real SQL in plain DuckDB, without a dbt process.

dbt's models and macros are rendered here with the few words of dbt that they use (var, ref, source, adapter.dispatch),
so that a planted fault is another var, and a build takes as long as its queries. That the text is the one dbt compiles
is tested in tests/transforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import jinja2
import pyarrow as pa

from registry.privacy.settings import PrivacySettings
from registry.privacy.tables import ExactTables

TRANSFORMS = Path(__file__).parents[3] / "transforms"
MACROS = ("compat", "buckets", "privacy", "released")
BOUNDED = ("int_bounded_steps", "exact_transitions", "exact_cells", "exact_replies")
RATES = ("stg_released__cells", "int_released_cells_by_segment", "agg_conversion_rates")
WINDOW = ("2026-01-01", "2026-01-29")


def privacy_vars(settings: PrivacySettings, *, grid: str, customer_acts: tuple[str, ...] = ()) -> dict[str, Any]:
    """The vars of the aggregates for one window, every customer in the tables."""
    return {
        "privacy_window_start": WINDOW[0],
        "privacy_window_end": WINDOW[1],
        "privacy_grid": grid,
        "privacy_turn_edges": list(settings.turn_edges),
        "privacy_segments": list(settings.segments),
        "privacy_customer_acts": list(customer_acts),
        "privacy_max_cells": settings.max_cells,
        "privacy_max_rows_per_cell": settings.max_rows_per_cell,
        "privacy_reward_low": settings.reward_low,
        "privacy_reward_high": settings.reward_high,
        "privacy_salt": "a salt",
        "privacy_validation_share": 0.0,
    }


def exact_tables(marts: dict[str, pa.Table], variables: dict[str, Any]) -> ExactTables:
    """The exact bounded tables of these marts."""
    transitions, cells, replies = built(marts, BOUNDED, variables)[1:]
    return ExactTables(transitions, cells, replies)


def conversion_rates(cells: pa.Table) -> pa.Table:
    """`agg_conversion_rates` of released cells."""
    return built({"released_cells": cells}, RATES, {})[-1]


def built(inputs: dict[str, pa.Table], models: tuple[str, ...], variables: dict[str, Any]) -> list[pa.Table]:
    """Build the models in their order from tables with the names of what they refer to."""
    with duckdb.connect() as connection:
        for name, table in inputs.items():
            connection.register(name, table)
        for model in models:
            connection.execute(f"create table {model} as {rendered(model, variables)}")
        return [connection.execute(f"select * from {model}").fetch_arrow_table() for model in models]


def rendered(model: str, variables: dict[str, Any]) -> str:
    """The SQL of a model for DuckDB."""
    environment = jinja2.Environment(extensions=["jinja2.ext.do"])
    words = environment.globals
    words |= {
        "var": variables.__getitem__,
        "ref": str,
        "source": "{}_{}".format,
        "return": lambda value: value,
        "adapter": _Adapter(words),
    }
    macros = "".join((TRANSFORMS / "macros" / f"{name}.sql").read_text() for name in MACROS)
    words |= vars(environment.from_string(macros).module)
    (path,) = (TRANSFORMS / "models").glob(f"*/{model}.sql")
    return environment.from_string(path.read_text()).render()


@dataclass
class _Adapter:
    """dbt's choice of a macro's form, for an engine that has no form of its own."""

    words: dict[str, Any]

    def dispatch(self, name: str, _project: str) -> Any:
        return self.words[f"default__{name}"]
