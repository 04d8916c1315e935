"""Which episodes judge policies and never train them.

Here: the stable split by customer. Not here: folds of the behavior model, bootstrap resamples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from rl.types import Bool1D

_HASH_RANGE = float(2**64)


def validation_members(keys: Iterable[str], share: float) -> Bool1D:
    """Whether each key (a customer, or a dialogue without one) belongs to the held-out part.

    Depends on the key alone, so that a customer stays on one side in every night's data set. `share` is the
    expected share of keys held out, in (0, 1).
    """
    return np.array([_position(key) < share for key in keys], dtype=bool)


def _position(key: str) -> float:
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"validation").digest()
    return int.from_bytes(digest, "big") / _HASH_RANGE
