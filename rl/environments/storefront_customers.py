"""How storefront customers feel, answer, leave and buy: the known truth, in arrays over B dialogues.

Here: hidden state, its dynamics, the item picker. Not here: policies (`storefront_policies`), rollouts and
the Gymnasium interface (`storefront`).

In words: inquiry makes preferences known; a pitch works as well as the item matches them; facts work once
preferences are known; similarity builds trust and trust carries personal stories; a question that is answered
by the right kind of strategy raises interest, an ignored one costs it; repetition bores; bored customers
leave; encouragement helps those who are interested and puts off the others. Some customers decide on
facts, some on people, and only their tone and their questions tell which.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.environments.storefront_items import (
    CATEGORIES,
    CONFIRMING,
    INTRODUCING,
    N_ATTRIBUTES,
    N_STRATEGIES,
    N_TIERS,
    REFERRING,
    SEGMENT_SHARES,
    STRATEGIES,
    by_strategy,
    item_prices,
    strategy_flags,
)
from rl.environments.storefront_texts import (
    N_VARIANTS,
    UNKNOWN_CATEGORY,
    CustomerAct,
    agent_slot_kind,
    agent_utterances,
    customer_utterances,
    utterance_table,
)

TURN_LIMIT = 12
"""Agent turns after which the dialogue is ended; the customer still decides."""
N_CANDIDATES = 5
"""Items that the picker chooses from."""
MAX_UTTERANCES = 2 * TURN_LIMIT + 1
"""The opening, then agent and customer in turns."""

Rows = NDArray[Any]


@dataclass
class Dialogues:
    """State of B running dialogues, one array entry each. Hidden from policies: `taste` to `boredom`."""

    segment: Rows
    taste: Rows  # 0 decides on facts, 1 on people
    category: Rows
    attribute: Rows
    tier: Rows
    interest: Rows  # these four in [0, 1]
    trust: Rows
    boredom: Rows
    match: Rows  # of the item on the table with the preferences
    question: Rows  # open question: 0 none, 1 for facts, 2 personal
    known: Rows  # preferences stated so far: 1 category, 2 attribute, 3 budget
    item: Rows  # on the table, -1 for none
    turn: Rows  # agent turns taken
    uses: Rows  # (B, A) times each strategy was used
    strategies: Rows  # (B, TURN_LIMIT) strategies taken, -1 where not yet
    utterances: Rows  # (B, MAX_UTTERANCES) utterance ids, -1 where not yet

    def __len__(self) -> int:
        return len(self.segment)

    def select(self, rows: Rows) -> Dialogues:
        """The chosen dialogues, copied."""
        return Dialogues(*(getattr(self, f.name)[rows] for f in fields(self)))

    def replace(self, rows: Rows, fresh: Dialogues) -> None:
        """Put `fresh` dialogues into `rows`, in place."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(fresh, field.name)

    @property
    def last_strategy(self) -> Rows:
        """(B,) the agent's last strategy, -1 before the first."""
        found = self.strategies[np.arange(len(self)), np.maximum(self.turn - 1, 0)]
        return np.where(self.turn > 0, found, -1)

    def eligible(self) -> NDArray[np.bool_]:
        """(B, A) what the agent may do now; no_strategy always may."""
        return _ELIGIBLE[(self.known > 0).astype(np.intp), (self.item >= 0).astype(np.intp)]


@dataclass(frozen=True)
class Picks:
    """The item picker's work in B turns: candidates (B, 5) and propensity (B,), -1 and NaN if unasked."""

    candidates: Rows
    propensity: Rows


@dataclass(frozen=True)
class Endings:
    """What one turn led to, for B dialogues.

    `ended`: the dialogue is over. `expected_value`: P(buy) * price in EUR where it ended, else 0. `value`:
    the price where the customer buys, else 0. `closing`: the closing act, -1 where there is none (left
    without a word, or not ended). `picks`: of the item picker.
    """

    ended: Rows
    expected_value: Rows
    value: Rows
    closing: Rows
    picks: Picks


