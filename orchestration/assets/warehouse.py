"""The warehouse layer: dbt builds the marts in its private DuckDB file; the touched days are then published as Parquet.

A partition is an arrival day, as for landing: the night rebuilds the dialogue days that its records touch. Readers
(trainers, notebooks, MLflow) use the Parquet in marts/ and never open the DuckDB file.

dbt runs twice a night: before the private release (marts, exact tables) and after it (models over what was released).
"""

import gc
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import (
    DagsterDbtTranslator,
    DagsterDbtTranslatorSettings,
    DbtCliInvocation,
    DbtCliResource,
    DbtProject,
    dbt_assets,
)
from dagster_dbt.core.dbt_event_iterator import DbtEventIterator
from dagster_shared.record import is_record, replace
from filelock import FileLock
from packaging.version import Version

from orchestration.aggregates import (
    aggregates_are_current,
    due_release,
    forget_aggregates,
    forget_exact_window,
    remember_aggregates,
    remember_exact_window,
)
from orchestration.console import progress
from orchestration.marts import export_marts
from orchestration.partitions import SINGLE_RUN, end_of, night_of
from orchestration.processes import put_tools_on_path
from orchestration.resources import Workspace
from orchestration.settings import TalktrackSettings
from orchestration.warehouse import (
    TRANSFORMS,
    BuildPlan,
    data_clock,
    dbt_environment,
    dbt_vars,
    plan_build,
    remember_build,
    write_catalogue,
)
from orchestration.working_database import wait_until_free
from orchestration.workspace import configured_catalogue
from orchestration.zones import RESTRICTED, ZONE_TAG
from registry.privacy.release import prepare_released
from rl.shown_counts import shown_count, without_small

RELEASED_MODELS = "tag:released"
MARTS = ("fct_dialogues", "fct_transitions", "fct_turns", "dim_strategies", "dim_policies")
WRITER_POOL = "duckdb_writer"


class InstalledDbt(DbtCliResource):
    """dbt-core of this environment. Its version is read from its metadata; starting dbt to ask takes 2.6 s a night."""

    @cached_property
    def _cli_version(self) -> Version:
        return Version(importlib.metadata.version("dbt-core"))


class WarehouseTranslator(DagsterDbtTranslator):
    """Asset key = warehouse/<model>; sources keep the key that their `meta` names."""

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        if dbt_resource_props["resource_type"] == "source":
            return super().get_asset_key(dbt_resource_props)
        return dg.AssetKey(["warehouse", dbt_resource_props["name"]])

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str:
        is_released = "released" in dbt_resource_props.get("tags", ())
        return "aggregates" if is_released or "aggregates" in dbt_resource_props["fqn"] else "warehouse"

    def get_tags(self, dbt_resource_props: Mapping[str, Any]) -> Mapping[str, str]:
        zone = dbt_resource_props.get("config", {}).get("meta", {}).get("zone", RESTRICTED)
        return {**super().get_tags(dbt_resource_props), ZONE_TAG: zone}

    def get_owners(self, dbt_resource_props: Mapping[str, Any]) -> list[str]:
        return ["team:data"]


def dbt_project(settings: TalktrackSettings) -> DbtProject:
    """The dbt project with a manifest that is at least as new as its files.

    Dagster needs the manifest at import; parsing takes about five seconds and happens only after a change.
    """
    os.environ.update(dbt_environment(settings, catalogue_file(settings)))
    put_tools_on_path()
    project = DbtProject(project_dir=TRANSFORMS, profiles_dir=TRANSFORMS, target=os.environ.get("WAREHOUSE", "duckdb"))
    project.manifest_path.parent.mkdir(exist_ok=True)
    with FileLock(project.manifest_path.with_name(".parse.lock")):  # homes share the project, so they share the lock
        if _manifest_is_stale(project):
            project.preparer.prepare(project)
    return project


def _manifest_is_stale(project: DbtProject) -> bool:
    if not project.manifest_path.exists():
        return True
    built = project.manifest_path.stat().st_mtime
    sources = (p for p in TRANSFORMS.rglob("*") if p.suffix in {".sql", ".yml", ".csv"} and "target" not in p.parts)
    return any(path.stat().st_mtime > built for path in sources)


