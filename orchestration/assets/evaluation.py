"""The evaluation layer: evidence on held-out dialogues, and a policy card for each candidate."""

import json
from typing import Any

import dagster as dg

from orchestration.assets.policies import BEHAVIOR, dataset_hash, run_id_file
from orchestration.plots import Interval, as_markdown, intervals_plot, rounded, rounded_numbers
from orchestration.resources import JobRunner, Workspace
from orchestration.settings import TalktrackSettings
from orchestration.tracking import Tracking
from orchestration.workspace import code_revision
from registry.bundle import CARD_FILE
from registry.gates import Verdict, judge
from rl.evaluation.card import render_card
from rl.evaluation.evidence import CandidateEvidence, Evidence
from rl.files import replaced_file


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
        pool="gpu",
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
        deps=[["evaluation", "policy_value_estimates"]],
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

        Bytes: cards/<candidate>.html, and the candidate's MLflow run.
        """
        with workspace.step():
            evidence = read_evidence(workspace)
            links = {}
            for candidate in evidence.candidates:
                verdict = judge(evidence, candidate.name, workspace.settings.gate)
                card = write_card(context, workspace, evidence, candidate, verdict)
                if (run := mlflow_run(tracking, workspace, candidate.name)) is not None:
                    run.log_page(card, CARD_FILE)  # as the registered version names it
                links[candidate.name] = dg.MetadataValue.path(str(card))
        return dg.MaterializeResult(metadata=links)

    return [policy_value_estimates, policy_cards]


def read_evidence(workspace: Workspace) -> Evidence:
    """The latest evidence of this workspace."""
    return Evidence.model_validate_json((workspace.paths.root / "evaluation" / "evidence.json").read_text())


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
        "Data set": evidence.dataset_hash,
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
    title = f"Value on {evidence.n_validation_episodes:,} held-out dialogues, {evidence.confidence:.0%} intervals"
    numbers = {
        "behavior_value": evidence.behavior.value,
        **{f"{c.name}/advantage": c.advantage.value for c in evidence.candidates},
        **{f"{c.name}/advantage_low": c.advantage.low for c in evidence.candidates},
        **{f"{c.name}/effective": c.effective_sample_size for c in evidence.candidates},
    }
    return {
        "values": as_markdown(intervals_plot(rows, evidence.reward_unit, title)),
        "estimates": dg.MetadataValue.table(records),
        **rounded_numbers({name: value for name, value in numbers.items() if value == value}),
    }


def _interval(estimate: Any) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high
