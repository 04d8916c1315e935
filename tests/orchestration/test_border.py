"""T8, the border: strings planted in customer text and ids are found nowhere outside the stores that may hold them.

Nights run through the real command on logs with canaries: one that is stopped by faulty records, and one that ends well
and releases a window. Then every file of the home folder is read to its last string: released files, logs, Dagster's
events, MLflow's database and artifacts, dbt's results, and what the commands printed.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from orchestration.ingest.pseudonyms import Pseudonymizer, load_key
from rl.environments.sample_logs import write_sample_logs
from tests.orchestration.canaries import (
    CUSTOMERS,
    DIALOGUES,
    PERSONAL,
    WORDS,
    Find,
    search,
    write_canary_logs,
    write_faulty_records,
)
from tests.orchestration.test_nightly import Shop, make_shop

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("border")]

WORKSPACE = "storefront"
LANDING, QUARANTINE = f"{WORKSPACE}/landing", f"{WORKSPACE}/quarantine"
ID_STORES = (LANDING, *(f"{WORKSPACE}/{name}" for name in ("warehouse.duckdb", "marts", "datasets")))
SETTINGS = {
    # Windows of 7 days, so that one is due after 12; expected numbers of a larger shop, so that the plan accepts it.
    "logs": {"attribution_days": 3},
    "privacy": {"window_days": 7, "grid": "turn", "segments": []},
}


@dataclass
class Border:
    """A home folder after some nights, and everything that was printed on the way."""

    shop: Shop
    printed: list[str] = field(default_factory=list)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run a command: exit status and what it printed on both streams."""
        done = self.shop.talktrack(*arguments)
        self.printed.append(done.stdout + done.stderr)
        return done.returncode, done.stdout + done.stderr

    def settings(self, **logs: object) -> None:
        """Rewrite the settings file with other settings of the logs."""
        values = yaml.safe_load(self.shop.config.read_text())
        values["logs"] = {**values["logs"], **logs}
        self.shop.config.write_text(yaml.safe_dump(values))

    @property
    def pseudonyms(self) -> dict[str, str]:
        """Of the canary customers."""
        pseudonym = Pseudonymizer(load_key(self.shop.home / "secrets"))
        return {f"pseudonym of {customer}": pseudonym(customer) for customer in CUSTOMERS}


@pytest.fixture(scope="module")
def border(tmp_path_factory: pytest.TempPathFactory) -> Border:
    folder = tmp_path_factory.mktemp("border")
    logs = folder / "logs"
    write_sample_logs(logs, dialogues=600, days=12)
    write_canary_logs(logs / "arrival_day=2026-01-03", "2026-01-03")
    write_faulty_records(logs / "arrival_day=2026-01-04", "2026-01-04")
    values = {**SETTINGS, "logs": {**SETTINGS["logs"], "path": str(logs)}}
    border = Border(make_shop(folder, **values))
    border.settings(max_quarantined_share=0.0)
    stopped, said = border.run("nightly", "--json")
    assert stopped == 1
    assert "few_records_are_quarantined" in said
    border.settings(max_quarantined_share=0.5)
    status, said = border.run("nightly", "--json")
    assert status == 0, said[-3000:]
    return border


TEXT = {word: word for word in WORDS} | PERSONAL
IDS = {name: name for name in (*DIALOGUES, "canarydlg-bad")}
RAW_CUSTOMERS = {name: name for name in (*CUSTOMERS, "canarycust-bad")}


def outside(finds: list[Find], *stores: str) -> list[Find]:
    return [find for find in finds if not find.path.startswith(stores)]


# ---------- the canaries are there, where they may be


def test_the_search_finds_the_canaries_in_their_stores(border: Border) -> None:
    """Otherwise an empty result below would say nothing."""
    found = search(border.shop.home, {**TEXT, **IDS, **border.pseudonyms})
    stores = {store for store in ID_STORES for find in found if find.path.startswith(store)}
    assert {find.needle for find in found if find.path.startswith(LANDING)} >= {*WORDS, *DIALOGUES, *border.pseudonyms}
    assert {LANDING, f"{WORKSPACE}/warehouse.duckdb", f"{WORKSPACE}/marts"} <= stores


def test_the_night_released_a_window_that_the_canary_customers_are_in(border: Border) -> None:
    released = border.shop.workspace / "released"
    assert (released / "releases" / "2026-01-01" / "release.json").exists()
    assert pq.read_table(released / "aggregates" / "agg_transitions" / "part-0.parquet").num_rows > 0


# ---------- and nowhere else


