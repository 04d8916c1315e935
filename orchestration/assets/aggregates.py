"""The aggregates layer: exact tables → noise and budget → released tables → models over them, as Parquet.

This is the only door from the restricted zone into the released one: everything behind `aggregates/private_release` is
computed from what it published alone. The exact tables and the models are dbt's (`assets.warehouse`); the release is
`registry.privacy`; the utility report looks back through the door and stays in the restricted zone.
"""

from typing import Any

import dagster as dg

from orchestration.aggregates import (
    AGGREGATES,
    EXACT_MODELS,
    ReleaseOutcome,
    export_aggregates,
    newest_due_window,
    next_due_at,
    places,
    release_due_window,
    report_utility,
)
from orchestration.assets.warehouse import WRITER_POOL
from orchestration.console import progress
from orchestration.plots import as_markdown, errors_plot, rounded, spend_plot
from orchestration.resources import Workspace
from orchestration.settings import TalktrackSettings
from orchestration.utility import UtilityReport
from orchestration.warehouse import read_state
from registry.privacy.budget import Entry
from registry.privacy.release import ReleaseRecord, find_release, open_budget, released_records
from rl.shown_counts import without_small


def build_aggregates_assets(settings: TalktrackSettings) -> list[dg.AssetsDefinition]:
    """The release, the files of the released models, and the report on their errors."""

    @dg.asset(
        key=["aggregates", "private_release"],
        deps=[*(["warehouse", model] for model in EXACT_MODELS), ["warehouse", "mart_files"]],
        group_name="aggregates",
        kinds={"python", "opendp", "parquet"},
        owners=["team:data"],
        tags={"zone": "released"},
        pool=WRITER_POOL,
    )
    def private_release(
        context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
    ) -> dg.MaterializeResult:
        """Noisy tables of the window that is due: bounded per customer, noise certified by OpenDP, budget booked first.

        A window is released once; other nights replay it. Bytes: `released/releases/<window>/`, with release.json.
        """
        with workspace.step():
            progress("private release")
            as_of = read_state(workspace.paths.root).as_of
            outcome = release_due_window(workspace.settings, as_of)
            context.log.info(outcome.reason)
            metadata = _release_metadata(workspace.settings, outcome)
            if (following := next_due_at(workspace.settings, as_of)) is not None:
                metadata |= {"next_window": str(following[0]), "next_release_due": str(following[1].date())}
        return dg.MaterializeResult(metadata=metadata)

    @dg.asset(
        key=["aggregates", "aggregate_files"],
        deps=[["warehouse", model] for model in AGGREGATES],
        group_name="aggregates",
        kinds={"parquet", "duckdb"},
        owners=["team:data"],
        tags={"zone": "released"},
        pool=WRITER_POOL,
    )
    def aggregate_files(workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
        """The released models as Parquet, whole: what an aggregate policy learns from and `talktrack export` hands out.

        Bytes: `released/aggregates/<model>/part-0.parquet`.
        """
        with workspace.step():
            progress("publish aggregates")
            rows = export_aggregates(workspace.paths)
        return dg.MaterializeResult(
            metadata={
                "dagster/uri": str(workspace.paths.released / "aggregates"),
                **{f"rows/{model}": n for model, n in rows.items()},
            }
        )

    @dg.asset(
        key=["aggregates", "utility_report"],
        deps=[
            ["aggregates", "private_release"],
            *(["warehouse", model] for model in (*EXACT_MODELS, "int_bounded_steps", *AGGREGATES)),
            ["warehouse", "fct_transitions"],
        ],
        group_name="aggregates",
        kinds={"duckdb", "json"},
        owners=["team:data"],
        tags={"zone": "restricted"},
        pool=WRITER_POOL,
    )
    def utility_report(workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
        """Error of every released figure against the exact bounded cells and against the unbounded truth.

        By size of cell and by segment; exact, so never released. Bytes: `utility/<window>.json`.
        """
        with workspace.step():
            progress("utility report")
            record = _due_record(workspace)
            if record is None:
                return dg.MaterializeResult(metadata={"why": "No release to judge: none was made for the window due."})
            report = report_utility(workspace.paths, record)
            if report is None:
                return dg.MaterializeResult(
                    metadata={"why": "The exact tables hold another window or grid. Run `talktrack nightly`."}
                )
        return dg.MaterializeResult(metadata=_utility_metadata(report))

    return [private_release, aggregate_files, utility_report]


def _due_record(workspace: Workspace) -> ReleaseRecord | None:
    """The release of the window that is due tonight."""
    window = newest_due_window(workspace.settings, read_state(workspace.paths.root).as_of)
    return None if window is None else find_release(workspace.paths.released, window.start)


def _release_metadata(settings: TalktrackSettings, outcome: ReleaseOutcome) -> dict[str, Any]:
    where = places(settings)
    rows = [row for row in open_budget(where).rows() if row.kind == "reservation"]
    records = released_records(where.released)
    metadata: dict[str, Any] = {
        "state": outcome.state,
        "why": outcome.reason,
        "dagster/uri": str(where.released / "releases"),
        "windows_released": len(records),
    }
    if rows:
        metadata["spend_over_time"] = as_markdown(spend_plot(rows, settings.privacy.rho))
        metadata["ledger"] = dg.MetadataValue.table([_ledger_record(row) for row in rows])
        metadata["rho_spent_in_newest_window"] = sum(row.cost.rho for row in rows if row.window == rows[-1].window)
    if records:
        metadata |= _record_metadata(records[-1])
    return metadata


def _ledger_record(row: Entry) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "window": str(row.window),
            "purpose": row.purpose,
            "rho": row.cost.rho,
            "delta": row.cost.delta,
            "booked": row.at[:16].replace("T", " "),
            "row": row.seq,
        }
    )


