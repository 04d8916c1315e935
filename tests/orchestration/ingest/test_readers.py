"""What every reader keeps to, and what is particular to each."""

from __future__ import annotations

import gzip
import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from orchestration.ingest.readers import READERS, reader_named
from orchestration.ingest.readers.files import JsonItems, TextLines
from orchestration.ingest.records import Fault, RawRecord, ReaderOptions
from orchestration.ingest.schema import priorities, validate
from orchestration.ingest.sources import find_sources
from rl.catalogue import read_catalogue
from rl.errors import SettingsError
from tests.orchestration.ingest.examples import CATALOGUES, WRITERS, outcome, turn, write_json_lines

INGEST = Path(__file__).resolve().parents[3] / "orchestration" / "ingest"


def read_all(folder: Path, log_format: str) -> list[RawRecord | Fault]:
    files = find_sources(str(folder), log_format, start_date=date(2026, 1, 1), attribution_days=7)
    return [item for file in files for item in READERS[log_format].read(file.path, file.options)]


@pytest.fixture(params=sorted(READERS))
def log_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def records(log_format: str, tmp_path: Path) -> list[RawRecord]:
    WRITERS[log_format](tmp_path)
    items = read_all(tmp_path, log_format)
    assert not [item for item in items if isinstance(item, Fault)]
    return [item for item in items if isinstance(item, RawRecord)]


def test_every_record_of_every_reader_is_valid(log_format: str, records: list[RawRecord]) -> None:
    strategies = priorities(read_catalogue(INGEST / "catalogues" / f"{CATALOGUES[log_format]}.csv"))

    assert [row for record in records if isinstance(row := validate(record, strategies), list)] == []


def test_turns_alternate_are_numbered_and_in_time_order(log_format: str, records: list[RawRecord]) -> None:
    turns = [r.fields for r in records if r.kind == "turn" and r.fields["dialogue_id"] == "d1"]

    assert [t["turn_index"] for t in turns] == [0, 1]
    assert [t["speaker"] for t in turns] == ["customer", "agent"]
    assert turns[0]["occurred_at"] < turns[1]["occurred_at"]
    assert all(t["customer_id"] for t in turns)


def test_the_first_dialogue_converts_and_the_second_does_not(log_format: str, records: list[RawRecord]) -> None:
    kinds = {r.fields["dialogue_id"]: r.fields["kind"] for r in records if r.kind == "outcome"}

    assert kinds["d1"] == "conversion"
    assert kinds["d2"] in ("rejection", "abandonment")


def test_made_up_times_are_marked(log_format: str, records: list[RawRecord]) -> None:
    marked = {bool(r.fields.get("is_synthetic")) for r in records}

    assert marked == {log_format != "canonical"}


def test_reading_twice_gives_the_same(log_format: str, records: list[RawRecord], tmp_path: Path) -> None:
    assert read_all(tmp_path, log_format) == records


def test_every_truncation_gives_a_fault_or_the_readable_part_and_no_traceback(
    log_format: str, records: list[RawRecord], tmp_path: Path
) -> None:
    (file,) = find_sources(str(tmp_path), log_format, start_date=date(2026, 1, 1), attribution_days=7)
    whole = Path(file.path).read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 25)):
        Path(file.path).write_bytes(whole[:length])
        items = list(READERS[log_format].read(file.path, ReaderOptions()))

        read = [item for item in items if isinstance(item, RawRecord)]
        assert len(read) <= len(records)
        if length and whole.startswith(b"\x1f\x8b"):
            assert any(isinstance(item, Fault) and item.is_whole_file for item in items)


def test_every_format_but_the_canonical_has_a_profile_whose_catalogue_exists() -> None:
    profiles = {path.stem: yaml.safe_load(path.read_text()) for path in (INGEST / "profiles").glob("*.yaml")}

    assert set(profiles) == set(READERS) - {"canonical"}
    for profile in profiles.values():
        assert read_catalogue(INGEST / "catalogues" / profile["logs"]["catalogue"]).selectable.any()


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"'excel'.*canonical, persuasionforgood"):
        reader_named("excel")


def test_sentences_of_one_speaker_become_one_turn(tmp_path: Path) -> None:
    WRITERS["persuasionforgood"](tmp_path)
    items = read_all(tmp_path, "persuasionforgood")

    agent = next(i.fields for i in items if isinstance(i, RawRecord) and i.fields.get("speaker") == "agent")
    assert agent["text"] == "Hi. Will you give?"
    assert agent["strategies"] == ["greeting", "proposition-of-donation"]


def test_the_dollars_are_those_of_the_persuadee(tmp_path: Path) -> None:
    WRITERS["persuasionforgood"](tmp_path)
    items = read_all(tmp_path, "persuasionforgood")

    assert [i.fields["value"] for i in items if isinstance(i, RawRecord) and i.kind == "outcome"] == [0.5, None]


