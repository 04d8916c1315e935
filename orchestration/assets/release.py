"""The release layer: the gate's verdicts, and the best candidate that passed as a version in the MLflow registry."""

import json
import math
import tempfile
from dataclasses import asdict
from pathlib import Path

import dagster as dg

from orchestration import aggregate_policy
from orchestration.assets.evaluation import ESTIMATES, all_evidence, mlflow_run
from orchestration.resources import Workspace
from orchestration.settings import TalktrackSettings
from orchestration.tracking import Tracking
from orchestration.workspace import code_revision
from registry.bundle import write_bundle
from registry.gates import Verdict, judge
from registry.publish import Provenance, PublishedPolicy, evidence_hash, log_policy
from registry.rollout import Rollout, open_rollout
from rl.datasets.build import DIALOGUE_ENCODER_FOLDER
from rl.evaluation.evidence import Evidence
from rl.files import write_json


def build_release_assets(settings: TalktrackSettings) -> list[dg.AssetsDefinition]:
    """The registered policy."""
    aggregate = settings.policies.aggregate.enabled

    @dg.asset(
        key=["release", "registered_policy"],
        deps=[*(["evaluation", name] for name in ESTIMATES[: 1 + aggregate]), ["evaluation", "policy_cards"]],
        group_name="release",
        kinds={"mlflow"},
        owners=["team:ml"],
        tags={"zone": "restricted"},
    )
    def registered_policy(
        context: dg.AssetExecutionContext,
        workspace: dg.ResourceParam[Workspace],
        tracking: dg.ResourceParam[Tracking],
    ) -> dg.MaterializeResult:
        """The best candidate that passed the gate, as an MLflow model version with the alias `challenger`.

        A night in which none passes registers nothing and says why. Bytes: MLflow; release.json holds the verdicts.
        """
        with workspace.step():
            judged = [
                (evidence, judge(evidence, c.name, workspace.settings.gate))
                for evidence in all_evidence(workspace)
                for c in evidence.candidates
            ]
            verdicts = [verdict for _, verdict in judged]
            best = best_passed(judged)
            released = None if best is None else _register(context, workspace, tracking, *best)
            write_json(workspace.paths.root / "release.json", release_record(verdicts, released))
        return dg.MaterializeResult(metadata=_metadata(verdicts, released))

    return [registered_policy]


def best_passed(judged: list[tuple[Evidence, Verdict]]) -> tuple[Evidence, Verdict] | None:
    """The passed candidate with the highest lower bound of its advantage, in the evidence that speaks of it.

    A candidate that could not be evaluated (where the gate lets it pass) comes last: it has nothing to show or serve.
    """
    passed = [pair for pair in judged if pair[1].passed]
    return max(passed, key=_lower_bound, default=None)


def _lower_bound(judged: tuple[Evidence, Verdict]) -> float:
    evidence, verdict = judged
    candidate = next(c for c in evidence.candidates if c.name == verdict.candidate)
    return -math.inf if candidate.refusal else candidate.advantage.low


def release_record(verdicts: list[Verdict], released: PublishedPolicy | None) -> dict[str, object]:
    """What release.json holds: every verdict, and the version if there is one."""
    return {
        "verdicts": [v.model_dump(mode="json") for v in verdicts],
        "released": None if released is None else asdict(released),
    }


def _register(
    context: dg.AssetExecutionContext,
    workspace: Workspace,
    tracking: Tracking,
    evidence: Evidence,
    verdict: Verdict,
) -> PublishedPolicy:
    """Bundle, log, register, and give the alias `challenger` through the rollout's ledger."""
    paths, settings = workspace.paths, workspace.settings
    store, name = tracking.store(), verdict.candidate
    bundle = _write_bundle(workspace, evidence, name)
    run = mlflow_run(tracking, workspace, name)
    published = log_policy(
        store,
        model=settings.model_name,
        bundle=bundle,
        provenance=Provenance(
            candidate=name,
            evidence=evidence,
            verdict=verdict,
            tags={"git_commit": code_revision(), "dagster_run_id": context.run_id},
        ),
        run_id=None if run is None else run.run_id,
    )
    rollout = open_rollout(store, paths.ledger, settings.model_name)
    if not _is_further(rollout, published.version):
        rollout.propose_challenger(
            published.version,
            actor="nightly",
            reason=f"passed the offline gate: {' '.join(verdict.reasons)}",
            evidence_hash=evidence_hash(evidence),
            transition_id=f"{context.run_id}:challenger",
        )
    return published


def _is_further(rollout: Rollout, version: str) -> bool:
    """Whether a person moved the version on since an earlier night registered it, or back from champion."""
    return any(a.ledger_version == version for a in rollout.status().aliases if a.alias != "challenger")


def _write_bundle(workspace: Workspace, evidence: Evidence, candidate: str) -> Path:
    """Everything the candidate needs to answer a live dialogue, in <workspace>/bundle/."""
    paths, aggregate = workspace.paths, workspace.settings.policies.aggregate
    if aggregate.enabled and candidate == aggregate.candidate_name:
        return _write_aggregate_bundle(workspace, evidence, candidate)
    dataset = paths.datasets / "transitions"
    folder = paths.root / "bundle"
    write_bundle(
        folder,
        policy=paths.models / candidate,
        encoder=dataset / DIALOGUE_ENCODER_FOLDER,
        manifest=json.loads((dataset / "manifest.json").read_text()),
        settings=workspace.settings.model_dump(mode="json", exclude={"home"}),
        evidence=evidence,
        card=(paths.root / "cards" / f"{candidate}.html").read_text(encoding="utf-8"),
    )
    return folder


def _write_aggregate_bundle(workspace: Workspace, evidence: Evidence, candidate: str) -> Path:
    """The same of the aggregate policy, from the released zone and configuration alone: it may leave."""
    folder, settings = workspace.paths.root / "bundle", workspace.settings
    with tempfile.TemporaryDirectory(prefix="talktrack-bundle-") as parts:
        policy, encoder = aggregate_policy.save_parts(settings, Path(parts))
        write_bundle(
            folder,
            policy=policy,
            encoder=encoder,
            manifest=aggregate_policy.bundle_manifest(settings),
            settings=aggregate_policy.bundle_settings(settings),
            evidence=evidence,
            card=(workspace.paths.root / "cards" / f"{candidate}.html").read_text(encoding="utf-8"),
        )
    return folder


def _metadata(verdicts: list[Verdict], released: PublishedPolicy | None) -> dict[str, object]:
    metadata: dict[str, object] = {}
    if released is not None:
        metadata |= {"model": released.model, "version": released.version}
        if released.version_url:
            metadata["mlflow_version"] = dg.MetadataValue.url(released.version_url)
    return {
        **metadata,
        "n_passed": sum(v.passed for v in verdicts),
        "verdicts": dg.MetadataValue.md("\n".join(_verdict_text(v) for v in verdicts)),
    }


def _verdict_text(verdict: Verdict) -> str:
    reasons = "".join(f"\n- {reason}" for reason in verdict.reasons)
    return f"**{verdict.candidate}**: {verdict.outcome.replace('_', ' ')}\n{reasons}\n"