def _record_metadata(record: ReleaseRecord) -> dict[str, Any]:
    """The newest release in numbers: its promise, its noise, its grid."""
    measures = [
        dg.TableRecord(
            {
                "measure": name,
                "l0": found.l0,
                "l_infinity": found.linf,
                "sigma": rounded(found.sigma),
                "tau": "" if found.tau is None else str(found.tau),
                "rho": found.rho,
            }
        )
        for name, found in record.measures.items()
    ]
    return {
        "window": str(record.window),
        "release_id": record.release_id,
        "rho": record.rho,
        "epsilon": rounded(record.epsilon),
        "delta": record.delta + record.epsilon_delta,
        "minimum_customers": int(record.settings["minimum_customers"]),
        "grid": record.grid["level"],
        "cells_of_transitions": int(record.grid["n_transitions"]),
        "noise": dg.MetadataValue.table(measures),
    }


def _utility_metadata(report: UtilityReport) -> dict[str, Any]:
    rates = [
        dg.TableRecord(
            {
                "model": row.model,
                "group": row.group,
                "cells": row.n_cells,
                "suppressed": row.n_suppressed,
                "error_against_bounded": _error(row.rmse_bounded),
                "error_against_truth": _error(row.rmse_truth),
                "bias": _error(row.bias_truth),
                "error_of_bounding": _error(row.rmse_bounding),
                "bars_that_hold_the_truth": _error(row.coverage_truth),
            }
        )
        for row in report.rates
    ]
    return {
        "errors": as_markdown(errors_plot(report)),
        "rates": dg.MetadataValue.table(rates) if rates else "no cell",
        **{f"noise/{row.measure}": rounded(row.rmse_noise) for row in report.sums},
        **{f"kept_by_bounding/{row.measure}": rounded(row.kept_share) for row in report.sums if row.kept_share},
        **without_small({"reply_texts_released": report.n_reply_texts}),
    }


def _error(value: float | None) -> str:
    return "" if value is None else f"{rounded(value):g}"