def _eligible_table() -> NDArray[np.bool_]:
    """(2, 2, A) by whether a preference is known, whether an item is on the table."""
    table = np.ones((2, 2, N_STRATEGIES), dtype=bool)
    table[0][:, strategy_flags(CONFIRMING)] = False
    table[:, 0][:, strategy_flags(REFERRING)] = False
    return table


_ELIGIBLE = _eligible_table()
_INTRODUCES = strategy_flags(INTRODUCING)
_INQUIRES = strategy_flags(("opinion_inquiry", "experience_inquiry", *CONFIRMING))

# How much each strategy suits customers who decide on facts and on people, and the three segments.
_SUITS_TASTE = np.ones((2, N_STRATEGIES), dtype=np.float32)
_SUITS_TASTE[0] += by_strategy(
    credibility=0.6,
    similarity=-0.6,
    personal_experience=-0.6,
    self_modeling=-0.6,
    personal_opinion=-0.3,
    offer_help=0.2,
)
_SUITS_TASTE[1] += by_strategy(
    credibility=-0.6,
    similarity=0.5,
    personal_experience=0.6,
    self_modeling=0.6,
    personal_opinion=0.3,
    offer_help=-0.1,
)
_SUITS_SEGMENT = np.ones((3, N_STRATEGIES), dtype=np.float32)
_SUITS_SEGMENT[0] += by_strategy(encouragement=-0.4, credibility=0.1, preference_confirmation=0.4)
_SUITS_SEGMENT[1] += by_strategy(credibility=0.3, experience_inquiry=0.4, no_strategy=-0.5)
_SUITS_SEGMENT[2] += by_strategy(personal_opinion=0.3, self_modeling=0.2, encouragement=0.3)
_SHARE_DECIDING_ON_PEOPLE = np.array([0.45, 0.35, 0.70])

_REVEALS = by_strategy(
    opinion_inquiry=0.80,
    experience_inquiry=0.65,
    preference_confirmation=0.55,
    rephrase_preference=0.25,
    offer_help=0.15,
    no_strategy=0.05,
    similarity=0.10,
)
_NOVELTY = np.array([1.0, 0.5, 0.2, 0.05] + [0.0] * TURN_LIMIT, dtype=np.float32)  # by earlier uses
_INTEREST = by_strategy(opinion_inquiry=0.03, experience_inquiry=0.03, preference_confirmation=0.05, similarity=0.02)
_INTEREST_BY_FACTS = by_strategy(credibility=0.42)
_INTEREST_BY_PITCH = by_strategy(offer_help=0.45, personal_opinion=0.40)
_INTEREST_BY_TRUST = by_strategy(self_modeling=0.60, personal_experience=0.40)
_INTEREST_BY_PUSH = by_strategy(encouragement=0.55)
_PUSH_POINT = 0.5  # encouragement below this interest puts off
_TRUST = by_strategy(
    similarity=0.26,
    personal_experience=0.08,
    self_modeling=0.08,
    preference_confirmation=0.10,
    rephrase_preference=0.10,
    acknowledgment=0.07,
    experience_inquiry=0.05,
    no_strategy=0.02,
)
_BOREDOM = by_strategy(
    no_strategy=0.12,
    acknowledgment=-0.12,
    rephrase_preference=0.06,
    preference_confirmation=0.03,
    experience_inquiry=0.04,
    opinion_inquiry=0.03,
    encouragement=0.05,
    similarity=0.02,
)
_ANSWERS = by_strategy(credibility=1, self_modeling=2, personal_experience=2, personal_opinion=2).astype(np.int8)
_FACTS_WHEN_KNOWN = np.array([0.1, 0.35, 0.9, 1.0], dtype=np.float32)

_ITEM_SLOT = np.array([agent_slot_kind(name) == "item" for name in STRATEGIES])
_WISH_SLOT = np.array([agent_slot_kind(name) == "wish" for name in STRATEGIES])
_TIER_BY_SEGMENT = np.array([[0.4, 0.35, 0.2, 0.05, 0.0], [0.0, 0.1, 0.3, 0.35, 0.25], [0.1, 0.25, 0.35, 0.2, 0.1]])


