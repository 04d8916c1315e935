"""The landing: what a file leaves there, and that nothing is lost or doubled however a run ends."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from orchestration.ingest import landed_file, removal
from orchestration.ingest import landing as landing_module
from orchestration.ingest.landing import IngestReport, broken_files, committed_files, ingest
from orchestration.ingest.pseudonyms import PseudonymKey
from orchestration.ingest.schema import SCHEMAS
from orchestration.ingest.sources import find_sources
from rl.catalogue import ActionCatalogue, Strategy, read_catalogue
from rl.encoders.scrubbing import scrubber_for
from rl.errors import DataError, EncoderError
from rl.files import content_hash
from rl.settings import ScrubbingSettings
from tests.orchestration.ingest.examples import CATALOGUES, WRITERS, outcome, turn, write_json_lines
from tests.rl.encoders.test_entity_model import tiny_model

INGEST = Path(__file__).resolve().parents[3] / "orchestration" / "ingest"
KEY = PseudonymKey(bytes(range(100, 132)))
CATALOGUE = read_catalogue(INGEST / "catalogues" / "conversation.csv")


class Workspace:
    """A source folder and a landing beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.landing = folder / "landing"
        self.quarantine = folder / "quarantine"

    def ingest(self, log_format: str = "canonical", **changes: Any) -> IngestReport:
        arguments = {
            "landing": self.landing,
            "quarantine": self.quarantine,
            "catalogue": CATALOGUE,
            "key": KEY,
            "start_date": date(2026, 1, 1),
            "attribution_days": 7,
            "workers": 1,
        }
        return ingest(str(self.logs), log_format, **arguments | changes)

    def write(self, records: list[Any], day: str = "2026-01-06", name: str = "log.jsonl") -> Path:
        return write_json_lines(self.logs / f"arrival_day={day}" / name, records)

    def rows(self, table: str) -> list[dict[str, Any]]:
        paths = sorted(self.landing.glob(f"{table}/arrival_day=*/*.parquet"))
        return [row for path in paths for row in pq.read_table(path, partitioning=None).to_pylist()]

    def quarantined(self) -> list[dict[str, Any]]:
        paths = sorted(self.quarantine.glob("arrival_day=*/*.jsonl"))
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    def content(self) -> dict[str, bytes]:
        """Every file of landing and quarantine, by its path."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for folder in (self.landing, self.quarantine)
            for path in folder.rglob("*")
            if path.is_file() and path.name != ".ingest.lock"
        }


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.mark.parametrize("log_format", sorted(WRITERS))
def test_every_format_lands_turns_and_outcomes(log_format: str, workspace: Workspace) -> None:
    WRITERS[log_format](workspace.logs)
    catalogue = read_catalogue(INGEST / "catalogues" / f"{CATALOGUES[log_format]}.csv")

    report = workspace.ingest(log_format, catalogue=catalogue)

    assert report.n_quarantined == 0
    assert report.n_turns == len(workspace.rows("turns")) >= 4
    assert report.n_outcomes == len(workspace.rows("outcomes")) == 2
    files = find_sources(str(workspace.logs), log_format, start_date=date(2026, 1, 1), attribution_days=7)
    assert {file.arrival_day for file in files} == set(report.arrival_days)


def test_rows_are_scrubbed_hashed_and_pseudonymised(workspace: Workspace) -> None:
    text = "I'm Ada, mail me at ada@example.com"
    workspace.write([turn("d1", 0, text=text, customer_id="ada-77", mood={"contact": "ada@example.com"})])

    report = workspace.ingest()

    (row,) = workspace.rows("turns")
    assert row["text"] == "I'm <NAME>, mail me at <EMAIL>"
    assert row["content_hash"] == content_hash(row["text"].encode())
    assert row["customer_id"].startswith(KEY.key_id + ":")
    assert json.loads(row["extra"]) == {"mood": {"contact": "<EMAIL>"}}
    assert row["occurred_at"] == datetime(2026, 1, 5, 10, tzinfo=UTC)
    assert report.scrub_counts == {"EMAIL": 2, "NAME": 1}
    stored = b"".join(workspace.content().values())
    assert b"ada-77" not in stored
    assert b"example.com" not in stored


def test_bad_records_are_quarantined_and_make_their_dialogue_incomplete(workspace: Workspace) -> None:
    workspace.write([turn("d1", 0), turn("d1", 1, propensity=1.5, text="secret words"), turn("d2", 0), "{cut"])

    report = workspace.ingest()

    assert (report.n_records, report.n_quarantined, report.quarantined_share) == (4, 2, 0.5)
    assert [row["dialogue_id"] for row in workspace.rows("incomplete")] == ["d1"]
    assert [row["dialogue_id"] for row in workspace.rows("turns")] == ["d1", "d2"]
    first, second = workspace.quarantined()
    assert (first["line"], first["field"], first["value"]) == (2, "propensity", 1.5)
    assert (second["line"], second["reason"]) == (4, "the line is not valid JSON")
    assert "secret" not in json.dumps([first, second])
    assert report.quarantine_counts == {
        "line: the line is not valid JSON": 1,
        "propensity: must lie in (0, 1]": 1,
    }


def test_records_of_any_shape_are_landed_or_quarantined(workspace: Workspace) -> None:
    rng = random.Random(0)
    values = [None, True, -1, 0.5, 10**12, "", "x", "\x00", [], ["a", None], {"a": {"b": [1.5, "x"]}}, "2026-01-05"]
    records = []
    for number in range(400):
        record = turn(f"d{number}", number % 5) | {"note": rng.choice(values)}
        for name in rng.sample(sorted(record), 2):
            record[name] = rng.choice(values)
        records.append(record)
    workspace.write(records)

    report = workspace.ingest()

    assert report.broken_files == ()
    assert report.n_records == 400
    assert report.n_turns + report.n_outcomes + report.n_decisions + report.n_quarantined == 400


def test_a_file_without_permission_is_an_error_with_its_path(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> Any:
        raise PermissionError(13, "Permission denied", path)

    path = workspace.write([turn("d1", 0)])
    monkeypatch.setattr("orchestration.ingest.sources.open_bytes", refuse)

    with pytest.raises(DataError, match=f"{path} cannot be read: Permission denied"):
        workspace.ingest()


def test_only_the_owner_can_read_landing_and_quarantine(workspace: Workspace) -> None:
    workspace.write([turn("d1", 0), "{cut"])
    workspace.ingest()

    assert {stat.S_IMODE(path.stat().st_mode) for path in (workspace.landing, workspace.quarantine)} == {0o700}
    (quarantined,) = workspace.quarantine.rglob("*.jsonl")
    assert stat.S_IMODE(quarantined.stat().st_mode) == 0o600


def test_each_table_always_has_a_file(workspace: Workspace) -> None:
    workspace.write([])

    report = workspace.ingest()

    assert (report.n_files_read, report.n_records, report.quarantined_share) == (1, 0, 0.0)
    for table, schema in SCHEMAS.items():
        path = workspace.landing / table / "arrival_day=1970-01-01" / "empty.parquet"
        assert pq.read_schema(path) == schema


def test_reading_again_changes_nothing(workspace: Workspace) -> None:
    workspace.write([turn("d1", 0), turn("d1", 1), outcome("d1"), "{cut"])
    workspace.ingest()
    before = workspace.content()

    report = workspace.ingest()

    assert (report.n_files_read, report.n_files_skipped, report.arrival_days) == (0, 1, ())
    assert workspace.content() == before


def test_what_an_older_schema_or_scrubber_landed_is_read_again_under_its_first_day(workspace: Workspace) -> None:
    path = write_json_lines(workspace.logs / "log.jsonl", [turn("d1", 0, text="Veltona, please")])
    os.utime(path, (datetime(2026, 2, 3, tzinfo=UTC).timestamp(),) * 2)
    workspace.ingest()
    os.utime(path, (datetime(2026, 2, 9, tzinfo=UTC).timestamp(),) * 2)
    assert workspace.ingest().n_files_read == 0

    report = workspace.ingest(scrubbing=ScrubbingSettings(known_words=("Veltona",)))
    assert (report.n_files_read, report.arrival_days, report.outdated_files) == (1, (date(2026, 2, 3),), ())
    assert [row["text"] for row in workspace.rows("turns")] == ["Veltona, please"]

    make_older(workspace)
    report = workspace.ingest()
    assert (report.n_files_read, report.arrival_days) == (1, (date(2026, 2, 3),))
    (row,) = workspace.rows("turns")
    assert (row["text"], row["customer_act"], row["canonical_reply"]) == ("<NAME>, please", "request", "<NAME> please")
    assert workspace.ingest().n_files_read == 0


def test_what_was_built_of_rows_that_are_read_again_is_to_be_built_again(workspace: Workspace) -> None:
    workspace.write([turn("d1", 0, text="I am Grace Miller")])
    called: list[int] = []

    def ingest_and_count(**changes: Any) -> tuple[int, int]:
        report = workspace.ingest(before_rows_change=lambda: called.append(len(workspace.rows("turns"))), **changes)
        return report.n_files_read, len(called)

    assert ingest_and_count() == (1, 0), "a new file changes no row that is there"
    assert ingest_and_count() == (0, 0)
    assert ingest_and_count(scrubbing=ScrubbingSettings(allow_list="strict")) == (1, 1)
    assert called == [1], "told before, so that a kill while reading leaves nothing that was built of the older rows"


def test_what_an_older_schema_landed_is_kept_and_named_when_its_source_is_gone(workspace: Workspace) -> None:
    path = workspace.write([turn("d1", 0, text="a red lamp")])
    workspace.write([turn("d2", 0)], day="2026-01-09", name="later.jsonl")
    workspace.ingest()
    make_older(workspace)
    path.unlink()

    first = workspace.ingest(up_to=date(2026, 1, 7))
    assert (first.n_files_read, first.outdated_files) == (0, (str(path),))
    report = workspace.ingest()

    assert (report.n_files_read, report.outdated_files) == (1, (str(path),))
    assert sorted(row["text"] for row in workspace.rows("turns") if row["dialogue_id"] == "d1") == ["a red lamp"]
    older, newer = (
        pq.read_schema(part) for part in sorted(workspace.landing.glob("turns/arrival_day=2026-*/*.parquet"))
    )
    assert "customer_act" not in older.names
    assert "customer_act" in newer.names


def make_older(workspace: Workspace) -> None:
    """The landing as the first version of schema and scrubber would have left it."""
    for path in workspace.landing.glob("turns/arrival_day=2*/*.parquet"):
        pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["customer_act", "canonical_reply"]), path)
    for path in (workspace.landing / landed_file.MARKS).glob("*.json"):
        mark = json.loads(path.read_text())
        del mark["versions"]
        mark["parts"] = landed_file.part_sizes(workspace.landing, mark)
        path.write_text(json.dumps(mark | {"schema_version": "1", "scrubber_version": "1"}))


def test_a_model_scrubs_in_batches_and_its_weights_are_in_the_mark(workspace: Workspace, tmp_path: Path) -> None:
    scrubbing = ScrubbingSettings(entity_model=str(tiny_model(tmp_path / "model")))
    texts = ["the lamp", "is from", "zyx please", "1 2 3"] * 300
    workspace.write([turn(f"d{i}", 0, text=text, mood="lamp") for i, text in enumerate(texts)])

    report = workspace.ingest(scrubbing=scrubbing)

    assert {row["text"] for row in workspace.rows("turns")} == {"<NAME>", "1 2 3"}
    assert {row["extra"] for row in workspace.rows("turns")} == {'{"<NAME>": "<NAME>"}'}
    assert report.scrub_counts["NAME"] >= 900
    (mark,) = committed_files(workspace.landing)
    assert mark["versions"]["scrubber"] == scrubber_for(scrubbing).version


def test_a_missing_model_stops_ingest_before_anything_is_landed(workspace: Workspace) -> None:
    workspace.write([turn("d1", 0)])

    with pytest.raises(EncoderError, match=r"has no model\.safetensors"):
        workspace.ingest(scrubbing=ScrubbingSettings(entity_model=str(workspace.folder)))
    assert workspace.rows("turns") == []


def test_a_touched_file_and_a_copy_under_another_name_change_nothing(workspace: Workspace) -> None:
    path = workspace.write([turn("d1", 0)])
    workspace.ingest()
    before = workspace.content()
    os.utime(path, (0, 0))
    workspace.write([turn("d1", 0)], day="2026-01-09", name="copy.jsonl")

    assert workspace.ingest().n_files_read == 0
    assert workspace.content() == before


def test_two_copies_in_one_run_are_landed_once(workspace: Workspace) -> None:
    workspace.write([turn("d1", 0)], name="a.jsonl")
    workspace.write([turn("d1", 0)], name="b.jsonl")

    assert workspace.ingest().n_files_read == 1
    assert len(workspace.rows("turns")) == 1


def test_days_after_the_limit_wait(workspace: Workspace) -> None:
    workspace.write([turn("d1", 0)], day="2026-01-06")
    workspace.write([turn("d2", 0)], day="2026-01-07")

    assert workspace.ingest(up_to=date(2026, 1, 6)).arrival_days == (date(2026, 1, 6),)
    assert workspace.ingest(up_to=date(2026, 1, 7)).arrival_days == (date(2026, 1, 7),)
    assert [mark["arrival_day"] for mark in committed_files(workspace.landing)] == ["2026-01-06", "2026-01-07"]


def test_without_a_day_in_the_path_the_day_of_the_last_change_counts(workspace: Workspace) -> None:
    path = write_json_lines(workspace.logs / "log.jsonl", [turn("d1", 0)])
    os.utime(path, (datetime(2026, 2, 3, 23, 59, tzinfo=UTC).timestamp(),) * 2)

    assert workspace.ingest().arrival_days == (date(2026, 2, 3),)


def test_a_cut_file_is_landed_as_far_as_it_goes_and_put_right_by_the_whole_one(workspace: Workspace) -> None:
    path = workspace.logs / "arrival_day=2026-01-06" / "log.jsonl.gz"
    write_json_lines(path, [turn(f"d{i}", 0, text=f"words {hash(i) * 7919 % 9973}") for i in range(3_000)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])

    cut = workspace.ingest()

    assert cut.broken_files == (str(path),)
    assert 0 < cut.n_turns < 3_000
    assert len(workspace.rows("incomplete")) == cut.n_turns
    assert "cut off" in workspace.quarantined()[0]["reason"]

    path.write_bytes(whole)
    repaired = workspace.ingest()

    assert repaired.broken_files == ()
    assert len(workspace.rows("turns")) == 3_000
    assert workspace.rows("incomplete") == workspace.quarantined() == []
    assert len(committed_files(workspace.landing)) == 1


def test_a_damaged_part_of_the_landing_is_read_again_from_its_source(workspace: Workspace) -> None:
    path = workspace.write([turn("d1", 0), turn("d1", 1, propensity=7), outcome("d1")])
    workspace.write([turn("d2", 0)], name="other.jsonl")
    workspace.ingest()
    before = workspace.content()
    part = _turns_part(workspace, path)
    os.utime(path, (0, 0))

    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    cut = workspace.ingest()
    part.unlink()
    gone = workspace.ingest()

    assert (cut.n_files_read, gone.n_files_read) == (1, 1)
    assert {k: v for k, v in workspace.content().items() if "_files" not in k} == {
        k: v for k, v in before.items() if "_files" not in k
    }
    assert workspace.ingest().n_files_read == 0


def test_a_damaged_part_whose_source_is_gone_or_changed_stops_and_names_both(workspace: Workspace) -> None:
    path = workspace.write([turn("d1", 0), turn("d2", 0)])
    workspace.write([turn("d3", 0)], name="other.jsonl")
    workspace.ingest()
    part = _turns_part(workspace, path)
    part.write_bytes(part.read_bytes()[:-9])
    before = workspace.content()
    path.write_text(json.dumps(turn("d1", 0)) + "\n")

    with pytest.raises(DataError, match=rf"{part.name} is cut off or gone, and its source {path}.*these 2 records"):
        workspace.ingest()
    path.unlink()
    with pytest.raises(DataError, match=r"Put one of the two back .* To go on without .* remove .*_files/\w+\.json"):
        workspace.ingest()

    assert workspace.content() == before


def test_clearing_incomplete_marks_does_not_look_like_damage(workspace: Workspace) -> None:
    path = write_json_lines(workspace.logs / "log.jsonl", [turn("d1", 0), turn("d1", 1, propensity=7)])
    os.utime(path, (datetime(2026, 2, 3, tzinfo=UTC).timestamp(),) * 2)
    workspace.ingest()
    write_json_lines(path, [turn("d1", 0), turn("d1", 1)])
    os.utime(path, (datetime(2026, 2, 4, tzinfo=UTC).timestamp(),) * 2)
    workspace.ingest()

    assert workspace.ingest().n_files_read == 0


def test_a_kill_while_incomplete_marks_are_cleared_is_repaired_by_the_next_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_json_lines(workspace.logs / "log.jsonl", [turn("d1", 0), turn("d1", 1, propensity=7), turn("d2", -1)])
    os.utime(path, (datetime(2026, 2, 3, tzinfo=UTC).timestamp(),) * 2)
    workspace.ingest()
    write_json_lines(path, [turn("d1", 0), turn("d1", 1)])
    os.utime(path, (datetime(2026, 2, 4, tzinfo=UTC).timestamp(),) * 2)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(removal, "_commit", killed)
        with pytest.raises(KeyboardInterrupt):
            workspace.ingest()

    assert workspace.ingest().n_files_read == 0, "the older version is not there to read it again"
    assert [row["dialogue_id"] for row in workspace.rows("incomplete")] == ["d2"]
    assert [mark["n_incomplete"] for mark in committed_files(workspace.landing)] == [1, 0]


def _turns_part(workspace: Workspace, source: Path) -> Path:
    (mark,) = (mark for mark in committed_files(workspace.landing) if mark["path"] == str(source))
    (part,) = workspace.landing.glob(f"turns/*/{mark['source']}.parquet")
    return part


def test_a_file_that_is_cut_off_is_named_until_it_is_whole(workspace: Workspace) -> None:
    path = workspace.logs / "arrival_day=2026-01-06" / "log.jsonl.gz"
    write_json_lines(path, [turn(f"d{i}", 0) for i in range(50)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])

    workspace.ingest()
    assert broken_files(workspace.landing) == [str(path)]
    path.write_bytes(whole)
    workspace.ingest()
    assert broken_files(workspace.landing) == []


def test_an_empty_day_is_landed_without_a_record(workspace: Workspace) -> None:
    workspace.write([turn("d1", 0)])
    write_json_lines(workspace.logs / "arrival_day=2026-01-07" / "log.jsonl.gz", [])
    (workspace.logs / "arrival_day=2026-01-07" / "zero.jsonl.gz").touch()
    (workspace.logs / "arrival_day=2026-01-08").mkdir()

    report = workspace.ingest()

    assert (report.n_records, report.n_quarantined, report.broken_files) == (1, 0, ())
    assert report.arrival_days == (date(2026, 1, 6), date(2026, 1, 7))
    assert workspace.ingest().n_files_read == 0


def test_a_day_with_an_unknown_strategy_is_mended_without_doubles(workspace: Workspace) -> None:
    workspace.write([turn("d1", 0), turn("d1", 1)])
    path = workspace.write([turn("d2", 0), turn("d2", 1, strategy="sing")], day="2026-01-07")
    workspace.ingest()
    (fault,) = workspace.quarantined()
    assert (fault["file"], fault["line"], fault["value"]) == (str(path), 2, "sing")
    assert fault["reason"] == "is not in the action catalogue; add it to the catalogue CSV"

    workspace.write([turn("d2", 0), turn("d2", 1)], day="2026-01-07")
    workspace.ingest()

    assert sorted((row["dialogue_id"], row["turn_index"]) for row in workspace.rows("turns")) == [
        ("d1", 0), ("d1", 1), ("d2", 0), ("d2", 1)
    ]  # fmt: skip
    assert workspace.rows("incomplete") == workspace.quarantined() == []


def test_a_file_corrected_on_a_later_day_clears_the_incomplete_marks(workspace: Workspace) -> None:
    path = write_json_lines(workspace.logs / "log.jsonl", [turn("d1", 0), turn("d1", 1, propensity=7), turn("d2", -1)])
    os.utime(path, (datetime(2026, 2, 3, tzinfo=UTC).timestamp(),) * 2)
    workspace.ingest()
    write_json_lines(path, [turn("d1", 0), turn("d1", 1)])
    os.utime(path, (datetime(2026, 2, 4, tzinfo=UTC).timestamp(),) * 2)

    report = workspace.ingest()

    assert report.arrival_days == (date(2026, 2, 3), date(2026, 2, 4))
    assert [row["dialogue_id"] for row in workspace.rows("incomplete")] == ["d2"]
    assert len(workspace.rows("turns")) == 3  # the older row stays; the warehouse keeps the later arrival


def test_a_strategy_added_to_the_catalogue_brings_its_records_back(workspace: Workspace) -> None:
    workspace.write([turn("d1", 0), turn("d1", 1, strategy="sing")])
    assert workspace.ingest().n_quarantined == 1
    extended = ActionCatalogue((*CATALOGUE.strategies, Strategy("sing", "Sings", 5, "selectable")))

    report = workspace.ingest(catalogue=extended)

    assert (report.n_files_read, report.n_turns, report.n_quarantined) == (1, 2, 0)
    assert workspace.rows("incomplete") == workspace.quarantined() == []


def test_a_kill_at_any_write_is_repaired_by_the_next_run(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.write([turn("d1", 0), turn("d1", 1), outcome("d1"), turn("d2", -1)])
    expected = Workspace(tmp_path / "expected")
    expected.logs = workspace.logs
    expected.ingest()
    move = landed_file._move_or_remove

    for n_allowed in range(5):
        calls = iter(range(n_allowed))

        def killed(written: Path, final: Path, calls: Any = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            move(written, final)

        monkeypatch.setattr(landed_file, "_move_or_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            workspace.ingest()
        assert committed_files(workspace.landing) == []
    monkeypatch.setattr(landed_file, "_move_or_remove", move)
    workspace.ingest()

    assert workspace.content() == expected.content()


_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.orchestration.ingest.test_landing import Workspace
Workspace(Path(sys.argv[1])).ingest()
"""


