"""The retention step: what has expired leaves the workspace, and a previous pseudonym key whose day has come."""

import dagster as dg

from orchestration.assets.warehouse import WRITER_POOL
from orchestration.personal_data.rekey import retire_previous_key
from orchestration.personal_data.retention import apply_retention
from orchestration.resources import Workspace
from orchestration.settings import TalktrackSettings
from orchestration.warehouse import data_clock
from rl.shown_counts import without_small


def build_retention_assets(settings: TalktrackSettings) -> list[dg.AssetsDefinition]:
    """The night's retention step."""

    @dg.asset(
        key=["logs", "retention"],
        deps=[["warehouse", "mart_files"], ["datasets", "transitions"]],
        group_name="retention",
        kinds={"python"},
        owners=["team:data"],
        tags={"zone": "restricted"},
        pool=WRITER_POOL,
    )
    def retention(workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
        """What is older than `retention` allows is gone from every store, and its bytes with it.

        Runs once the data set of the night is built, so that a night never loses what it is reading. Bytes: none; the
        landing's commit marks note what expired.
        """
        with workspace.step():
            report = apply_retention(workspace.settings)
            clock = data_clock(workspace.paths.landing)
            retired = retire_previous_key(workspace.settings, clock.date()) if clock else None
        return dg.MaterializeResult(
            metadata={
                "first_day_kept": str(report.first_kept_day or "all"),
                "rows_removed": dg.MetadataValue.json(without_small(report.rows)),
                "data_sets_removed": len(report.data_sets),
                "releases_deleted": len(report.releases),
                "pseudonym_key_destroyed": retired or "none",
            }
        )

    return [retention]
