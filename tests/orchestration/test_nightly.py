"""Whole nights through the real command, on a small sample world: first, again, and with one more day of logs.

The encoder is a word list, not the distilled one: distilling has its own tests and takes half a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import jsonschema
import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

import orchestration
from orchestration.jobs import NIGHTLY
from orchestration.settings import PROJECT_ROOT, load
from rl.encoders.encoder import encoder_folder
from rl.encoders.minilm import find_model
from rl.encoders.static import StaticEncoder
from rl.environments.sample_logs import write_sample_logs
from rl.settings import EncoderSettings
from tests.studies import storefront
from tests.studies.memory import Memory

pytestmark = pytest.mark.xdist_group("nightly")

SCHEMA = json.loads((Path(orchestration.__file__).parent / "nightly.schema.json").read_text())
MODEL = "talktrack-storefront"
N_DAYS, N_DIALOGUES = 12, 600
DIMENSIONS = 8
WORDS = ("the", "you", "price", "offer", "what", "no", "yes", "size", "color", "thanks", "looking", "buy", "for", "it")
SETTINGS = {
    "sample": {"dialogues": N_DIALOGUES, "days": N_DAYS},
    "encoder": {"dimensions": DIMENSIONS},
    "behavior_model": {"n_folds": 2},
    "policies": {"candidates": [{"algorithm": "cql", "n_steps": 60, "n_members": 2}]},
    "evaluation": {"n_bootstrap": 100, "fqe_steps": 60},
    "gate": {"mode": "dry_run"},  # so few dialogues pass no gate, and the release is to be seen
}


@dataclass(frozen=True)
class Shop:
    """A home folder with a settings file and a small encoder."""

    home: Path
    config: Path

    @property
    def workspace(self) -> Path:
        return self.home / "storefront"

    def talktrack(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TALKTRACK_")}
        environment |= {"TALKTRACK_HOME": str(self.home), "TALKTRACK_CONFIG": str(self.config), "COLUMNS": "200"}
        return subprocess.run(
            [sys.executable, "-m", "orchestration.cli", *arguments],
            cwd=PROJECT_ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )

    def files(self, pattern: str) -> dict[str, tuple[int, bytes]]:
        """Time of the last change and bytes of the workspace's files."""
        return {
            str(path.relative_to(self.workspace)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted(self.workspace.glob(pattern))
        }


@dataclass(frozen=True)
class Night:
    """A night that ended well: what it printed, and the published marts and policies afterwards."""

    summary: dict[str, Any]
    stdout: str
    stderr: str
    marts: dict[str, tuple[int, bytes]]
    policies: dict[str, tuple[int, bytes]]


def make_shop(folder: Path, **changes: Any) -> Shop:
    shop = Shop(folder / "home", folder / "talktrack.yaml")
    shop.config.write_text(yaml.safe_dump({**SETTINGS, **changes}))
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(("[UNK]", *WORDS))}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vectors = np.random.default_rng(0).normal(size=(len(WORDS) + 1, DIMENSIONS)).astype(np.float16)
    encoder = StaticEncoder(vectors, tokenizer, find_model("").revision)
    encoder.save(encoder_folder(EncoderSettings(dimensions=DIMENSIONS), shop.home / "encoders"))
    return shop