def test_kill_9_and_a_second_run_give_the_same_landing(workspace: Workspace, tmp_path: Path) -> None:
    for number in range(6):
        records = [turn(f"d{number}-{i}", t, text=f"words {i} {t}") for i in range(400) for t in range(4)]
        workspace.write(records, name=f"{number}.jsonl")
    expected = Workspace(tmp_path / "expected")
    expected.logs = workspace.logs
    expected.ingest()
    script = _RUN.format(root=str(INGEST.parents[1]))

    process = subprocess.Popen([sys.executable, "-c", script, str(workspace.folder)])
    deadline = time.monotonic() + 30
    while not list(workspace.landing.glob("_files/*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    workspace.ingest()

    assert workspace.content() == expected.content()


def test_several_processes_land_the_same_as_one(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        workspace.write([turn(f"d{number}", 0), outcome(f"d{number}")], name=f"{number}.jsonl")
    expected = Workspace(tmp_path / "expected")
    expected.logs = workspace.logs
    expected.ingest()
    monkeypatch.setattr(landing_module, "_PARALLEL_BYTES", 0)
    seen: list[tuple[int, int]] = []

    workspace.ingest(workers=2, progress=lambda done, total: seen.append((done, total)))

    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert workspace.content() == expected.content()


def test_a_second_ingest_at_the_same_time_is_told_to_wait(workspace: Workspace) -> None:
    workspace.write([turn("d1", 0)])
    workspace.landing.mkdir()

    with FileLock(workspace.landing / ".ingest.lock"), pytest.raises(DataError, match="Another ingest is writing"):
        workspace.ingest()


def test_a_wrong_path_an_empty_folder_and_a_wrong_format_say_what_to_do(workspace: Workspace) -> None:
    with pytest.raises(DataError, match=r"no logs at .*Correct `logs.path`"):
        workspace.ingest()
    workspace.logs.mkdir()
    with pytest.raises(DataError, match=r"0 file\(s\)"):
        workspace.ingest()
    workspace.write([turn("d1", 0)])
    with pytest.raises(DataError, match=r"no file that the format 'sgd' reads.*1 file\(s\)"):
        workspace.ingest("sgd")


def test_a_store_that_nobody_knows_is_an_error_with_its_address(workspace: Workspace) -> None:
    with pytest.raises(DataError, match="nosuch://bucket cannot be reached"):
        find_sources("nosuch://bucket", "canonical", start_date=date(2026, 1, 1), attribution_days=7)


def test_a_day_folder_that_is_no_date_is_named(workspace: Workspace) -> None:
    workspace.write([turn("d1", 0)], day="2026-13-01")

    with pytest.raises(DataError, match="'2026-13-01' in the path is no date"):
        workspace.ingest()


def test_object_stores_are_read_like_folders(workspace: Workspace) -> None:
    with fsspec.open("memory://bucket/day=2026-01-06/log.jsonl", "w") as stream:
        stream.write(json.dumps(turn("d1", 0)) + "\n")
    workspace.logs = "memory://bucket"  # type: ignore[assignment]

    report = ingest(
        "memory://bucket",
        "canonical",
        landing=workspace.landing,
        quarantine=workspace.quarantine,
        catalogue=CATALOGUE,
        key=KEY,
        start_date=date(2026, 1, 1),
        attribution_days=7,
    )

    assert report.n_turns == 1


def test_made_up_times_of_a_later_file_follow_those_of_the_earlier(workspace: Workspace) -> None:
    for number in range(2):
        messages = [{"role": "user", "content": f"Hello {number}"}]
        write_json_lines(workspace.logs / f"{number}.jsonl", [{"id": f"d{number}", "messages": messages}])

    workspace.ingest("chat")

    times = {row["dialogue_id"]: row["occurred_at"] for row in workspace.rows("turns")}
    assert times["d0"] == datetime(2026, 1, 1, 0, 0, tzinfo=UTC)
    assert times["d1"] == datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
