"""The policy from released aggregates, as the night sees it: which release, which files, which question to the gate.

Here: paths, settings and hashes as functions of settings and files; the bundle's parts that may leave. Not here:
learning (`rl.trainers.aggregate_q`), contributions and noise (`rl.evaluation.private_contributions`,
`registry.privacy.evidence`), Dagster assets.

A release is learned from once and judged once; other nights find both and draw nothing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from orchestration.settings import TalktrackSettings, WorkspacePaths
from orchestration.workspace import configured_catalogue
from registry.privacy.budget import Cost
from registry.privacy.evidence import EvaluationRequest, PublicFacts
from registry.privacy.release import ReleaseRecord, released_records
from registry.privacy.windows import Window
from rl.catalogue import ActionCatalogue
from rl.datasets.transitions import Manifest
from rl.encoders.dialogue import DialogueEncoder
from rl.encoders.encoder import encoder_folder, load_encoder
from rl.encoders.scrubbing import scrubber_for
from rl.evaluation.evidence import Evidence
from rl.evaluation.private_contributions import Bounds, with_clips
from rl.files import content_hash, write_json
from rl.policies.bucketed import BucketedPolicy, ObservationParts
from rl.policies.storage import load_policy

POLICY_FILES = ("policy.json", "policy.safetensors")

RESTRICTED_SETTINGS = {"home", "logs", "sample", "retention"}
"""Settings that say nothing of a policy, and are left out of a bundle that may leave."""


def newest_release(settings: TalktrackSettings) -> ReleaseRecord | None:
    """The release that is learned from; None while there is none, or where `policies.aggregate` is not enabled."""
    records = released_records(settings.paths.released) if settings.policies.aggregate.enabled else []
    return records[-1] if records else None


def candidate_name(settings: TalktrackSettings) -> str:
    """Name of the candidate in assets, folders, evidence and MLflow."""
    return settings.policies.aggregate.candidate_name


def policy_folder(settings: TalktrackSettings) -> Path:
    """Where the policy lies: in the released zone, for it was computed from released tables alone."""
    return settings.paths.released / "models" / candidate_name(settings)


def evidence_file(paths: WorkspacePaths) -> Path:
    """The newest private evidence, in the released zone."""
    return paths.released / "evaluation" / "evidence.json"


def job_settings(settings: TalktrackSettings) -> dict[str, Any]:
    """What the training job is told: configuration alone."""
    return {
        **settings.policies.aggregate.model_dump(mode="json"),
        "catalogue": configured_catalogue(settings).to_json(),
        "turn_limit": settings.dataset.turn_limit,
        "n_last_strategies": max(settings.dataset.n_last_strategies, 1),
    }


def training(settings: TalktrackSettings) -> dict[str, Any]:
    """What was found when the policy was learned; empty where there is none."""
    path = policy_folder(settings) / "training.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def request(settings: TalktrackSettings, record: ReleaseRecord) -> EvaluationRequest:
    """The question to the gate: this policy, on the held-out customers of this release's window."""
    privacy, found = settings.privacy, training(settings)
    # Bounds as they were released, so that a setting changed since asks no second question.
    bounds = Bounds(
        return_low=record.settings["reward_low"],
        return_high=record.settings["reward_high"],
        center=round(found["logged_value"], 2),
    )
    # Released customers are those who train; the others judge. Known without the log, so the clips give nothing away.
    n_judges = max(found["n_customers"], 1.0) * (1 - record.sampling_share) / record.sampling_share
    return EvaluationRequest(
        candidate=candidate_name(settings),
        release_id=record.release_id,
        window=Window(record.window_start, record.window_end),
        policy_hash=content_hash(
            [content_hash((policy_folder(settings) / name).read_bytes()) for name in POLICY_FILES]
        ),
        settings=with_clips(settings.private_evaluation, bounds, n_judges),
        bounds=bounds,
        cost=Cost.of(privacy.gate_rho / privacy.gate_evaluations),
        budget=Cost.of(privacy.rho, privacy.delta),
    )


def public_facts(settings: TalktrackSettings) -> PublicFacts:
    """What evidence says beside its noisy numbers."""
    found = training(settings)
    return PublicFacts(
        algorithm=found["algorithm"],
        reward_unit=settings.dataset.reward.unit,
        divergence=found["divergence"],
        overlap_share=found["overlap_share"],
        strategy_use=found["strategy_use"],
        delta=settings.privacy.delta,
    )


def read_private_evidence(settings: TalktrackSettings) -> Evidence | None:
    """The evidence of the newest release's policy; None where there is none."""
    path = evidence_file(settings.paths)
    if not settings.policies.aggregate.enabled or not path.exists():
        return None
    return Evidence.model_validate_json(path.read_text())


def write_private_evidence(settings: TalktrackSettings, evidence: Evidence | None) -> None:
    """Replace the evidence, or take it away where there is none: old evidence must not stand for a new policy."""
    path = evidence_file(settings.paths)
    if evidence is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, evidence.model_dump(mode="json"))


def bundle_manifest(settings: TalktrackSettings) -> dict[str, Any]:
    """The manifest of the policy's bundle: release and configuration in place of a data set and its counts."""
    found, encoder = training(settings), _encoder(settings)
    manifest = Manifest(
        catalogue=tuple(configured_catalogue(settings).to_json()),
        reward=settings.dataset.reward,
        training_discount=1.0,
        turn_limit=found["settings"]["turn_limit"],
        encoder_id=encoder.encoder.encoder_id,
        segments=tuple(found["segments"]),
        window=tuple(found["window"]),
        feature_layout=encoder.layout.columns,
        privacy_mode="aggregate",
        dataset_hash=found["release_id"],
    )
    return manifest.model_dump(mode="json") | {
        "release": {name: found[name] for name in ("release_id", "window", "unit_of_privacy", "rho", "delta")}
    }


def bundle_settings(settings: TalktrackSettings) -> dict[str, Any]:
    """The settings behind the policy, without those that speak of the restricted zone."""
    return settings.model_dump(mode="json", exclude=RESTRICTED_SETTINGS)


def save_parts(settings: TalktrackSettings, folder: Path) -> tuple[Path, Path]:
    """Write the policy and its encoder for a bundle, and return both folders.

    The encoder's segments are the public list, not those of the log; the policy is told where it puts them.
    """
    encoder, source = _encoder(settings), policy_folder(settings)
    layout = encoder.layout
    parts = ObservationParts(
        layout.columns, encoder.segments, encoder.catalogue.names, encoder.turn_limit, layout.observation_size
    )
    encoder.save(folder / "encoder")
    policy = load_policy(source)
    assert isinstance(policy, BucketedPolicy)
    policy.reading(parts).save(folder / "policy")
    shutil.copyfile(source / "training.json", folder / "policy" / "training.json")
    return folder / "policy", folder / "encoder"


def _encoder(settings: TalktrackSettings) -> DialogueEncoder:
    found = training(settings)
    return DialogueEncoder(
        encoder=load_encoder(encoder_folder(settings.encoder, settings.paths.encoders)),
        catalogue=ActionCatalogue.from_json(configured_catalogue(settings).to_json()),
        segments=tuple(found["segments"]),
        turn_limit=found["settings"]["turn_limit"],
        n_last_strategies=found["settings"]["n_last_strategies"],
        scrubber=scrubber_for(settings.scrubbing),
    )
