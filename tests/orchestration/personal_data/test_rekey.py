"""Changing the pseudonym key: everybody is one customer afterwards, under a new name, or the change is refused."""

from __future__ import annotations

import shutil
import stat
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestration.cli import main
from orchestration.ingest.pseudonyms import (
    KEY_VARIABLE,
    PREVIOUS_KEY_VARIABLE,
    LostKeyError,
    Pseudonymizer,
    new_key,
)
from orchestration.personal_data import rekey as rekeying
from orchestration.personal_data.erasure import erase
from orchestration.personal_data.rekey import (
    RekeyError,
    RekeyReport,
    read_rotations,
    rekey,
    retire_previous_key,
    workspace_keys,
)
from orchestration.personal_data.retention import apply_retention
from registry.errors import BudgetExceededError
from registry.privacy.budget import BudgetLedger, Cost
from registry.privacy.windows import Window
from tests.orchestration.personal_data.erasure_worlds import World, conversation

ANN, BOB, CEM = "customer-ann-01", "customer-bob-02", "customer-cem-03"


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (KEY_VARIABLE, PREVIOUS_KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Three files; the first window of 28 days ends on 29 January, and the clock shows 28 January."""
    world = World(tmp_path)
    world.write("2026-01-06", [*conversation("ann-1", ANN, "2026-01-05"), *conversation("cem-1", CEM, "2026-01-05")])
    world.write("2026-01-20", [*conversation("ann-2", ANN, "2026-01-19"), *conversation("bob-1", BOB, "2026-01-19")])
    world.write("2026-01-27", conversation("none-1", None, "2026-01-26"))
    world.night()
    return world


def rekeyed(world: World, **options: bool) -> RekeyReport:
    return rekey(world.settings, reason="yearly", **options)


def customers(world: World) -> dict[str, str | None]:
    """The pseudonym of every dialogue's customer turn."""
    return {row["dialogue_id"]: row["customer_id"] for row in world.rows("turns") if row["turn_index"] == 0}


def lose_source(world: World, day: str) -> None:
    shutil.rmtree(world.logs / f"arrival_day={day}")


def test_with_every_source_there_all_get_the_new_pseudonym(world: World) -> None:
    before, old = customers(world), workspace_keys(world.settings).current

    report = rekeyed(world)

    new = workspace_keys(world.settings).current
    after = customers(world)
    assert (report.n_files_read_again, report.n_files_mapped, report.n_files_left) == (3, 0, 0)
    assert (report.from_key_ids, report.to_key_id) == ((old.key_id,), new.key_id)
    assert after == {
        "ann-1": Pseudonymizer(new)(ANN),
        "ann-2": Pseudonymizer(new)(ANN),
        "bob-1": Pseudonymizer(new)(BOB),
        "cem-1": Pseudonymizer(new)(CEM),
        "none-1": None,
    }
    assert set(before) == set(after)
    assert {mark["key_id"] for mark in world.marks()} == {new.key_id}


def test_the_old_key_is_kept_for_one_more_window_and_then_destroyed(world: World) -> None:
    old = workspace_keys(world.settings).current
    rekeyed(world)
    previous = world.paths.secrets / "pseudonym.tested.previous.key"

    assert {stat.S_IMODE(path.stat().st_mode) for path in world.paths.secrets.iterdir()} == {0o600}
    assert previous.read_text().strip() == old.secret.hex()
    assert workspace_keys(world.settings).key_ids[1] == old.key_id
    assert read_rotations(world.paths.root)[-1].keep_until == date(2026, 2, 25)

    assert retire_previous_key(world.settings, date(2026, 2, 24)) is None
    assert retire_previous_key(world.settings, date(2026, 2, 25)) == old.key_id
    assert sorted(path.name for path in world.paths.secrets.iterdir()) == ["pseudonym.tested.key"]
    assert workspace_keys(world.settings).previous is None


def test_a_second_change_leaves_no_trace_of_the_first_key(world: World) -> None:
    rekeyed(world)
    second = workspace_keys(world.settings).current

    rekeyed(world)

    assert sorted(path.name for path in world.paths.secrets.iterdir()) == [
        "pseudonym.tested.key",
        "pseudonym.tested.previous.key",
    ]
    assert workspace_keys(world.settings).key_ids[1] == second.key_id
    assert world.land().n_files_read == 0


def test_no_file_beside_the_keys_holds_one(world: World) -> None:
    rekeyed(world)
    secrets = [path.read_text().strip().encode() for path in world.paths.secrets.iterdir()]

    others = [path for path in world.paths.root.rglob("*") if path.is_file()]
    assert not [path for path in others for secret in secrets if secret in path.read_bytes()]
    assert stat.S_IMODE((world.paths.root / "keys.json").stat().st_mode) == 0o600


def test_the_next_night_builds_everything_under_the_new_pseudonyms(world: World) -> None:
    old = workspace_keys(world.settings).current.key_id
    rekeyed(world)

    assert not world.paths.warehouse.exists()
    assert not world.paths.marts.exists()
    assert world.plan().is_full
    world.night()
    assert not any(old in str(row["customer_id"]) for row in world.mart("fct_dialogues"))
    assert world.land().n_files_read == 0


def test_erased_customers_stay_out_when_their_source_is_read_again(world: World) -> None:
    erase(world.settings, [ANN])

    rekeyed(world)

    assert set(customers(world)) == {"bob-1", "cem-1", "none-1"}


def test_a_customer_who_also_occurs_in_a_source_that_is_there_is_mapped(world: World) -> None:
    lose_source(world, "2026-01-06")
    world.write("2026-01-27", [*conversation("cem-2", CEM, "2026-01-26")], name="second.jsonl")
    world.land()

    report = rekeyed(world)

    new = Pseudonymizer(workspace_keys(world.settings).current)
    assert (report.n_files_read_again, report.n_files_mapped, report.n_files_left) == (3, 1, 0)
    assert customers(world)["ann-1"] == new(ANN)
    assert customers(world)["cem-1"] == customers(world)["cem-2"] == new(CEM)
    assert world.land().n_files_read == 0


def test_inside_a_window_nobody_may_become_two_customers(world: World) -> None:
    lose_source(world, "2026-01-06")
    before = world.files("landing/**/*", "marts/**/*", "warehouse.duckdb")

    with pytest.raises(RekeyError, match=r"1 landed file.*2026-01-29"):
        rekeyed(world)

    assert world.files("landing/**/*", "marts/**/*", "warehouse.duckdb") == before
    assert sorted(path.name for path in world.paths.secrets.iterdir()) == ["pseudonym.key"]


def test_at_the_end_of_a_window_the_rest_keeps_the_old_pseudonym_and_can_still_be_erased(world: World) -> None:
    world.write("2026-01-28", conversation("bob-2", BOB, "2026-01-27"))
    world.night()
    lose_source(world, "2026-01-06")
    old = workspace_keys(world.settings).current

    report = rekeyed(world)

    assert (report.n_files_mapped, report.n_files_left) == (0, 1)
    assert customers(world)["cem-1"] == Pseudonymizer(old)(CEM)
    assert customers(world)["ann-1"] == customers(world)["ann-2"] != Pseudonymizer(old)(ANN)
    world.night()
    assert erase(world.settings, [CEM]).outcome == "erased"
    assert "cem-1" not in customers(world)


def test_a_key_that_is_still_needed_is_not_replaced(world: World) -> None:
    world.write("2026-01-28", conversation("bob-2", BOB, "2026-01-27"))
    world.night()
    lose_source(world, "2026-01-06")
    rekeyed(world)

    with pytest.raises(RekeyError, match="kept until the data's clock shows 2026-02-26"):
        rekeyed(world)


def test_a_compromised_key_is_destroyed_at_once_and_no_pseudonym_of_it_stays(world: World) -> None:
    lose_source(world, "2026-01-06")
    old = workspace_keys(world.settings).current

    report = rekeyed(world, compromised=True)

    after = customers(world)
    assert (report.n_files_left, report.keep_until) == (0, None)
    assert not any(str(name).startswith(old.key_id) for name in after.values())
    assert after["ann-1"] == after["ann-2"]
    assert after["cem-1"] not in workspace_keys(world.settings).pseudonyms(CEM)
    assert sorted(path.name for path in world.paths.secrets.iterdir()) == ["pseudonym.tested.key"]
    assert world.land().n_files_read == 0


def test_after_a_compromise_the_windows_concerned_spend_nothing_more(world: World) -> None:
    rekeyed(world, compromised=True)

    ledger = BudgetLedger(world.paths.privacy_budget, "tested")
    window = Window(date(2026, 1, 1), date(2026, 1, 29))
    assert ledger.spent(window.start) == {"compromised key": Cost.of(0.1, 1e-6)}
    with pytest.raises(BudgetExceededError):
        ledger.reserve(window, "tables", release_id="r", cost=Cost(1), budget=Cost.of(0.1, 1e-6))


@pytest.mark.parametrize("privacy", [{"rho": 0.4}, {"delta": 1e-7}, {"rho": 0.03}])
def test_a_budget_that_was_changed_since_does_not_keep_a_window_open(world: World, privacy: dict[str, float]) -> None:
    ledger = BudgetLedger(world.paths.privacy_budget, "tested")
    window, began_with = Window(date(2026, 1, 1), date(2026, 1, 29)), Cost.of(0.1, 1e-6)
    ledger.reserve(window, "tables", release_id="r", cost=Cost.of(0.08, 1e-6), budget=began_with)
    changed = world.settings.privacy.model_copy(update=privacy)

    rekey(world.settings.model_copy(update={"privacy": changed}), reason="stolen", compromised=True)

    assert ledger.spent(window.start)["compromised key"] == Cost.of(0.02)
    assert ledger.left(window.start, Cost.of(1.0, 1e-4)) == Cost(0), "whatever the settings say later"


def test_every_window_that_might_still_be_released_or_judged_is_closed_by_a_compromise(world: World) -> None:
    weekly = world.settings.model_copy(update={"privacy": world.settings.privacy.model_copy(update={"window_days": 7})})
    rekey(weekly, reason="stolen", compromised=True)  # on 28 January; 8 to 14 is due, 15 to 21 waits for its outcomes

    ledger = BudgetLedger(world.paths.privacy_budget, "tested")
    assert [row.window_start for row in ledger.rows()] == ["2026-01-08", "2026-01-15", "2026-01-22"]
    longer = weekly.model_copy(update={"privacy": world.settings.privacy})
    rekey(longer, reason="stolen again", compromised=True)
    assert [row.window_start for row in ledger.rows()] == ["2026-01-08", "2026-01-15", "2026-01-22"], "days spent"


def test_a_key_that_a_killed_run_did_not_destroy_goes_with_the_next_night(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rekeying, "_destroy_old_keys", killed)
        with pytest.raises(KeyboardInterrupt):
            rekeyed(world, compromised=True)
    assert len(list(world.paths.secrets.iterdir())) == 3

    assert retire_previous_key(world.settings, date(2026, 1, 28)) is None
    assert sorted(path.name for path in world.paths.secrets.iterdir()) == ["pseudonym.tested.key"]


def test_the_key_of_the_home_stays_while_another_workspace_uses_it(world: World) -> None:
    other = World(world.paths.home.parent, workspace="other")
    other.land()

    rekeyed(world, compromised=True)

    assert (world.paths.secrets / "pseudonym.key").exists()
    assert other.land().n_files_read == 0
    rekeyed(other, compromised=True)
    assert sorted(path.name for path in world.paths.secrets.iterdir()) == [
        "pseudonym.other.key",
        "pseudonym.tested.key",
    ]


def test_a_lost_key_is_never_replaced_in_silence(world: World) -> None:
    (world.paths.secrets / "pseudonym.key").unlink()
    world.write("2026-01-28", conversation("bob-2", BOB, "2026-01-27"))

    with pytest.raises(LostKeyError, match="talktrack rekey --reason lost"):
        world.land()
    assert not list(world.paths.secrets.iterdir())

    assert rekeyed(world).n_files_read_again == 3
    new = Pseudonymizer(workspace_keys(world.settings).current)
    assert world.land().n_files_read == 1
    assert customers(world)["bob-2"] == customers(world)["bob-1"] == new(BOB)


def test_another_key_than_the_landings_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, new_key().secret.hex())

    with pytest.raises(LostKeyError, match="the key that is here is"):
        world.land()


