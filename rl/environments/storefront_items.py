"""What the storefront sells and what its agents may do: items on an attribute grid, and strategies.

Here: fixed tables, the same in every run. Not here: customers (`storefront_customers`), words
(`storefront_texts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rl.catalogue import ActionCatalogue, read_catalogue

STRATEGIES = (
    "acknowledgment",
    "credibility",
    "encouragement",
    "experience_inquiry",
    "no_strategy",
    "offer_help",
    "opinion_inquiry",
    "personal_experience",
    "personal_opinion",
    "preference_confirmation",
    "rephrase_preference",
    "self_modeling",
    "similarity",
)
"""The INSPIRED labels by id; transparency is part of offer_help, as in its authors' own preprocessing."""

N_STRATEGIES = len(STRATEGIES)
STRATEGY_IDS = {name: i for i, name in enumerate(STRATEGIES)}
INTRODUCING = ("offer_help", "personal_opinion")
"""Strategies that put an item on the table; the item picker chooses which."""
REFERRING = ("credibility", "encouragement", "personal_experience", "self_modeling")
"""Strategies that speak about the item on the table; without one they are not eligible."""
CONFIRMING = ("preference_confirmation", "rephrase_preference")
"""Strategies that repeat a preference; not eligible before the customer has stated one."""

SEGMENTS = ("bargain_hunter", "enthusiast", "gift_buyer")
SEGMENT_SHARES = (0.45, 0.30, 0.25)

CATEGORIES = (
    "headphones",
    "running shoes",
    "backpacks",
    "desk lamps",
    "coffee makers",
    "rain jackets",
    "board games",
    "kitchen knives",
)
ATTRIBUTES = (
    ("wireless", "noise-cancelling", "foldable", "studio-grade", "sweat-proof", "long-lasting"),
    ("cushioned", "lightweight", "wide-fit", "trail-ready", "breathable", "reflective"),
    ("waterproof", "roomy", "ultralight", "anti-theft", "recycled", "padded"),
    ("dimmable", "adjustable", "compact", "warm-light", "wooden", "cordless"),
    ("quiet", "programmable", "easy-to-clean", "compact", "insulated", "glass"),
    ("packable", "breathable", "lined", "windproof", "long-cut", "recycled"),
    ("cooperative", "quick-to-learn", "two-player", "strategic", "travel-sized", "family-friendly"),
    ("forged", "lightweight", "dishwasher-safe", "serrated", "hand-polished", "non-slip"),
)
N_ATTRIBUTES = 6
N_TIERS = 5
_BRANDS = ("Kesto", "Norvik", "Halden", "Brightmere", "Aurelle")
_MODELS = (
    ("Lark", "Hush", "Fold", "Monitor", "Sprint", "Marathon"),
    ("Cloud", "Feather", "Broadway", "Ridge", "Breeze", "Beacon"),
    ("Harbour", "Trunk", "Wisp", "Vault", "Loop", "Nest"),
    ("Dusk", "Crane", "Pebble", "Ember", "Birch", "Firefly"),
    ("Whisper", "Timer", "Rinse", "Cube", "Thermo", "Crystal"),
    ("Pocket", "Gill", "Fleece", "Bulwark", "Drover", "Cycle"),
    ("Lighthouse", "Breakfast", "Duel", "Citadel", "Caravan", "Sunday"),
    ("Anvil", "Swallow", "Tide", "Saw", "Mirror", "Anchor"),
)
_BASE_PRICES = (70, 85, 60, 40, 65, 80, 35, 50)
_TIER_FACTORS = (0.6, 0.8, 1.0, 1.35, 1.8)


@dataclass(frozen=True)
class Item:
    """One product. `tier` is its price class in its category, 0 cheapest to 4."""

    item_id: str
    name: str
    category: str
    attribute: str
    tier: int
    price_eur: float

    @property
    def text(self) -> str:
        """One line of product text."""
        return f"{self.name}: {self.attribute} {self.category}, {self.price_eur:.2f} EUR."


@cache
def storefront_items() -> tuple[Item, ...]:
    """All 240 items; the position is category * 30 + attribute * 5 + tier."""
    return tuple(
        Item(
            item_id=f"item-{category * 30 + attribute * 5 + tier:03d}",
            name=f"{_BRANDS[tier]} {_MODELS[category][attribute]}",
            category=CATEGORIES[category],
            attribute=ATTRIBUTES[category][attribute],
            tier=tier,
            price_eur=round(_BASE_PRICES[category] * _TIER_FACTORS[tier] * (0.94 + 0.024 * attribute)) - 0.05,
        )
        for category in range(len(CATEGORIES))
        for attribute in range(N_ATTRIBUTES)
        for tier in range(N_TIERS)
    )


@cache
def item_prices() -> NDArray[np.float64]:
    """(240,) price of each item in EUR."""
    return np.array([item.price_eur for item in storefront_items()])


def strategy_flags(names: tuple[str, ...]) -> NDArray[np.bool_]:
    """(A,) true for the named strategies."""
    return np.isin(np.array(STRATEGIES), names)


def by_strategy(**values: float) -> NDArray[np.float32]:
    """(A,) the given values by strategy name, 0 elsewhere."""
    table = np.zeros(N_STRATEGIES, dtype=np.float32)
    for name, value in values.items():
        table[STRATEGY_IDS[name]] = value
    return table


def read_storefront_catalogue() -> ActionCatalogue:
    """The storefront's action catalogue, as shipped beside this file; ids equal positions in `STRATEGIES`."""
    return read_catalogue(Path(__file__).with_name("storefront_strategies.csv"))
