"""The policy card: complete, self-contained, and safe against whatever a name contains."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

import pytest

from rl.errors import DataError
from rl.evaluation.card import ESTIMATORS, GLOSSARY, LIGHTS, render_card
from rl.evaluation.evidence import CandidateEvidence, Evidence, EvidencePrivacy, StrategyUse, ValueEstimate
from rl.settings import Settings

HOSTILE = '<script>alert("x")</script>'


class Verdict(Settings):
    passed: bool = True
    mode: str = "enabled"
    reasons: tuple[str, ...] = ("All 7 checks passed.",)


def value(number: float, width: float = 0.4, size: float = 900.0) -> ValueEstimate:
    return ValueEstimate(
        value=number,
        low=number - width,
        high=number + width,
        effective_sample_size=size,
        n_episodes=2000,
    )


def candidate(**changes: object) -> CandidateEvidence:
    strategies = ("inquiry", "facts", "offer", "similarity", HOSTILE)
    use = [
        StrategyUse(stage=stage, strategy=name, behavior_rate=0.1 * (i + 1) / 1.5, candidate_rate=0.3 - 0.05 * i)
        for stage in ("turns 1–2", "turns 3–5", "turns 6+")
        for i, name in enumerate(strategies)
    ]
    plain = CandidateEvidence(
        name="cql",
        algorithm="cql",
        estimates={"dr": value(4.1), "pdis": value(4.0, 0.5), "wis": value(3.8, 0.8), "fqe": value(4.2, 0.1)},
        advantage=value(0.6, 0.25),
        effective_sample_size=900.0,
        effective_share=0.45,
        diagnostics={
            "mean_weight": 1.03,
            "max_weight_share": 0.012,
            "effective_share": 0.45,
            "clipped_share": 0.0,
            "overlap_share": 0.995,
            "out_of_mask_share": 0.0,
            "logged_outside_mask_share": 0.4,
            "divergence": 0.08,
            "estimator_disagreement": 0.6,
        },
        strategy_use=tuple(use),
        policy_note="Masked at decision time.",
    )
    return plain.model_copy(update=changes)


def evidence(**changes: object) -> Evidence:
    return Evidence(
        dataset_hash="0123456789abcdef",
        reward_unit="EUR",
        confidence=0.95,
        window=("2026-01-01", "2026-01-28"),
        n_steps=41_231,
        n_episodes=5012,
        n_validation_episodes=2000,
        behavior=value(3.4, 0.2),
        behavior_validation=value(3.5, 0.3),
        behavior_parts={"conversion_value": 3.4, "conversion": 0.12},
        propensities_estimated_share=0.25,
        propensity_calibration_error=0.012,
        candidates=(candidate(**changes),),
    )


def card(verdict: Verdict | None = None, **changes: object) -> str:
    lineage = {"code_revision": "abc1234", "settings": {"fqe_steps": 3000, "note": HOSTILE}}
    return render_card(evidence(**changes), "cql", verdict or Verdict(), lineage)


class _Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_element_is_closed() -> None:
    parser = _Balance()
    parser.feed(card())
    assert parser.open == []


def test_the_page_refers_to_nothing_outside_itself_and_runs_nothing() -> None:
    page = card(name="cql")
    assert not re.search(r"<script|<link|<img|<iframe|src=|href=|url\(|https?:|@import|\son\w+=", page)


def test_names_from_outside_are_escaped() -> None:
    page = card(policy_note=HOSTILE, algorithm=HOSTILE)
    page += card(Verdict(passed=False, reasons=(HOSTILE,)))
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;") >= 6


def test_the_page_says_what_was_found() -> None:
    page = card()
    for text in ("Passed", "4.1", "[3.70, 4.50]", "+0.6", "2026-01-01 to 2026-01-28", "5,012", "900 of 2,000"):
        assert text in page, text
    for text in ("abc1234", "0123456789abcdef", "Masked at decision time.", "cql", "turns 6+", "0.012"):
        assert text in page, text


def test_every_strategy_has_one_row_in_all_stages() -> None:
    chart = re.search(r'<svg[^>]*aria-label="Use of strategies by stage">.*?</svg>', card(), re.DOTALL)
    assert chart is not None
    assert [chart[0].count(f">{name}<") for name in ("inquiry", "offer", "turns 3–5")] == [1, 1, 1]
    assert chart[0].count("30.0 (+23.3)") == 3  # inquiry


def test_every_figure_is_in_the_glossary() -> None:
    page = card()
    glossary = unescape(page[page.index("<h2>Glossary") :])
    for term in (*GLOSSARY, *ESTIMATORS.values(), *LIGHTS.values()):
        assert term.name in glossary


@pytest.mark.parametrize(
    ("key", "value", "colour"),
    [
        ("effective_share", 0.3, "good"),
        ("effective_share", 0.1, "fair"),
        ("effective_share", 0.01, "poor"),
        ("divergence", 0.1, "good"),
        ("divergence", 0.9, "poor"),
        ("out_of_mask_share", 0.01, "poor"),
    ],
)
def test_lights_follow_the_figures(key: str, value: float, colour: str) -> None:
    assert LIGHTS[key].colour(value) == colour


def test_a_refusal_by_the_gate_gives_its_reasons() -> None:
    page = card(Verdict(passed=False, reasons=("Only 30 effective dialogues.",)))
    assert "Refused" in page
    assert "Only 30 effective dialogues." in page


def test_a_candidate_that_could_not_be_evaluated_has_a_page() -> None:
    page = card(estimates={}, diagnostics={}, strategy_use=(), refusal="No support.")
    assert "could not be evaluated" in page
    assert "No support." in page


def test_counts_of_fewer_than_twenty_dialogues_are_not_told() -> None:
    small = evidence().model_copy(update={"n_validation_episodes": 12, "n_episodes": 19, "n_steps": 7})
    page = unescape(render_card(small, "cql", Verdict(), {}))
    assert "judged on < 20 dialogues" in page
    assert "< 20, of which < 20 held out to judge" in page
    assert not re.search(r"\b(12|19|7) (dialogues|held|steps)", page)


def test_an_unknown_candidate_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="has no candidate 'dqn'; it has cql"):
        render_card(evidence(), "dqn", Verdict(), {})


def test_a_page_of_private_evidence_says_what_it_cost_and_shows_no_exact_count() -> None:
    privacy = EvidencePrivacy(
        unit_of_privacy="customer", rho=0.005, epsilon=0.431, delta=1e-6, advantage_noise=0.69, note="Cut at 5."
    )
    private = evidence().model_copy(update={"privacy": privacy, "n_episodes": 2000, "n_steps": 0})
    page = render_card(private, "cql", Verdict(), {})

    for text in ("learned from released tables alone", "ε 0.43 at δ 1e-06", "0.690 EUR", "about 2,000 (with noise)"):
        assert text in page, text
    assert "held out to judge" not in page
    assert "Agent turns" not in page
