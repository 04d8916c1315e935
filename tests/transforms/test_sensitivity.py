"""T1: how far one customer can move the exact tables, with the SQL that runs in production.

Each random log is built with everybody and once more without each customer. The largest movement must stay within the
bounds (L0, L-infinity, L2) that registry/privacy/plan.py certifies noise for. The same check must catch every fault
that is planted in the SQL: a test that cannot fail is no test.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from orchestration.settings import TalktrackSettings
from registry.privacy.plan import Measure, measures_of
from registry.privacy.settings import PrivacySettings
from registry.privacy.windows import Window
from rl.datasets.splits import validation_members
from rl.settings import DatasetSettings
from tests.registry.privacy.sql import BOUNDED, RATES, privacy_vars, rendered
from tests.transforms import landing_builder as logs
from tests.transforms.compiled_models import EXACT, CompiledModels

WINDOW = Window(date(2026, 1, 1), date(2026, 1, 29))
SHARE = 0.3
PRIVACY = PrivacySettings(
    max_cells=2, max_rows_per_cell=2, reward_low=-0.5, reward_high=1.5, segments=("new",), turn_edges=(1, 2)
)
MEASURES = {measure.name: measure for measure in measures_of(PRIVACY)}
ACTS = ("ask_price", "accept")
KNOWN = [name for name in "abcdefghijkl" if not validation_members([name], SHARE)[0]][:4]
"""Customers who are not held out."""
HELD_OUT = next(name for name in "abcdefghijkl" if validation_members([name], SHARE)[0])
NOBODY = "nobody"
"""Stands for every dialogue that names no customer."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> CompiledModels:
    home = tmp_path_factory.mktemp("compiled")
    chosen = TalktrackSettings(home=home, privacy=PRIVACY, dataset=DatasetSettings(validation_share=SHARE))
    logs.write_catalogue(home / "catalogue.csv")
    return CompiledModels.compile(
        home / "target",
        chosen,
        WINDOW,
        "turn_segment_act",
        as_of="2026-03-01 00:00:00",
        privacy_customer_acts=list(ACTS),
        reward_rating_weight=1.0,
        reward_rating_clip_high=9.0,
    )


# ---------- how far a table moved


def movements(before: pa.Table, after: pa.Table, keys: Sequence[str], value: str) -> dict[tuple[Any, ...], int]:
    """By how much each cell that differs has changed."""
    cells = [{tuple(row[key] for key in keys): row[value] for row in table.to_pylist()} for table in (before, after)]
    changed = {key: cells[0].get(key, 0) - cells[1].get(key, 0) for key in cells[0] | cells[1]}
    return {key: change for key, change in changed.items() if change}


def within(moved: dict[tuple[Any, ...], int], measure: Measure) -> bool:
    sizes = [abs(change) for change in moved.values()]
    return (
        len(sizes) <= measure.l0
        and max(sizes, default=0) <= measure.linf
        and math.sqrt(sum(size**2 for size in sizes)) <= measure.l2
    )


@dataclass
class Worlds:
    """A log in a database, from which one customer at a time can be taken away."""

    connection: duckdb.DuckDBPyConnection
    models: CompiledModels
    names: Sequence[str]
    first: Sequence[str] = field(default_factory=list)
    """Models to build before the aggregates."""

    def exact(self, removed: str | None) -> dict[str, pa.Table]:
        self.connection.execute("set variable removed = $removed", {"removed": removed or ""})
        self.models.build(self.connection, [*self.first, "int_bounded_steps", *EXACT])
        return {name: self.connection.execute(f"from {name}").to_arrow_table() for name in EXACT}

    def check(self) -> None:
        """Take each customer away and hold the movement against the certified bounds."""
        everybody = self.exact(None)
        for removed in self.names:
            for column, measure, moved in self.moved_by(removed, everybody):
                assert removed in KNOWN or not moved, f"{removed} moves {column}"
                assert within(moved, measure), f"{removed} moves {column} by {moved}"

    def moved_by(
        self, removed: str, before: dict[str, pa.Table] | None = None
    ) -> list[tuple[str, Measure, dict[tuple[Any, ...], int]]]:
        """For each noisy column: its measure, and the cells that differ without this customer."""
        before = before or self.exact(None)
        after = self.exact(removed)
        columns = [
            ("exact_transitions", "n_steps", "transitions"),
            ("exact_cells", "n_customers", "customers"),
            ("exact_cells", "n_conversions", "conversions"),
            ("exact_cells", "reward_milli", "rewards"),
        ]
        found = [
            (column, MEASURES[name], movements(before[table], after[table], EXACT[table], column))
            for table, column, name in columns
        ]
        moved = movements(before["exact_replies"], after["exact_replies"], EXACT["exact_replies"], "n_customers")
        for kind, name in (("act", "replies"), ("text", "reply_texts")):
            of_kind = {key: change for key, change in moved.items() if key[0] == kind}
            found.append((f"replies ({kind})", MEASURES[name], of_kind))
        return found


