"""Erasure: nothing of the person is left in any store, nothing else is touched, and the record names nobody."""

from __future__ import annotations

import fcntl
import shutil
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestration.cli import main
from orchestration.ingest import removal
from orchestration.ingest.pseudonyms import LostKeyError
from orchestration.ingest.tombstones import read_tombstones
from orchestration.lock import WorkspaceBusyError
from orchestration.personal_data import erasure
from orchestration.personal_data.erasure import ErasureReport, erase
from orchestration.personal_data.erasure_log import ErasureLog
from orchestration.personal_data.identity_scan import Needles, scan
from orchestration.personal_data.rekey import workspace_keys
from registry.errors import LedgerError
from rl.encoders.encode import VectorCache, as_hashes
from rl.errors import DataError, SettingsError
from rl.files import content_hash
from tests.orchestration.ingest.examples import turn
from tests.orchestration.personal_data.erasure_worlds import DATA_SET, World, conversation, result

MARKER = "my parrot Zanzibarbo wants the violet lamp with seven arms"
ANN, BOB = "customer-ann-01", "customer-bob-02"


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.write(
        "2026-01-06",
        [
            *conversation("dialogue-ann-1", ANN, "2026-01-05", MARKER, "Something cheap"),
            *conversation("dialogue-bob-1", BOB, "2026-01-05", "Something cheap", "And a red one as well, please"),
            turn("dialogue-ann-1", 9, customer_id=ANN, speaker="x"),
            turn("dialogue-bob-1", 9, customer_id=BOB, speaker="y"),
        ],
    )
    world.write("2026-01-07", [result("dialogue-ann-1", "2026-01-06"), result("dialogue-bob-1", "2026-01-06")])
    world.write("2026-01-08", conversation("dialogue-bob-2", BOB, "2026-01-07"))
    world.night()
    return world


def erased(world: World, *ids: str) -> ErasureReport:
    return erase(world.settings, ids, request_id="R-1")


def identities(world: World, customer: str, dialogues: set[str]) -> Needles:
    return Needles(frozenset({customer, *workspace_keys(world.settings).pseudonyms(customer), *dialogues}))


def left_over(world: World, needles: Needles) -> list[str]:
    """Files that still hold one of the needles; the keys are not searched."""
    found = scan([world.paths.home], needles, leave_out=[world.paths.secrets]).found
    return sorted(str(path.relative_to(world.paths.home)) for path in found)


def test_every_store_holds_the_person_before_and_none_after(world: World) -> None:
    needles = identities(world, ANN, {"dialogue-ann-1"})
    before = left_over(world, Needles(needles.ids, frozenset({MARKER})))
    assert {path.split("/")[1] for path in before} == {"landing", "marts", "quarantine", "warehouse.duckdb"}

    report = erased(world, ANN)

    assert report.outcome == "erased"
    assert left_over(world, Needles(needles.ids, frozenset({MARKER}))) == []
    assert report.scan is not None
    assert (report.scan.found, report.scan.unreadable) == ((), ())
    assert report.rows["landing/turns"] == 4
    assert [report.rows[f"landing/{name}"] for name in ("outcomes", "incomplete", "quarantine")] == [1, 1, 1]


def test_the_others_keep_every_row_and_untouched_files_every_byte(world: World) -> None:
    turns = [row for row in world.rows("turns") if row["dialogue_id"] != "dialogue-ann-1"]
    dialogues = [row for row in world.mart("fct_dialogues") if row["dialogue_id"] != "dialogue-ann-1"]
    untouched = world.files("landing/*/arrival_day=2026-01-08/*", "marts/*/day=2026-01-07/*", "marts/dim_*/*")
    assert len(untouched) == 6

    erased(world, ANN)

    assert world.rows("turns") == turns
    assert world.mart("fct_dialogues") == dialogues
    assert [row["dialogue_id"] for row in world.rows("outcomes")] == ["dialogue-bob-1"]
    assert {path: world.files(path)[path] for path in untouched} == untouched
    assert world.query("select dialogue_id from fct_dialogues order by 1") == [("dialogue-bob-1",), ("dialogue-bob-2",)]


def test_the_landing_stays_whole_and_the_next_night_has_nothing_to_do(world: World) -> None:
    erased(world, ANN)

    assert world.land().n_files_read == 0
    assert world.plan().days == ()
    (mark,) = (mark for mark in world.marks() if mark["arrival_day"] == "2026-01-06")
    assert (mark["n_turns"], mark["n_incomplete"], mark["n_quarantined"], mark["n_records"]) == (4, 1, 1, 5)
    assert not any("rewriting" in mark for mark in world.marks())


