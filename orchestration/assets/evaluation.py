"""The evaluation layer: evidence on held-out dialogues, and a policy card for each candidate."""

import json
import shutil
from typing import Any

import dagster as dg

from orchestration import aggregate_policy
from orchestration.aggregates import places
from orchestration.assets.policies import BEHAVIOR, TRAINING_POOL, dataset_hash, run_id_file
from orchestration.console import progress
from orchestration.plots import Interval, as_markdown, intervals_plot, rounded, rounded_numbers
from orchestration.resources import JobRunner, Workspace
from orchestration.settings import TalktrackSettings
from orchestration.tracking import Tracking
from orchestration.workspace import code_revision
from registry.bundle import CARD_FILE
from registry.errors import BudgetExceededError, ReleaseLostError
from registry.gates import Verdict, judge
from registry.privacy.evidence import (
    EvaluationRequest,
    evaluate_privately,
    evidence_of,
    find_evaluation,
    not_evaluated,
)
from rl.errors import DataError, PolicyError
from rl.evaluation.card import render_card
from rl.evaluation.evidence import CandidateEvidence, Evidence
from rl.evaluation.private_contributions import SUMS_FILE, BoundedSums
from rl.files import replaced_file
from rl.shown_counts import count_text

ESTIMATES = ("policy_value_estimates", "private_policy_value_estimates")

UNUSABLE = "the held-out dialogues of the window cannot be used; the night's log says why."
"""All that released evidence says of a fault in the log: the fault's own message may count what is in it."""


