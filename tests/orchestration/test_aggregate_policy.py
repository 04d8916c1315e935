"""The aggregate policy as the night sees it: learned and judged once per release, and a bundle that may leave."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from orchestration import aggregate_policy
from orchestration.aggregates import places
from orchestration.assets.evaluation import _private_evidence
from orchestration.assets.release import best_passed
from orchestration.nightly import _evidence_by_mode
from orchestration.resources import JobOutcome, JobRunner, Workspace
from orchestration.settings import PoliciesSettings, TalktrackSettings
from orchestration.workspace import configured_catalogue
from orchestration.zones import faults_in_released
from registry.bundle import open_bundle, write_bundle
from registry.gates import GateSettings, judge
from registry.privacy.evidence import (
    NoisyContributions,
    evaluate_privately,
    evidence_of,
    find_evaluation,
    not_evaluated,
)
from registry.privacy.release import ReleaseRecord
from registry.privacy.settings import PrivacySettings
from rl.encoders.dialogue import DialogueContext
from rl.encoders.encoder import encoder_folder
from rl.errors import DataError, PolicyError
from rl.evaluation.evidence import Evidence
from rl.evaluation.private_contributions import private_sums
from rl.policies import BucketedPolicy, load_policy
from rl.settings import AggregateTrainerSettings
from rl.trainers.train_aggregate import AggregateJobSettings, main
from tests.studies.aggregate_world import (
    WINDOW,
    exact_tables,
    plan_at,
    storefront_encoder,
    storefront_set,
    write_release,
)

GENEROUS = PrivacySettings(rho=10.0, gate_rho=1.0)


@pytest.fixture
def settings(tmp_path: Path) -> TalktrackSettings:
    return TalktrackSettings(home=tmp_path, privacy=GENEROUS)


def record() -> ReleaseRecord:
    return ReleaseRecord(
        release_id="release-1", workspace="storefront", window_start=WINDOW[0], window_end=WINDOW[1],
        unit_of_privacy="customer", rho=9.0, epsilon=50.0, epsilon_delta=1e-6, delta=1e-6, sampling_share=0.6,
        settings=GENEROUS.model_dump(mode="json"), grid={}, measures={}, opendp_version="", code_revision="",
        ledger_seq=1, ledger_hash="", file_hashes={}, at=datetime(2026, 2, 6, tzinfo=UTC),
    )  # fmt: skip


@pytest.fixture
def learned(settings: TalktrackSettings, tmp_path: Path) -> TalktrackSettings:
    """A workspace with a release, the policy from it, and a text encoder."""
    plan, dataset = plan_at("turn_segment", GENEROUS), storefront_set(3000, 1)
    folder = tmp_path / "release"
    write_release(folder, exact_tables(dataset, plan), plan, "release-1")
    chosen = AggregateJobSettings.model_validate(aggregate_policy.job_settings(settings))
    main(folder, aggregate_policy.policy_folder(settings), chosen)
    storefront_encoder().encoder.save(encoder_folder(settings.encoder, settings.paths.encoders))
    return settings


def test_without_a_release_there_is_nothing_to_learn_judge_or_show(settings: TalktrackSettings) -> None:
    assert aggregate_policy.newest_release(settings) is None
    assert aggregate_policy.training(settings) == {}
    assert aggregate_policy.read_private_evidence(settings) is None


def test_a_disabled_candidate_is_not_shown_even_where_a_night_before_left_evidence(learned: TalktrackSettings) -> None:
    aggregate_policy.evidence_file(learned.paths).parent.mkdir(parents=True)
    aggregate_policy.evidence_file(learned.paths).write_text("{}")
    off = PoliciesSettings(aggregate=AggregateTrainerSettings(enabled=False))
    assert aggregate_policy.read_private_evidence(learned.model_copy(update={"policies": off})) is None


def test_the_question_stays_the_same_when_settings_change_after_the_release(learned: TalktrackSettings) -> None:
    question = aggregate_policy.request(learned, record())
    assert question.cost.rho == pytest.approx(0.25)
    changed = learned.model_copy(
        update={"privacy": GENEROUS.model_copy(update={"reward_high": 500.0}),
                "dataset": learned.dataset.model_copy(update={"validation_share": 0.5})}
    )  # fmt: skip
    assert aggregate_policy.request(changed, record()).evaluation_id == question.evaluation_id


class FailingJobs(JobRunner):
    """Jobs that all end with one error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def run(self, *_: Any, **__: Any) -> JobOutcome:
        raise self.error


def judged(settings: TalktrackSettings, error: Exception, monkeypatch: pytest.MonkeyPatch) -> Evidence:
    """What the asset makes of a release whose exact sums cannot be had."""
    with monkeypatch.context() as patched:
        patched.setattr(aggregate_policy, "newest_release", lambda _: record())
        evidence = _private_evidence(dg.build_asset_context(), Workspace(settings), FailingJobs(error))
    assert evidence is not None
    return evidence


