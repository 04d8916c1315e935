"""A bundle decides as its parts do, with the probabilities it reports, and notices every change to its
files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.bundle import Bundle, open_bundle, read_description
from rl.encoders.dialogue import DialogueContext
from rl.errors import PolicyError

WriteBundle = Callable[..., Path]


def context(dialogue_id: str = "a", **changes: Any) -> DialogueContext:
    values: dict[str, Any] = {
        "dialogue_id": dialogue_id,
        "segment": "loyal",
        "turns": [
            {"speaker": "customer", "text": "Hello, how much for red shoes please?"},
            {"speaker": "agent", "text": "No price yet", "strategies": ["inform"]},
            {"speaker": "customer", "text": "yes thanks"},
        ],
    }
    return DialogueContext.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def folder(write_small_bundle: WriteBundle) -> Path:
    return write_small_bundle()


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return open_bundle(folder)


def test_a_decision_carries_the_policys_own_probabilities(bundle: Bundle) -> None:
    observations, mask = bundle.encoder.observe([context()])
    expected = bundle.policy.action_probabilities(observations, mask)[0]

    decision = bundle.decide([context()])[0]

    assert decision.eligible == ["ask", "inform", "offer", "wait"]
    assert [decision.probabilities[name] for name in decision.eligible] == pytest.approx(expected[:4].tolist())
    assert decision.probability == decision.probabilities[decision.strategy] > 0
    assert bundle.catalogue.names[decision.strategy_id] == decision.strategy
    assert not decision.fallback


def test_a_policy_that_reads_the_past_is_shown_the_decisions_before(bundle: Bundle) -> None:
    class Repeats:
        name, n_actions = "repeats", 5
        reads_history, reads_past = False, True

        def action_probabilities(self, observations: Any, action_mask: Any) -> Any:
            return np.eye(5)[observations.past.actions[observations.past.offsets[1:] - 1]]

        def save(self, folder: Path) -> None: ...

    assert replace(bundle, policy=Repeats()).decide([context()])[0].strategy == "inform"


def test_strategies_come_with_the_probabilities_that_are_reported(bundle: Bundle) -> None:
    n = 20_000
    decisions = bundle.decide([context(f"dialogue {k}", turns=context().turns[:1]) for k in range(n)])
    promised = decisions[0].probabilities

    for name, probability in promised.items():
        share = sum(decision.strategy == name for decision in decisions) / n
        assert share == pytest.approx(probability, abs=4 * np.sqrt(probability * (1 - probability) / n) + 1e-9)


def test_a_repeated_request_gets_the_same_answer_in_any_batch(bundle: Bundle) -> None:
    contexts = [context(f"dialogue {k}") for k in range(20)]

    together = bundle.decide(contexts)

    assert together == bundle.decide(contexts)
    assert together[7].strategy == bundle.decide([contexts[7]])[0].strategy
    assert [d.strategy for d in together] != [d.strategy for d in bundle.decide(contexts, seed=1)]


def test_dialogues_without_an_id_get_fresh_draws(bundle: Bundle) -> None:
    strategies = {decision.strategy for decision in bundle.decide([context("")] * 200)}

    assert len(strategies) > 1


def test_only_eligible_strategies_are_chosen(bundle: Bundle) -> None:
    decisions = bundle.decide([context(f"d{k}", eligible_strategies=["offer"]) for k in range(50)])

    assert {name for decision in decisions for name in decision.probabilities} == {"offer", "wait"}
    assert not any(decision.fallback for decision in decisions)


def test_the_fallback_is_reported_when_nothing_else_is_left(bundle: Bundle) -> None:
    decision = bundle.decide([context(eligible_strategies=["thank"])])[0]

    assert decision.fallback
    assert (decision.strategy, decision.probability) == ("wait", 1.0)


def test_no_contexts_give_no_decisions(bundle: Bundle) -> None:
    assert bundle.decide([]) == []


@pytest.mark.parametrize("bad", [np.nan, 0.5])
def test_an_answer_that_is_no_distribution_is_refused(bundle: Bundle, bad: float) -> None:
    class Broken:
        name, n_actions = "broken", 5
        reads_history = reads_past = False

        def action_probabilities(self, observations: Any, action_mask: Any) -> Any:
            return np.full((len(observations), 5), bad)

        def save(self, folder: Path) -> None: ...

    with pytest.raises(PolicyError, match="1 of 1 answers are no distribution"):
        replace(bundle, policy=Broken()).decide([context()])


def test_the_version_is_named_by_what_decides(write_small_bundle: WriteBundle, folder: Path) -> None:
    first = read_description(folder)

    same_policy = read_description(write_small_bundle(settings={"other": 1}))
    other_policy = read_description(write_small_bundle(seed=5))

    assert first.policy_version.startswith("cql-")
    assert same_policy.policy_version == first.policy_version
    assert same_policy.bundle_hash != first.bundle_hash
    assert other_policy.policy_version != first.policy_version


def test_the_card_does_not_make_it_another_bundle(write_small_bundle: WriteBundle, folder: Path) -> None:
    again = read_description(write_small_bundle(card="<p>made a day later</p>"))

    assert again.bundle_hash == read_description(folder).bundle_hash


def test_a_policy_of_individual_dialogues_may_not_be_exported(folder: Path) -> None:
    description = read_description(folder)

    assert (description.zone, description.privacy_mode, description.may_export) == (
        "restricted",
        "individual",
        False,
    )


def change(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: change(folder / "policy" / "policy.safetensors"),
            "policy/policy.safetensors was changed",
        ),
        (lambda folder: change(folder / "catalogue.json"), "catalogue.json was changed"),
        (lambda folder: (folder / "encoder" / "dialogue.json").unlink(), "encoder/dialogue.json is missing"),
        (lambda folder: (folder / "extra.pkl").write_text("x"), "extra.pkl is not part of the bundle"),
        (lambda folder: (folder / "bundle.json").unlink(), "is no policy bundle"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "is not valid JSON"),
        (
            lambda folder: (folder / "bundle.json").write_text('{"format": 7}'),
            "has format 7; this version reads 1",
        ),
        (
            lambda folder: (folder / "bundle.json").write_text('{"format": 1}'),
            "the field `policy_name` is missing",
        ),
    ],
)
def test_every_damage_is_named(write_small_bundle: WriteBundle, damage: Callable[[Path], None], message: str) -> None:
    damaged = write_small_bundle()
    damage(damaged)

    with pytest.raises(PolicyError, match=message):
        open_bundle(damaged)


def test_a_file_that_could_carry_code_does_not_get_in(write_small_bundle: WriteBundle, tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "model.pt").write_bytes(b"")

    with pytest.raises(PolicyError, match=r"model\.pt cannot go into a bundle"):
        write_small_bundle(policy=policy)


def test_a_policy_and_a_catalogue_of_other_sizes_do_not_fit(write_small_bundle: WriteBundle, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["catalogue"] = manifest["catalogue"][:4]

    with pytest.raises(PolicyError, match="among 5 strategies and the catalogue has 4"):
        write_small_bundle(manifest=manifest)


def test_a_missing_folder_is_named(write_small_bundle: WriteBundle, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"There is no folder .*nowhere"):
        write_small_bundle(encoder=tmp_path / "nowhere")
