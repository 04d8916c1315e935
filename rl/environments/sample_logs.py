"""Canonical dialogue logs of the storefront, as a shop would deliver them: one folder per arrival day.

Here: times, customers, outcomes, planted flaws, files. Not here: the dialogues themselves (`storefront`).

`<folder>/arrival_day=YYYY-MM-DD/{turns,outcomes}.jsonl.gz`. A record lies in the folder of the day it
happened, so outcomes arrive days after their dialogue and a dialogue over midnight is in two folders. Every
day has a seed stream of its own: more days at the same daily rate leave the earlier folders as they are, byte
for byte.
"""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from rl.environments.sample_flaws import MALFORMED_SHARE, PLANTED_SHARE, damaged, personal_remark
from rl.environments.storefront import rollout
from rl.environments.storefront_customers import MAX_UTTERANCES, N_CANDIDATES, TURN_LIMIT, start_dialogues
from rl.environments.storefront_items import (
    INTRODUCING,
    N_STRATEGIES,
    REFERRING,
    SEGMENTS,
    STRATEGIES,
    storefront_items,
    strategy_flags,
)
from rl.environments.storefront_policies import POLICY_VERSIONS, behavior_policy
from rl.environments.storefront_texts import CustomerAct, utterance_table
from rl.errors import SettingsError
from rl.files import replaced_file

CHANNEL = "web"
LOCALE = "en-GB"
LONGEST_DELAY_DAYS = 6.5
"""No outcome comes later than this after the last turn, so an attribution window of 7 days misses nothing."""

KINDS = ("turns", "outcomes")
"""Files of an arrival day, in the order in which they are written."""

LAST_FILE_OF_A_DAY = f"{KINDS[-1]}.jsonl.gz"
"""A day that has it is whole, whenever the writer was killed."""

_CUSTOMERS_PER_DAILY_DIALOGUE = 25  # about 1.4 dialogues a customer in 36 days
_MICROSECONDS = 1_000_000
_DAY = 86_400 * _MICROSECONDS
# Customer numbers carry segment and policy version in a fixed pattern, so that shares are exact and
# independent.
_SEGMENT_PATTERN = np.repeat(np.arange(3), (9, 6, 5))
_VERSION_PATTERN = np.repeat(np.arange(2), (3, 2))

_NAMES = list(STRATEGIES)
_NAMES_ITEM = strategy_flags((*INTRODUCING, *REFERRING))
_ITEM_IDS = [item.item_id for item in storefront_items()]

Outcome = tuple[int, str, float | None]
Bucket = dict[tuple[int, str], list[tuple[int, bytes]]]


@dataclass
class SampleLogs:
    """What was written: counts of records in the files, and every piece of planted personal data."""

    n_dialogues: int = 0
    n_turns: int = 0
    n_outcomes: int = 0
    n_malformed: int = 0
    planted: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class _Day:
    """The n dialogues that start on one day, T = TURN_LIMIT agent turns."""

    number: int
    customer: NDArray[Any]  # (n,)
    n_turns: NDArray[Any]  # (n,)
    utterances: NDArray[Any]  # (n, MAX_UTTERANCES), -1 after the last
    strategies: NDArray[Any]  # (n, T)
    eligible: NDArray[Any]  # (n, T, A)
    propensity: NDArray[Any]  # (n, T)
    item: NDArray[Any]  # (n, T), -1 where none was named
    candidates: NDArray[Any]  # (n, T, 5)
    item_propensity: NDArray[Any]  # (n, T)
    value: NDArray[Any]  # (n,)
    closing: NDArray[Any]  # (n,)
    mood: NDArray[Any]  # (n,) in [0, 1], behind the rating