def _sample(shares: Rows, uniform: Rows) -> Rows:
    """Categories from cumulative shares: one row of `shares` for all, or one each."""
    found: Rows = (uniform[:, None] >= np.cumsum(shares, axis=-1)[..., :-1]).sum(axis=1)
    return found


def start_dialogues(n: int, rng: np.random.Generator, segment: Rows | None = None) -> Dialogues:
    """New dialogues after the customer's opening. Segments are drawn by their shares unless given."""
    u = rng.random((8, n), dtype=np.float32)
    if segment is None:
        segment = _sample(np.array(SEGMENT_SHARES), u[0])
    taste = (u[1] < _SHARE_DECIDING_ON_PEOPLE[segment]).astype(np.int8)
    category = (u[2] * len(CATEGORIES)).astype(np.intp)
    known = (u[3] < 0.45).astype(np.int8)
    opening = np.where(known > 0, CustomerAct.STATE_CATEGORY, CustomerAct.GREET)
    utterances = np.full((n, MAX_UTTERANCES), -1, dtype=np.int32)
    slots = np.where(known > 0, category, UNKNOWN_CATEGORY)
    utterances[:, 0] = customer_utterances(utterance_table(), opening, _tones(taste, u[4]), _variants(u[5]), slots)
    return Dialogues(
        segment=segment.astype(np.int8),
        taste=taste,
        category=category,
        attribute=rng.integers(N_ATTRIBUTES, size=n),
        tier=_sample(_TIER_BY_SEGMENT[segment], u[6]),
        interest=0.15 + 0.2 * u[7],
        trust=0.1 + 0.15 * rng.random(n, dtype=np.float32),
        boredom=np.zeros(n, dtype=np.float32),
        match=np.zeros(n, dtype=np.float32),
        question=np.zeros(n, dtype=np.int8),
        known=known,
        item=np.full(n, -1, dtype=np.int16),
        turn=np.zeros(n, dtype=np.int8),
        uses=np.zeros((n, N_STRATEGIES), dtype=np.int8),
        strategies=np.full((n, TURN_LIMIT), -1, dtype=np.int8),
        utterances=utterances,
    )


def take_turns(dialogues: Dialogues, actions: Rows, rng: np.random.Generator) -> Endings:
    """Let the agent take one turn in each dialogue, and the customer answer; changes `dialogues` in place.

    `actions` (B,) strategy ids; the caller keeps to `eligible`. Deterministic in the state of `rng`.
    """
    u = rng.random((10, len(dialogues)), dtype=np.float32)
    repeated = actions == dialogues.last_strategy
    picks = _pick_items(dialogues, actions, rng)
    _say(dialogues, actions, u[0])
    revealed = u[1] < _REVEALS[actions] * (dialogues.known < 3)
    _feel(dialogues, actions, repeated)
    dialogues.known += revealed
    dialogues.turn += 1
    ended = (u[2] < _hazard(dialogues)) | (dialogues.turn >= TURN_LIMIT)
    probability = np.where(ended, purchase_probability(dialogues), 0)
    prices = item_prices()[dialogues.item]
    bought = u[3] < probability
    acts = _answer(dialogues, revealed, u[4], u[5])
    closing = _close(bought, u[6])
    acts = np.where(ended, closing, acts)
    _reply(dialogues, acts, u[7], u[8])
    return Endings(ended, probability * prices, np.where(bought, prices, 0.0), np.where(ended, acts, -1), picks)


def purchase_probability(dialogues: Dialogues) -> Rows:
    """(B,) probability that the customer buys if the dialogue ends now; 0 without an item on the table."""
    readiness = 3.0 * dialogues.interest + 1.5 * dialogues.match + 0.8 * dialogues.trust - 1.2 * dialogues.boredom
    return np.where(dialogues.item >= 0, 1 / (1 + np.exp(3.4 - readiness)), 0)


