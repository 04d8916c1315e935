"""The logs layer: dialogue logs in any known format → landing, in Parquet, scrubbed and pseudonymised.

A partition is an arrival day. The step is one multi-asset because one pass over a file yields all four tables; the
action catalogue, which says what a turn may be labelled with, is renewed with them.
"""

from typing import Any

import dagster as dg

from orchestration.console import progress
from orchestration.ingest.landing import IngestReport, committed_files
from orchestration.log_reading import read_logs
from orchestration.partitions import SINGLE_RUN, night_of
from orchestration.personal_data.rekey import refuse_unfinished, workspace_keys
from orchestration.plots import rounded
from orchestration.resources import Workspace
from orchestration.settings import TalktrackSettings
from orchestration.workspace import configured_catalogue
from rl.shown_counts import without_small

TABLES = {
    "turns": "One row per speaker turn, text scrubbed. Bytes: landing/turns, one Parquet file per source file.",
    "outcomes": "One row per outcome of a dialogue; may arrive days after its last turn. Bytes: landing/outcomes.",
    "decisions": "One row per decision that the decision service logged. Bytes: landing/decisions.",
    "incomplete": "One row per dialogue with a quarantined record: kept out of values. Bytes: landing/incomplete.",
}

CATALOGUE = "One row per strategy with its dense id, append-only. Bytes: catalogue.json; dbt reads it as catalogue.csv."


def build_logs_assets(settings: TalktrackSettings, partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    """The landing step."""

    @dg.multi_asset(
        name="landing",
        specs=[
            _spec("catalogue", CATALOGUE, kind="csv", zone="released"),
            *(_spec(table, description) for table, description in TABLES.items()),
        ],
        partitions_def=partitions,
        backfill_policy=SINGLE_RUN,
        retry_policy=dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL),
    )
    def landing(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]):
        with workspace.step():
            progress("ingest")
            paths = workspace.paths
            catalogue = configured_catalogue(workspace.settings)
            refuse_unfinished(workspace.settings)
            report = read_logs(workspace.settings, workspace_keys(workspace.settings).current, up_to=night_of(context))
        if report.outdated_files:
            context.log.warning(
                "%s landed file(s) were read by an older schema or scrubber, and their source is no longer there as it "
                "was. They are kept as they are; newer columns are empty in them. Put their sources back to have them "
                "read again. The first: %s",
                len(report.outdated_files),
                report.outdated_files[0],
            )
        yield dg.MaterializeResult(
            asset_key=["logs", "catalogue"], metadata={"dagster/row_count": len(catalogue.strategies)}
        )
        landed = {mark["path"]: mark for mark in committed_files(paths.landing)}  # of a path the latest reading
        for table in TABLES:
            n_rows = sum(mark[f"n_{table}"] for mark in landed.values())
            metadata = {
                "dagster/uri": str(paths.landing / table),
                **without_small({"dagster/row_count": n_rows}),
                **(_reading(report) if table == "turns" else {}),
            }
            yield dg.MaterializeResult(asset_key=["logs", table], metadata=metadata)

    return [landing]


def _spec(table: str, description: str, kind: str = "parquet", zone: str = "restricted") -> dg.AssetSpec:
    return dg.AssetSpec(
        ["logs", table],
        group_name="logs",
        description=description,
        kinds={kind},
        owners=["team:data"],
        tags={"zone": zone},
    )


def _reading(report: IngestReport) -> dict[str, Any]:
    """What this run read."""
    return {
        **without_small({"turns_read": report.n_turns}),
        "files_read": report.n_files_read,
        "files_known_before": report.n_files_skipped,
        "broken_files": len(report.broken_files),
        **without_small({"records_of_erased_customers": report.n_erased}),
        "outdated_files": len(report.outdated_files),
        "quarantined": report.n_quarantined,
        "quarantined_share": rounded(report.quarantined_share),
        "quarantine_reasons": dg.MetadataValue.json(report.quarantine_counts),
        "scrubbed_entities": dg.MetadataValue.json(without_small(report.scrub_counts)),
    }
