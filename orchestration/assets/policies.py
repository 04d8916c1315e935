"""The policies layer: a model of the behavior policy, and one asset per configured candidate.

A candidate may be a sweep: all its members are trained in one pass, and the leaderboard says which setting was kept.
"""

import json
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import dagster as dg
from pydantic import Field, create_model

from orchestration import aggregate_policy
from orchestration.plots import as_markdown, curves_plot, reliability_plot, rounded_numbers
from orchestration.resources import JobOutcome, JobRunner, Workspace
from orchestration.settings import TalktrackSettings
from orchestration.tracking import TrackedRun, Tracking, flattened
from orchestration.workspace import code_revision
from registry.privacy.release import RELEASES
from rl.errors import TrainingError
from rl.files import write_json
from rl.settings import AggregateTrainerSettings
from rl.trainers.settings import Member, TrainerSettings, trainer_settings

TRAINING_POOL = "gpu"
BEHAVIOR = "behavior"


def build_policies_assets(settings: TalktrackSettings) -> list[dg.AssetsDefinition]:
    """The behavior model, the candidates of `policies.candidates`, and the one from released aggregates."""
    aggregate = [_aggregate_policy(settings)] if settings.policies.aggregate.enabled else []
    return [_behavior_model(), *(_candidate(trainer) for trainer in settings.policies.candidates), *aggregate]


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
        curve = read_training(workspace.paths.models / BEHAVIOR)["reliability_curve"]
        plot = reliability_plot(curve["predicted"], curve["observed"], "Out of fold, in bins of equally many pairs")
        return dg.MaterializeResult(metadata={"reliability": as_markdown(plot), **_numbers(outcome)})

    return behavior_model


