"""Encoded policies in the storefront see what they would see live."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rl.encoders.dialogue import DialogueContext, DialogueEncoder
from rl.environments.storefront import policy_value, rollout
from rl.environments.storefront_customers import start_dialogues
from rl.environments.storefront_encoded import StorefrontEncoder, encoded_policy
from rl.environments.storefront_items import SEGMENTS, STRATEGIES, read_storefront_catalogue
from rl.environments.storefront_policies import decision_batch, uniform_policy
from rl.types import Bool2D, Float2D, Observations


class HashEncoder:
    """A vector for each text from its hash."""

    encoder_id = "hash"
    dimensions = 8

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
        return np.array([list(digest) for digest in digests], dtype=np.float32) / 255

    def save(self, folder: Path) -> None:
        raise NotImplementedError


class UniformPolicy:
    """Each legal action with the same probability."""

    name = "uniform"
    n_actions = len(STRATEGIES)
    reads_history = reads_past = False

    def action_probabilities(self, observations: Observations, action_mask: Bool2D) -> Float2D:
        return action_mask / action_mask.sum(axis=1, keepdims=True)

    def save(self, folder: Path) -> None:
        raise NotImplementedError


class PastReader(UniformPolicy):
    """The same, of one that wants to see the decisions before."""

    reads_past = True

    def action_probabilities(self, observations: Observations, action_mask: Bool2D) -> Float2D:
        assert observations.past is not None
        assert len(observations.past.offsets) == len(observations) + 1
        return super().action_probabilities(observations, action_mask)


@pytest.fixture(scope="module")
def dialogue_encoder() -> DialogueEncoder:
    # Segments in another order than the storefront's, one of them missing: names decide.
    return DialogueEncoder(
        HashEncoder(), read_storefront_catalogue(), ("gift_buyer", "bargain_hunter"), turn_limit=12, n_last_strategies=3
    )


def test_observations_equal_those_of_the_same_dialogues_live(dialogue_encoder: DialogueEncoder) -> None:
    encoder = StorefrontEncoder(dialogue_encoder)
    rng = np.random.default_rng(0)
    for decisions in rollout(start_dialogues(40, rng), uniform_policy, rng):
        running = decisions.dialogues.select(~decisions.endings.ended)
        batch = decision_batch(running)
        contexts = [
            DialogueContext(
                turns=tuple(batch.turns(row)),  # type: ignore[arg-type]
                segment=SEGMENTS[batch.segment[row]],
                eligible_strategies=tuple(np.array(STRATEGIES)[batch.eligible[row]]),
            )
            for row in range(len(batch))
        ]
        live, live_mask = dialogue_encoder.observe(contexts, with_past=True)
        ours, our_mask = encoder.observe(batch, with_past=True)
        assert ours.state == pytest.approx(live.state, abs=1e-6)
        assert np.array_equal(our_mask, live_mask)
        assert ours.history is not None
        assert live.history is not None
        assert np.array_equal(ours.history.vectors, live.history.vectors)
        assert np.array_equal(ours.history.offsets, live.history.offsets)
        assert ours.past is not None
        assert live.past is not None
        assert ours.past.states == pytest.approx(live.past.states, abs=1e-6)
        assert np.array_equal(ours.past.actions, live.past.actions)
        assert np.array_equal(ours.past.offsets, live.past.offsets)


@pytest.mark.parametrize("policy", [UniformPolicy(), PastReader()])
def test_an_encoded_policy_is_worth_what_it_is_worth_without_encoding(
    dialogue_encoder: DialogueEncoder, policy: UniformPolicy
) -> None:
    encoded = policy_value(encoded_policy(policy, StorefrontEncoder(dialogue_encoder)), 0.03, batch_size=1000)

    assert encoded == policy_value(uniform_policy, 0.03, batch_size=1000)
