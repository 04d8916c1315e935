"""Policies of the storefront: what they see, the two that write the logs, and a good one made by hand.

Here: the input of a policy callback, hand-made policies. Not here: learned policies (`rl.policies`), rollouts
(`storefront`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.environments.storefront_customers import Dialogues
from rl.environments.storefront_items import (
    N_STRATEGIES,
    REFERRING,
    SEGMENTS,
    STRATEGIES,
    STRATEGY_IDS,
    by_strategy,
)
from rl.environments.storefront_texts import CustomerAct, utterance_table
from rl.errors import DataError
from rl.types import Bool2D, Float2D

POLICY_VERSIONS = ("storefront-v1", "storefront-v2")
POLICY_VERSION_SHARES = (0.6, 0.4)
"""Share of customers that each behavior version talks to, fixed by customer."""
_UNIFORM_SHARE = 0.14  # of every behavior decision: the smallest propensity is 0.14 / 13 = 0.011


@dataclass(frozen=True)
class DecisionBatch:
    """What a policy sees before B agent turns; everything in it is in the logs too, nothing hidden is.

    `segment` (B,) index into SEGMENTS. `turn` (B,) agent turns taken. `utterances` (B, L) ids into
    `utterance_table().texts`, oldest first, -1 after the last; the customer speaks first, then agent and
    customer in turns. `strategies` (B, TURN_LIMIT) the agent's strategies so far, -1 after the last.
    `eligible` (B, A) what may be chosen now.

    A policy that reads text encodes `utterance_table().texts` once and looks the vectors up by id::

        vectors = encoder.encode(list(utterance_table().texts))          # (U, d)
        last = vectors[batch.utterances[np.arange(len(batch)), batch.n_utterances - 1]]

    `storefront_encoded` does so for policies of `rl.policies`. One that takes dialogue contexts gets the
    turns of each row from `turns(row)`.
    """

    segment: NDArray[Any]
    turn: NDArray[Any]
    utterances: NDArray[np.int32]
    strategies: NDArray[Any]
    eligible: Bool2D

    def __len__(self) -> int:
        return len(self.segment)

    @property
    def n_utterances(self) -> NDArray[np.intp]:
        """(B,) utterances so far: the opening and two for each agent turn."""
        return 2 * self.turn.astype(np.intp) + 1

    @property
    def last_strategy(self) -> NDArray[Any]:
        """(B,) the agent's last strategy, -1 before the first."""
        found = self.strategies[np.arange(len(self)), np.maximum(self.turn - 1, 0)]
        return np.where(self.turn > 0, found, -1)

    @property
    def last_act(self) -> NDArray[Any]:
        """(B,) CustomerAct of the customer's last utterance, as a perfect reader of the text would name
        it.
        """
        return utterance_table().act[self.utterances[np.arange(len(self)), self.n_utterances - 1]]

    def turns(self, row: int) -> list[dict[str, Any]]:
        """The dialogue of one row as `{speaker, text, strategies?}` dicts, as in a dialogue context."""
        texts = utterance_table().texts
        found: list[dict[str, Any]] = []
        for position in range(int(self.n_utterances[row])):
            turn: dict[str, Any] = {"speaker": "customer", "text": texts[self.utterances[row, position]]}
            if position % 2 == 1:
                turn |= {"speaker": "agent", "strategies": [STRATEGIES[self.strategies[row, position // 2]]]}
            found.append(turn)
        return found


StorefrontPolicy = Callable[[DecisionBatch], Float2D]
"""Gives (B, A) probabilities that sum to 1 over the eligible actions and are 0 elsewhere."""


def decision_batch(dialogues: Dialogues) -> DecisionBatch:
    """What a policy may see of running dialogues (views, not copies)."""
    longest = 2 * int(dialogues.turn.max(initial=0)) + 1
    return DecisionBatch(
        dialogues.segment,
        dialogues.turn,
        dialogues.utterances[:, :longest],
        dialogues.strategies,
        dialogues.eligible(),
    )


def constant_policy(strategy: str) -> StorefrontPolicy:
    """Always `strategy`; no_strategy where that is not eligible."""
    wanted, fallback = STRATEGY_IDS[strategy], STRATEGY_IDS["no_strategy"]
    unit = np.eye(N_STRATEGIES)

    def probabilities(batch: DecisionBatch) -> Float2D:
        chosen: Float2D = unit[np.where(batch.eligible[:, wanted], wanted, fallback)]
        return chosen

    return probabilities


def uniform_policy(batch: DecisionBatch) -> Float2D:
    """Each eligible strategy with the same probability."""
    shares: Float2D = batch.eligible / batch.eligible.sum(axis=1, keepdims=True)
    return shares


def behavior_policy(version: str) -> StorefrontPolicy:
    """The policy of the logs' `storefront-v1` or `storefront-v2`.

    A softmax of hand-made scores by phase of the dialogue, item on the table, segment and last strategy,
    mixed with 14 % of uniform choice. It does not read what the customer says.
    """
    scores = _behavior_scores(version)

    def probabilities(batch: DecisionBatch) -> Float2D:
        phase = np.minimum(batch.turn // 2, 3).astype(np.intp)
        has_item = batch.eligible[:, STRATEGY_IDS[REFERRING[0]]].astype(np.intp)
        weights = scores[batch.segment, phase, has_item, batch.last_strategy]
        weights = weights * batch.eligible
        weights /= weights.sum(axis=1, keepdims=True)
        mixed: Float2D = (1 - _UNIFORM_SHARE) * weights + _UNIFORM_SHARE * uniform_policy(batch)
        return mixed

    return probabilities


@cache
def _behavior_scores(version: str) -> NDArray[np.float64]:
    """(segment, phase, has item, last strategy, A) exponentiated scores; last strategy -1 is 'none yet'."""
    if version not in POLICY_VERSIONS:
        raise DataError(f"No storefront policy is called {version!r}. Choose one of {', '.join(POLICY_VERSIONS)}.")
    number = POLICY_VERSIONS.index(version)
    temperature = (0.65, 0.55)[number]
    opening = by_strategy(
        no_strategy=1.2, offer_help=1.2, opinion_inquiry=0.9, experience_inquiry=0.9, acknowledgment=0.3
    )
    middle = by_strategy(
        opinion_inquiry=0.7,
        experience_inquiry=0.5,
        offer_help=1.0,
        personal_opinion=1.0,
        preference_confirmation=0.3,
        similarity=0.3,
        credibility=0.8,
        rephrase_preference=0.2,
        personal_experience=0.2,
    )
    late = by_strategy(
        personal_opinion=0.8,
        credibility=1.0,
        encouragement=1.2,
        self_modeling=0.4,
        personal_experience=0.5,
        offer_help=0.6,
        no_strategy=0.3,
    )
    if number == 1:
        opening = opening + by_strategy(opinion_inquiry=0.4, no_strategy=-0.6)
        late = late + by_strategy(self_modeling=0.3, encouragement=-0.3)
    table = np.zeros((len(SEGMENTS), 4, 2, N_STRATEGIES + 1, N_STRATEGIES))
    table += np.stack([opening, middle, (middle + late) / 2, late])[:, None, None, :]
    table[:, :, 1] += by_strategy(credibility=0.5, encouragement=0.4, offer_help=-0.5, personal_opinion=-0.2)
    table[1] += by_strategy(credibility=0.3)
    table[2] += by_strategy(personal_opinion=0.3)
    last = np.arange(N_STRATEGIES)
    table[:, :, :, last, last] -= 0.6
    return np.exp(table / temperature)


def informed_policy(batch: DecisionBatch) -> Float2D:
    """A good policy made by hand from what the customer says; greedy.

    Learns the wish first, answers questions in kind, picks facts or stories by the tone, encourages the
    interested, cheers up the bored.
    """
    table = utterance_table()
    said = np.where(batch.utterances >= 0, batch.utterances, 0)[:, ::2]
    spoken = batch.utterances[:, ::2] >= 0
    act = np.where(spoken, table.act[said], -1)
    known = np.isin(act, (CustomerAct.STATE_CATEGORY, CustomerAct.STATE_ATTRIBUTE, CustomerAct.STATE_BUDGET)).sum(1)
    personal = (spoken * (2 * table.tone[said] - 1)).sum(1)
    personal = personal + 2 * (act == CustomerAct.ASK_PERSONAL).sum(1) - 2 * (act == CustomerAct.ASK_FACTS).sum(1)
    scores = np.zeros((len(batch), N_STRATEGIES))
    for strategy, bonus in _informed_scores(batch, known, personal > 0).items():
        scores[:, STRATEGY_IDS[strategy]] = bonus
    uses = (batch.strategies[:, :, None] == np.arange(N_STRATEGIES)).sum(axis=1)
    scores = scores - 2.0 * uses - 1.0 * (np.arange(N_STRATEGIES) == batch.last_strategy[:, None])
    scores[~batch.eligible] = -np.inf
    chosen: Float2D = np.eye(N_STRATEGIES)[scores.argmax(axis=1)]
    return chosen


def _informed_scores(batch: DecisionBatch, known: NDArray[Any], is_personal: NDArray[Any]) -> dict[str, NDArray[Any]]:
    last = batch.last_act
    asks_facts, asks_personal = last == CustomerAct.ASK_FACTS, last == CustomerAct.ASK_PERSONAL
    interested, bored = last == CustomerAct.INTERESTED, last == CustomerAct.BORED
    item = batch.eligible[:, STRATEGY_IDS["credibility"]]
    pitched = np.isin(batch.strategies, [STRATEGY_IDS["offer_help"], STRATEGY_IDS["personal_opinion"]]).sum(1)
    ready = (known >= 3) | (batch.turn >= 5)
    return {
        "opinion_inquiry": 5.0 * (known < 3),
        "experience_inquiry": 4.5 * (known < 3),
        "preference_confirmation": 4.0 * (known < 3),
        "offer_help": 6.0 * (ready & (pitched == 0)) + 2.0 * ready,
        "personal_opinion": 5.0 * (ready & (pitched == 0)) + 2.0 * ready + 8.0 * asks_personal * is_personal,
        "credibility": 12.0 * asks_facts + 4.5 * (item & ready & ~is_personal) + 2.0 * item,
        "self_modeling": 12.0 * asks_personal + 4.5 * (item & ready & is_personal),
        "personal_experience": 11.0 * asks_personal + 4.0 * (item & ready & is_personal),
        "similarity": 2.5 + 2.5 * is_personal,
        "encouragement": 5.0 * interested * (batch.turn >= 5),
        "acknowledgment": 1.5 + 3.0 * bored,
    }
