"""Policies that read text, in the storefront: from `rl.policies` and a dialogue encoder to a policy callback.

Here: the same observations as the data set's, made from a finite table of encoded utterances. Not here: the
features themselves (`rl.encoders.dialogue`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.encoders.customer_replies import customer_act
from rl.encoders.dialogue import (
    NO_ACT,
    NO_STRATEGY,
    UNKNOWN_SEGMENT,
    DecisionPoints,
    DialogueEncoder,
    StateLayout,
    Utterances,
    act_id,
    dialogue_state,
    legal_actions,
)
from rl.environments.storefront_items import SEGMENTS, STRATEGIES
from rl.environments.storefront_policies import DecisionBatch, StorefrontPolicy
from rl.environments.storefront_texts import utterance_table
from rl.policies.bucketed import ObservationParts
from rl.types import Bool2D, Float2D, History, Observations, Past, Policy


class StorefrontEncoder:
    """DecisionBatches → observations and masks, equal to `DialogueEncoder.observe` on the same dialogues.

    Each distinct utterance is scrubbed and encoded once, when this is made.
    """

    def __init__(self, encoder: DialogueEncoder) -> None:
        texts = [encoder.scrubber.scrub(text).text for text in utterance_table().texts]
        self._encoder = encoder
        self._vectors = encoder.encoder.encode(texts).astype(np.float16)
        by_customer = utterance_table().strategy < 0
        self._acts = np.array(
            [act_id(customer_act(text)) if c else NO_ACT for text, c in zip(texts, by_customer, strict=True)]
        )
        # The same values, but half precision is slow to add up: observations are made about twice as fast.
        self._wide_vectors: NDArray[Any] = self._vectors.astype(np.float32)
        self.actions = np.array([encoder.catalogue.ids[name] for name in STRATEGIES])
        """(A,) id in the encoder's catalogue of each storefront strategy."""
        self._segments = np.array(
            [encoder.segments.index(s) if s in encoder.segments else UNKNOWN_SEGMENT for s in SEGMENTS]
        )

    @property
    def layout(self) -> StateLayout:
        """Where each feature is."""
        return self._encoder.layout

    @property
    def parts(self) -> ObservationParts:
        """The same, as policies over buckets ask for it."""
        encoder, layout = self._encoder, self._encoder.layout
        return ObservationParts(
            layout.columns, encoder.segments, encoder.catalogue.names, encoder.turn_limit, layout.observation_size
        )

    def observe(self, batch: DecisionBatch, with_past: bool = False) -> tuple[Observations, Bool2D]:
        """Observations (with history and, with `with_past`, the decisions before) and the (B, A) mask of legal
        actions, in the catalogue's ids."""
        position = np.arange(batch.utterances.shape[1])
        said = position < batch.n_utterances[:, None]
        offsets = np.concatenate(([0], np.cumsum(batch.n_utterances))).astype(np.int64)
        ids = batch.utterances[said]
        utterances = Utterances(self._wide_vectors[ids], self._acts[ids])
        rows, turns = np.arange(len(batch)), batch.turn.astype(np.int64)
        state = dialogue_state(self.layout, utterances, self._points(batch, offsets[:-1], rows, turns))
        past = self._past(batch, utterances, offsets[:-1], turns) if with_past else None
        eligible = np.zeros((len(batch), len(self._encoder.catalogue)), dtype=bool)
        eligible[:, self.actions] = batch.eligible
        observations = Observations(state, History(self._vectors[ids], offsets), past)
        return observations, legal_actions(self._encoder.catalogue, eligible)

    def _points(
        self, batch: DecisionBatch, first_utterance: NDArray[np.int64], rows: NDArray[Any], turns: NDArray[np.int64]
    ) -> DecisionPoints:
        """(M,) dialogues of the batch before their (M,) agent turns; the customer speaks first, then both in turns."""
        back = np.arange(1, self._encoder.n_last_strategies + 1)
        at = turns[:, None] - back
        taken = batch.strategies[rows[:, None], np.maximum(at, 0)]
        latest: NDArray[Any] = np.where(at >= 0, self.actions[taken], NO_STRATEGY)
        segment = self._segments[batch.segment[rows]]
        return DecisionPoints(first_utterance[rows], 2 * turns + 1, segment, latest.astype(np.int64))

    def _past(
        self,
        batch: DecisionBatch,
        utterances: Utterances,
        first_utterance: NDArray[np.int64],
        turns: NDArray[np.int64],
    ) -> Past:
        """What was observed and done at the (B,) turns before."""
        offsets = np.concatenate(([0], np.cumsum(turns))).astype(np.int64)
        rows = np.repeat(np.arange(len(batch)), turns)
        earlier = np.arange(len(rows)) - offsets[rows]
        points = self._points(batch, first_utterance, rows, earlier)
        return Past(
            dialogue_state(self.layout, utterances, points), self.actions[batch.strategies[rows, earlier]], offsets
        )


def encoded_policy(policy: Policy, encoder: StorefrontEncoder) -> StorefrontPolicy:
    """`policy` as a storefront policy, for `policy_value`.

    One StorefrontEncoder serves all policies of a data set. Raises PolicyError as the policy does.
    """

    def probabilities(batch: DecisionBatch) -> Float2D:
        observations, mask = encoder.observe(batch, policy.reads_past)
        return policy.action_probabilities(observations, mask)[:, encoder.actions]

    return probabilities
