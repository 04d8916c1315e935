"""Jobs: named selections of assets."""

from __future__ import annotations

import dagster as dg

NIGHTLY = "nightly_job"


def build_jobs(partitions: dg.PartitionsDefinition) -> list[dg.UnresolvedAssetJobDefinition]:
    """The night, and its two halves for those who run them apart."""
    return [
        dg.define_asset_job(
            NIGHTLY,
            selection=dg.AssetSelection.all(),
            partitions_def=partitions,
            description="The night: logs → marts → aggregates → features → data set → policies → evidence → release.",
            tags={"dagster/max_retries": "1"},
        ),
        dg.define_asset_job(
            "refresh_warehouse_job",
            selection=dg.AssetSelection.groups("logs", "warehouse"),
            partitions_def=partitions,
            description="Logs and warehouse only, for a backfill that needs no new policy.",
        ),
        dg.define_asset_job(
            "train_policies_job",
            selection=dg.AssetSelection.groups("features", "datasets", "policies", "evaluation", "release"),
            description="From the published marts to a release; trainer settings can be edited in the Launchpad.",
        ),
    ]