def test_the_working_database_keeps_constraints_comments_and_views(world: World) -> None:
    erased(world, ANN)

    ((nullable,),) = world.query(
        "select is_nullable from information_schema.columns where table_name = 'fct_dialogues' "
        "and column_name = 'customer_id'"
    )
    assert nullable == "NO"
    assert world.query("select comment from duckdb_tables() where table_name = 'fct_dialogues'") == [
        ("One row per dialogue.",)
    ]
    assert world.query("select count(*) from stg_dialogues__turns") == [(6,)]
    assert world.query("select count(*) from exact_replies") == [(0,)]
    assert stat.S_IMODE(world.paths.warehouse.stat().st_mode) == 0o600
    assert not list(world.paths.root.glob(".warehouse*")) + list(world.paths.root.glob("*.wal"))


def test_vectors_of_what_only_they_said_go_and_the_others_stay(world: World) -> None:
    erased(world, ANN)

    cache = VectorCache.open(world.paths.features / "static-8")
    keys = {text: as_hashes([content_hash(text.encode())]) for text in (MARKER, "Something cheap")}
    assert not cache.contains(keys[MARKER]).any()
    assert cache.contains(keys["Something cheap"]).all()


def test_data_sets_and_rows_of_models_go_and_the_models_are_listed(world: World) -> None:
    report = erased(world, ANN)

    assert not (world.paths.root / DATA_SET).exists()
    assert world.files("**/.*.job.json", "evaluation/*", "models/*/out_of_fold.safetensors") == {}
    assert [(model.where, model.dataset_hash) for model in report.models] == [("models/behavior", "d1")]


def test_a_data_set_of_other_days_stays(world: World) -> None:
    manifest = world.paths.root / DATA_SET / "manifest.json"
    manifest.write_text(manifest.read_text().replace("2026-01-05", "2026-01-06"))

    erased(world, ANN)

    assert manifest.exists()


def test_the_record_names_nobody_and_cannot_be_changed(world: World) -> None:
    erased(world, ANN)
    log = ErasureLog(world.paths.erasures)

    assert [row.outcome for row in log.rows()] == ["started", "erased"]
    last = log.rows()[-1].content
    assert last["rows"]["landing/turns"] == 4
    assert last["search"]["found"] == []
    assert last["sources"] == [str(world.logs / f"arrival_day=2026-01-0{day}" / "log.jsonl") for day in (6, 7)]
    assert "differencing" in last["kept"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in world.paths.erasures.iterdir()} == {0o600}
    log.path.write_bytes(log.path.read_bytes().replace(b"R-1", b"R-2"))
    with pytest.raises(LedgerError, match="was changed"):
        log.verify()


def test_a_second_run_finds_nothing_left_and_records_it(world: World) -> None:
    erased(world, ANN)
    before = world.files("landing/**/*", "marts/**/*", "warehouse.duckdb")

    again = erased(world, ANN)

    assert (again.outcome, again.rows, again.files) == ("nothing left", {}, ())
    assert [model.where for model in again.models] == ["models/behavior"]
    assert world.files("landing/**/*", "marts/**/*", "warehouse.duckdb") == before
    assert [row.outcome for row in ErasureLog(world.paths.erasures).rows()] == ["started", "erased", "nothing left"]


def test_an_unknown_customer_gets_no_tombstone_and_is_on_record(world: World) -> None:
    report = erased(world, "customer-nobody")

    assert (report.outcome, report.models) == ("not held", ())
    assert read_tombstones(world.paths.erasures, world.paths.secrets).is_empty
    assert [row.outcome for row in ErasureLog(world.paths.erasures).rows()] == ["not held"]


def test_several_customers_leave_in_one_request(world: World) -> None:
    report = erased(world, ANN, BOB, "customer-nobody")

    assert report.outcome == "erased"
    assert world.rows("turns") == world.rows("outcomes") == world.mart("fct_dialogues") == []
    assert world.land().n_files_read == 0


def test_no_later_reading_brings_the_person_back(world: World) -> None:
    erased(world, ANN)
    world.write("2026-01-08", conversation("dialogue-bob-2", BOB, "2026-01-07"), name="again.jsonl")
    world.write(
        "2026-01-09",
        [
            *conversation("dialogue-ann-1", ANN, "2026-01-05", MARKER),
            *conversation("dialogue-ann-2", ANN, "2026-01-08", MARKER),
            result("dialogue-ann-1", "2026-01-08"),
            {"record": "turn", "dialogue_id": "dialogue-ann-2", "turn_index": 9, "customer_id": ANN, "speaker": "x"},
        ],
    )

    report = world.land()

    assert report.n_erased == 6
    assert report.n_quarantined == 0
    ids = identities(world, ANN, {"dialogue-ann-1", "dialogue-ann-2"}).ids
    assert left_over(world, Needles(ids, frozenset({MARKER}))) == []


