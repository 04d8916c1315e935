"""The storefront half of `make study NAME=trainers`: logs played in memory, training online, and its short form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestration.plots import png
from rl.encoders.dialogue import DialogueContext, DialogueTurn
from rl.environments.storefront import behavior_value, policy_value
from rl.environments.storefront_encoded import StorefrontEncoder
from rl.environments.storefront_items import N_STRATEGIES, SEGMENTS
from rl.environments.storefront_policies import uniform_policy
from rl.trainers.settings import DoubleDQNSettings
from tests.studies import storefront_online, trainers
from tests.studies.aggregate_world import storefront_encoder
from tests.studies.memory import Memory
from tests.studies.storefront_logs import played_set
from tests.studies.storefront_online import OnlineSettings, best_script, online_training, script_policy
from tests.studies.trainers import Log, Plan, storefront

TINY = {
    "n_steps": 200,
    "n_members": 1,
    "hidden_units": (16,),
    "learning_rate": 1e-2,
    "n_looks": 2,
    "batch_size": 64,
    "mode": "eager",
}
ONLINE = OnlineSettings(
    rounds=2,
    dialogues_per_round=1500,
    steps_per_round=150,
    evaluated=1024,
    training=DoubleDQNSettings(n_members=1, hidden_units=(32,), learning_rate=3e-3, return_steps=3, mode="eager"),
)


@pytest.fixture(scope="module")
def encoder() -> StorefrontEncoder:
    return StorefrontEncoder(storefront_encoder())


def test_played_logs_hold_what_the_encoder_of_live_dialogues_sees(encoder: StorefrontEncoder) -> None:
    live, dataset = storefront_encoder(), played_set(300, 0, encoder)

    opening = live.observe(
        [DialogueContext(turns=(DialogueTurn(speaker="customer", text="hello"),), segment=SEGMENTS[0])]
    )

    assert dataset.manifest.feature_layout == live.layout.columns
    assert dataset.observation_size == opening[0].state.shape[1]
    before_first = dataset.batch_observations(np.array([0]), with_history=True).history
    assert before_first is not None
    assert len(before_first.vectors) == 1
    at_third = dataset.batch_observations(dataset.episode_offsets[:1] + 2, with_history=True).history
    assert at_third is not None
    assert len(at_third.vectors) == 5
    assert dataset.logged_mask[np.arange(dataset.n_steps), dataset.actions].all()


def test_played_logs_earn_what_the_behavior_policies_earn(encoder: StorefrontEncoder) -> None:
    dataset = played_set(6000, 1, encoder)
    expected = played_set(6000, 1, encoder, expected_rewards=True)

    true = behavior_value(0.01, seed=3)
    assert abs(dataset.returns.mean() - true) < 4 * dataset.returns.std() / np.sqrt(6000) + 0.04 * true
    assert expected.returns.std() < 0.8 * dataset.returns.std()
    assert np.array_equal(expected.actions, dataset.actions)
    # Weighted to uniform choice by the logged propensities, the first decisions are taken equally often.
    first = dataset.episode_offsets[:-1]
    weights = 1 / (dataset.propensities[first] * dataset.logged_mask[first].sum(axis=1))
    assert weights.mean() == pytest.approx(1, abs=0.1)


def test_logs_of_other_policies_are_played_in_their_shares(encoder: StorefrontEncoder) -> None:
    dataset = played_set(400, 0, encoder, [(uniform_policy, 0.75), (script_policy((0,) * 12), 0.25)])

    versions = dataset.policy_version[dataset.episode_offsets[:-1]]
    assert np.bincount(versions).tolist() == [300, 100]
    assert (dataset.actions[dataset.policy_version == 1] == encoder.actions[0]).all()


def test_training_online_grows_and_keeps_the_best_round(encoder: StorefrontEncoder) -> None:
    online = online_training(encoder, ONLINE)

    assert online.n_dialogues == 1500 * len(online.values)
    assert max(online.values) > 1.15 * policy_value(uniform_policy, 0.02).value


def test_the_best_script_beats_every_constant_one() -> None:
    script = best_script(256, passes=1)

    values = [policy_value(script_policy(s), 0.05).value for s in (script, *((c,) * 12 for c in range(N_STRATEGIES)))]
    assert values[0] > 1.5 * max(values[1:])


def test_short_form_of_the_study_resumes_from_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storefront_online, "DIALOGUES_AT_ONCE", 512)
    monkeypatch.setattr(trainers, "KNOWN_ERROR", 0.04)
    monkeypatch.setattr(trainers, "TRAINED_ERROR", 0.05)
    storefront_encoder().encoder.save(tmp_path / "encoder")
    plan = Plan(
        logs=(Log(500, (0, 1), ("behavior_cloning", "cql"), share=0.8, settings=TINY),),
        online=ONLINE,
        script_dialogues=64,
        n_processes=1,
    )

    rows, figure = storefront(Memory(tmp_path / "pieces.json"), plan, tmp_path / "encoder")
    again, _ = storefront(Memory(tmp_path / "pieces.json"), plan, tmp_path / "encoder")

    assert again == rows
    assert png(figure).startswith(b"\x89PNG")
    values = {row.check.removeprefix("trainers/storefront/"): row.value for row in rows}
    assert values["uniform"] < values["behavior"] < values["informed"]
    assert values["behavior_cloning"] == pytest.approx(values["behavior"], rel=0.25)
    assert {"cql", "cql behind the head", "script", "optimum", "share of the way"} <= set(values)
