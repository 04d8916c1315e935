"""A landing of any size, written by DuckDB in seconds: what ingest would have left, for measuring the warehouse.

Here: rows with the columns, types, skew and lateness of real logs, the same for the same numbers. Not here: a world
with a known truth (`rl.environments.sample_logs`), small cases by hand (`tests.transforms.landing_builder`).

Every value is a hash of the dialogue's number, so a day can be landed alone and later days change none before them. A
dialogue has 6 to 14 turns, a customer's first. Customers are skewed: at a million dialogues of 200,000 customers the
busiest has about 2,200. One dialogue in four converts, most within hours, one conversion in twenty after the
attribution window of seven days. One dialogue in 200 is sent a second time on the day after, one in 1,000 is
incomplete, and one agent turn in twenty was decided by the decision service.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rl.encoders.customer_replies import CUSTOMER_ACTS
from rl.files import content_hash, write_json

if TYPE_CHECKING:
    import duckdb

    from rl.catalogue import ActionCatalogue

FIRST_DAY = date(2026, 1, 1)
TURNS_PER_DIALOGUE = 10
DAYS_OF_OUTCOMES = 10
"""A conversion comes at most this many days after its dialogue began."""

_MACROS = """
create macro pick(number, purpose, n) as cast(hash(number, purpose, {seed}) % n as integer);
create macro share(number, purpose) as (hash(number, purpose, {seed}) % 1000003) / 1000003.0;
create macro one_of(list, number, purpose) as list[1 + pick(number, purpose, len(list))];
"""

_DIALOGUES = """
create or replace temp table dialogues as
select
    number,
    'dlg-' || substr(md5(cast(number as varchar)), 1, 16) as dialogue_id,
    'a1b2c3d4:' || md5('customer' || cast(floor({customers} * pow(share(number, 'customer'), 2)) as bigint))
        as customer_id,
    one_of(['bargain_hunter', 'enthusiast', 'gift_buyer'], number, 'segment') as segment,
    cast(date '{first_day}' + cast(number // {per_day} as integer) as timestamp)
        + to_seconds(pick(number, 'second', 86400)) as started_at,
    6 + pick(number, 'turns', 9) as n_turns
from range({low}, {high}) as numbers (number);

create or replace temp table said as
select
    * exclude (turn_index, started_at, n_turns),
    cast(turn_index as integer) as turn_index,
    number * 16 + turn_index as turn_number,
    started_at + to_seconds(turn_index * 15 + pick(number, 'pause', 10)) as occurred_at,
    turn_index % 2 = 1 as is_agent
from (select *, unnest(range(n_turns)) as turn_index from dialogues where number >= {said_low});
"""

_ARRIVED_TURNS = """
select *, one_of({strategies}, turn_number, 'strategy') as strategy
from said
where
    cast(occurred_at as date) = date '{day}'
    or (cast(occurred_at as date) = date '{day}' - 1 and pick(number, 'sent again', 200) = 0)
"""

_TURNS = """
select
    dialogue_id,
    turn_index,
    cast(occurred_at as timestamptz) as occurred_at,
    case when is_agent then 'agent' else 'customer' end as speaker,
    case
        when is_agent then 'This one has been in the shop since spring, see page ' || pick(turn_number, 'text', 4000)
        else 'I would rather have the other one, about size ' || pick(turn_number, 'text', 40000)
    end as text,
    md5(cast(turn_index % 2 as varchar) || pick(turn_number, 'text', 40000)) as content_hash,
    customer_id,
    segment,
    'web' as channel,
    'en-GB' as locale,
    case when is_agent then [strategy] end as strategies,
    case when is_agent then list_distinct([strategy] || {eligible}) end as eligible_strategies,
    case when is_agent then 0.02 + 0.5 * share(turn_number, 'propensity') end as propensity,
    case when is_agent then 'storefront-v1' end as policy_version,
    case when is_agent and turn_number % 3 = 0 then ['item-' || pick(turn_number, 'item', 200)] end as item_ids,
    case
        when is_agent and turn_number % 3 = 0
            then ['item-' || pick(turn_number, 'item', 200), 'item-' || pick(turn_number, 'other item', 200)]
    end as candidate_item_ids,
    case when is_agent and turn_number % 3 = 0 then 0.1 + 0.8 * share(turn_number, 'item') end as item_propensity,
    false as is_synthetic,
    cast(null as varchar) as extra,
    case when not is_agent then one_of({acts}, turn_number, 'act') end as customer_act,
    case
        when not is_agent and pick(turn_number, 'has reply', 5) < 3
            then 'canonical reply ' || cast(floor(500 * pow(share(turn_number, 'reply'), 3)) as integer)
    end as canonical_reply,
    '{source}' as source,
    row_number() over () - 1 as source_row
from ({arrived})
"""

_OUTCOMES = """
select
    dialogue_id,
    cast(occurred_at as timestamptz) as occurred_at,
    'conversion' as kind,
    cast(10 + pick(number, 'value', 140) as double) as value,
    false as is_synthetic,
    cast(null as varchar) as extra,
    '{source}' as source,
    row_number() over () - 1 as source_row
from (
    select *, started_at + to_seconds(600 + cast(863000 * pow(share(number, 'delay'), 6) as integer)) as occurred_at
    from dialogues
    where pick(number, 'converts', 4) = 0
)
where cast(occurred_at as date) = date '{day}'
"""

_DECISIONS = """
select
    'decision-' || turn_number as decision_id,
    dialogue_id,
    turn_index,
    cast(occurred_at as timestamptz) as occurred_at,
    customer_id,
    segment,
    'storefront-v1' as policy_version,
    'champion' as stage,
    strategy,
    0.02 + 0.5 * share(turn_number, 'propensity') as probability,
    cast(null as varchar) as item_id,
    cast(null as double) as item_probability,
    list_distinct([strategy] || {eligible}) as eligible_strategies,
    cast(null as varchar[]) as blocked_by,
    false as fallback,
    '{source}' as source,
    row_number() over () - 1 as source_row
from ({arrived})
where is_agent and pick(turn_number, 'decided', 20) = 0
"""

_INCOMPLETE = """
select
    dialogue_id,
    '{source}' as source,
    row_number() over () - 1 as source_row,
    'propensity: is not in (0, 1]' as reason
from dialogues
where cast(started_at as date) = date '{day}' and pick(number, 'incomplete', 1000) = 0
"""

_KINDS = {"turns": _TURNS, "outcomes": _OUTCOMES, "decisions": _DECISIONS, "incomplete": _INCOMPLETE}


@dataclass(frozen=True)
class LogShape:
    """What the generated log looks like. The same shape gives the same rows, day by day."""

    dialogues_per_day: int
    customers: int
    """Customers the log knows; the busiest has the square root's share, so a few are very busy."""

    seed: int = 0


def land_days(
    landing: Path, days: Iterable[int], shape: LogShape, catalogue: ActionCatalogue, *, memory: str = "2GB"
) -> Iterator[date]:
    """Land these arrival days (0 is `FIRST_DAY`), one source file a day, and yield each once it is committed.

    A day brings its own turns, conversions of the ten days before it, and what was sent a second time.
    """
    for kind in _KINDS:
        (landing / kind).mkdir(parents=True, exist_ok=True)
    with _connection(shape, memory) as connection:
        for number in days:
            yield _land_day(connection, landing, number, shape, catalogue)


def _land_day(
    connection: duckdb.DuckDBPyConnection, landing: Path, number: int, shape: LogShape, catalogue: ActionCatalogue
) -> date:
    day = FIRST_DAY + timedelta(days=number)
    source = content_hash([shape.dialogues_per_day, shape.customers, shape.seed, number])[:16]
    _prepare_dialogues(connection, shape, number - DAYS_OF_OUTCOMES, number)
    words = {
        "day": day,
        "source": source,
        "strategies": [strategy.strategy for strategy in catalogue.strategies],
        "eligible": [strategy.strategy for strategy in catalogue.strategies][:6],
        "acts": list(CUSTOMER_ACTS),
    }
    words["arrived"] = _ARRIVED_TURNS.format(**words)
    for kind, query in _KINDS.items():
        folder = landing / kind / f"arrival_day={day}"
        folder.mkdir(exist_ok=True)
        part = folder / f"{source}.parquet"
        connection.execute(f"copy ({query.format(**words)}) to '{part}' (format parquet, compression zstd)")
    write_json(landing / "_files" / f"{source}.json", {"arrival_day": str(day)})
    return day


def _prepare_dialogues(connection: duckdb.DuckDBPyConnection, shape: LogShape, first: int, last: int) -> None:
    """Dialogues that began in the days from `first` to `last`, and the turns of the last two of these days."""
    per_day = shape.dialogues_per_day
    connection.execute(
        _DIALOGUES.format(
            customers=shape.customers,
            first_day=FIRST_DAY,
            per_day=per_day,
            low=max(0, first) * per_day,
            said_low=max(0, last - 1) * per_day,
            high=(last + 1) * per_day,
        )
    )


@contextmanager
def _connection(shape: LogShape, memory: str) -> Iterator[duckdb.DuckDBPyConnection]:
    import duckdb

    with duckdb.connect(config={"memory_limit": memory, "threads": 2}) as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.execute(_MACROS.format(seed=shape.seed))
        yield connection
