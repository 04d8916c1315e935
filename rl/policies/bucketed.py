"""A policy over aggregate buckets: what tables of a few coarse states can tell.

Here: from an observation to its bucket and turn, and the decision head on top. Not here: how the tables are learned
(`rl.trainers.aggregate_q`) or released (`registry.privacy`).

It reads the number of agent turns, the segment, the last strategy and the act of the last customer utterance from the
observation, and never its utterance vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.datasets.aggregates import ANY, NO_ACT, OTHER, START, Bucket
from rl.encoders.customer_replies import CUSTOMER_ACTS
from rl.errors import PolicyError
from rl.policies.networks import required_array
from rl.policies.regularized import tilted_probabilities
from rl.policies.storage import StoredPolicy
from rl.types import Bool2D, Float1D, Float2D, Int1D, Observations


@dataclass(frozen=True)
class ObservationParts:
    """Where an observation keeps what buckets are made of."""

    columns: Mapping[str, tuple[int, int]]
    """[start, stop) by feature, as `rl.encoders.dialogue.StateLayout.columns`."""
    segments: tuple[str, ...]
    """Names in the order of the columns; the column after them is for unknown ones."""
    strategies: tuple[str, ...]
    """Names by action id."""
    turn_limit: int
    observation_size: int

    def turns(self, state: Float2D) -> NDArray[np.int64]:
        """(B,) number of the agent turn to decide, counted from 1."""
        start, _ = self.columns["turn"]
        return np.rint(np.asarray(state[:, start], dtype=np.float64) * self.turn_limit).astype(np.int64) + 1

    def names(self, state: Float2D, feature: str, names: Sequence[str]) -> NDArray[np.int64]:
        """(B,) position in names of a one-hot feature; len(names) where no column is set."""
        start, stop = self.columns[feature]
        hot = state[:, start : min(stop, start + len(names))]
        return np.asarray(np.where(hot.any(axis=1), hot.argmax(axis=1), len(names)), dtype=np.int64)


class BucketIndex:
    """From observations to positions in a list of bucket texts."""

    def __init__(self, buckets: Sequence[str], parts: ObservationParts) -> None:
        self.parts = parts
        parsed = [Bucket.parse(text) for text in buckets]
        self.turn_edges = np.array(sorted({bucket.first_turn for bucket in parsed}))
        names = {
            "last_strategy_1": (parts.strategies, START),
            "segment": (parts.segments, OTHER),
            "customer_act": (CUSTOMER_ACTS, NO_ACT),
        }
        missing = [name for name in ("turn", *names) if name not in parts.columns]
        if missing:
            raise PolicyError(
                f"The observations have no feature {', '.join(missing)}, which buckets are made of. Build the data set "
                "again, with n_last_strategies of at least 1."
            )
        self._names = names
        self._table = self._lookup(parsed)

    def __call__(self, state: Float2D) -> NDArray[np.int64]:
        """(N, D) → (N,) bucket of each observation."""
        band = np.searchsorted(self.turn_edges, self.parts.turns(state), side="right") - 1
        found = [self.parts.names(state, feature, names) for feature, (names, _) in self._names.items()]
        return np.asarray(self._table[np.maximum(band, 0), found[0], found[1], found[2]])

    def _lookup(self, parsed: list[Bucket]) -> NDArray[np.int64]:
        """(bands, last strategies, segments, acts) → bucket.

        What the grid does not hold takes the same through `other` and `any`, or else the first bucket of its band.
        """
        keys: dict[tuple[int, str, str, str], int] = {}
        for place, bucket in enumerate(parsed):
            keys[(bucket.first_turn, bucket.last_strategy, bucket.segment, bucket.customer_act)] = place
        names = [(*listed, none) for listed, none in self._names.values()]
        table = np.empty((len(self.turn_edges), *(len(each) for each in names)), dtype=np.int64)
        for band, *others in np.ndindex(*table.shape):
            wanted = [each[i] for each, i in zip(names, others, strict=True)]
            table[(band, *others)] = _nearest(keys, int(self.turn_edges[band]), wanted)
        return table


def _nearest(keys: Mapping[tuple[int, str, str, str], int], turn: int, wanted: list[str]) -> int:
    """The bucket of the wanted parts: exact, or through `any` and `other`, or the band's first."""
    last, segment, act = wanted
    for chosen_segment in (segment, OTHER, ANY):
        for chosen_act in (act, OTHER, ANY):
            for chosen_last in (last, ANY):
                if (key := (turn, chosen_last, chosen_segment, chosen_act)) in keys:
                    return keys[key]
    return next(place for key, place in keys.items() if key[0] == turn)