def _pick_items(dialogues: Dialogues, actions: Rows, rng: np.random.Generator) -> Picks:
    """The fixed logged item picker: five candidates by what is known, then a softmax by price rank."""
    candidates = np.full((len(dialogues), N_CANDIDATES), -1, dtype=np.int16)
    propensity = np.full(len(dialogues), np.nan)
    rows = np.flatnonzero(_INTRODUCES[actions])
    if rows.size:
        found = _retrieve(dialogues, rows, rng)
        scores = np.exp(0.25 * (found % N_TIERS))  # the shop likes to sell the dearer ones
        probabilities = scores / scores.sum(axis=1, keepdims=True)
        chosen = _sample(probabilities, rng.random(rows.size))
        candidates[rows] = found
        picked = np.arange(rows.size), chosen
        propensity[rows] = probabilities[picked]
        dialogues.item[rows] = found[picked]
        dialogues.match[rows] = _match(dialogues, rows)
    return Picks(candidates, propensity)


def _retrieve(dialogues: Dialogues, rows: Rows, rng: np.random.Generator) -> Rows:
    """(n, 5) items; each property is the customer's with a probability that is high once it is known."""
    known = dialogues.known[rows, None]
    hit = rng.random((3, rows.size, N_CANDIDATES), dtype=np.float32)
    other = rng.random((3, rows.size, N_CANDIDATES), dtype=np.float32)
    category = np.where(
        hit[0] < np.where(known > 0, 1.0, 0.3), dialogues.category[rows, None], other[0] * len(CATEGORIES)
    )
    attribute = np.where(
        hit[1] < np.where(known > 1, 0.85, 0.1), dialogues.attribute[rows, None], other[1] * N_ATTRIBUTES
    )
    tier = np.where(hit[2] < np.where(known > 2, 0.8, 0.1), dialogues.tier[rows, None], other[2] * N_TIERS)
    return (
        (category.astype(np.int16) * N_ATTRIBUTES + attribute.astype(np.int16)) * N_TIERS + tier.astype(np.int16)
    ).astype(np.int16)


def _match(dialogues: Dialogues, rows: Rows) -> Rows:
    """(n,) in [0, 1]: how well the item on the table fits the hidden preferences."""
    item = dialogues.item[rows]
    category, attribute = item // (N_ATTRIBUTES * N_TIERS), item // N_TIERS % N_ATTRIBUTES
    distance = np.abs(item % N_TIERS - dialogues.tier[rows])
    fits = (
        0.3
        + 0.4 * (attribute == dialogues.attribute[rows])
        + 0.3 * np.array([1.0, 0.5, 0.0, 0.0, 0.0], dtype=np.float32)[distance]
    )
    match: Rows = fits * (category == dialogues.category[rows])
    return match


def _say(dialogues: Dialogues, actions: Rows, uniform: Rows) -> None:
    rows = np.arange(len(dialogues))
    known = dialogues.known
    category = np.where(known > 0, dialogues.category, UNKNOWN_CATEGORY)
    wish = dialogues.category * (N_ATTRIBUTES + 1) + np.where(known > 1, dialogues.attribute + 1, 0)
    slots = np.where(_ITEM_SLOT[actions], dialogues.item, np.where(_WISH_SLOT[actions], wish, category))
    said = agent_utterances(utterance_table(), actions, _variants(uniform), slots)
    dialogues.utterances[rows, 2 * dialogues.turn.astype(np.intp) + 1] = said
    dialogues.strategies[rows, dialogues.turn.astype(np.intp)] = actions