def write_sample_logs(
    folder: Path,
    dialogues: int = 20_000,
    days: int = 36,
    seed: int = 0,
    start: date = date(2026, 1, 1),
    first_day: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> SampleLogs:
    """Write canonical logs of storefront dialogues.

    Parameters
    ----------
    folder
        Receives one folder per arrival day; files of the same days are replaced atomically.
    dialogues, days
        Their ratio, rounded, is the number of dialogues that start each day. The last days' late outcomes
        have not happened yet and are in no file.
    seed
        Equal arguments give equal bytes.
    first_day
        Write only from this day on (0-based): `days=37, first_day=36` adds one day to 36 written before.
    on_progress
        Called after each day with days done and days in all.

    Raises
    ------
    SettingsError
        If there would be less than one dialogue a day, or no day to write.
    """
    if days < 1 or not 0 <= first_day < days or dialogues < days:
        raise SettingsError(
            f"{dialogues} dialogues in {days} days from day {first_day} on cannot be written. "
            "Ask for at least one day, at least one dialogue a day, and a first day before the last."
        )
    per_day = round(dialogues / days)
    epoch = (start - date(1970, 1, 1)).days * _DAY
    waiting: Bucket = defaultdict(list)
    written = SampleLogs()
    earliest = max(0, first_day - int(LONGEST_DELAY_DAYS) - 2)
    for number in range(earliest, days):
        rng = np.random.default_rng([seed, number])
        day = _simulate_day(number, per_day, rng)
        counted = written if number >= first_day else SampleLogs()
        _collect(day, epoch, rng, start, waiting, counted)
        if number >= first_day:
            _write_day(folder, start, number, waiting, written)
        for kind in KINDS:
            waiting.pop((number, kind), None)
        if on_progress is not None:
            on_progress(number - earliest + 1, days - earliest)
    return written


def _simulate_day(number: int, n: int, rng: np.random.Generator) -> _Day:
    customer = rng.integers(_CUSTOMERS_PER_DAILY_DIALOGUE * n, size=n)
    day = _Day(
        number=number,
        customer=customer,
        n_turns=np.zeros(n, dtype=np.intp),
        utterances=np.full((n, MAX_UTTERANCES), -1, dtype=np.int32),
        strategies=np.full((n, TURN_LIMIT), -1, dtype=np.int8),
        eligible=np.zeros((n, TURN_LIMIT, N_STRATEGIES), dtype=bool),
        propensity=np.full((n, TURN_LIMIT), np.nan),
        item=np.full((n, TURN_LIMIT), -1, dtype=np.int16),
        candidates=np.full((n, TURN_LIMIT, N_CANDIDATES), -1, dtype=np.int16),
        item_propensity=np.full((n, TURN_LIMIT), np.nan),
        value=np.zeros(n),
        closing=np.full(n, -1, dtype=np.intp),
        mood=np.zeros(n),
    )
    for version in range(len(POLICY_VERSIONS)):
        _play_version(day, np.flatnonzero(policy_version_numbers(customer) == version), version, rng)
    return day


def customer_segments(customer: NDArray[Any]) -> NDArray[Any]:
    """Segment number of each customer number; fixed for a customer."""
    segments: NDArray[Any] = _SEGMENT_PATTERN[customer % len(_SEGMENT_PATTERN)]
    return segments


def policy_version_numbers(customer: NDArray[Any]) -> NDArray[Any]:
    """Which behavior version talks to each customer number; fixed for a customer."""
    versions: NDArray[Any] = _VERSION_PATTERN[customer // len(_SEGMENT_PATTERN) % len(_VERSION_PATTERN)]
    return versions


def _play_version(day: _Day, members: NDArray[np.intp], version: int, rng: np.random.Generator) -> None:
    fresh = start_dialogues(len(members), rng, customer_segments(day.customer[members]))
    for turn, decisions in enumerate(rollout(fresh, behavior_policy(POLICY_VERSIONS[version]), rng)):
        rows, state, endings = members[decisions.rows], decisions.dialogues, decisions.endings
        here = np.arange(len(rows))
        day.eligible[rows, turn] = decisions.eligible
        day.propensity[rows, turn] = decisions.probabilities[here, decisions.actions]
        day.item[rows, turn] = np.where(_NAMES_ITEM[decisions.actions], state.item, -1)
        day.candidates[rows, turn] = endings.picks.candidates
        day.item_propensity[rows, turn] = endings.picks.propensity
        over = endings.ended
        day.n_turns[rows[over]] = turn + 1
        day.utterances[rows[over]] = state.utterances[over]
        day.strategies[rows[over]] = state.strategies[over]
        day.value[rows[over]] = endings.value[over]
        day.closing[rows[over]] = endings.closing[over]
        day.mood[rows[over]] = np.clip(state.interest - state.boredom, 0, 1)[over]


def _collect(
    day: _Day, epoch: int, rng: np.random.Generator, start: date, waiting: Bucket, counted: SampleLogs
) -> None:
    """Turn a day's dialogues into encoded records, each in the bucket of the day it happened."""
    times = epoch + day.number * _DAY + _turn_times(len(day.customer), rng)
    outcomes = _outcomes(day, times, rng)
    prefix = f"dlg-{start + timedelta(days=day.number):%Y%m%d}-"
    planted = rng.random(day.utterances.shape) < PLANTED_SHARE
    n_records = int((day.utterances >= 0).sum()) + sum(len(o) for o in outcomes)
    # Which dialogues are damaged does not depend on their length, so leaving them out does not bias values.
    n_bad = min(round(MALFORMED_SHARE * n_records), len(day.customer))
    bad = set(rng.choice(len(day.customer), size=n_bad, replace=False).tolist())
    stamps = np.char.add(np.datetime_as_string(times.astype("datetime64[us]"), unit="us"), "Z")
    for row, records in enumerate(_turn_records(day, stamps, prefix)):
        for position in np.flatnonzero(planted[row, : 2 * int(day.n_turns[row]) + 1]):
            if position < len(records):
                remark, value = personal_remark(rng, records[position]["speaker"])
                records[position]["text"] += " " + remark
                counted.planted.append(value)
        moments = times[row, : len(records)].tolist() + [moment for moment, _, _ in outcomes[row]]
        records += [_outcome_record(prefix, row, *outcome) for outcome in outcomes[row]]
        lines = [orjson.dumps(record) for record in records]
        if row in bad:
            hit = int(rng.integers(len(records)))
            lines[hit] = damaged(records[hit], rng)
            counted.n_malformed += 1
        for record, moment, line in zip(records, moments, lines, strict=True):
            kind = "turns" if record["record"] == "turn" else "outcomes"
            waiting[(moment - epoch) // _DAY, kind].append((moment, line))
    counted.n_dialogues += len(day.customer)


def _turn_times(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(n, MAX_UTTERANCES) microseconds after midnight: busiest in the afternoon, some run past midnight."""
    opening = rng.beta(2.6, 1.7, size=n) * _DAY
    pauses = rng.lognormal(np.log(22), 0.6, size=(n, MAX_UTTERANCES)) * _MICROSECONDS
    pauses[:, 0] = 0
    times: NDArray[np.int64] = (opening[:, None] + pauses.cumsum(axis=1)).astype(np.int64)
    return times


def _turn_records(day: _Day, stamps: NDArray[np.str_], prefix: str) -> Iterator[list[dict[str, Any]]]:
    texts = utterance_table().texts
    segments = customer_segments(day.customer)
    versions = policy_version_numbers(day.customer)
    for row in range(len(day.customer)):
        said, when = day.utterances[row].tolist(), stamps[row].tolist()
        common = {
            "customer_id": f"cust-{int(day.customer[row]):06d}",
            "segment": SEGMENTS[segments[row]],
            "channel": CHANNEL,
            "locale": LOCALE,
        }
        version = POLICY_VERSIONS[versions[row]]
        records = []
        for position in range(2 * int(day.n_turns[row]) + 1):
            if said[position] < 0:  # left without a word
                continue
            is_agent = position % 2 == 1
            record = {
                "record": "turn",
                "dialogue_id": f"{prefix}{row:06d}",
                "turn_index": position,
                "occurred_at": when[position],
                "speaker": "agent" if is_agent else "customer",
                "text": texts[said[position]],
                **common,
            }
            if is_agent:
                record |= _decision_fields(day, row, position // 2, version)
            records.append(record)
        yield records


def _decision_fields(day: _Day, row: int, turn: int, version: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "strategies": [STRATEGIES[day.strategies[row, turn]]],
        "eligible_strategies": [_NAMES[i] for i in np.flatnonzero(day.eligible[row, turn])],
        "propensity": float(day.propensity[row, turn]),
        "policy_version": version,
    }
    item = int(day.item[row, turn])
    if item >= 0:
        fields["item_ids"] = [_ITEM_IDS[item]]
    if day.candidates[row, turn, 0] >= 0:
        fields["candidate_item_ids"] = [_ITEM_IDS[i] for i in day.candidates[row, turn].tolist()]
        fields["item_propensity"] = float(day.item_propensity[row, turn])
    return fields


def _outcomes(day: _Day, times: NDArray[np.int64], rng: np.random.Generator) -> list[list[Outcome]]:
    """For each dialogue its outcomes as (moment, kind, value)."""
    n = len(day.customer)
    last = times[np.arange(n), 2 * day.n_turns]
    soon = (rng.uniform(5, 300, n) * _MICROSECONDS).astype(np.int64)
    late = (np.minimum(1 / 24 + rng.exponential(1.3, n), LONGEST_DELAY_DAYS) * _DAY).astype(np.int64)
    rated = rng.random(n) < 0.2
    stars = np.clip(np.rint(1.5 + 3.5 * day.mood + rng.normal(0, 0.7, n)), 1, 5)
    found: list[list[Outcome]] = []
    for row in range(n):
        moment, closing = int(last[row]), day.closing[row]
        if day.value[row] > 0:
            delay = soon[row] if closing == CustomerAct.BUY else late[row]
            outcomes: list[Outcome] = [(moment + int(delay), "conversion", round(float(day.value[row]), 2))]
        elif closing == CustomerAct.REJECT:
            outcomes = [(moment + _MICROSECONDS, "rejection", None)]
        else:
            outcomes = [(moment + 1800 * _MICROSECONDS, "abandonment", None)]
        if rated[row]:
            outcomes.append((moment + 3 * int(soon[row]), "rating", float(stars[row])))
        found.append(outcomes)
    return found


def _outcome_record(prefix: str, row: int, moment: int, kind: str, value: float | None) -> dict[str, Any]:
    stamp = f"{np.datetime64(moment, 'us')}Z"
    return {
        "record": "outcome",
        "dialogue_id": f"{prefix}{row:06d}",
        "occurred_at": stamp,
        "kind": kind,
        "value": value,
    }


def _write_day(folder: Path, start: date, number: int, waiting: Bucket, written: SampleLogs) -> None:
    day_folder = folder / f"arrival_day={start + timedelta(days=number)}"
    for kind in KINDS:
        lines = [line for _, line in sorted(waiting[number, kind])]
        with replaced_file(day_folder / f"{kind}.jsonl.gz") as temporary:
            temporary.write_bytes(gzip.compress(b"".join(line + b"\n" for line in lines), 1, mtime=0))
        if kind == "turns":
            written.n_turns += len(lines)
        else:
            written.n_outcomes += len(lines)
    written.folders.append(day_folder)
