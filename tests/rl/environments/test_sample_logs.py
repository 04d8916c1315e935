"""The written logs: true propensities, real days, planted flaws, the same bytes every time."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from rl.environments.sample_flaws import damaged, personal_remark
from rl.environments.sample_logs import LONGEST_DELAY_DAYS, SampleLogs, write_sample_logs
from rl.environments.storefront_items import SEGMENTS, STRATEGIES, STRATEGY_IDS, storefront_items
from rl.environments.storefront_policies import DecisionBatch, behavior_policy
from rl.environments.storefront_texts import utterance_table
from rl.errors import SettingsError

DAYS = 10


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleLogs]:
    folder = tmp_path_factory.mktemp("logs")
    return folder, write_sample_logs(folder, dialogues=150 * DAYS, days=DAYS, seed=7)


def lines_of(folder: Path, kind: str) -> list[tuple[str, bytes]]:
    return [
        (path.parent.name.removeprefix("arrival_day="), line)
        for path in sorted(folder.glob(f"arrival_day=*/{kind}.jsonl.gz"))
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]


def readable(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = []
    for day, line in lines_of(folder, kind):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if _is_sound(record):
            found.append(record | {"day": day})
    return found


def _is_sound(record: dict[str, Any]) -> bool:
    return (
        str(record.get("occurred_at", "")).startswith("2026")
        and (record["record"] == "outcome" or record.get("speaker") in ("agent", "customer"))
        and record.get("text", "") is not None
        and record.get("propensity", 0.5) <= 1
        and record.get("strategies", ["no_strategy"])[0] in STRATEGIES
    )


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.gz"))}


def test_the_counts_are_those_of_the_files(logs: tuple[Path, SampleLogs]) -> None:
    folder, written = logs

    assert written.n_dialogues == 150 * DAYS
    assert written.n_turns == len(lines_of(folder, "turns"))
    assert written.n_outcomes == len(lines_of(folder, "outcomes"))
    assert len(written.folders) == DAYS


def test_three_in_a_thousand_records_are_malformed_and_no_more(logs: tuple[Path, SampleLogs]) -> None:
    folder, written = logs
    n_lines = written.n_turns + written.n_outcomes
    n_sound = len(readable(folder, "turns")) + len(readable(folder, "outcomes"))

    assert written.n_malformed == pytest.approx(0.003 * n_lines, rel=0.1)
    # A late outcome that was damaged may lie beyond the last day.
    assert written.n_malformed - 3 <= n_lines - n_sound <= written.n_malformed


def test_every_way_of_damage_is_seen_and_keeps_the_dialogue_id() -> None:
    record = {
        "record": "turn",
        "dialogue_id": "dlg-1",
        "turn_index": 1,
        "occurred_at": "2026-01-01T00:00:00.000000Z",
        "speaker": "agent",
        "text": "A line that is long enough to be cut somewhere in its second half.",
        "strategies": ["no_strategy"],
        "propensity": 0.2,
    }
    rng = np.random.default_rng(0)
    lines = {damaged(record, rng) for _ in range(300)}

    assert all(b'"dlg-1"' in line for line in lines)
    assert not any(line == orjson.dumps(record) for line in lines)
    for sign in (b"1.7", b"supervisor", b"hard_sell", b"yesterday", b'"text":null'):
        assert any(sign in line for line in lines)
    assert any(not line.endswith(b"}") for line in lines)


def test_a_record_lies_in_the_folder_of_the_day_it_happened(logs: tuple[Path, SampleLogs]) -> None:
    folder, _ = logs
    turns, outcomes = readable(folder, "turns"), readable(folder, "outcomes")

    assert all(record["occurred_at"][:10] == record["day"] for record in turns + outcomes)
    assert any(record["dialogue_id"][4:12] != record["day"].replace("-", "") for record in turns)


def test_logged_propensities_are_the_behavior_policys_probabilities(logs: tuple[Path, SampleLogs]) -> None:
    folder, _ = logs
    ids = {text: number for number, text in enumerate(utterance_table().texts)}
    dialogues: dict[str, dict[int, dict[str, Any]]] = {}
    for record in readable(folder, "turns"):
        dialogues.setdefault(record["dialogue_id"], {})[record["turn_index"]] = record
    checked = 0
    for turns in list(dialogues.values())[:300]:
        agent = [turns[i] for i in sorted(turns) if i % 2 == 1]
        if sorted(turns) != list(range(len(turns))):
            continue
        strategies = np.full((1, 12), -1)
        said = [ids.get(turns[i]["text"], 0) for i in range(len(turns))]
        for step, record in enumerate(agent):
            batch = DecisionBatch(
                segment=np.array([SEGMENTS.index(record["segment"])]),
                turn=np.array([step]),
                utterances=np.array([said[: 2 * step + 1]], dtype=np.int32),
                strategies=strategies,
                eligible=np.isin(STRATEGIES, record["eligible_strategies"])[None],
            )
            action = STRATEGY_IDS[record["strategies"][0]]
            expected = behavior_policy(record["policy_version"])(batch)[0]
            assert record["propensity"] == pytest.approx(expected[action])
            assert expected.sum() == pytest.approx(1)
            strategies[0, step] = action
            checked += 1
    assert checked > 1000


def test_strategies_occur_as_often_as_their_propensities_say(logs: tuple[Path, SampleLogs]) -> None:
    """The mean of 1 / propensity over decisions is the mean number of eligible strategies."""
    agent = [r for r in readable(logs[0], "turns") if r["speaker"] == "agent"]
    inverse = np.array([1 / r["propensity"] for r in agent])
    n_eligible = np.array([len(r["eligible_strategies"]) for r in agent])

    noise = (inverse - n_eligible).std() / np.sqrt(len(agent))
    assert abs((inverse - n_eligible).mean()) < 4 * noise


def test_item_fields_go_with_the_strategies_that_name_items(logs: tuple[Path, SampleLogs]) -> None:
    known = {item.item_id for item in storefront_items()}
    n_picked = 0
    for record in readable(logs[0], "turns"):
        if "candidate_item_ids" in record:
            n_picked += 1
            assert record["strategies"][0] in ("offer_help", "personal_opinion")
            assert set(record["item_ids"]) <= set(record["candidate_item_ids"]) <= known
            assert 0 < record["item_propensity"] <= 1
    assert n_picked > 1000


def test_customers_return_and_keep_their_segment_and_policy_version(logs: tuple[Path, SampleLogs]) -> None:
    turns = [r for r in readable(logs[0], "turns") if r["turn_index"] == 1]
    traits: dict[str, set[tuple[str, str]]] = {}
    for record in turns:
        traits.setdefault(record["customer_id"], set()).add((record["segment"], record["policy_version"]))

    assert len(traits) < len(turns)
    assert all(len(seen) == 1 for seen in traits.values())


def test_outcomes_include_every_kind_and_some_come_days_later(logs: tuple[Path, SampleLogs]) -> None:
    folder, _ = logs
    outcomes = readable(folder, "outcomes")
    kinds = Counter(record["kind"] for record in outcomes)
    late = [
        (date.fromisoformat(r["day"]) - date.fromisoformat(r["dialogue_id"][4:12])).days
        for r in outcomes
        if r["kind"] == "conversion"
    ]

    assert set(kinds) == {"conversion", "rejection", "abandonment", "rating"}
    assert max(late) >= 2
    assert max(late) <= LONGEST_DELAY_DAYS + 1.5
    assert all(1 <= r["value"] <= 5 for r in outcomes if r["kind"] == "rating")


def test_one_more_day_leaves_the_earlier_days_as_they_are(logs: tuple[Path, SampleLogs], tmp_path: Path) -> None:
    folder, _ = logs
    write_sample_logs(tmp_path / "longer", dialogues=150 * (DAYS + 1), days=DAYS + 1, seed=7)
    write_sample_logs(tmp_path / "appended", dialogues=150 * (DAYS + 1), days=DAYS + 1, seed=7, first_day=DAYS)
    before, longer, appended = tree(folder), tree(tmp_path / "longer"), tree(tmp_path / "appended")

    assert {name: longer[name] for name in before} == before
    assert appended == {name: content for name, content in longer.items() if name not in before}
    assert len(appended) == 2


def test_another_seed_writes_other_logs(logs: tuple[Path, SampleLogs], tmp_path: Path) -> None:
    write_sample_logs(tmp_path, dialogues=150, days=1, seed=8)

    assert tree(tmp_path)["arrival_day=2026-01-01/turns.jsonl.gz"] not in tree(logs[0]).values()


def test_planted_personal_data_is_in_about_three_to_four_percent_of_the_texts(
    logs: tuple[Path, SampleLogs],
) -> None:
    folder, written = logs
    plain = set(utterance_table().texts)
    turns = readable(folder, "turns")
    marked = [record["text"] for record in turns if record["text"] not in plain]

    assert 0.03 < len(marked) / len(turns) < 0.04
    assert all(any(value in text for value in written.planted) for text in marked[:50])


def test_planted_card_numbers_pass_the_check_digit() -> None:
    rng = np.random.default_rng(0)
    values = [personal_remark(rng, "customer")[1] for _ in range(300)]
    cards = [value for value in values if value.startswith("4000")]

    assert cards
    for card in cards:
        digits = [int(d) for d in card.replace(" ", "")][::-1]
        assert sum(digits[::2] + [sum(divmod(2 * d, 10)) for d in digits[1::2]]) % 10 == 0


def test_progress_is_reported_by_day(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_sample_logs(tmp_path, 30, 3, on_progress=lambda done, total: seen.append((done, total)))

    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_less_than_a_dialogue_a_day_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="at least one dialogue a day"):
        write_sample_logs(tmp_path, dialogues=3, days=10)
