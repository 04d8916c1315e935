"""Which episodes judge policies and never train them.

Here: the stable split by customer. Not here: folds of the behavior model, bootstrap resamples.

The warehouse leaves the same customers out of the private aggregates (macro `is_held_out`), so the rule is one that
SQL has too; a test holds the two against each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from rl.types import Bool1D

_HEX_DIGITS, _N_POSITIONS = 8, 2**32


def validation_members(keys: Iterable[str], share: float) -> Bool1D:
    """Whether each key (a customer, or a dialogue without one) belongs to the held-out part.

    Depends on the key alone, so that a customer stays on one side in every night's data set. `share` is the
    expected share of keys held out, in (0, 1).
    """
    return np.array([_position(key) < share for key in keys], dtype=bool)


def _position(key: str) -> float:
    """Where the key stands in [0, 1): the first digits of SHA-256 over a prefix of this split's own and the key."""
    digest = hashlib.sha256(f"validation|{key}".encode()).hexdigest()
    return float(int(digest[:_HEX_DIGITS], 16) / _N_POSITIONS)
