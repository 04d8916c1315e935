"""The words of the storefront: a finite table of utterances, each with what it reveals.

Here: templates, their expansion, and lookup by id. Not here: who says what when (`storefront_customers`).

The table is finite on purpose: an encoder encodes each distinct text once, and a rollout only looks vectors
up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

from rl.environments.storefront_items import (
    ATTRIBUTES,
    CATEGORIES,
    CONFIRMING,
    INTRODUCING,
    N_ATTRIBUTES,
    N_TIERS,
    REFERRING,
    STRATEGIES,
    storefront_items,
)


class CustomerAct(IntEnum):
    """What a customer utterance does. The last four close a dialogue."""

    GREET = 0
    STATE_CATEGORY = 1
    STATE_ATTRIBUTE = 2
    STATE_BUDGET = 3
    INTERESTED = 4
    NEUTRAL = 5
    BORED = 6
    ASK_FACTS = 7
    ASK_PERSONAL = 8
    BUY = 9
    THINK_IT_OVER = 10
    REJECT = 11


# Two tones for each act: matter-of-fact and chatty. Customers who decide on facts mostly use the first.
_CUSTOMER_TEMPLATES: dict[CustomerAct, tuple[tuple[str, ...], tuple[str, ...]]] = {
    CustomerAct.GREET: (
        (
            "Hello, I need some advice.",
            "Good day. What do you have at the moment?",
            "Hi, I want to compare a few products.",
        ),
        (
            "Hi there! Just having a little look around.",
            "Hello hello, how are you today?",
            "Hey! Nice shop you have here.",
        ),
    ),
    CustomerAct.STATE_CATEGORY: (
        ("I need {category}.", "I am comparing {category}.", "The product I require: {category}."),
        (
            "I'd love some new {category}!",
            "I've been dreaming of {category} for ages.",
            "My friends all talk about {category}, so now I want some too.",
        ),
    ),
    CustomerAct.STATE_ATTRIBUTE: (
        (
            "They must be {attribute}.",
            "My main criterion: {attribute}.",
            "According to the tests, {attribute} is what counts.",
        ),
        (
            "Something {attribute} would make me so happy.",
            "I just love everything {attribute}, you know?",
            "My sister has {attribute} ones and adores them.",
        ),
    ),
    CustomerAct.STATE_BUDGET: (
        ("My limit is {budget}.", "The price should be {budget}.", "Specifically, I calculated {budget}."),
        (
            "I was hoping for {budget}, if that's alright.",
            "My other half says {budget}, haha.",
            "Something like {budget} would feel good.",
        ),
    ),
    CustomerAct.INTERESTED: (
        (
            "That data looks convincing.",
            "Good specification for {category}, please go on.",
            "This meets my requirements rather well.",
        ),
        (
            "Oh, I really like that!",
            "Wow, those {category} sound lovely!",
            "That makes me smile, tell me more!",
        ),
    ),
    CustomerAct.NEUTRAL: (
        ("Noted.", "I see.", "Understood, what else?"),
        ("Hm, okay then.", "Alright, maybe.", "Mm, could be."),
    ),
    CustomerAct.BORED: (
        ("This is not efficient.", "You are repeating yourself.", "I do not have much time for this."),
        ("Sorry, I'm drifting off a bit.", "Hmm, whatever.", "This is dragging on a little, isn't it?"),
    ),
    CustomerAct.ASK_FACTS: (
        (
            "What is the exact specification of these {category}?",
            "How long is the guarantee?",
            "Which material is it made of?",
            "Are there test results?",
        ),
        (
            "Is it really any good, I mean the quality?",
            "Could you tell me what it's made of?",
            "And will these {category} last a while?",
            "So what can it do?",
        ),
    ),
    CustomerAct.ASK_PERSONAL: (
        ("Have you used it yourself?", "Which one would you choose?", "What is your own rating of it?"),
        ("Would you buy it for yourself?", "Do you have one at home?", "What would you do in my place?"),
    ),
    CustomerAct.BUY: (
        ("I will take it.", "Please place the order.", "Decision made, I buy it."),
        (
            "Yes, I'll have it, thank you so much!",
            "Sold! I'm so happy with these {category}.",
            "You convinced me, I want it!",
        ),
    ),
    CustomerAct.THINK_IT_OVER: (
        ("I will consider it.", "I have to check this first.", "I will compare and come back."),
        ("Let me sleep on it.", "I'll ask at home first, okay?", "I need to think a little, bye for now!"),
    ),
    CustomerAct.REJECT: (
        ("No, this does not meet my needs.", "Not at that price.", "I decline, thank you."),
        ("Thanks, but it's not for me.", "I'm afraid I don't love it.", "No, sorry, bye!"),
    ),
}

_AGENT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "acknowledgment": ("Great, thank you!", "I understand, thanks for telling me.", "Lovely, good to know."),
    "credibility": (
        "The {item} has a three-year guarantee and came first in its class for being {attribute}.",
        "Facts on the {item}: {attribute}, independently tested, {price} EUR.",
        "The makers of the {item} publish all test results; it is the most {attribute} of our {category}.",
    ),
    "encouragement": (
        "You have good taste; go for the {item}!",
        "The {item} would suit you perfectly, give it a try.",
        "With the {item} you cannot go wrong, I would not wait.",
    ),
    "experience_inquiry": (
        "What have you been using so far?",
        "Have you had {category} before, and how did that go?",
        "What did you like about the last one you bought?",
    ),
    "no_strategy": (
        "Busy day today in the shop.",
        "Just a moment, please.",
        "The weather is quite something this week.",
    ),
    "offer_help": (
        "I can help: may I show you the {item} for {price} EUR?",
        "Let me suggest something: the {item}, {attribute} {category}.",
        "Happy to help! How about the {item}?",
    ),
    "opinion_inquiry": (
        "What matters most to you in {category}?",
        "What do you think of the newer {category}?",
        "Which properties would you not do without?",
    ),
    "personal_experience": (
        "I took the {item} along on a trip, and it held up well.",
        "When I first tried the {item} I was surprised how {attribute} it felt.",
        "A while ago I used the {item} every day for a month.",
    ),
    "personal_opinion": (
        "In my opinion the {item} is the one to look at.",
        "I think the {item} is the nicest of our {category}.",
        "If you ask me, nothing is as {attribute} as the {item}.",
    ),
    "preference_confirmation": (
        "So you are looking for {wish}, is that right?",
        "Did I get it right: {wish}?",
        "Just to be sure, {wish} and nothing else?",
    ),
    "rephrase_preference": (
        "In other words, {wish} would be ideal.",
        "So what you have in mind is {wish}.",
        "I hear you: {wish}.",
    ),
    "self_modeling": (
        "I bought the {item} myself and would again.",
        "The {item} is what I ordered for my own home.",
        "I gave my old one away and switched to the {item}.",
    ),
    "similarity": (
        "I feel just the same about {category}.",
        "We have the same taste, it seems!",
        "I am exactly like you in this.",
    ),
}

_BUDGETS = (
    "the lowest price you have",
    "below the average",
    "a mid-range price",
    "upper mid-range",
    "the best, at any price",
)
N_VARIANTS = 4
"""Utterances of each kind in the table; kinds with fewer templates repeat one."""


@dataclass(frozen=True)
class UtteranceTable:
    """Every utterance that can occur. All arrays are by utterance id.

    `texts`: the utterances. `strategy`: the agent's strategy id, -1 for customers. `act`: the CustomerAct, -1
    for agents. `tone`: 0 matter-of-fact, 1 chatty, -1 for agents.
    """

    texts: tuple[str, ...]
    strategy: NDArray[np.int16]
    act: NDArray[np.int16]
    tone: NDArray[np.int16]
    agent_start: NDArray[np.int32]
    agent_slots: NDArray[np.int32]
    customer_start: NDArray[np.int32]
    customer_slots: NDArray[np.int32]


def customer_slot_kind(act: CustomerAct) -> str:
    """Which detail the utterances of an act carry: category, attribute or budget."""
    return {CustomerAct.STATE_ATTRIBUTE: "attribute", CustomerAct.STATE_BUDGET: "budget"}.get(act, "category")


def agent_slot_kind(strategy: str) -> str:
    """Which detail the utterances of a strategy carry: item, wish or topic (a category)."""
    if strategy in INTRODUCING or strategy in REFERRING:
        return "item"
    return "wish" if strategy in CONFIRMING else "topic"


@cache
def utterance_table() -> UtteranceTable:
    """Expand all templates; the order, and so the ids, are fixed."""
    texts: list[str] = []
    marks: list[tuple[int, int, int]] = []
    agent_start, agent_slots, customer_start, customer_slots = [], [], [], []
    for number, strategy in enumerate(STRATEGIES):
        block = _expand(_AGENT_TEMPLATES[strategy], _fillings(agent_slot_kind(strategy)))
        agent_start.append(len(texts))
        agent_slots.append(len(block) // N_VARIANTS)
        texts += block
        marks += [(number, -1, -1)] * len(block)
    for act in CustomerAct:
        customer_start.append(len(texts))
        for tone in (0, 1):
            block = _expand(_CUSTOMER_TEMPLATES[act][tone], _fillings(customer_slot_kind(act)))
            texts += block
            marks += [(-1, int(act), tone)] * len(block)
        customer_slots.append(len(block) // N_VARIANTS)
    strategies, acts, tones = np.array(marks, dtype=np.int16).T.copy()
    starts = [np.array(a, dtype=np.int32) for a in (agent_start, agent_slots, customer_start, customer_slots)]
    return UtteranceTable(tuple(texts), strategies, acts, tones, *starts)


def agent_utterances(
    table: UtteranceTable, strategies: NDArray[np.intp], variants: NDArray[np.intp], slots: NDArray[np.intp]
) -> NDArray[np.int32]:
    """(B,) utterance ids for strategies, variants in [0, N_VARIANTS) and slots of the strategy's kind."""
    found = table.agent_start[strategies] + variants * table.agent_slots[strategies] + slots
    return found.astype(np.int32, copy=False)