@pytest.mark.parametrize("error", [DataError, PolicyError])
def test_a_fault_of_the_log_is_told_to_the_night_and_not_to_whoever_reads_the_release(
    learned: TalktrackSettings, error: type[Exception], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    evidence = judged(learned, error("4711 dialogues of the window are damaged."), monkeypatch)
    aggregate_policy.write_private_evidence(learned, evidence)

    released = aggregate_policy.evidence_file(learned.paths).read_text()
    assert "4711 dialogues" not in released
    assert "the held-out dialogues of the window cannot be used; the night's log says why." in released
    assert "4711 dialogues of the window are damaged." in capfd.readouterr().err
    assert not places(learned).ledger.exists(), "nothing was booked"


def test_a_gate_without_a_budget_refuses_and_still_reads_what_was_paid_for(
    learned: TalktrackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = AssertionError("no sums are needed")
    unpaid = learned.model_copy(update={"privacy": GENEROUS.model_copy(update={"gate_rho": 0.0})})
    refused = judged(unpaid, never, monkeypatch).candidates[0]
    assert refused.refusal == "Not evaluated: privacy.gate_rho keeps no budget for the gate."

    drawn = draw(learned)
    assert judged(unpaid, never, monkeypatch) == evidence_of(drawn, aggregate_policy.public_facts(learned))


def draw(settings: TalktrackSettings) -> NoisyContributions:
    """The evaluation of the policy that was learned."""
    request = aggregate_policy.request(settings, record())
    policy = load_policy(aggregate_policy.policy_folder(settings))
    assert isinstance(policy, BucketedPolicy)
    window = (WINDOW[0].isoformat(), WINDOW[1].isoformat())
    sums = private_sums(storefront_set(3000, 1), policy, request.settings, request.bounds, window)
    return evaluate_privately(request, sums, places(settings))


def test_it_is_judged_once_and_stands_beside_the_others(learned: TalktrackSettings) -> None:
    drawn = draw(learned)
    evidence = evidence_of(drawn, aggregate_policy.public_facts(learned))
    aggregate_policy.write_private_evidence(learned, evidence)

    assert find_evaluation(aggregate_policy.request(learned, record()), places(learned)) == drawn
    assert aggregate_policy.read_private_evidence(learned) == evidence
    assert [mode for mode, _ in _evidence_by_mode(learned, evidence)] == ["individual", "aggregate"]
    assert evidence.candidates[0].strategy_use

    aggregate_policy.write_private_evidence(learned, None)
    assert aggregate_policy.read_private_evidence(learned) is None


def test_its_bundle_says_released_decides_and_holds_nothing_of_the_log(
    learned: TalktrackSettings, tmp_path: Path
) -> None:
    request = aggregate_policy.request(learned, record())
    evidence = not_evaluated(request, aggregate_policy.public_facts(learned), "of a test.")
    policy, encoder = aggregate_policy.save_parts(learned, tmp_path / "parts")
    folder = tmp_path / "bundle"
    description = write_bundle(
        folder,
        policy=policy,
        encoder=encoder,
        manifest=aggregate_policy.bundle_manifest(learned),
        settings=aggregate_policy.bundle_settings(learned),
        evidence=evidence,
        card="<html></html>",
    )

    assert (description.zone, description.privacy_mode, description.may_export) == ("released", "aggregate", True)
    assert description.dataset_hash == "release-1"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"] == {}, "exact counts of the individual data set stay inside"
    assert manifest["segments"] == list(GENEROUS.segments), "segments are the public list"
    assert manifest["release"]["unit_of_privacy"] == "customer"
    assert not faults_in_released(folder, learned.paths.marts)
    assert str(tmp_path) not in "".join(p.read_text() for p in folder.rglob("*.json"))
    decided = open_bundle(folder).decide([DialogueContext(dialogue_id="d", segment="enthusiast")])[0]
    assert decided.strategy in configured_catalogue(learned).names
    assert sum(decided.probabilities.values()) == pytest.approx(1)


def test_of_those_who_passed_the_highest_lower_bound_is_registered_whatever_its_mode(
    learned: TalktrackSettings,
) -> None:
    request, facts = aggregate_policy.request(learned, record()), aggregate_policy.public_facts(learned)
    nothing = not_evaluated(request, facts, "of a test.")
    lenient = judge(nothing, "aggregate_q", GateSettings(mode="dry_run"))
    better = nothing.model_copy(
        update={"candidates": (nothing.candidates[0].model_copy(update={"name": "cql", "refusal": ""}),)}
    )
    other = judge(better, "cql", GateSettings(mode="disabled"))

    assert best_passed([]) is None
    chosen = best_passed([(nothing, lenient), (better, other)])
    assert chosen is not None
    assert chosen[1].candidate == "cql", "a candidate without evidence comes last"
    assert date.fromisoformat(nothing.window[1]) == date(2026, 1, 28)