# ---------- random marts


@dataclass(frozen=True)
class MartStep:
    strategy: str
    segment: str | None
    act: str | None
    reward: float | None
    reply: tuple[str, str | None] | None


@dataclass(frozen=True)
class MartDialogue:
    customer: str
    day: date
    is_usable: bool
    has_conversion: bool
    steps: list[MartStep]


steps = st.builds(
    MartStep,
    strategy=st.sampled_from(["offer", "inquire", "greet"]),
    segment=st.sampled_from(["new", "old", None]),
    act=st.sampled_from([*ACTS, "unheard", None]),
    reward=st.sampled_from([0.0, 0.25, 7.0, 100.0, -80.0, math.nan, math.inf, None]),
    reply=st.none() | st.tuples(st.sampled_from([*ACTS, "x"]), st.sampled_from(["yes", "no", "how much", "why", None])),
)
dialogues = st.builds(
    MartDialogue,
    customer=st.sampled_from([*KNOWN, *KNOWN, HELD_OUT, NOBODY]),
    day=st.sampled_from([WINDOW.start, WINDOW.start, WINDOW.last_day, WINDOW.end, WINDOW.start - timedelta(days=1)]),
    is_usable=st.sampled_from([True, True, True, False]),
    has_conversion=st.booleans(),
    steps=st.lists(steps, min_size=1, max_size=5),
)
marts = st.lists(dialogues, min_size=6, max_size=24)


def worlds_of_marts(models: CompiledModels, log: list[MartDialogue]) -> Worlds:
    """The three marts that the aggregates read, as views without the removed customer."""
    facts: dict[str, list[dict[str, Any]]] = {"fct_dialogues": [], "fct_transitions": [], "int_steps_answered": []}
    for number, dialogue in enumerate(log):
        dialogue_id = f"d{number}"
        here = {"dialogue_id": dialogue_id, "dialogue_day": dialogue.day, "owner": dialogue.customer}
        named = dialogue.customer != NOBODY
        customer = dialogue.customer if named else dialogue_id  # as fct_dialogues fills it
        facts["fct_dialogues"].append(
            {
                **here,
                "customer_id": customer,
                "has_one_customer": named,
                "is_usable": dialogue.is_usable,
                "has_conversion": dialogue.has_conversion,
            }
        )
        previous = None
        for index, step in enumerate(dialogue.steps):
            facts["fct_transitions"].append(
                {
                    **here,
                    "step_index": index,
                    "strategy": step.strategy,
                    "previous_strategy": previous,
                    "segment": step.segment,
                    "customer_act": step.act,
                    "reward": step.reward,
                }
            )
            previous = step.strategy
            if step.reply:
                facts["int_steps_answered"].append(
                    {**here, "step_index": index, "reply_act": step.reply[0], "reply_text": step.reply[1]}
                )
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("set variable removed = ''")
    for name, rows in facts.items():
        connection.register(f"all_{name}", pa.Table.from_pylist(rows, schema=MART_SCHEMAS[name]))
        connection.execute(f"create table of_all_{name} as from all_{name}")
        connection.execute(f"create view {name} as from of_all_{name} where owner <> getvariable('removed')")
    return Worlds(connection, models, [*KNOWN, HELD_OUT, NOBODY])