def customer_utterances(
    table: UtteranceTable,
    acts: NDArray[np.intp],
    tones: NDArray[np.intp],
    variants: NDArray[np.intp],
    slots: NDArray[np.intp],
) -> NDArray[np.int32]:
    """(B,) ids of customer utterances for acts, tones, variants and slots of the act's kind."""
    found = table.customer_start[acts] + (tones * N_VARIANTS + variants) * table.customer_slots[acts] + slots
    return found.astype(np.int32, copy=False)


def _expand(templates: Sequence[str], fillings: list[dict[str, str]]) -> list[str]:
    """N_VARIANTS * S texts, variant-major."""
    return [
        templates[variant % len(templates)].format(**filling) for variant in range(N_VARIANTS) for filling in fillings
    ]


def _fillings(kind: str) -> list[dict[str, str]]:
    if kind == "item":
        return [
            {"item": i.name, "attribute": i.attribute, "category": i.category, "price": f"{i.price_eur:.2f}"}
            for i in storefront_items()
        ]
    if kind == "wish":  # slot = category * 7 + (0 or attribute + 1)
        return [
            {"wish": f"{attribute}{category}"}
            for number, category in enumerate(CATEGORIES)
            for attribute in ("", *(f"{name} " for name in ATTRIBUTES[number]))
        ]
    if kind == "attribute":  # slot = category * 6 + attribute
        return [{"attribute": ATTRIBUTES[c][a]} for c in range(len(CATEGORIES)) for a in range(N_ATTRIBUTES)]
    if kind == "budget":
        return [{"budget": _BUDGETS[tier]} for tier in range(N_TIERS)]
    unknown = "products" if kind == "category" else "things like this"
    return [{"category": category} for category in (*CATEGORIES, unknown)]


UNKNOWN_CATEGORY = len(CATEGORIES)
"""Slot for 'the category is not known yet'."""
