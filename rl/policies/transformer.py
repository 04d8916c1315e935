"""Causal transformers in numpy: the networks that read a dialogue's utterances or its earlier decisions.

Here: the block, SASRec over utterances, the decision transformer over states, actions and a wanted return. Not here:
their fit (`rl.trainers.sasrec`, `rl.trainers.decision_transformer`).

Weights are stored by name as they were learned, (in, out); the blocks are numbered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rl.errors import PolicyError
from rl.policies.networks import (
    STANDARD_CLIP,
    ScoreNetwork,
    Standardizer,
    layer_normed,
    network_from_state,
    required_array,
)
from rl.policies.storage import with_prefix, without_prefix
from rl.types import Bool2D, History, Int1D, Observations

Weights = Mapping[str, NDArray[np.float32]]

_ROWS_AT_ONCE = 1024
"""Rows whose windows are held at a time: 25 MB at 24 utterances of 256 numbers."""


@dataclass(frozen=True)
class SASRec(ScoreNetwork):
    """The newest utterances through causal self-attention; the last position's output joins the standardised state,
    and `head` scores the actions."""

    standardizer: Standardizer
    weights: Weights
    n_heads: int
    head: ScoreNetwork

    kind: ClassVar[str] = "sasrec"
    reads_history = True

    @property
    def observation_size(self) -> int:
        return len(self.standardizer.shift)

    @property
    def n_actions(self) -> int:
        return self.head.n_actions

    def __call__(self, observations: Observations, action_mask: Bool2D) -> NDArray[np.float32]:
        assert observations.history is not None
        state = self.standardizer(np.asarray(observations.state))
        joined = np.concatenate([state, self.encoded(observations.history)], axis=1)
        return self.head(Observations(joined), action_mask)

    def encoded(self, history: History) -> NDArray[np.float32]:
        """(B, H) of each row's newest utterance; zeros where nothing was said."""
        positions = required_array(self.weights, "positions")
        n_dimensions = len(required_array(self.weights, "embed_weight"))
        if history.vectors.shape[1] != n_dimensions:
            raise PolicyError(
                f"The policy reads utterance vectors of {n_dimensions} numbers and was given {history.vectors.shape[1]}"
                ". Encode with the settings of its training."
            )
        found = np.zeros((len(history.offsets) - 1, positions.shape[1]), dtype=np.float32)
        for rows in _blocks_of_rows(len(found)):
            offsets = history.offsets[rows.start : rows.stop + 1]
            places, said = _newest(offsets[:-1], offsets[1:], len(positions))
            found[rows] = self._encoded(_gathered(history.vectors, places, said).astype(np.float32), said, positions)
        return found

    def _encoded(
        self, utterances: NDArray[np.float32], said: Bool2D, positions: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        hidden = layer(self.weights, "embed", utterances) + positions
        length = len(positions)
        allowed = np.tri(length, dtype=bool) & (said[:, None] | np.eye(length, dtype=bool))
        newest = blocks(self.weights, hidden, allowed, self.n_heads, 1)[:, 0]
        return np.clip(newest * said[:, -1:], -STANDARD_CLIP, STANDARD_CLIP)

    def fields(self) -> dict[str, Any]:
        return {"n_heads": self.n_heads, "head": self.head.document()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {**self.weights, **self.standardizer.arrays(), **with_prefix("head", self.head.arrays())}

    @classmethod
    def from_state(cls, fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SASRec:
        return cls(
            Standardizer.from_arrays(arrays),
            _own(arrays),
            int(fields["n_heads"]),
            network_from_state(fields["head"], without_prefix("head", arrays)),
        )


@dataclass(frozen=True)
class DecisionTransformer(ScoreNetwork):
    """Scores of the actions that a dialogue of the wanted return would take, given its latest decisions.

    Tokens of each decision: the return that is still wanted, the state, the action. The wanted return is the same
    throughout: what was earned on the way is not known while a dialogue runs.
    """

    standardizer: Standardizer
    weights: Weights
    n_heads: int
    wanted: float
    """Return that is asked for, over the reward scale of the training."""

    kind: ClassVar[str] = "decision_transformer"
    reads_past = True

    @property
    def observation_size(self) -> int:
        return len(self.standardizer.shift)

    @property
    def n_actions(self) -> int:
        return len(required_array(self.weights, "score_bias"))

    @property
    def context_steps(self) -> int:
        """Decisions that are read, the one to be taken included."""
        return len(required_array(self.weights, "positions"))

    def __call__(self, observations: Observations, action_mask: Bool2D) -> NDArray[np.float32]:
        assert observations.past is not None
        past, state = observations.past, self.standardizer(np.asarray(observations.state))
        found = np.zeros((len(state), self.n_actions), dtype=np.float32)
        n_past = np.minimum(np.diff(past.offsets), self.context_steps - 1)
        for n in np.unique(n_past):
            alike = np.flatnonzero(n_past == n)
            for block in _blocks_of_rows(len(alike)):
                rows = alike[block]
                places = past.offsets[rows + 1][:, None] + np.arange(-n, 0)
                earlier = self.standardizer(past.states[places])
                states = np.concatenate([earlier, state[rows, None]], axis=1)
                found[rows] = self._scores(states, past.actions[places])
        return found

    def _scores(self, states: NDArray[np.float32], actions: NDArray[np.int64]) -> NDArray[np.float32]:
        """(B, n + 1, D) states, (B, n) actions taken in all but the last → (B, A)."""
        weights, n_steps = self.weights, states.shape[1]
        tokens = np.zeros((len(states), 3 * n_steps - 1, required_array(weights, "positions").shape[1]), np.float32)
        tokens[:, 0::3] = layer(weights, "wanted", np.full((1, 1, 1), self.wanted, dtype=np.float32))
        tokens[:, 1::3] = layer(weights, "state", states)
        tokens[:, 2::3] = required_array(weights, "taken_weight")[actions] + required_array(weights, "taken_bias")
        tokens += np.repeat(required_array(weights, "positions")[:n_steps], 3, axis=0)[:-1]
        hidden = _normed(weights, "token", tokens) if "token_norm" in weights else tokens  # d3rlpy's has none
        allowed = np.tri(tokens.shape[1], dtype=bool)[None]
        return layer(weights, "score", blocks(weights, hidden, allowed, self.n_heads, 1)[:, 0])

    def fields(self) -> dict[str, Any]:
        return {"n_heads": self.n_heads, "wanted": self.wanted}

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {**self.weights, **self.standardizer.arrays()}

    @classmethod
    def from_state(cls, fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> DecisionTransformer:
        return cls(Standardizer.from_arrays(arrays), _own(arrays), int(fields["n_heads"]), float(fields["wanted"]))


def blocks(
    weights: Weights, hidden: NDArray[np.float32], allowed: NDArray[np.bool_], n_heads: int, n_wanted: int
) -> NDArray[np.float32]:
    """(B, T, H), (B or 1, T, T) → (B, n_wanted, H): all blocks and the last layer norm, for the last positions.

    `allowed`: which position (second last axis) reads which; each reads one at least.
    """
    n_blocks = sum(name.startswith("query_") and name.endswith("_weight") for name in weights)
    for number in range(n_blocks):
        n_queries = n_wanted if number == n_blocks - 1 else hidden.shape[1]
        hidden = _block(weights, number, hidden, allowed[:, -n_queries:], n_heads)
    return _normed(weights, "last", hidden)


def _block(
    weights: Weights, number: int, hidden: NDArray[np.float32], allowed: NDArray[np.bool_], n_heads: int
) -> NDArray[np.float32]:
    n_queries = allowed.shape[1]
    normed = _normed(weights, f"attend_{number}", hidden)
    queries = _heads(layer(weights, f"query_{number}", normed[:, -n_queries:]), n_heads)
    keys = _heads(normed @ required_array(weights, f"key_{number}_weight"), n_heads)
    values = _heads(layer(weights, f"value_{number}", normed), n_heads)
    scores = queries @ keys.swapaxes(2, 3) / np.float32(np.sqrt(queries.shape[3]))
    scores = np.where(allowed[:, None], scores, np.float32(-np.inf))
    odds = np.exp(scores - scores.max(axis=3, keepdims=True))
    attended = (odds / odds.sum(axis=3, keepdims=True)) @ values
    joined = attended.swapaxes(1, 2).reshape(len(hidden), n_queries, -1)
    hidden = hidden[:, -n_queries:] + layer(weights, f"joined_{number}", joined)
    inner = np.maximum(layer(weights, f"up_{number}", _normed(weights, f"inner_{number}", hidden)), 0.0)
    return np.asarray(hidden + layer(weights, f"down_{number}", inner), dtype=np.float32)


def layer(weights: Weights, name: str, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """(…, in) → (…, out)."""
    product = inputs @ required_array(weights, f"{name}_weight") + required_array(weights, f"{name}_bias")
    return np.asarray(product, dtype=np.float32)


def _normed(weights: Weights, name: str, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    return layer_normed(inputs, *required_array(weights, f"{name}_norm"))


def _heads(tokens: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """(B, T, H) → (B, heads, T, H / heads)."""
    return tokens.reshape(*tokens.shape[:2], n_heads, -1).swapaxes(1, 2)


def _newest(start: Int1D, stop: Int1D, length: int) -> tuple[NDArray[np.int64], Bool2D]:
    """(B, L) places of the newest `length` of `start:stop`, at the end of each row, and which there are."""
    places = stop[:, None] - length + np.arange(length)
    return places, places >= start[:, None]


def _gathered(table: NDArray[Any], places: NDArray[np.int64], there: Bool2D) -> NDArray[Any]:
    """(B, L) → (B, L, …) rows of a table, 0 where there is none."""
    found = np.zeros((*places.shape, *table.shape[1:]), dtype=table.dtype)
    found[there] = table[places[there]]
    return found


def _blocks_of_rows(n_rows: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS_AT_ONCE, n_rows)) for start in range(0, n_rows, _ROWS_AT_ONCE))


def _own(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The network's weights, without the standardizer and without its head."""
    return {name: array for name, array in arrays.items() if "." not in name and name not in ("shift", "scale")}