def test_keys_in_the_environment_are_changed_by_whoever_sets_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = workspace_keys(world.settings).current, new_key()
    (world.paths.secrets / "pseudonym.key").unlink()
    monkeypatch.setenv(KEY_VARIABLE, old.secret.hex())
    with pytest.raises(RekeyError, match="still holds the key that is in use"):
        rekeyed(world)

    monkeypatch.setenv(KEY_VARIABLE, new.secret.hex())
    monkeypatch.setenv(PREVIOUS_KEY_VARIABLE, old.secret.hex())
    report = rekeyed(world)

    assert report.key_file is None
    assert not list(world.paths.secrets.iterdir())
    assert customers(world)["bob-1"] == Pseudonymizer(new)(BOB)


@pytest.mark.parametrize("moment", ["write_key", "_remember", "read_logs", "_rename", "forget_build", "expire_landing"])
@pytest.mark.parametrize("is_after", [False, True])
def test_killed_anywhere_and_run_again_it_finishes(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str, is_after: bool
) -> None:
    lose_source(world, "2026-01-06")
    world.write("2026-01-27", conversation("cem-2", CEM, "2026-01-26"), name="second.jsonl")
    world.land()
    real = getattr(rekeying, moment)

    def killed(*arguments: object, **named: object) -> None:
        if is_after:
            real(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rekeying, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            rekeyed(world)
    rotations = read_rotations(world.paths.root)
    if rotations:
        with pytest.raises(RekeyError, match="was not finished"):
            rekeying.refuse_unfinished(world.settings)

    rekeyed(world)

    new = Pseudonymizer(workspace_keys(world.settings).current)
    assert {name for name in customers(world).values() if name} == {new(ANN), new(BOB), new(CEM)}
    assert {mark["key_id"] for mark in world.marks()} == {workspace_keys(world.settings).current.key_id}
    assert len(read_rotations(world.paths.root)) == 1
    rekeying.refuse_unfinished(world.settings)
    assert world.land().n_files_read == 0


def test_what_had_expired_does_not_come_back_with_its_source(tmp_path: Path) -> None:
    world = World(tmp_path, restricted_days=40)
    world.write("2026-01-08", [*conversation("a", ANN, "2026-01-06"), *conversation("b", BOB, "2026-01-07")])
    world.write("2026-02-15", conversation("c", BOB, "2026-02-14"))
    world.night()
    apply_retention(world.settings)

    rekeyed(world)

    assert set(customers(world)) == {"b", "c"}


def test_the_command_says_that_the_split_changes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    config = world.paths.home / "talktrack.yaml"
    config.write_text(f"workspace: tested\nlogs: {{path: {world.logs}, catalogue: conversation.csv}}\n")
    for name in ("TALKTRACK_CONFIG", "TALKTRACK_LOGS", "TALKTRACK_FORMAT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("TALKTRACK_HOME", str(world.paths.home))

    done = CliRunner().invoke(main, ["rekey", "--reason", "yearly", "--config", str(config)])

    said = " ".join(done.stderr.split())
    assert done.exit_code == 0
    assert "the split is another one" in said
    assert "3 files were read again" in said
    assert workspace_keys(world.settings).current.secret.hex() not in done.stderr + done.stdout


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(
    spoken=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=6),
    lost=st.sets(st.integers(0, 2), max_size=2),
    compromised=st.booleans(),
)
def test_whoever_was_one_customer_is_one_and_only_one_afterwards(
    spoken: list[tuple[int, int]], lost: set[int], compromised: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = World(tmp_path_factory.mktemp("world"))
    for file in range(3):
        said = [
            conversation(f"{file}-{n}", f"customer-{who}", "2026-01-05")
            for n, (f, who) in enumerate(spoken)
            if f == file
        ]
        world.write(f"2026-01-{6 + file:02d}", [record for records in said for record in records])
    world.write("2026-01-28", conversation("last", None, "2026-01-27"))
    world.land()
    before = customers(world)
    for file in lost:
        lose_source(world, f"2026-01-{6 + file:02d}")

    rekeyed(world, compromised=compromised)

    after = customers(world)
    names = {(before[dialogue], after[dialogue]) for dialogue in before if before[dialogue]}
    assert set(before) == set(after)
    assert len(names) == len({old for old, _ in names}) == len({new for _, new in names})
