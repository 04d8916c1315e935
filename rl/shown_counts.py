"""Counts of people and their dialogues as a page, a log or a summary may show them.

Here: the one floor under which such a count is not shown. Not here: noise (`registry.privacy`): a count of 20 or more
that passes here is exact, and stays in the restricted zone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MINIMUM_SHOWN = 20
"""Smallest count of customers, dialogues or steps that is shown; 0 is shown too, for it is about nobody."""

NOT_SHOWN = f"< {MINIMUM_SHOWN}"


def shown_count(n: int) -> int | None:
    """The count, or None where it is about fewer than 20."""
    return n if n == 0 or n >= MINIMUM_SHOWN else None


def count_text(n: int | None) -> str:
    """The count in words of a page; of a small one (None from `shown_count`, or the count itself) only that it is."""
    known = None if n is None else shown_count(n)
    return NOT_SHOWN if known is None else f"{known:,}"


def without_small(values: Mapping[str, Any]) -> dict[str, Any]:
    """Named values without the counts that are not shown, in mappings inside too; what is no whole number stays."""
    shown: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            shown[name] = without_small(value)
        elif isinstance(value, bool) or not isinstance(value, int) or shown_count(value) is not None:
            shown[name] = value
    return shown