def test_a_missing_table_of_outcomes_is_a_fault_of_the_file(tmp_path: Path) -> None:
    WRITERS["persuasionforgood"](tmp_path)
    (tmp_path / "300_info.csv.gz").unlink()

    fault = next(item for item in read_all(tmp_path, "persuasionforgood") if isinstance(item, Fault))

    assert fault.is_whole_file
    assert "300_info.csv.gz" in fault.reason


def test_quotes_in_inspired_are_text(tmp_path: Path) -> None:
    WRITERS["inspired"](tmp_path)
    texts = [i.fields["text"] for i in read_all(tmp_path, "inspired") if isinstance(i, RawRecord) and i.kind == "turn"]

    assert texts[:2] == ['A film with a " in it', 'See "This"']


def test_movie_references_become_titles_and_item_ids(tmp_path: Path) -> None:
    WRITERS["redial"](tmp_path)
    items = [i.fields for i in read_all(tmp_path, "redial") if isinstance(i, RawRecord)]

    assert items[1]["text"] == "Hi. See Example (2001)"
    assert items[1]["item_ids"] == ["77"]
    assert [i["dialogue_id"] for i in items if "kind" in i] == ["d1", "d2"]  # d3's form is empty: no outcome


def test_a_chat_without_an_id_gets_the_same_one_each_time(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    write_json_lines(tmp_path / "a.jsonl", [{"messages": messages}])

    ids = {i.fields["dialogue_id"] for _ in range(2) for i in read_all(tmp_path, "chat") if isinstance(i, RawRecord)}

    assert len(ids) == 1


def test_chat_times_are_used_where_all_messages_have_them(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello", "created_at": "2026-02-01T00:00:00Z"}]
    write_json_lines(tmp_path / "a.jsonl", [{"id": "d1", "messages": messages}])

    (record,) = read_all(tmp_path, "chat")

    assert isinstance(record, RawRecord)
    assert record.fields["occurred_at"] == "2026-02-01T00:00:00Z"
    assert record.fields["is_synthetic"] is False


def test_an_unknown_chat_role_is_a_fault_with_its_value(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "a.jsonl", [{"id": "d1", "messages": [{"role": "wizard", "content": "Hello"}]}])

    assert [(i.field, i.value) for i in read_all(tmp_path, "chat") if isinstance(i, Fault)] == [("role", "wizard")]


def test_without_roles_the_first_speaker_of_a_convokit_conversation_is_the_customer(tmp_path: Path) -> None:
    WRITERS["convokit"](tmp_path)
    (tmp_path / "speakers.json").unlink()

    turns = [i.fields for i in read_all(tmp_path, "convokit") if isinstance(i, RawRecord) and i.kind == "turn"]

    assert [t["speaker"] for t in turns[:2]] == ["customer", "agent"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_canonical_records_read_the_same_from_every_container(name: str, tmp_path: Path) -> None:
    rows = [turn("d1", 0), turn("d1", 1)]
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes({".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)(raw))

    items = read_all(tmp_path, "canonical")

    assert [item.fields["text"] for item in items if isinstance(item, RawRecord)] == [r["text"] for r in rows]


def test_records_without_a_kind_are_told_by_their_fields(tmp_path: Path) -> None:
    rows = [turn("d1", 0), outcome("d1"), {"decision_id": "x"}, {"dialogue_id": "d1"}]
    write_json_lines(tmp_path / "log.jsonl", [{k: v for k, v in row.items() if k != "record"} for row in rows])

    items = read_all(tmp_path, "canonical")

    assert [item.kind for item in items if isinstance(item, RawRecord)] == ["turn", "outcome", "decision"]
    assert isinstance(items[-1], Fault)
    assert items[-1].dialogue_id == "d1"


def test_a_malformed_line_names_its_line_and_its_dialogue_and_the_rest_is_read(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "log.jsonl", [turn("d1", 0), '{"dialogue_id": "d9", "text": "cut', turn("d1", 1)])

    items = read_all(tmp_path, "canonical")

    assert len(items) == 3
    assert items[1] == Fault(2, "line", "the line is not valid JSON", dialogue_id="d9")


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_a_cut_stream_gives_its_whole_lines_and_a_fault(compress, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    whole = "".join(f"line {i} {hash(i) * 7919 % 10007}\n" for i in range(20_000))
    raw = compress(whole.encode())
    (tmp_path / "cut").write_bytes(raw[: len(raw) * 2 // 3])

    lines = TextLines(str(tmp_path / "cut"))
    read = "".join(lines)

    assert 0 < len(read) < len(whole)
    assert whole.startswith(read)
    assert lines.fault is not None


def test_concatenated_gzip_members_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "two.gz").write_bytes(gzip.compress(b"a\n") + gzip.compress(b"b\n"))

    assert list(TextLines(str(tmp_path / "two.gz"))) == ["a\n", "b\n"]


def test_a_cut_json_list_gives_its_whole_items_and_the_line_of_the_cut(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('[{"a": 1},\n {"a": 2},\n {"a": ')

    items = JsonItems(str(tmp_path / "cut.json"))

    assert list(items) == [{"a": 1}, {"a": 2}]
    assert items.fault is not None
    assert items.fault.line == 3