def test_customer_text_is_in_the_landing_alone(border: Border) -> None:
    """Quarantine shows values of fields with a closed inventory, scrubbed: that is where a wrong one is mended from."""
    assert outside(search(border.shop.home, TEXT), LANDING, QUARANTINE) == []


def test_mails_and_phones_are_nowhere_and_customers_own_ids_neither(border: Border) -> None:
    gone = {name: PERSONAL[name] for name in ("e-mail", "phone")} | RAW_CUSTOMERS
    assert search(border.shop.home, gone) == []


def test_pseudonyms_and_dialogue_ids_are_in_their_stores_alone(border: Border) -> None:
    assert outside(search(border.shop.home, border.pseudonyms), *ID_STORES) == []
    # Quarantine says whose dialogue a bad record is of, so that an erasure finds it.
    assert outside(search(border.shop.home, IDS), *ID_STORES, QUARANTINE) == []


def test_no_command_prints_a_canary(border: Border, tmp_path: Path) -> None:
    for arguments in (
        ("status",),
        ("check",),
        ("export", str(tmp_path / "out")),
        ("export", str(tmp_path / "policy"), "--version", "1"),
        ("promote", "shadow", "--reason", "border test"),
        ("privacy", "status"),
        ("privacy", "ledger"),
        ("privacy", "plan"),
    ):
        border.run(*arguments)
    printed = "\n".join(border.printed).lower()
    needles = {**TEXT, **IDS, **RAW_CUSTOMERS, **border.pseudonyms}
    assert [name for name, text in needles.items() if text.lower() in printed] == []
    assert search(tmp_path / "out", needles) == []


def test_the_aggregates_are_exported(border: Border, tmp_path: Path) -> None:
    status, said = border.run("export", str(tmp_path / "out"))
    assert status == 0, said
    assert (tmp_path / "out" / "aggregates" / "agg_rewards" / "part-0.parquet").exists()


def test_a_registered_version_leaves_if_its_zone_is_released_and_else_stays(border: Border, tmp_path: Path) -> None:
    """Which of the two a small night registers depends on its noise."""
    with closing(sqlite3.connect(border.shop.home / "mlflow.db")) as connection:
        zones = connection.execute("select version, value from model_version_tags where key = 'zone'").fetchall()
    assert zones
    for version, zone in zones:
        folder = tmp_path / str(version)
        status, said = border.run("export", str(folder), "--version", str(version))
        if zone == "released":
            assert status == 0, said
            assert search(folder, {**TEXT, **IDS, **RAW_CUSTOMERS, **border.pseudonyms}) == []
        else:
            assert status == 1
            assert "is not exported" in said
            assert not folder.exists()


# ---------- planted leaks are caught


LEAKS = {
    "a log line": lambda home, leak: (home / WORKSPACE / "nightly.log").write_text(f"could not read {leak}\n"),
    "a released table": lambda home, leak: pq.write_table(
        pa.table({"reply": [leak]}), home / WORKSPACE / "released" / "leak.parquet"
    ),
    "a Dagster event": lambda home, leak: _insert(home / "dagster" / "events.db", leak),
    "an artifact": lambda home, leak: (home / "mlartifacts" / "note.json").write_text(f'{{"said": "{leak}"}}'),
}


def _insert(database: Path, text: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("create table event_logs (event text)")
        connection.execute("insert into event_logs values (?)", [text * 2000])  # over several pages
        connection.commit()


@pytest.mark.parametrize("place", LEAKS)
def test_a_planted_leak_is_caught(place: str, tmp_path: Path) -> None:
    for folder in (f"{WORKSPACE}/released", "dagster", "mlartifacts"):
        (tmp_path / folder).mkdir(parents=True)
    assert search(tmp_path, TEXT) == []
    LEAKS[place](tmp_path, WORDS[0])
    assert [find.needle for find in search(tmp_path, TEXT)] == [WORDS[0]]


def test_a_pseudonym_in_the_released_zone_stops_the_night(border: Border, tmp_path: Path) -> None:
    """The product's own check, in a copy of the home: the night fails with one message that does not repeat the id."""
    home = tmp_path / "home"
    shutil.copytree(border.shop.home, home)
    leak = next(iter(border.pseudonyms.values()))
    pq.write_table(pa.table({"reply": [leak]}), home / WORKSPACE / "released" / "leak.parquet")
    done = Shop(home, border.shop.config).talktrack("nightly")
    assert done.returncode == 1
    assert "nobody_is_in_the_released_zone" in done.stderr
    assert "released/leak.parquet: holds 1 id(s) of dialogues or customers" in " ".join(done.stderr.split())
    assert leak not in done.stderr
