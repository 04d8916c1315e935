"""The gate on evidence with known numbers, and properties that must hold for all numbers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.gates import GateSettings, Verdict, judge
from rl.errors import DataError
from rl.evaluation.evidence import Evidence, EvidencePrivacy, ValueEstimate

EvidenceFor = Callable[..., Evidence]


def estimate(value: float, half_width: float = 0.1, size: float = 900.0) -> ValueEstimate:
    return ValueEstimate(
        value=value,
        low=value - half_width,
        high=value + half_width,
        effective_sample_size=size,
        n_episodes=1000,
    )


def advantage(low: float) -> ValueEstimate:
    return ValueEstimate(value=low + 0.1, low=low, high=low + 0.2, effective_sample_size=900, n_episodes=1000)


def failed_names(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_a_clearly_better_candidate_passes(evidence_for: EvidenceFor) -> None:
    verdict = judge(evidence_for(), "cql", GateSettings())

    assert verdict.passed
    assert verdict.outcome == "passed"
    assert verdict.reasons == ("All 7 checks passed.",)


def test_a_pass_on_estimated_propensities_says_what_it_does_not_cover(evidence_for: EvidenceFor) -> None:
    evidence = evidence_for().model_copy(
        update={"propensities_estimated_share": 1.0, "propensity_calibration_error": 0.01}
    )
    verdict = judge(evidence, "cql", GateSettings())

    assert verdict.passed
    assert "100% of the propensities are estimated" in verdict.reasons[1]


def test_a_refusal_says_the_numbers_in_a_sentence(evidence_for: EvidenceFor) -> None:
    verdict = judge(evidence_for(advantage=advantage(-0.05)), "cql", GateSettings())

    assert not verdict.passed
    assert verdict.outcome == "refused"
    assert verdict.reasons == (
        "Candidate minus logged behavior is +0.05 EUR per dialogue; the lower end of the 95% interval is -0.05, "
        "and it must be above 0.",
    )


def test_a_copy_of_the_behavior_policy_is_not_better_than_it(evidence_for: EvidenceFor) -> None:
    nothing = ValueEstimate(value=0.0, low=0.0, high=0.0, effective_sample_size=1000, n_episodes=1000)

    assert failed_names(judge(evidence_for(advantage=nothing), "cql", GateSettings())) == ["better_than_behavior"]
    assert judge(evidence_for(advantage=nothing), "cql", GateSettings(margin=0.01)).passed


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"effective_sample_size": 199.0}, "enough_effective_episodes"),
        ({"effective_share": 0.019}, "enough_effective_share"),
        ({"diagnostics": {"overlap_share": 0.7, "out_of_mask_share": 0.0, "mean_weight": 1.0}}, "log_covers_choices"),
        ({"diagnostics": {"out_of_mask_share": 0.0, "mean_weight": 1.0}}, "log_covers_choices"),
        (
            {"diagnostics": {"overlap_share": 1.0, "out_of_mask_share": 1e-6, "mean_weight": 1.0}},
            "never_chooses_forbidden_strategies",
        ),
        (
            {"diagnostics": {"overlap_share": 1.0, "out_of_mask_share": 0.0, "mean_weight": 0.6}},
            "importance_weights_average_one",
        ),
        ({"estimates": {"dr": estimate(2.3), "fqe": estimate(2.7)}}, "estimators_agree"),
        ({"estimates": {"fqe": estimate(2.3)}}, "estimators_agree"),
        (
            {"propensities_estimated_share": 1.0, "propensity_calibration_error": 0.2},
            "estimated_propensities_are_calibrated",
        ),
        ({"propensities_estimated_share": 0.5}, "estimated_propensities_are_calibrated"),
    ],
)
def test_each_check_can_fail_alone(changes: dict[str, Any], check: str, evidence_for: EvidenceFor) -> None:
    assert failed_names(judge(evidence_for(**changes), "cql", GateSettings())) == [check]


def test_overlapping_intervals_agree_however_far_their_centers_are(evidence_for: EvidenceFor) -> None:
    verdict = judge(
        evidence_for(estimates={"dr": estimate(2.3, 0.5), "fqe": estimate(2.9, 0.2)}), "cql", GateSettings()
    )

    assert failed_names(verdict) == []


def test_a_dry_run_reports_the_failures_and_lets_pass(evidence_for: EvidenceFor) -> None:
    verdict = judge(evidence_for(effective_sample_size=5.0), "cql", GateSettings(mode="dry_run"))

    assert verdict.passed
    assert verdict.outcome == "passed_in_dry_run"
    assert "rests on 5 effective of 1,000" in verdict.reasons[0]


def test_a_disabled_gate_says_that_nothing_was_checked(evidence_for: EvidenceFor) -> None:
    verdict = judge(evidence_for(effective_sample_size=5.0), "cql", GateSettings(mode="disabled"))

    assert verdict.passed
    assert verdict.outcome == "unchecked"
    assert "nothing was checked" in verdict.reasons[0]


def test_an_unknown_candidate_is_named_with_the_known_ones(evidence_for: EvidenceFor) -> None:
    with pytest.raises(DataError, match="no candidate 'dqn'; it has cql"):
        judge(evidence_for(), "dqn", GateSettings())


def test_a_verdict_survives_json(evidence_for: EvidenceFor) -> None:
    verdict = judge(evidence_for(effective_sample_size=math.nan), "cql", GateSettings())

    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


numbers = st.floats(-5, 5)


@given(lower=numbers, rise=st.floats(0, 5), margin=st.floats(0, 1))
def test_a_higher_lower_bound_never_turns_a_pass_into_a_refusal(
    lower: float, rise: float, margin: float, evidence_for: EvidenceFor
) -> None:
    settings = GateSettings(margin=margin)
    before = judge(evidence_for(advantage=advantage(lower)), "cql", settings)
    after = judge(evidence_for(advantage=advantage(lower + rise)), "cql", settings)

    assert before.passed <= after.passed
    assert before.passed == (lower > -margin)


@given(size=st.floats(0, 5000), rise=st.floats(0, 5000))
def test_more_effective_episodes_never_turn_a_pass_into_a_refusal(
    size: float, rise: float, evidence_for: EvidenceFor
) -> None:
    before = judge(evidence_for(effective_sample_size=size), "cql", GateSettings())
    after = judge(evidence_for(effective_sample_size=size + rise), "cql", GateSettings())

    assert before.passed <= after.passed
    assert before.passed == (size >= 200)


NAN_PLACES = st.sampled_from(
    [
        "advantage.value",
        "advantage.low",
        "advantage.high",
        "size",
        "share",
        "overlap_share",
        "out_of_mask_share",
        "mean_weight",
        "estimates.dr",
        "estimates.fqe",
        "calibration",
    ]
)


@given(place=NAN_PLACES, bad=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_number_that_is_not_finite_never_passes_an_enabled_gate(
    place: str, bad: float, evidence_for: EvidenceFor
) -> None:
    good = evidence_for(propensities_estimated_share=0.1, propensity_calibration_error=0.01)
    assert judge(good, "cql", GateSettings()).passed
    values = good.model_dump()
    candidate = values["candidates"][0]
    group, _, field = place.partition(".")
    if group == "advantage":
        candidate["advantage"][field] = bad
    elif group == "estimates":
        candidate["estimates"][field]["low"] = bad
    elif group == "calibration":
        values["propensity_calibration_error"] = bad
    elif group in ("size", "share"):
        candidate["effective_sample_size" if group == "size" else "effective_share"] = bad
    else:
        candidate["diagnostics"][group] = bad

    assert not judge(Evidence(**values), "cql", GateSettings()).passed


def test_a_pass_on_noisy_figures_says_that_they_are(evidence_for: EvidenceFor) -> None:
    privacy = EvidencePrivacy(
        unit_of_privacy="customer", rho=0.005, epsilon=0.431, delta=1e-6, advantage_noise=0.69, note=""
    )
    verdict = judge(evidence_for(privacy=privacy), "cql", GateSettings())

    assert verdict.passed
    assert "The figures carry noise (ε 0.43; 0.69 EUR on the difference, inside its interval)" in verdict.reasons[1]