def build_warehouse_assets(
    settings: TalktrackSettings, project: DbtProject, partitions: dg.PartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """dbt's models, and the export of the marts."""

    translator = WarehouseTranslator(
        # The three tables of a release are one asset, which is the source of every model over them.
        DagsterDbtTranslatorSettings(enable_code_references=True, enable_duplicate_source_asset_keys=True)
    )

    @dbt_assets(
        manifest=project.manifest_path,
        project=project,
        name="dbt_models",
        exclude=RELEASED_MODELS,
        dagster_dbt_translator=translator,
        partitions_def=partitions,
        backfill_policy=SINGLE_RUN,
        pool=WRITER_POOL,
        retry_policy=dg.RetryPolicy(max_retries=1, delay=10),
    )
    def dbt_models(
        context: dg.AssetExecutionContext, dbt: DbtCliResource, workspace: dg.ResourceParam[Workspace]
    ) -> Iterator[Any]:
        with workspace.step():
            progress("dbt build")
            wait_until_free(workspace.paths.warehouse)
            plan = _plan(context, workspace)
            due = due_release(workspace.settings, plan.state.as_of)
            context.log.info(f"{plan.reason} {due.reason}")
            prepare_released(workspace.paths.released)  # the models over releases read its files, be there one or not
            forget_exact_window(workspace.paths.root)
            arguments = plan.dbt_arguments(workspace.settings, due.window, due.level)
            yield from _built(dbt, arguments, context, workspace)
            remember_exact_window(workspace.paths.root, due)

    @dbt_assets(
        manifest=project.manifest_path,
        project=project,
        name="dbt_released",
        select=RELEASED_MODELS,
        dagster_dbt_translator=translator,
        pool=WRITER_POOL,
        retry_policy=dg.RetryPolicy(max_retries=1, delay=10),
    )
    def dbt_released(
        context: dg.AssetExecutionContext, dbt: DbtCliResource, workspace: dg.ResourceParam[Workspace]
    ) -> Iterator[Any]:
        with workspace.step():
            paths = workspace.paths
            if aggregates_are_current(paths):
                context.log.info("Nothing was released since the aggregates were built; they stay as they are.")
                yield from _unchanged(context)
                return
            progress("dbt build (released)")
            wait_until_free(paths.warehouse)
            forget_aggregates(paths)
            variables = json.dumps(dbt_vars(workspace.settings))
            yield from _built(dbt, ["build", "--vars", variables], context, workspace)
            remember_aggregates(paths)

    @dg.asset(
        key=["warehouse", "mart_files"],
        deps=[["warehouse", mart] for mart in MARTS],
        group_name="warehouse",
        kinds={"parquet", "duckdb"},
        owners=["team:data"],
        tags={"zone": "restricted"},
        partitions_def=partitions,
        backfill_policy=SINGLE_RUN,
        pool=WRITER_POOL,
    )
    def mart_files(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
        """The marts as Parquet, one file per model and dialogue day; only days that were touched are written.

        Bytes: `marts/<model>/day=YYYY-MM-DD/part-0.parquet`, each renamed into place.
        """
        with workspace.step():
            progress("publish marts")
            plan = _plan(context, workspace)
            report = export_marts(workspace.paths.warehouse, workspace.paths.marts, plan.days)
            remember_build(workspace.paths.root, plan)
        return dg.MaterializeResult(
            metadata={
                "days_written": len(report.days),
                "new_source_files": plan.n_new_sources,
                "why": plan.reason,
                "dagster/uri": str(workspace.paths.marts),
                **{f"rows_written/{model}": n for model, n in without_small(report.rows).items()},
            }
        )

    return [dbt_models, dbt_released, mart_files]


def _built(
    dbt: DbtCliResource, arguments: list[str], context: dg.AssetExecutionContext, workspace: Workspace
) -> Iterator[Any]:
    """The events of a dbt build."""
    # One folder per workspace: by default every run leaves a new one, of 3 MB, in the repository.
    invocation = dbt.cli(arguments, context=context, target_path=workspace.paths.root / "dbt")
    try:
        yield from map(_without_small_counts, _described(invocation))
    finally:  # after a failed build too: the retry, and every other process, must find the file free
        _close_adapter(invocation)


def _unchanged(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
    """The selected assets as they are, parents first, as Dagster wants them."""
    needs = {spec.key: {dep.asset_key for dep in spec.deps} for spec in context.assets_def.specs}
    for key in TopologicalSorter(needs).static_order():
        if key in context.selected_asset_keys:
            yield dg.MaterializeResult(asset_key=key, metadata={"unchanged": True})


def _without_small_counts(event: Any) -> Any:
    """The event without the numbers of rows that are about fewer than 20 dialogues."""
    metadata = event.metadata or {}
    small = [
        name
        for name in ("dagster/row_count", "dagster_dbt/failed_row_count")
        if name in metadata and shown_count(int(_plain(metadata[name]))) is None
    ]
    if not small:
        return event
    kept = {name: value for name, value in metadata.items() if name not in small}
    if isinstance(event, dg.Output):
        return event.with_metadata(kept)
    return replace(event, metadata=kept) if is_record(event) else event._replace(metadata=kept)


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _described(invocation: DbtCliInvocation) -> Iterator[Any]:
    """dbt's events with row counts, columns and column lineage.

    dagster-dbt reads metadata in threads, and its main thread spins on a core while dbt runs or another reader is at
    work: 28 s instead of 16 s for a night of one day on two cores. Its threads also change the working directory
    under each other, which loses lineage now and then. So each stage is finished before the next, by one thread.
    """
    invocation.postprocessing_threadpool_num_threads = 1
    built = DbtEventIterator(_finished(invocation.stream()), invocation)
    counted = DbtEventIterator(_finished(built.fetch_row_counts()), invocation)
    yield from _finished(counted.fetch_column_metadata())


def _finished(events: Iterator[Any]) -> Iterator[Any]:
    """All events, read now; an error in the middle is raised where it stood."""
    read: list[Any] = []
    failure: Exception | None = None
    try:
        for event in events:
            read.append(event)  # noqa: PERF402 - what was read before an error counts
    except Exception as error:
        failure = error

    def replayed() -> Iterator[Any]:
        yield from read
        if failure is not None:
            raise failure

    return replayed()


def _close_adapter(invocation: DbtCliInvocation) -> None:
    """Close the read-only connection that dagster-dbt opened in this process to count rows.

    Left open it keeps every other process from writing, and this one from opening the file with other settings.
    """
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager

    if invocation.adapter is not None:
        invocation.adapter.cleanup_connections()
    DuckDBConnectionManager.close_all_connections()
    gc.collect()


def catalogue_file(settings: TalktrackSettings) -> Path:
    """The catalogue of this workspace as the CSV that dbt reads."""
    return write_catalogue(configured_catalogue(settings), settings.paths.root / "catalogue.csv")


def _plan(context: dg.AssetExecutionContext, workspace: Workspace) -> BuildPlan:
    """What this night rebuilds. The clock is the night's end, or the data's own where that is later (a replay)."""
    clocks = (end_of(night_of(context)), data_clock(workspace.paths.landing))
    return plan_build(
        workspace.settings,
        catalogue_file(workspace.settings),
        max(clock for clock in clocks if clock is not None),
    )