def _candidate(trainer: TrainerSettings) -> dg.AssetsDefinition:
    """The asset of one candidate; its settings are the defaults in the Launchpad."""
    name = trainer.candidate_name

    @dg.asset(
        key=["policies", name],
        deps=[["datasets", "transitions"], ["policies", "behavior_model"]],
        group_name="policies",
        kinds={*({"d3rlpy"} if trainer.algorithm.startswith("d3rlpy") else ()), "torch", "mlflow"},
        owners=["team:ml"],
        tags={"zone": "restricted"},
        pool=TRAINING_POOL,
        description=_description(trainer),
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
            chosen = trainer_settings(**{**trainer.model_dump(), **config.model_dump()})
            outcome = jobs.run(
                context,
                "rl.trainers.train",
                stage=f"train {name}",
                inputs=workspace.paths.datasets / "transitions",
                output=workspace.paths.models / name,
                settings={"trainer": chosen.model_dump(mode="json")},
                input_key=dataset_hash(workspace),
            )
            training = read_training(workspace.paths.models / name)
            tags = {"data.fingerprint": dataset_hash(workspace), "algorithm": chosen.algorithm, "zone": "restricted"}
            url = _track(context, workspace, tracking, workspace.paths.models / name, chosen, outcome, tags)
        return dg.MaterializeResult(
            metadata={
                **({"mlflow_run": dg.MetadataValue.url(url)} if url else {}),
                **({"learning_curves": as_markdown(plot)} if (plot := curves_plot(outcome.metrics, name)) else {}),
                **_leaderboard(training),
                **_numbers(outcome),
                "reused": outcome.reused,
            }
        )

    return candidate


def _aggregate_policy(settings: TalktrackSettings) -> dg.AssetsDefinition:
    name = aggregate_policy.candidate_name(settings)

    @dg.asset(
        key=["policies", name],
        deps=[["aggregates", "private_release"], ["aggregates", "aggregate_files"]],
        group_name="policies",
        kinds={"numpy", "mlflow"},
        owners=["team:ml"],
        tags={"zone": "released"},
        pool=TRAINING_POOL,
        description=(
            f"The candidate {name}: values by turn and bucket from the newest private release alone, behind the masked "
            f"decision head. Learned once per release. Bytes: released/models/{name}/. Formulas: aggregate_q.py."
        ),
        metadata={"algorithm": name},
    )
    def aggregate_candidate(
        context: dg.AssetExecutionContext,
        workspace: dg.ResourceParam[Workspace],
        jobs: dg.ResourceParam[JobRunner],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.MaterializeResult:
        with workspace.step():
            record = aggregate_policy.newest_release(workspace.settings)
            if record is None:
                return dg.MaterializeResult(metadata={"why": "Nothing was released yet, so nothing was learned."})
            folder = aggregate_policy.policy_folder(workspace.settings)
            try:
                outcome = jobs.run(
                    context,
                    "rl.trainers.train_aggregate",
                    stage=f"train {name}",
                    inputs=workspace.paths.released / RELEASES / record.window_start.isoformat(),
                    output=folder,
                    settings=aggregate_policy.job_settings(workspace.settings),
                    input_key=record.release_id,
                )
            except TrainingError as error:  # a release may be too small to learn from; the other candidates go on
                context.log.warning(str(error))
                return dg.MaterializeResult(metadata={"why": str(error)})
            chosen = workspace.settings.policies.aggregate
            tags = {"data.fingerprint": record.release_id, "zone": "released", "privacy_mode": "aggregate"}
            url = _track(context, workspace, tracking, folder, chosen, outcome, tags | {"algorithm": name})
        return dg.MaterializeResult(
            metadata={
                **({"mlflow_run": dg.MetadataValue.url(url)} if url else {}),
                "window": str(record.window),
                **_numbers(outcome),
                "reused": outcome.reused,
            }
        )

    return aggregate_candidate


def trainer_config(trainer: TrainerSettings) -> type[dg.Config]:
    """A Dagster config class with the trainer's settings as defaults, so that the Launchpad can edit them."""
    fields: dict[str, Any] = {}
    for name, field in type(trainer).model_fields.items():
        if name in ("algorithm", "name"):
            continue
        value = getattr(trainer, name)
        default = trainer.model_dump(mode="json")[name] if isinstance(value, tuple | dict) else value
        fields[name] = (_config_type(field.annotation), Field(default=default, description=field.description))
    return create_model(f"{trainer.candidate_name.title().replace('_', '')}Config", __base__=dg.Config, **fields)


def _config_type(annotation: Any) -> Any:
    """The type that Dagster's configuration has for a field: lists for tuples, text for a choice of names."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return str
    if origin in (Union, types.UnionType):
        return _config_type(next(kind for kind in inner if kind is not types.NoneType)) | None
    if origin is tuple:
        return list[_config_type(inner[0])]  # type: ignore[misc]
    if origin is dict:
        return dict[str, _config_type(inner[1])]  # type: ignore[misc]
    return annotation


def _description(trainer: TrainerSettings) -> str:
    name, algorithm = trainer.candidate_name, trainer.algorithm
    called = name if name == algorithm else f"{name} ({algorithm})"
    head = (
        "acting as it was learned"
        if trainer.divergence_limit is None
        else f"held within {trainer.divergence_limit:g} nats of the behavior policy"
    )
    resumed = "" if algorithm.startswith("d3rlpy") else " A killed training goes on from its checkpoint."
    return (
        f"The candidate {called}, {head}, trained on the training customers only.{resumed} Bytes: models/{name}/. "
        "Formulas and metrics: rl/README.md."
    )


def read_training(folder: Path) -> dict[str, Any]:
    """What the training job noted beside a policy."""
    return dict(json.loads((folder / "training.json").read_text()))


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
    folder: Path,
    settings: TrainerSettings | AggregateTrainerSettings,
    outcome: JobOutcome,
    tags: dict[str, str],
) -> str | None:
    """One MLflow run per training; a reused training keeps its run."""
    name = folder.name
    remembered, training = run_id_file(workspace, name), _training_key(folder)
    known = json.loads(remembered.read_text()) if remembered.exists() else {}
    # A night killed between a training and its tracking leaves the run of the training before.
    if outcome.reused and known.get("training") == training:
        return tracking.reopened(known["run_id"]).url
    with tracking.run(context, name, {**tags, "git_commit": code_revision()}) as run:
        run.log_params(flattened(settings.model_dump(mode="json")))
        run.log_curves(outcome.metrics)
        run.log_metrics({k: v for k, v in outcome.result.items() if isinstance(v, int | float)})
        if plot := curves_plot(outcome.metrics, name):
            run.log_figure(plot, "learning_curves.png")
        run.log_file(folder / "training.json")
        _track_members(run, folder)
    write_json(remembered, {"run_id": run.run_id, "training": training})
    return run.url


def _track_members(run: TrackedRun, folder: Path) -> None:
    """One child run per member of a sweep: what it was told, and its own curves."""
    training = read_training(folder)
    for member, curves in zip(training.get("members", ()), training.get("member_curves", ()), strict=True):
        child = run.child(f"{folder.name}, seed {member['seed']}, {Member(**member).setting}")
        child.log_params({"seed": member["seed"], **member["knobs"]})
        child.log_curves({name: list(zip(c["steps"], c["values"], strict=True)) for name, c in curves.items()})


def _leaderboard(training: dict[str, Any]) -> dict[str, Any]:
    """The settings of a sweep, best first, with what chose among them; nothing for a trainer that has one setting."""
    rows = [dg.TableRecord(rounded_numbers(_shown(row))) for row in training.get("leaderboard", ())]
    return {"leaderboard": dg.MetadataValue.table(rows)} if rows else {}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the leaderboard in the order in which it is read."""
    columns = ("setting", "step", "value", "low", "effective_sample_size", "divergence", "spread", "is_judged")
    return {name.removesuffix("_sample_size"): "" if row[name] is None else row[name] for name in columns}


def _training_key(folder: Path) -> str:
    """What the candidate's training was made of: data, settings, code."""
    return str(json.loads(folder.with_name(f".{folder.name}.job.json").read_text())["key"])


def _numbers(outcome: JobOutcome) -> dict[str, Any]:
    """The job's result for the asset's page; name and algorithm stand in its definition."""
    shown = {k: v for k, v in outcome.result.items() if isinstance(v, int | float | str)}
    return rounded_numbers({k: v for k, v in shown.items() if k not in ("name", "algorithm")})