_MART = [("dialogue_id", pa.string()), ("dialogue_day", pa.date32()), ("owner", pa.string())]
MART_SCHEMAS = {
    "fct_dialogues": pa.schema(
        [
            *_MART,
            ("customer_id", pa.string()),
            ("has_one_customer", pa.bool_()),
            ("is_usable", pa.bool_()),
            ("has_conversion", pa.bool_()),
        ]
    ),
    "fct_transitions": pa.schema(
        [
            *_MART,
            ("step_index", pa.int32()),
            ("strategy", pa.string()),
            ("previous_strategy", pa.string()),
            ("segment", pa.string()),
            ("customer_act", pa.string()),
            ("reward", pa.float64()),
        ]
    ),
    "int_steps_answered": pa.schema(
        [*_MART, ("step_index", pa.int32()), ("reply_act", pa.string()), ("reply_text", pa.string())]
    ),
}


def check_random_marts(models: CompiledModels, n_logs: int) -> None:
    @settings(max_examples=n_logs, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
    @given(marts)
    def each_customer_stays_within_the_bounds(log: list[MartDialogue]) -> None:
        worlds = worlds_of_marts(models, log)
        worlds.check()
        worlds.connection.close()

    each_customer_stays_within_the_bounds()


def test_one_customer_moves_the_exact_tables_by_no_more_than_is_certified(models: CompiledModels) -> None:
    check_random_marts(models, 40)


def test_a_customer_of_many_dialogues_reaches_the_bounds(models: CompiledModels) -> None:
    dialogues_of_one = [
        MartDialogue(KNOWN[0], WINDOW.start, True, True, [MartStep(strategy, segment, act, 100.0, (act, act))])
        for strategy in ("offer", "inquire", "greet")
        for segment in ("new", "old")
        for act in ACTS
        for _ in range(3)
    ]
    worlds = worlds_of_marts(models, [*dialogues_of_one, *(replace(d, customer=KNOWN[1]) for d in dialogues_of_one)])
    moved = {column: (measure, cells) for column, measure, cells in worlds.moved_by(KNOWN[0])}

    for column in ("n_steps", "n_customers", "n_conversions", "reward_milli", "replies (act)", "replies (text)"):
        measure, cells = moved[column]
        assert sorted(map(abs, cells.values())) == [measure.linf] * measure.l0, column


# ---------- planted faults

CLAMP = r"least\(\s*greatest\(round\((coalesce\(transitions\.reward, 0\.0\) \* 1000)\), -500\),\s*1500\s*\)"
FAULTS: dict[str, tuple[str, str, str]] = {
    "rows of a customer in a cell are not capped": ("exact_transitions", r"least\(count\(\*\), 2\)", "count(*)"),
    "cells of a customer are not capped in transitions": ("exact_transitions", r"position <= 2", "true"),
    "cells of a customer are not capped in cells": ("exact_cells", r"position <= 2", "true"),
    "cells of a customer are not capped in replies": ("exact_replies", r"position <= 2", "true"),
    "rewards are not clamped": ("int_bounded_steps", CLAMP, r"least(greatest(round(\1), -1e12), 1e12)"),
    "rewards are clamped to a quantile of the log": (
        "int_bounded_steps",
        CLAMP,
        r"least(greatest(round(\1), 0), (select quantile_cont(reward, 0.5) * 1000 from fct_transitions "
        r"where not isnan(reward) and not isinf(reward)))",
    ),
    "a customer's cells are ordered by their popularity": (
        "exact_transitions",
        r"partition by customer_id\s+order by sha256\([^)]*\)",
        "partition by customer_id order by (select count(*) from customer_cells as others where "
        "others.aggregate_bucket = customer_cells.aggregate_bucket and others.strategy = customer_cells.strategy "
        "and others.next_bucket = customer_cells.next_bucket) desc, aggregate_bucket, strategy, next_bucket",
    ),
    "cells of few customers are left out": (
        "exact_cells",
        r"group by aggregate_bucket, strategy\n\n",
        "group by aggregate_bucket, strategy having count(*) >= 2\n\n",
    ),
    "dialogues without a customer are kept": ("int_bounded_steps", r"and has_one_customer", ""),
    "customers who judge policies are kept": ("int_bounded_steps", r"and not substr\(.*?\) < '[0-9a-f]*'", ""),
    "every row of a customer counts in its cell": (
        "exact_cells",
        r"group by customer_id, aggregate_bucket, strategy",
        "group by customer_id, dialogue_id, aggregate_bucket, strategy",
    ),
    "the cap is on all customers together": ("exact_cells", r"partition by customer_id", "partition by 1"),
    "the cap is by dialogue": (
        "exact_replies",
        r"select distinct\s+customer_id,",
        "select distinct customer_id || reply as customer_id,",
    ),
    "the next bucket is looked for in other dialogues": (
        "int_bounded_steps",
        r"partition by dialogue_id order by step_index",
        "order by step_index, dialogue_id",
    ),
    "a reply counts once, whoever said it first": (
        "exact_replies",
        r"select distinct\s+customer_id,",
        "select distinct on (reply_kind, aggregate_bucket, reply) 'all' as customer_id,",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_catches(models: CompiledModels, fault: str) -> None:
    with pytest.raises(AssertionError, match="moves"):
        check_random_marts(models.mutated(*FAULTS[fault]), 100)


# ---------- random landings, through every model


@dataclass(frozen=True)
class LandedDialogue:
    customers: tuple[str | None, ...]
    """Whom its turns name, in rotation."""
    day: int
    labels: list[str]
    resent_by: str | None
    """Whom a second arrival of its first turn names; None: it comes once."""
    outcome: tuple[str, float | None, int] | None
    is_quarantined: bool
    is_decided: bool


alone = st.sampled_from(KNOWN).map(lambda name: (name,))
landings = st.lists(
    st.builds(
        LandedDialogue,
        customers=alone | st.sampled_from([(None,), (KNOWN[0], None), (KNOWN[0], KNOWN[1]), (HELD_OUT,)]),
        day=st.sampled_from([0, 1, 27, 28]),
        labels=st.lists(st.sampled_from(["offer", "inquire", "greet", "thank", "booked"]), min_size=1, max_size=3),
        resent_by=st.none() | st.sampled_from(KNOWN),
        outcome=st.none() | st.tuples(st.sampled_from(["conversion", "rating"]), st.just(3.0), st.sampled_from([1, 9])),
        is_quarantined=st.sampled_from([False, False, True]),
        is_decided=st.booleans(),
    ),
    min_size=4,
    max_size=10,
)


def landed_rows(number: int, landed: LandedDialogue) -> tuple[set[str], dict[str, list[logs.Row]]]:
    """The records of one dialogue, and everybody whom one of them names."""
    name, at = f"d{number}", logs.START + timedelta(days=landed.day)
    turns = []
    for index, label in enumerate(landed.labels):
        customer = landed.customers[index % len(landed.customers)]
        turns.append(logs.turn(name, 2 * index, at, label, customer_id=customer, segment="new"))
        act, reply = ACTS[(number + index) % 2], ["yes", None][index % 2]
        turns.append(logs.turn(name, 2 * index + 1, at, customer_act=act, canonical_reply=reply))
    if landed.resent_by:
        turns.append({**turns[0], "customer_id": landed.resent_by, "arrival_day": date(2026, 2, 5)})
    rows: dict[str, list[logs.Row]] = {"turns": turns, "outcomes": [], "incomplete": [], "decisions": []}
    if landed.outcome:
        kind, value, days = landed.outcome
        rows["outcomes"].append(logs.outcome(name, at + timedelta(days=days), kind, value))
    if landed.is_quarantined:
        rows["incomplete"].append({"dialogue_id": name, "reason": "propensity"})
    if landed.is_decided:
        rows["decisions"].append(
            {"decision_id": name, "dialogue_id": name, "turn_index": 0, "strategy": "inquire", "stage": "canary"}
        )
    named = {row["customer_id"] for row in turns if row.get("customer_id")}
    return named or {NOBODY}, rows


def worlds_of_landing(models: CompiledModels, log: list[LandedDialogue]) -> Worlds:
    """The landing as relations without the dialogues that name the removed customer."""
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("set variable removed = ''")
    connection.execute("create table names (owner varchar, of_dialogue varchar)")
    landed: dict[str, list[logs.Row]] = {kind: [] for kind in logs.SCHEMAS}
    for number, dialogue in enumerate(log):
        owners, rows = landed_rows(number, dialogue)
        connection.executemany("insert into names values (?, ?)", [(owner, f"d{number}") for owner in owners])
        for kind, more in rows.items():
            landed[kind] += more
    for kind, rows in landed.items():
        schema = logs.SCHEMAS[kind].append(pa.field("arrival_day", pa.date32()))
        rows = [{"arrival_day": date(2026, 2, 4), "source": "s", **row, "source_row": n} for n, row in enumerate(rows)]
        table = pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in rows], schema=schema)
        connection.register(f"all_{kind}", table)
        connection.execute(f"create table of_all_{kind} as from all_{kind}")
        connection.execute(
            f"create view landed_{kind} as from of_all_{kind} where dialogue_id not in "
            "(select of_dialogue from names where owner = getvariable('removed'))"
        )
    catalogue = [
        {"strategy_id": str(n), "strategy": name, "description": "", "priority": str(priority), "role": role}
        for n, (name, priority, role) in enumerate(logs.STRATEGIES)
    ]
    connection.register("landed_catalogue", pa.Table.from_pylist(catalogue))
    return Worlds(connection, models, [*KNOWN, HELD_OUT, NOBODY], models.before("int_bounded_steps"))


def check_random_landings(models: CompiledModels, n_logs: int) -> None:
    @settings(max_examples=n_logs, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
    @given(landings)
    def each_customer_stays_within_the_bounds(log: list[LandedDialogue]) -> None:
        worlds = worlds_of_landing(models, log)
        worlds.check()
        worlds.connection.close()

    each_customer_stays_within_the_bounds()


def test_one_customer_moves_no_more_from_landing_to_the_exact_tables(models: CompiledModels) -> None:
    check_random_landings(models, 8)


@pytest.mark.parametrize(
    ("model", "old", "new"),
    [
        ("int_dialogue_days", r"min\(customer_id\) = max\(customer_id\)", "min(customer_id) is not null"),
        ("int_bounded_steps", r"and has_one_customer", ""),
    ],
    ids=["dialogues of two customers are kept", "dialogues without a customer are kept"],
)
def test_the_check_from_landing_catches(models: CompiledModels, model: str, old: str, new: str) -> None:
    with pytest.raises(AssertionError, match="moves"):
        check_random_landings(models.mutated(model, old, new), 60)


# ---------- the split by customer


def test_sql_and_python_hold_out_the_same_customers(models: CompiledModels) -> None:
    names = [f"{key}:{number:032x}" for key in ("k1", "k2") for number in range(400)] + ["zoë", "o'hara", " ", "|"]
    step = MartStep("offer", None, None, 0.0, None)
    worlds = worlds_of_marts(models, [MartDialogue(name, WINDOW.start, True, False, [step]) for name in names])
    worlds.exact(None)

    kept = {name for (name,) in worlds.connection.execute("select customer_id from int_bounded_steps").fetchall()}

    members = validation_members(names, SHARE)
    assert kept == {name for name, is_member in zip(names, members, strict=True) if not is_member}
    assert 0 < len(kept) < len(names)


# ---------- the quick rendering of the privacy audits


@pytest.mark.parametrize("model", [*BOUNDED, *RATES[1:]])
def test_the_audits_render_the_sql_that_dbt_compiles(models: CompiledModels, model: str) -> None:
    variables = privacy_vars(PRIVACY, grid="turn_segment_act", customer_acts=ACTS) | {
        "privacy_salt": dbt_salt(models),
        "privacy_validation_share": SHARE,
    }

    compiled = models.sql[model].replace('"memory"."main".', "").replace('"', "")

    assert rendered(model, variables).split() == compiled.split()


def dbt_salt(models: CompiledModels) -> str:
    """The salt that this window was compiled with."""
    found = re.search(r"sha256\('(.*?)\|' \|\|", models.sql["exact_cells"])
    assert found
    return found[1]
