"""The logs layer: dialogue logs in any known format → landing, in Parquet, scrubbed and pseudonymised.

A partition is an arrival day. The step is one multi-asset because one pass over a file yields all four tables.
"""

from typing import Any

import dagster as dg

from orchestration.console import progress
from orchestration.ingest.landing import IngestReport, ingest
from orchestration.ingest.pseudonyms import load_key
from orchestration.partitions import SINGLE_RUN, night_of
from orchestration.resources import Workspace
from orchestration.sample import log_source
from orchestration.settings import TalktrackSettings
from orchestration.workspace import configured_catalogue

TABLES = {
    "turns": "One row per speaker turn, text scrubbed. Bytes: landing/turns, one Parquet file per source file.",
    "outcomes": "One row per outcome of a dialogue; may arrive days after its last turn. Bytes: landing/outcomes.",
    "decisions": "One row per decision that the decision service logged. Bytes: landing/decisions.",
    "incomplete": "One row per dialogue with a quarantined record: kept out of values. Bytes: landing/incomplete.",
}


def build_logs_assets(settings: TalktrackSettings, partitions: dg.PartitionsDefinition) -> list[dg.AssetsDefinition]:
    """The landing step."""

    @dg.multi_asset(
        name="landing",
        specs=[
            dg.AssetSpec(
                ["logs", table],
                group_name="logs",
                description=description,
                kinds={"parquet"},
                owners=["team:data"],
                tags={"zone": "restricted"},
            )
            for table, description in TABLES.items()
        ],
        partitions_def=partitions,
        backfill_policy=SINGLE_RUN,
        retry_policy=dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL),
    )
    def landing(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]):
        with workspace.step():
            progress("ingest")
            paths = workspace.paths
            report = ingest(
                log_source(workspace.settings),
                workspace.settings.logs.format,
                landing=paths.landing,
                quarantine=paths.quarantine,
                catalogue=configured_catalogue(workspace.settings),
                key=load_key(paths.secrets),
                start_date=workspace.settings.logs.start_date,
                attribution_days=workspace.settings.logs.attribution_days,
                up_to=night_of(context),
                progress=lambda done, total: progress("ingest", done, total),
            )
        for table in TABLES:
            metadata = {"dagster/uri": str(paths.landing / table), **_table_metadata(table, report)}
            yield dg.MaterializeResult(asset_key=["logs", table], metadata=metadata)

    return [landing]


def _table_metadata(table: str, report: IngestReport) -> dict[str, Any]:
    counts = {
        "turns": report.n_turns,
        "outcomes": report.n_outcomes,
        "decisions": report.n_decisions,
        "incomplete": report.n_incomplete,
    }
    metadata: dict[str, Any] = {"dagster/partition_row_count": counts[table]}
    if table == "turns":
        metadata |= {
            "files_read": report.n_files_read,
            "files_known_before": report.n_files_skipped,
            "broken_files": len(report.broken_files),
            "quarantined": report.n_quarantined,
            "quarantined_share": report.quarantined_share,
            "quarantine_reasons": dg.MetadataValue.json(report.quarantine_counts),
            "scrubbed_entities": dg.MetadataValue.json(report.scrub_counts),
        }
    return metadata
