"""The policies layer: a model of the behavior policy, and one asset per configured candidate."""

import json
from typing import Any

import dagster as dg
from pydantic import Field, create_model

from orchestration.plots import as_markdown, curves_plot, rounded_numbers
from orchestration.resources import JobOutcome, JobRunner, Workspace
from orchestration.settings import TalktrackSettings
from orchestration.tracking import Tracking, flattened
from orchestration.workspace import code_revision
from rl.files import write_json
from rl.settings import TrainerSettings

TRAINING_POOL = "gpu"
BEHAVIOR = "behavior"


def build_policies_assets(settings: TalktrackSettings) -> list[dg.AssetsDefinition]:
    """The behavior model and the candidates of `policies.candidates`."""
    return [_behavior_model(), *(_candidate(trainer) for trainer in settings.policies.candidates)]


def _behavior_model() -> dg.AssetsDefinition:
    @dg.asset(
        key=["policies", "behavior_model"],
        deps=[["datasets", "transitions"]],
        group_name="policies",
        kinds={"torch"},
        owners=["team:ml"],
        tags={"zone": "restricted"},
        pool=TRAINING_POOL,
    )
    def behavior_model(
        context: dg.AssetExecutionContext,
        workspace: dg.ResourceParam[Workspace],
        jobs: dg.ResourceParam[JobRunner],
    ) -> dg.MaterializeResult:
        """Who did what in the log: a calibrated multinomial model, cross-fitted by customer.

        Stands in for propensities where the log has none, and anchors every candidate. Bytes: models/behavior/.
        """
        with workspace.step():
            outcome = jobs.run(
                context,
                "rl.policies.fit_behavior",
                stage="fit behavior model",
                inputs=workspace.paths.datasets / "transitions",
                output=workspace.paths.models / BEHAVIOR,
                settings=workspace.settings.behavior_model,
                input_key=dataset_hash(workspace),
            )
        return dg.MaterializeResult(metadata=_numbers(outcome))

    return behavior_model


def _candidate(trainer: TrainerSettings) -> dg.AssetsDefinition:
    """The asset of one candidate; its settings are the defaults in the Launchpad."""
    name = trainer.candidate_name

    @dg.asset(
        key=["policies", name],
        deps=[["datasets", "transitions"], ["policies", "behavior_model"]],
        group_name="policies",
        kinds={"d3rlpy", "torch", "mlflow"},
        owners=["team:ml"],
        tags={"zone": "restricted"},
        pool=TRAINING_POOL,
        description=(
            f"The candidate {name}: {trainer.algorithm} behind the masked, behavior-regularised decision head, "
            f"trained on the training customers only. Bytes: models/{name}/. Formulas and metrics: rl/README.md."
        ),
        metadata={"algorithm": trainer.algorithm},
    )
    def candidate(
        context: dg.AssetExecutionContext,
        config: trainer_config(trainer),  # type: ignore[valid-type]
        workspace: dg.ResourceParam[Workspace],
        jobs: dg.ResourceParam[JobRunner],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.MaterializeResult:
        with workspace.step():
            chosen = TrainerSettings.model_validate({**trainer.model_dump(), **config.model_dump()})
            outcome = jobs.run(
                context,
                "rl.trainers.train",
                stage=f"train {name}",
                inputs=workspace.paths.datasets / "transitions",
                output=workspace.paths.models / name,
                settings=chosen,
                input_key=dataset_hash(workspace),
            )
            url = _track(context, workspace, tracking, name, chosen, outcome)
        return dg.MaterializeResult(
            metadata={
                **({"mlflow_run": dg.MetadataValue.url(url)} if url else {}),
                **({"learning_curves": as_markdown(plot)} if (plot := curves_plot(outcome.metrics, name)) else {}),
                **_numbers(outcome),
                "reused": outcome.reused,
            }
        )

    return candidate


def trainer_config(trainer: TrainerSettings) -> type[dg.Config]:
    """A Dagster config class with the trainer's settings as defaults, so that the Launchpad can edit them."""
    fields: dict[str, Any] = {}
    for name, field in TrainerSettings.model_fields.items():
        if name in ("algorithm", "name"):
            continue
        value = getattr(trainer, name)
        kind = list[int] if isinstance(value, tuple) else type(value)
        default = list(value) if isinstance(value, tuple) else value
        fields[name] = (kind, Field(default=default, description=field.description))
    return create_model(f"{trainer.candidate_name.title().replace('_', '')}Config", __base__=dg.Config, **fields)


def dataset_hash(workspace: Workspace) -> str:
    """Identity of the current transition set."""
    return str(json.loads((workspace.paths.datasets / "transitions" / "manifest.json").read_text())["dataset_hash"])


def run_id_file(workspace: Workspace, name: str) -> Any:
    """Where the MLflow run id of a candidate is remembered between steps."""
    return workspace.paths.models / f".{name}.mlflow.json"


def _track(
    context: dg.AssetExecutionContext,
    workspace: Workspace,
    tracking: Tracking,
    name: str,
    settings: TrainerSettings,
    outcome: JobOutcome,
) -> str | None:
    """One MLflow run per training; a reused training keeps its run."""
    remembered, training = run_id_file(workspace, name), _training_key(workspace, name)
    known = json.loads(remembered.read_text()) if remembered.exists() else {}
    # A night killed between a training and its tracking leaves the run of the training before.
    if outcome.reused and known.get("training") == training:
        return tracking.reopened(known["run_id"]).url
    tags = {
        "data.fingerprint": dataset_hash(workspace),
        "git_commit": code_revision(),
        "algorithm": settings.algorithm,
    }
    with tracking.run(context, name, tags) as run:
        run.log_params(flattened(settings.model_dump(mode="json")))
        run.log_curves(outcome.metrics)
        run.log_metrics({k: v for k, v in outcome.result.items() if isinstance(v, int | float)})
        if plot := curves_plot(outcome.metrics, name):
            run.log_figure(plot, "learning_curves.png")
        run.log_file(workspace.paths.models / name / "training.json")
    write_json(remembered, {"run_id": run.run_id, "training": training})
    return run.url


def _training_key(workspace: Workspace, name: str) -> str:
    """What the candidate's training was made of: data, settings, code."""
    return str(json.loads((workspace.paths.models / f".{name}.job.json").read_text())["key"])


def _numbers(outcome: JobOutcome) -> dict[str, Any]:
    """The job's result for the asset's page; name and algorithm stand in its definition."""
    shown = {k: v for k, v in outcome.result.items() if isinstance(v, int | float | str)}
    return rounded_numbers({k: v for k, v in shown.items() if k not in ("name", "algorithm")})
