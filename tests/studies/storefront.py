"""Estimated against true values on the storefront, after `make nightly` on its sample logs.

The policies are the stored ones, fed with the same text encoder as in training, and played against the simulator
until the standard error of the value is 0.5 %. What is estimated from logs must cover what is true.
"""

from __future__ import annotations

from typing import Any

from orchestration import aggregate_policy
from orchestration.console import progress
from orchestration.plots import Interval, intervals_plot
from orchestration.settings import TalktrackSettings
from rl.datasets.build import DIALOGUE_ENCODER_FOLDER
from rl.encoders.dialogue import DialogueEncoder
from rl.environments.storefront import behavior_value, policy_value
from rl.environments.storefront_encoded import StorefrontEncoder, encoded_policy
from rl.errors import DataError
from rl.evaluation.evidence import Evidence
from rl.files import content_hash
from rl.policies import BucketedPolicy, load_policy
from tests.studies.memory import Memory, StudyRow

RELATIVE_STANDARD_ERROR = 0.005
SEED = 1


def run(settings: TalktrackSettings, memory: Memory) -> tuple[list[StudyRow], Any]:
    """True values of the behavior policy and of every candidate beside their estimates."""
    evidence = _latest_evidence(settings)
    dataset = settings.paths.datasets / "transitions"
    encoder = StorefrontEncoder(DialogueEncoder.load(dataset / DIALOGUE_ENCODER_FOLDER))
    names = [candidate.name for candidate in evidence.candidates]
    stage = "true values by rollout"
    progress(stage, 0, len(names) + 1)
    true_behavior = memory.remembered(["behavior", SEED], lambda: behavior_value(RELATIVE_STANDARD_ERROR, SEED))
    true_values = {}
    for done, name in enumerate(names, start=1):
        progress(stage, done, len(names) + 1)
        folder = settings.paths.models / name
        policy = encoded_policy(load_policy(folder), encoder)
        key = [name, content_hash((folder / "policy.safetensors").read_bytes()), SEED]
        true_values[name] = memory.remembered(
            key, lambda p=policy: policy_value(p, RELATIVE_STANDARD_ERROR, seed=SEED).value
        )
    rows = _rows(evidence, true_behavior, true_values) + _aggregate_rows(settings, memory, encoder, true_behavior)
    return rows, _figure(evidence, true_behavior, true_values)


def _aggregate_rows(
    settings: TalktrackSettings, memory: Memory, encoder: StorefrontEncoder, true_behavior: float
) -> list[StudyRow]:
    """The policy from released aggregates: its true gain beside the private evidence; nothing before a release."""
    private = aggregate_policy.read_private_evidence(settings)
    if private is None or private.privacy is None:
        return []
    folder, advantage = aggregate_policy.policy_folder(settings), private.candidates[0].advantage
    policy = load_policy(folder)
    assert isinstance(policy, BucketedPolicy)
    read = encoded_policy(policy.reading(encoder.parts), encoder)
    key = [folder.name, content_hash((folder / "policy.safetensors").read_bytes()), SEED]
    true = memory.remembered(key, lambda: policy_value(read, RELATIVE_STANDARD_ERROR, seed=SEED).value) - true_behavior
    return [
        StudyRow(
            check=f"storefront/{folder.name}/private advantage",
            value=true,
            low=advantage.low,
            high=advantage.high,
            aim="true gain inside the interval",
            holds=advantage.low <= true <= advantage.high,
            seeds=(SEED,),
        )
    ]


def _latest_evidence(settings: TalktrackSettings) -> Evidence:
    evidence = settings.paths.root / "evaluation" / "evidence.json"
    if settings.workspace != "storefront" or not evidence.exists():
        raise DataError("The study needs a finished night on the storefront's sample logs. Run `make nightly` first.")
    return Evidence.model_validate_json(evidence.read_text())


def _rows(evidence: Evidence, true_behavior: float, true_values: dict[str, float]) -> list[StudyRow]:
    covered = "true value inside the interval"
    behavior = evidence.behavior
    rows = [
        StudyRow(
            check="storefront/behavior",
            value=true_behavior,
            low=behavior.low,
            high=behavior.high,
            aim=covered,
            holds=behavior.low <= true_behavior <= behavior.high,
            seeds=(SEED,),
        )
    ]
    for candidate in evidence.candidates:
        true = true_values[candidate.name]
        for name, estimate in candidate.estimates.items():
            rows.append(
                StudyRow(
                    check=f"storefront/{candidate.name}/{name}",
                    value=true,
                    low=estimate.low,
                    high=estimate.high,
                    aim=covered if name == "dr" else "reported",
                    holds=name != "dr" or estimate.low <= true <= estimate.high,
                    seeds=(SEED,),
                )
            )
    best = max(evidence.candidates, key=lambda c: c.advantage.low).name
    gain = true_values[best] / true_behavior - 1
    rows.append(StudyRow(check=f"storefront/gain of {best}", value=gain, aim="> 0", holds=gain > 0, seeds=(SEED,)))
    return rows


def _figure(evidence: Evidence, true_behavior: float, true_values: dict[str, float]) -> Any:
    estimates = {"behavior": (evidence.behavior, true_behavior)}
    estimates |= {c.name: (c.estimates["dr"], true_values[c.name]) for c in evidence.candidates if "dr" in c.estimates}
    rows = [Interval(name, f"true {true:.2f}", e.value, e.low, e.high) for name, (e, true) in estimates.items()]
    return intervals_plot(rows, evidence.reward_unit, "Estimated on logs, beside the true value")
