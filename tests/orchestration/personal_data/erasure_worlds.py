"""A small workspace whose landing is real and whose later stores are as a night leaves them, for erasure tests.

Here: writing logs, landing them, and standing in for dbt and the jobs. Not here: tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from orchestration import marts, warehouse
from orchestration.log_reading import read_logs
from orchestration.personal_data.rekey import workspace_keys
from orchestration.settings import LogsSettings, TalktrackSettings
from orchestration.workspace import configured_catalogue
from registry.privacy.settings import RetentionSettings
from rl.encoders.encode import as_hashes, write_shard
from rl.files import write_json
from tests.orchestration.ingest.examples import outcome, turn, write_json_lines

DATA_SET = "datasets/transitions"


class World:
    """A home folder with one workspace and its logs."""

    def __init__(self, folder: Path, workspace: str = "tested", **retention: Any) -> None:
        self.logs = folder / "logs"
        self.settings = TalktrackSettings(
            home=folder / "home",
            workspace=workspace,
            logs=LogsSettings(path=str(self.logs), catalogue="conversation.csv"),
            retention=RetentionSettings(**retention),
        )
        self.paths = self.settings.paths

    def write(self, day: str, records: list[Any], name: str = "log.jsonl") -> Path:
        """A source file that arrived on `day`."""
        return write_json_lines(self.logs / f"arrival_day={day}" / name, records)

    def land(self) -> Any:
        """Read what is new, as the landing step does."""
        self.paths.root.mkdir(parents=True, exist_ok=True)
        return read_logs(self.settings, workspace_keys(self.settings).current)

    def night(self) -> None:
        """Land, and leave working database, marts, vectors, a data set and what was computed from it."""
        self.land()
        self._build()
        plan = warehouse.plan_build(self.settings, self._catalogue())
        marts.export_marts(self.paths.warehouse, self.paths.marts, plan.days)
        warehouse.remember_build(self.paths.root, plan)
        self._derive()

    def plan(self) -> warehouse.BuildPlan:
        """What the next night would rebuild."""
        return warehouse.plan_build(self.settings, self._catalogue())

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Landed rows."""
        paths = sorted(self.paths.landing.glob(f"{table}/arrival_day=*/*.parquet"))
        return [row for path in paths for row in pq.read_table(path, partitioning=None).to_pylist()]

    def mart(self, model: str) -> list[dict[str, Any]]:
        """Exported rows."""
        paths = sorted(self.paths.marts.glob(f"{model}/**/*.parquet"))
        return [row for path in paths for row in pq.read_table(path, partitioning=None).to_pylist()]

    def marks(self) -> list[dict[str, Any]]:
        """Commit marks of the landing."""
        return [json.loads(path.read_text()) for path in sorted(self.paths.landing.glob("_files/*.json"))]

    def files(self, *patterns: str) -> dict[str, bytes]:
        """Bytes of files in the workspace, by path."""
        found = (path for pattern in patterns for path in self.paths.root.glob(pattern) if path.is_file())
        return {str(path.relative_to(self.paths.root)): path.read_bytes() for path in found}

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of the working database."""
        with duckdb.connect(str(self.paths.warehouse), read_only=True) as connection:
            return connection.execute(sql).fetchall()

    def _catalogue(self) -> Path:
        catalogue = configured_catalogue(self.settings)
        return warehouse.write_catalogue(catalogue, self.paths.root / "catalogue.csv")

    def _build(self) -> None:
        """The tables that erasure and retention look at, by the rules of the dbt models."""
        self.paths.warehouse.unlink(missing_ok=True)
        turns = str(self.paths.landing / "turns" / "*" / "*.parquet")
        clock = f"{warehouse.data_clock(self.paths.landing):%Y-%m-%d}"
        with duckdb.connect(str(self.paths.warehouse)) as connection:
            connection.execute("set TimeZone = 'UTC'")
            connection.execute(
                f"""
                create view stg_dialogues__turns as
                    from read_parquet('{turns}', hive_partitioning = true, union_by_name = true);
                create table int_turns_numbered as
                    select dialogue_id, turn_index, coalesce(customer_id, null) as customer_id, text, content_hash,
                        speaker, occurred_at::timestamp as occurred_at,
                        min(occurred_at::date) over (partition by dialogue_id) as dialogue_day
                    from stg_dialogues__turns;
                create table fct_dialogues (dialogue_id varchar not null, customer_id varchar not null,
                    last_turn_at timestamp, is_mature boolean, dialogue_day date not null);
                insert into fct_dialogues
                    select dialogue_id, coalesce(min(customer_id), dialogue_id), max(occurred_at),
                        max(occurred_at) + interval 7 day <= timestamp '{clock}',
                        min(dialogue_day)
                    from int_turns_numbered group by dialogue_id;
                create table fct_turns as
                    select dialogue_id, turn_index, content_hash, dialogue_day from int_turns_numbered;
                create table fct_transitions as
                    select dialogue_id, turn_index as step_index, dialogue_day from int_turns_numbered
                    where speaker = 'agent';
                create table dim_strategies as select 0 as strategy_id;
                create table dim_policies as select 'v1' as policy_version;
                create table exact_replies as select canonical_reply as reply, 1 as n_customers
                    from stg_dialogues__turns;
                comment on table fct_dialogues is 'One row per dialogue.';
                """
            )

    def _derive(self) -> None:
        hashes = sorted({row["content_hash"] for row in self.rows("turns")})
        write_shard(self.paths.features / "static-8", as_hashes(hashes), np.ones((len(hashes), 8)))
        days = sorted(row["dialogue_day"].isoformat() for row in self.mart("fct_dialogues")) or ["", ""]
        manifest = {"window": [days[0], days[-1]], "dataset_hash": "d1", "privacy_mode": "individual"}
        folder = self.paths.root / DATA_SET
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "manifest.json", manifest)
        rows = {"rows": np.ones(3)}
        for name in (f"{DATA_SET}/transitions", "evaluation/contributions", "models/behavior/out_of_fold"):
            (self.paths.root / name).parent.mkdir(parents=True, exist_ok=True)
            save_file(rows, self.paths.root / f"{name}.safetensors")
        write_json(self.paths.models / "behavior" / "training.json", {"dataset_hash": "d1"})
        for name in ("datasets/.transitions", ".evaluation", "models/.behavior"):
            write_json(self.paths.root / f"{name}.job.json", {"key": "k"})


def conversation(dialogue_id: str, customer_id: str | None, day: str, *texts: str) -> list[dict[str, Any]]:
    """A dialogue of a customer turn and an agent turn for each text; the agent's turns name no customer."""
    records = []
    for number, text in enumerate(texts or ("I would like a lamp",)):
        at = f"{day}T10:{2 * number:02d}:00Z"
        said = turn(dialogue_id, 2 * number, customer_id=customer_id, text=text, occurred_at=at)
        answer = turn(dialogue_id, 2 * number + 1, customer_id=None, occurred_at=at)
        records += [said, answer]
    return records


def result(dialogue_id: str, day: str) -> dict[str, Any]:
    """A conversion on `day`."""
    return outcome(dialogue_id, occurred_at=f"{day}T12:00:00Z")