def night_of(shop: Shop) -> Night:
    done = shop.talktrack("nightly", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    return Night(
        json.loads(done.stdout.splitlines()[-1]),
        done.stdout,
        done.stderr,
        shop.files("marts/**/*.parquet"),
        shop.files("models/*/policy*"),
    )


def by_day(marts: dict[str, tuple[int, bytes]]) -> dict[str, list[tuple[str, int, bytes]]]:
    """The files of the facts by dialogue day."""
    days: dict[str, list[tuple[str, int, bytes]]] = {}
    for name, file in marts.items():
        if "day=" in name:
            days.setdefault(Path(name).parent.name.removeprefix("day="), []).append((name, *file))
    return days


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def first(shop: Shop) -> Night:
    return night_of(shop)


@pytest.fixture(scope="module")
def promoted(shop: Shop, first: Night) -> subprocess.CompletedProcess[str]:
    return shop.talktrack("promote", "shadow", "--reason", "looks good")


@pytest.fixture(scope="module")
def again(shop: Shop, promoted: subprocess.CompletedProcess[str]) -> Night:
    return night_of(shop)


@pytest.fixture(scope="module")
def second(shop: Shop, again: Night) -> Night:
    added = shop.talktrack("sample-logs", "--more-days", "1")
    assert added.returncode == 0, added.stderr
    return night_of(shop)


# ---------- the first night


def test_one_line_of_json_that_keeps_the_schema_is_all_of_standard_output(first: Night) -> None:
    assert len(first.stdout.splitlines()) == 1
    jsonschema.validate(first.summary, SCHEMA, cls=jsonschema.Draft202012Validator)


def test_the_summary_counts_what_the_logs_hold(first: Night) -> None:
    logs = first.summary["logs"]
    assert logs["n_dialogues"] == N_DIALOGUES
    assert 0 < logs["n_usable"] < N_DIALOGUES - logs["n_immature"]
    assert logs["n_incomplete"] > 0
    assert logs["n_steps"] > logs["n_usable"]
    assert 0 < first.summary["quarantined"]["share"] < 0.01
    assert first.summary["behavior"]["value"] == pytest.approx(logs["mean_return"])


def test_the_summary_says_when_the_first_window_is_released(first: Night) -> None:
    privacy = first.summary["privacy"]
    assert (privacy["state"], privacy["window"], privacy["spent"]) == ("not_due", None, {})
    assert "2026-01-01 to 2026-01-28 will be on 2026-02-06, when its outcomes are in" in privacy["reason"]
    assert (privacy["rho"], privacy["epsilon"]) == (0.1, pytest.approx(2.142))
    assert privacy["reason"] in " ".join(first.stderr.split())


def test_the_study_on_known_truth_finds_the_true_values(
    shop: Shop, first: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short form of `make study NAME=storefront`: a standard error of 3 % instead of 0.5 %."""
    monkeypatch.setattr(storefront, "RELATIVE_STANDARD_ERROR", 0.03)
    monkeypatch.setenv("TALKTRACK_HOME", str(shop.home))
    rows, _ = storefront.run(load(config=shop.config), Memory(tmp_path / "pieces.json"))
    values = {row.check: row for row in rows}
    behavior = values["storefront/behavior"]
    assert behavior.value == pytest.approx(18.85, rel=0.1)  # the long form's 18.85, three standard errors
    assert behavior.low < first.summary["behavior"]["value"] < behavior.high
    assert values["storefront/cql/dr"].value > 0.8 * behavior.value


def test_a_version_is_registered_as_challenger(first: Night) -> None:
    assert first.summary["registered"]["model"] == MODEL
    assert first.summary["registered"]["version"] == "1"
    assert first.summary["registered"]["is_new"] is True
    assert first.summary["aliases"]["challenger"] == "1"
    assert first.summary["candidates"][0]["gate"]["outcome"] == "passed_in_dry_run"


def test_a_person_reads_the_same_on_standard_error(first: Night) -> None:
    assert f"Registered {MODEL} version 1, alias challenger." in first.stderr
    assert "cql would be refused:" in first.stderr
    assert "Traceback" not in first.stderr


def test_what_the_night_leaves_is_where_it_says(shop: Shop, first: Night) -> None:
    assert (shop.workspace / "nightly.log").exists()
    assert [card.name for card in Path(first.summary["cards"]).iterdir()] == ["cql.html"]


def test_dagster_shows_the_days_of_the_night_as_materialised(shop: Shop, second: Night) -> None:
    days = {f"2026-01-{day:02d}" for day in range(1, N_DAYS + 2)}
    with dg.DagsterInstance.from_config(str(shop.home / "dagster")) as instance:
        for key in (["logs", "turns"], ["warehouse", "fct_transitions"], ["warehouse", "mart_files"]):
            assert instance.get_materialized_partitions(dg.AssetKey(key)) == days, key
        runs = instance.get_runs(dg.RunsFilter(job_name=NIGHTLY))
    assert [run.status for run in runs] == [dg.DagsterRunStatus.SUCCESS] * 3


# ---------- the same night again


def test_the_same_night_again_changes_nothing(first: Night, again: Night) -> None:
    assert {name: file[1] for name, file in again.marts.items()} == {n: file[1] for n, file in first.marts.items()}
    assert by_day(again.marts) == by_day(first.marts)  # the small dimensions are written each night, the days are not
    assert again.policies == first.policies
    assert again.summary["registered"]["version"] == "1"
    assert again.summary["registered"]["is_new"] is False
    for part in ("quarantined", "behavior", "candidates"):
        assert again.summary[part] == first.summary[part], part
    before, after = first.summary["logs"], again.summary["logs"]
    assert {n: c for n, c in after.items() if n.startswith("n_")} == {
        n: c for n, c in before.items() if n.startswith("n_")
    }
    assert after["mean_parts"] == pytest.approx(before["mean_parts"])  # DuckDB's threads add in any order


def test_a_version_that_was_promoted_meanwhile_stays_where_it_is(again: Night) -> None:
    assert again.summary["aliases"]["shadow"] == "1"
    assert again.summary["aliases"]["challenger"] is None
    assert f"Registered {MODEL} version 1, alias shadow." in again.stderr


# ---------- one more day of logs


def test_one_more_day_adds_its_dialogues(first: Night, second: Night) -> None:
    before, after = first.summary["logs"], second.summary["logs"]
    assert after["n_dialogues"] == N_DIALOGUES + N_DIALOGUES // N_DAYS
    assert after["n_usable"] > before["n_usable"]
    assert after["n_steps"] > before["n_steps"]


def test_only_days_that_the_new_day_touches_are_written(again: Night, second: Night) -> None:
    """Those of its dialogues, of late outcomes (at most 7 days), and those that have just become mature."""
    before, after = by_day(again.marts), by_day(second.marts)
    written = {day for day, files in after.items() if before.get(day) != files}
    assert f"2026-01-{N_DAYS + 1:02d}" in written
    assert min(written) >= "2026-01-05"
    assert len(after) == N_DAYS + 1


def test_the_new_policy_is_the_next_version(second: Night) -> None:
    assert second.summary["registered"]["version"] == "2"
    assert second.summary["aliases"]["challenger"] == "2"
    assert second.summary["aliases"]["shadow"] == "1"


# ---------- the registry's commands


def test_status_follows_a_promotion(shop: Shop, promoted: subprocess.CompletedProcess[str], second: Night) -> None:
    assert promoted.returncode == 0, promoted.stderr
    assert f"Version 1 of {MODEL} is now shadow." in promoted.stderr

    status = shop.talktrack("status")
    assert status.returncode == 0
    (row,) = (line for line in status.stderr.splitlines() if line.startswith("shadow"))
    assert row.split()[1] == "1"
    assert "looks good" in row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rollback", "--reason", "test"), "has no champion, so there is nothing to roll back"),
        (("promote", "champion", "--reason", "test"), "has no canary, so nothing can become champion"),
    ],
)
def test_moves_that_cannot_be_made_are_one_message(
    shop: Shop, second: Night, arguments: tuple[str, ...], message: str
) -> None:
    refused = shop.talktrack(*arguments)
    assert refused.returncode == 1
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


# ---------- a night that is stopped


def test_too_many_bad_records_stop_the_night_with_one_message_and_leave_the_marts(tmp_path: Path) -> None:
    write_sample_logs(tmp_path / "logs", dialogues=60, days=3)
    shop = make_shop(tmp_path, logs={"path": str(tmp_path / "logs"), "max_quarantined_share": 0})
    with (tmp_path / "logs" / "arrival_day=2026-01-02" / "more.jsonl").open("w") as stream:
        stream.write("this is no record\n" * 3)

    stopped = shop.talktrack("nightly", "--json")

    assert stopped.returncode == 1
    assert stopped.stdout == ""
    assert "The check `few_records_are_quarantined` of logs/turns failed." in stopped.stderr
    assert "the limit is 0.00%" in stopped.stderr
    assert str(shop.workspace / "quarantine") in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert shop.files("marts/**/*") == {}