def _feel(dialogues: Dialogues, actions: Rows, repeated: Rows) -> None:
    """The agent's turn changes interest, trust and boredom."""
    rows = np.arange(len(dialogues))
    uses = dialogues.uses[rows, actions]
    dialogues.uses[rows, actions] += 1
    effect = _NOVELTY[uses] * _SUITS_TASTE[dialogues.taste, actions] * _SUITS_SEGMENT[dialogues.segment, actions]
    answer = _ANSWERS[actions]
    asked = dialogues.question > 0
    answered = asked & (answer == dialogues.question)
    ignored = asked & ~answered
    facts = _INTEREST_BY_FACTS[actions] * _FACTS_WHEN_KNOWN[dialogues.known] * dialogues.match
    pitch = _INTEREST_BY_PITCH[actions] * (dialogues.match - 0.45)
    stories = _INTEREST_BY_TRUST[actions] * dialogues.trust * dialogues.match
    push = _INTEREST_BY_PUSH[actions] * (dialogues.interest - _PUSH_POINT)
    dialogues.interest += effect * (_INTEREST[actions] + facts + pitch + stories + push)
    dialogues.interest += 0.16 * answered - 0.10 * ignored
    dialogues.trust += effect * _TRUST[actions] + 0.10 * answered - 0.05 * ignored
    too_early = _INTRODUCES[actions] & (dialogues.known == 0)
    nothing_left = _INQUIRES[actions] & (dialogues.known == 3)
    dialogues.boredom *= 0.85
    dialogues.boredom += _BOREDOM[actions] + 0.16 * repeated + 0.05 * uses
    dialogues.boredom += 0.10 * ignored + 0.15 * too_early + 0.12 * nothing_left
    for level in (dialogues.interest, dialogues.trust, dialogues.boredom):
        np.clip(level, 0, 1, out=level)


def _hazard(dialogues: Dialogues) -> Rows:
    """(B,) probability that the customer ends the dialogue now: bored, or ready to decide."""
    ready = (dialogues.item >= 0) / (1 + np.exp(10 * (0.75 - dialogues.interest)))
    hazard: Rows = 0.02 + 0.006 * dialogues.turn + 0.5 * dialogues.boredom**1.5 + 0.3 * ready
    return hazard


def _answer(dialogues: Dialogues, revealed: Rows, mood: Rows, asking: Rows) -> Rows:
    """(B,) the customer's act if the dialogue goes on; sets the open question."""
    acts = np.full(len(dialogues), CustomerAct.NEUTRAL, dtype=np.intp)
    acts[mood > 1.15 - 1.1 * dialogues.interest] = CustomerAct.INTERESTED
    acts[mood < 1.1 * dialogues.boredom] = CustomerAct.BORED
    asks = (dialogues.item >= 0) & ~revealed & (asking < 0.15 + 0.45 * dialogues.match)
    # The share of personal questions follows the taste, so that questions tell of it too.
    personal = np.modf(asking * 97.0)[0] < np.where(dialogues.taste == 1, 0.75, 0.25)
    acts = np.where(asks, np.where(personal, CustomerAct.ASK_PERSONAL, CustomerAct.ASK_FACTS), acts)
    acts = np.where(revealed, CustomerAct.GREET + dialogues.known, acts)
    dialogues.question = (asks * (1 + personal)).astype(np.int8)
    return acts


def _close(bought: Rows, uniform: Rows) -> Rows:
    """(B,) the closing act; -1 leaves without a word. A buyer who thinks it over buys hours or days later."""
    if_bought = np.where(uniform < 0.7, CustomerAct.BUY, CustomerAct.THINK_IT_OVER)
    if_not = np.select([uniform < 0.25, uniform < 0.6], [CustomerAct.THINK_IT_OVER, CustomerAct.REJECT], -1)
    return np.where(bought, if_bought, if_not)


def _reply(dialogues: Dialogues, acts: Rows, tone: Rows, variant: Rows) -> None:
    known = dialogues.known
    slots = np.where(known > 0, dialogues.category, UNKNOWN_CATEGORY)
    slots = np.where(
        acts == CustomerAct.STATE_ATTRIBUTE, dialogues.category * N_ATTRIBUTES + dialogues.attribute, slots
    )
    slots = np.where(acts == CustomerAct.STATE_BUDGET, dialogues.tier, slots)
    said = customer_utterances(utterance_table(), acts, _tones(dialogues.taste, tone), _variants(variant), slots)
    rows = np.arange(len(dialogues))
    dialogues.utterances[rows, 2 * dialogues.turn.astype(np.intp)] = np.where(acts >= 0, said, -1)


def _tones(taste: Rows, uniform: Rows) -> Rows:
    """Three in four utterances are in the customer's own tone."""
    return np.where(uniform < 0.75, taste, 1 - taste).astype(np.intp)


def _variants(uniform: Rows) -> Rows:
    return (uniform * N_VARIANTS).astype(np.intp)