def test_a_new_dialogue_of_theirs_leaves_what_was_landed_of_it_before(world: World) -> None:
    erased(world, ANN)
    new = conversation("dialogue-ann-2", ANN, "2026-01-08", MARKER)
    world.write("2026-01-09", [new[1], result("dialogue-ann-2", "2026-01-09")])
    world.night()
    assert [row["dialogue_id"] for row in world.mart("fct_turns")].count("dialogue-ann-2") == 1

    world.write("2026-01-10", [new[1], *new, *conversation("dialogue-bob-3", BOB, "2026-01-09")])
    report = world.land()

    assert report.n_erased == 3
    assert not {"dialogue-ann-2"} & {row["dialogue_id"] for t in ("turns", "outcomes") for row in world.rows(t)}
    assert "Nothing was built before" in world.plan().reason
    assert world.land().n_files_read == 0


def test_a_customer_whom_the_log_does_not_name_is_erased_by_dialogue_id(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.write(
        "2026-01-06",
        [*conversation("dialogue-x-1", None, "2026-01-05", MARKER), *conversation("dialogue-bob-1", BOB, "2026-01-05")],
    )
    world.night()

    assert erased(world, "dialogue-bob-1").outcome == "not held"
    assert erased(world, "dialogue-x-1").outcome == "erased"

    assert {row["dialogue_id"] for row in world.rows("turns")} == {"dialogue-bob-1"}
    assert [row["dialogue_id"] for row in world.mart("fct_dialogues")] == ["dialogue-bob-1"]


@pytest.mark.parametrize(
    "moment",
    ["remove_data_sets", "remove_from_marts", "rewrite_warehouse", "remove_landed", "remove_unsaid", "scan"],
)
@pytest.mark.parametrize("is_after", [False, True])
def test_killed_anywhere_and_run_again_it_finishes(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str, is_after: bool
) -> None:
    real = getattr(erasure, moment)

    def killed(*arguments: object, **named: object) -> None:
        if is_after:
            real(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(erasure, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            erased(world, ANN)

    report = erased(world, ANN)

    assert report.outcome == "erased"
    assert [model.where for model in report.models] == ["models/behavior"]
    needles = identities(world, ANN, {"dialogue-ann-1"})
    assert left_over(world, Needles(needles.ids, frozenset({MARKER}))) == []
    assert not (world.paths.root / DATA_SET).exists()
    assert world.land().n_files_read == 0
    assert erased(world, ANN).outcome == "nothing left"


def test_a_rewrite_of_the_landing_that_was_killed_leaves_it_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    for path in world.logs.rglob("*.jsonl"):
        path.unlink()  # nothing could be read again
    with monkeypatch.context() as patch:
        patch.setattr(removal, "_commit", killed)
        with pytest.raises(KeyboardInterrupt):
            erased(world, ANN)
    world.write("2026-01-09", conversation("dialogue-bob-4", BOB, "2026-01-08"))

    assert world.land().n_files_read == 1
    assert erased(world, ANN).outcome == "erased"
    assert {row["dialogue_id"] for row in world.rows("turns")} == {"dialogue-bob-1", "dialogue-bob-2", "dialogue-bob-4"}


def test_a_restored_backup_loses_them_again(world: World) -> None:
    backup = world.paths.home.with_name("backup")
    shutil.copytree(world.paths.root, backup)
    erased(world, ANN)
    for name in ("landing", "marts", "quarantine"):
        shutil.rmtree(world.paths.root / name)
        shutil.copytree(backup / name, world.paths.root / name)
    shutil.copy(backup / "warehouse.duckdb", world.paths.warehouse)

    report = erase(world.settings, [], reapply=True)

    assert report.outcome == "erased"
    assert {row["dialogue_id"] for row in world.rows("turns")} == {"dialogue-bob-1", "dialogue-bob-2"}
    assert left_over(world, identities(world, ANN, {"dialogue-ann-1"})) == []


def test_what_is_still_somewhere_is_named_and_the_request_stays_open(world: World) -> None:
    note = world.paths.root / "note.txt"
    note.write_text(f"customer {ANN} called")

    report = erased(world, ANN)

    assert report.outcome == "incomplete"
    assert report.scan is not None
    assert report.scan.found == (note,)
    note.unlink()
    assert erased(world, ANN).outcome == "erased"


def test_an_id_that_is_part_of_another_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("customer-ann-012 and xcustomer-ann-01")

    assert scan([tmp_path], Needles(frozenset({ANN}))).found == ()
    (tmp_path / "log.txt").write_text("(customer-ann-01)")
    assert scan([tmp_path], Needles(frozenset({ANN}))).found == (tmp_path / "log.txt",)


def test_without_the_key_nobody_can_be_found_and_it_says_what_to_do(world: World) -> None:
    key = world.paths.secrets / "pseudonym.key"
    held = key.rename(key.with_name("elsewhere"))

    with pytest.raises(LostKeyError, match="Put the right key back from your backup"):
        erased(world, ANN)
    assert not key.exists()

    held.rename(key)
    assert erased(world, ANN).outcome == "erased"


def test_without_the_tombstones_key_no_log_is_read(world: World) -> None:
    erased(world, ANN)
    (world.paths.secrets / "tombstone.key").unlink()

    with pytest.raises(SettingsError, match="would bring erased customers back"):
        world.land()


def test_a_night_that_runs_keeps_the_erasure_out(world: World) -> None:
    with (world.paths.root / ".lock").open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        with pytest.raises(WorkspaceBusyError):
            erased(world, ANN)


def test_a_request_without_ids_is_refused(world: World) -> None:
    with pytest.raises(DataError, match="No customer id was given"):
        erased(world, " ")


def test_the_command_reads_ids_from_standard_input_and_shows_no_small_count(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.paths.home / "talktrack.yaml"
    config.write_text(f"workspace: tested\nlogs: {{path: {world.logs}, catalogue: conversation.csv}}\n")
    for name in ("TALKTRACK_CONFIG", "TALKTRACK_LOGS", "TALKTRACK_FORMAT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("TALKTRACK_HOME", str(world.paths.home))
    arguments = ["erase", "--from-file", "-", "--request-id", "R-7", "--config", str(config)]

    done = CliRunner().invoke(main, arguments, input=f"{ANN}\n\n")
    again = CliRunner().invoke(main, arguments, input=f"{ANN}\n")
    unknown = CliRunner().invoke(main, arguments, input="customer-nobody\n")

    assert (done.exit_code, again.exit_code, unknown.exit_code) == (0, 0, 0)
    assert "< 20" in done.stderr
    assert "models/behavior" in done.stderr
    assert ANN not in done.stderr + done.stdout + again.stderr
    lines = [line for line in again.stderr.splitlines() if "holds nothing" in line]
    assert lines == [line for line in unknown.stderr.splitlines() if "holds nothing" in line]


# ---------- any log, any customer

CUSTOMERS = [f"customer-{name}" for name in ("amber", "birch", "cedar")]


@st.composite
def small_logs(draw: st.DrawFn) -> list[tuple[str, list[dict[str, object]]]]:
    """Files of a few days; some dialogues go on in a later file, some outcomes come late, some turns name nobody."""
    files: dict[str, list[dict[str, object]]] = {f"2026-01-0{n}": [] for n in range(5, 9)}
    days = sorted(files)
    for number in range(draw(st.integers(1, 5))):
        customer = draw(st.sampled_from([*CUSTOMERS, None]))
        dialogue = f"dialogue-{number:03d}"
        texts = draw(
            st.lists(st.sampled_from(["Hello there, friend", "A lamp", f"Only in {dialogue}"]), min_size=1, max_size=3)
        )
        first = draw(st.integers(0, 3))
        for place, record in enumerate(conversation(dialogue, customer, days[0], *texts)):
            files[days[min(3, first + draw(st.integers(0, 1)) * (place > 1))]].append(record)
        if draw(st.booleans()):
            files[days[draw(st.integers(first, 3))]].append(result(dialogue, days[0]))
    return [(day, records) for day, records in files.items() if records]


@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(logs=small_logs(), customer=st.sampled_from(CUSTOMERS))
def test_of_any_customer_of_any_log_nothing_is_left_and_the_rest_is_as_it_was(
    logs: list[tuple[str, list[dict[str, object]]]], customer: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = World(tmp_path_factory.mktemp("world"))
    for day, records in logs:
        world.write(day, records)
    world.night()
    theirs = {str(r["dialogue_id"]) for _, records in logs for r in records if r.get("customer_id") == customer}
    kept = {t: [r for r in world.rows(t) if r["dialogue_id"] not in theirs] for t in ("turns", "outcomes")}
    holding = set(left_over(world, identities(world, customer, theirs)))
    before = world.files("landing/*/*/*.parquet", "marts/**/*.parquet")

    report = erased(world, customer)

    assert report.outcome == ("erased" if theirs else "not held")
    assert left_over(world, identities(world, customer, theirs)) == []
    assert {table: world.rows(table) for table in kept} == kept
    after = world.files("landing/*/*/*.parquet", "marts/**/*.parquet")
    assert all(after[path] == before[path] for path in after if f"tested/{path}" not in holding)
    assert world.land().n_files_read == 0
    assert world.plan().days == ()