class BucketedPolicy(StoredPolicy):
    """π(a|s) ∝ π_b(a|bucket) exp(Q(turn, bucket, a)/τ) over the legal actions.

    `behavior` (B, A) probabilities, 0 for actions outside the tables; `q_values` (L, B, A) in reward units by agent
    turn up to the limit; `temperature` τ in reward units. Where no legal action is in the tables, π_b is
    uniform over the legal ones.
    """

    kind = "bucketed"

    def __init__(
        self,
        buckets: Sequence[str],
        parts: ObservationParts,
        behavior: NDArray[np.float32],
        q_values: NDArray[np.float32],
        temperature: float,
        name: str,
    ) -> None:
        super().__init__(name, int(behavior.shape[1]), parts.observation_size)
        self.buckets = tuple(buckets)
        self.parts = parts
        self.behavior = behavior
        self.q_values = q_values
        self.temperature = float(temperature)

    @cached_property
    def index(self) -> BucketIndex:
        """From observations to buckets."""
        return BucketIndex(self.buckets, self.parts)

    def reading(self, parts: ObservationParts) -> BucketedPolicy:
        """The same policy for observations of another layout.

        Raises PolicyError if its actions are others.
        """
        if parts.strategies != self.parts.strategies:
            raise PolicyError(
                f"Policy '{self.name}' was made for another action catalogue than these observations. Train it again."
            )
        return BucketedPolicy(self.buckets, parts, self.behavior, self.q_values, self.temperature, self.name)

    def behavior_probabilities(self, state: Float2D, action_mask: Bool2D) -> Float2D:
        """(N, A) of the released behavior tables over the legal actions; rows sum to 1."""
        return _legal(self.behavior[self.index(state)], action_mask)

    def values(self, state: Float2D) -> Float2D:
        """(N, A) Q of the tables, in reward units; actions outside the tables have the lowest of the row."""
        return np.asarray(self.q_values[self._turn(state), self.index(state)], dtype=np.float64)

    def logged_values(self, state: Float2D) -> Float1D:
        """(N,) what the tables say the released behavior earns from here on, in reward units."""
        # Nothing is looked ahead to from the last turn: its Q is what the log earned.
        by_bucket = (self.behavior.astype(np.float64) * self.q_values[-1]).sum(axis=1)
        return np.asarray(by_bucket[self.index(state)])

    def _probabilities(self, observations: Observations, action_mask: Bool2D) -> Float2D:
        state = np.asarray(observations.state)
        behavior = self.behavior_probabilities(state, action_mask)
        with np.errstate(divide="ignore"):
            log_behavior = np.log(behavior)
        return tilted_probabilities(log_behavior, self.values(state), self.temperature, action_mask)

    def _turn(self, state: Float2D) -> Int1D:
        """(N,) position of the turn in `q_values`; beyond the limit the last one."""
        return np.clip(self.parts.turns(state), 1, len(self.q_values)) - 1

    def fields(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "buckets": list(self.buckets), "parts": asdict(self.parts)}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"behavior": self.behavior, "q_values": self.q_values}

    @classmethod
    def from_state(cls, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> BucketedPolicy:
        stored = document["parts"]
        parts = ObservationParts(
            columns={name: (int(start), int(stop)) for name, (start, stop) in stored["columns"].items()},
            segments=tuple(stored["segments"]),
            strategies=tuple(stored["strategies"]),
            turn_limit=int(stored["turn_limit"]),
            observation_size=int(stored["observation_size"]),
        )
        return cls(
            document["buckets"],
            parts,
            required_array(arrays, "behavior"),
            required_array(arrays, "q_values"),
            document["temperature"],
            document["name"],
        )


def _legal(probabilities: Float2D, mask: Bool2D) -> Float2D:
    """(N, A) renormalised over the legal actions; uniform where none of them has any probability."""
    legal = np.where(mask, probabilities.astype(np.float64), 0.0)
    sums = legal.sum(axis=1, keepdims=True)
    uniform = mask / mask.sum(axis=1, keepdims=True)
    return np.asarray(np.where(sums > 0, legal / np.where(sums > 0, sums, 1.0), uniform))