def build_evaluation_assets(settings: TalktrackSettings) -> list[dg.AssetsDefinition]:
    """Estimates and cards."""
    names = [trainer.candidate_name for trainer in settings.policies.candidates]

    @dg.asset(
        key=["evaluation", "policy_value_estimates"],
        deps=[
            ["datasets", "transitions"],
            ["policies", "behavior_model"],
            *(["policies", name] for name in names),
        ],
        group_name="evaluation",
        kinds={"python", "torch", "mlflow"},
        owners=["team:ml"],
        tags={"zone": "restricted"},
        pool=TRAINING_POOL,
    )
    def policy_value_estimates(
        context: dg.AssetExecutionContext,
        workspace: dg.ResourceParam[Workspace],
        jobs: dg.ResourceParam[JobRunner],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.MaterializeResult:
        """One row per candidate and estimator: value per dialogue, interval, effective sample size.

        Computed on customers that no trainer has seen. Bytes: evaluation/evidence.json and contributions.safetensors.
        """
        with workspace.step():
            models = workspace.paths.models
            jobs.run(
                context,
                "rl.evaluation.evaluate",
                stage="evaluate",
                inputs=workspace.paths.datasets / "transitions",
                output=workspace.paths.root / "evaluation",
                settings={
                    "policies": {name: str(models / name) for name in names},
                    "behavior": str(models / BEHAVIOR),
                    "evaluation": workspace.settings.evaluation.model_dump(mode="json"),
                },
                input_key=f"{dataset_hash(workspace)}:{_training_keys(workspace, names)}",
            )
            evidence = read_evidence(workspace)
            for candidate in evidence.candidates:
                _log_to_mlflow(tracking, workspace, candidate)
        return dg.MaterializeResult(metadata=_estimates_metadata(evidence))

    @dg.asset(
        key=["evaluation", "policy_cards"],
        deps=[["evaluation", name] for name in ESTIMATES[: 1 + settings.policies.aggregate.enabled]],
        group_name="evaluation",
        kinds={"html"},
        owners=["team:ml"],
        tags={"zone": "restricted"},
    )
    def policy_cards(
        context: dg.AssetExecutionContext,
        workspace: dg.ResourceParam[Workspace],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.MaterializeResult:
        """One self-contained HTML page per candidate: what it does, what it is worth, how sure we are, the verdict.

        Bytes: `cards/<candidate>.html`, and the candidate's MLflow run.
        """
        with workspace.step():
            links = {}
            for found in all_evidence(workspace):
                for candidate in found.candidates:
                    verdict = judge(found, candidate.name, workspace.settings.gate)
                    card = write_card(context, workspace, found, candidate, verdict)
                    if (run := mlflow_run(tracking, workspace, candidate.name)) is not None:
                        run.log_page(card, CARD_FILE)  # as the registered version names it
                    links[candidate.name] = dg.MetadataValue.path(str(card))
        return dg.MaterializeResult(metadata=links)

    private = [_private_value_estimates(settings)] if settings.policies.aggregate.enabled else []
    return [policy_value_estimates, *private, policy_cards]


def _private_value_estimates(settings: TalktrackSettings) -> dg.AssetsDefinition:
    @dg.asset(
        key=["evaluation", "private_policy_value_estimates"],
        deps=[["policies", aggregate_policy.candidate_name(settings)], ["datasets", "transitions"]],
        group_name="evaluation",
        kinds={"python", "opendp"},
        owners=["team:ml"],
        tags={"zone": "released"},
        pool=TRAINING_POOL,
    )
    def private_policy_value_estimates(
        context: dg.AssetExecutionContext,
        workspace: dg.ResourceParam[Workspace],
        jobs: dg.ResourceParam[JobRunner],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.MaterializeResult:
        """The aggregate policy's value: noisy sums of clipped contributions of held-out customers, budget booked first.

        Drawn once per release and policy; other nights read it again. Bytes: released/evaluations/ (noisy sums),
        released/evaluation/evidence.json.
        """
        with workspace.step():
            progress("private evidence")
            evidence = _private_evidence(context, workspace, jobs)
            aggregate_policy.write_private_evidence(workspace.settings, evidence)
            if evidence is None:
                return dg.MaterializeResult(metadata={"why": "There is no policy of the newest release to judge."})
            for candidate in evidence.candidates:
                _log_to_mlflow(tracking, workspace, candidate)
        return dg.MaterializeResult(metadata=_private_metadata(evidence))

    return private_policy_value_estimates


def _private_evidence(context: dg.AssetExecutionContext, workspace: Workspace, jobs: JobRunner) -> Evidence | None:
    """Evidence on the newest release's policy; None without one. What cannot be judged is refused, and the night goes
    on. It is released, so a refusal holds nothing of the log."""
    settings = workspace.settings
    record = aggregate_policy.newest_release(settings)
    if record is None or aggregate_policy.training(settings).get("release_id") != record.release_id:
        return None
    request, facts = aggregate_policy.request(settings, record), aggregate_policy.public_facts(settings)
    where = places(settings)
    try:
        drawn = find_evaluation(request, where)
        if drawn is None and not request.cost.micro_rho:
            return not_evaluated(request, facts, "privacy.gate_rho keeps no budget for the gate.")
        if drawn is None:
            drawn = evaluate_privately(request, _exact_sums(context, workspace, jobs, request), where)
    except (BudgetExceededError, ReleaseLostError) as error:
        context.log.warning(str(error))
        return not_evaluated(request, facts, str(error))
    except (DataError, PolicyError) as error:
        context.log.warning(str(error))
        return not_evaluated(request, facts, UNUSABLE)
    return evidence_of(drawn, facts)


def _exact_sums(
    context: dg.AssetExecutionContext, workspace: Workspace, jobs: JobRunner, request: EvaluationRequest
) -> BoundedSums:
    """The exact sums behind an evaluation; they are removed as soon as they are read."""
    folder = workspace.paths.root / "evaluation_sums"
    try:
        jobs.run(
            context,
            "rl.evaluation.private_contributions",
            stage="private evidence",
            inputs=workspace.paths.datasets / "transitions",
            output=folder,
            settings={
                **request.settings.model_dump(mode="json"),
                "policy": str(aggregate_policy.policy_folder(workspace.settings)),
                "window": [request.window.start.isoformat(), request.window.end.isoformat()],
                "bounds": request.bounds.model_dump(mode="json"),
            },
        )
        return BoundedSums.model_validate_json((folder / SUMS_FILE).read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_evidence(workspace: Workspace) -> Evidence:
    """The latest evidence of this workspace."""
    return Evidence.model_validate_json((workspace.paths.root / "evaluation" / "evidence.json").read_text())


def all_evidence(workspace: Workspace) -> list[Evidence]:
    """The evidence on individual candidates, and that on the aggregate one where there is any."""
    private = aggregate_policy.read_private_evidence(workspace.settings)
    return [read_evidence(workspace), *([private] if private else [])]


def write_card(
    context: dg.AssetExecutionContext,
    workspace: Workspace,
    evidence: Evidence,
    candidate: CandidateEvidence,
    verdict: Verdict,
) -> Any:
    """Render the card of one candidate into cards/ and return its path."""
    lineage = {
        "Workspace": workspace.settings.workspace,
        ("Release" if evidence.privacy else "Data set"): evidence.dataset_hash,
        "Code revision": code_revision(),
        "Dagster run": context.run_id,
        "Registered model": workspace.settings.model_name,
    }
    path = workspace.paths.root / "cards" / f"{candidate.name}.html"
    with replaced_file(path) as temporary:
        temporary.write_text(render_card(evidence, candidate.name, verdict, lineage), encoding="utf-8")
    return path


def mlflow_run(tracking: Tracking, workspace: Workspace, name: str) -> Any:
    """The MLflow run in which a candidate was trained, or None."""
    remembered = run_id_file(workspace, name)
    if not remembered.exists():
        return None
    return tracking.reopened(json.loads(remembered.read_text())["run_id"])


def _training_keys(workspace: Workspace, names: list[str]) -> str:
    stamps = [workspace.paths.models / f".{name}.job.json" for name in (BEHAVIOR, *names)]
    return ",".join(json.loads(stamp.read_text())["key"] for stamp in stamps)


def _private_metadata(evidence: Evidence) -> dict[str, Any]:
    """The estimates, and what they cost."""
    metadata = _estimates_metadata(evidence)
    if evidence.privacy is not None:
        metadata |= {
            "rho": evidence.privacy.rho,
            "epsilon": rounded(evidence.privacy.epsilon),
            "noise_on_advantage": rounded(evidence.privacy.advantage_noise),
            "clipping": evidence.privacy.note,
        }
    refusals = [candidate.refusal for candidate in evidence.candidates if candidate.refusal]
    return metadata | ({"why": refusals[0]} if refusals else {})


def _log_to_mlflow(tracking: Tracking, workspace: Workspace, candidate: CandidateEvidence) -> None:
    if (run := mlflow_run(tracking, workspace, candidate.name)) is None:
        return
    numbers = {"advantage": candidate.advantage.value, "advantage_low": candidate.advantage.low}
    numbers["effective_sample_size"] = candidate.effective_sample_size
    for estimator, estimate in candidate.estimates.items():
        numbers |= {f"value_{estimator}": estimate.value, f"value_{estimator}_low": estimate.low}
    run.log_metrics({f"evaluation/{name}": value for name, value in numbers.items() if value == value})


def _estimates_metadata(evidence: Evidence) -> dict[str, Any]:
    rows = [Interval("behavior", "as logged", *_interval(evidence.behavior_validation))]
    rows += [Interval(c.name, e.upper(), *_interval(v)) for c in evidence.candidates for e, v in c.estimates.items()]
    records = [
        dg.TableRecord(
            {
                "candidate": c.name,
                "by": name,
                "value": rounded(v.value),
                "low": rounded(v.low),
                "high": rounded(v.high),
            }
        )
        for c in evidence.candidates
        for name, v in c.estimates.items()
    ]
    title = (
        f"Value on {count_text(evidence.n_validation_episodes)} held-out dialogues, {evidence.confidence:.0%} intervals"
    )
    numbers = {
        "behavior_value": evidence.behavior.value,
        **{f"{c.name}/advantage": c.advantage.value for c in evidence.candidates},
        **{f"{c.name}/advantage_low": c.advantage.low for c in evidence.candidates},
        **{f"{c.name}/effective": c.effective_sample_size for c in evidence.candidates},
    }
    return {
        "values": as_markdown(intervals_plot(rows, evidence.reward_unit, title)),
        "estimates": dg.MetadataValue.table(records) if records else "none could be made",
        **rounded_numbers({name: value for name, value in numbers.items() if value == value}),
    }


def _interval(estimate: Any) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high
