"""Which episodes judge policies and never train them, and which of the others choose between trained ones.

Here: the stable splits by customer, and the split by time. Not here: folds of the behavior model, bootstrap resamples.

The warehouse leaves the customers that `validation_members` holds out out of the private aggregates, too (macro
`is_held_out`), so the rule is one that SQL has; a test holds the two against each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from rl.errors import DataError
from rl.types import Bool1D, Float1D, Int1D

_DIGEST_BYTES, _N_POSITIONS = 4, 2**32


def validation_members(keys: Iterable[str], share: float) -> Bool1D:
    """Whether each key (a customer, or a dialogue without one) belongs to the held-out part.

    Depends on the key alone, so that a customer stays on one side in every night's data set. `share` is the
    expected share of keys held out, in (0, 1).
    """
    return np.asarray(_positions("validation", keys) < share)


def selection_positions(keys: Iterable[str]) -> Float1D:
    """Where each key stands in [0, 1). Below the share that is to choose checkpoints and settings, the key chooses.

    A hash of its own: of the customers that train, held out or not says nothing about this part.
    """
    return _positions("selection", keys)


def newest_members(started_at: Int1D, customers: Int1D, share: float) -> tuple[Bool1D, Bool1D]:
    """(E,) whether each episode judges, and (E,) whether it must be left out: the split by time.

    The newest `share` of the episodes judge (more, where several began at the same moment as the first of them), all
    of them and no others: their mean is what policies are worth now, to the customers who come now. Older episodes of
    the same customers are left out, because a customer must not be on both sides. Made judges too, they would weight
    the estimate towards customers who come often, and towards the past; kept for training instead, with their newest
    ones left out, only customers who are new would judge.

    `started_at` counts anything; `customers` are dense ids. Raises DataError if nothing is left to train on.
    """
    n_newest = max(1, round(share * len(started_at)))
    validation = started_at >= np.partition(started_at, -n_newest)[-n_newest]
    judges = np.zeros(int(customers.max()) + 1, dtype=bool)
    judges[customers[validation]] = True
    left_out = judges[customers] & ~validation
    if (validation | left_out).all():
        raise DataError(
            f"Split by time, {int(validation.sum())} of {len(validation)} dialogues judge and the rest is of the same "
            "customers: none is left to train on. Widen dataset.window_days, lower dataset.validation_share, or set "
            "dataset.split to customer."
        )
    return validation, left_out


def _positions(split: str, keys: Iterable[str]) -> Float1D:
    """Where the keys stand in [0, 1): the first bytes of SHA-256 over the split's name and the key."""
    of_split = hashlib.sha256(f"{split}|".encode())
    digests = []
    for key in keys:
        digest = of_split.copy()
        digest.update(key.encode())
        digests.append(digest.digest()[:_DIGEST_BYTES])
    return np.frombuffer(b"".join(digests), dtype=">u4") / _N_POSITIONS
