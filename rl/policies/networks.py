"""The arithmetic that policies act with, in numpy: standardisation, a multilayer perceptron, a masked
softmax.

Here: what a stored policy needs to answer, so that it loads and acts without torch and without d3rlpy.
Not here: gradients and fitting (`rl.policies.behavior`, `rl.trainers`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rl.errors import PolicyError
from rl.types import Bool2D, Float1D, Float2D, Observations

STANDARD_CLIP = 10.0
"""Standardised features are cut here. A one-hot feature that one row in 10,000 has would be 100 otherwise."""

SMALLEST_DEVIATION = 1e-4
"""Features that vary less are constants; dividing by their deviation would only amplify rounding."""

_ROWS_PER_BLOCK = 16_384
"""Read at a time to fit a Standardizer: 17 MB at 128 features."""


def log_masked_softmax(logits: Float2D, mask: Bool2D) -> Float2D:
    """(B, A), (B, A) → (B, A) float64 log-probabilities, -inf where masked. Each row needs a legal action."""
    legal = np.where(mask, logits.astype(np.float64), -np.inf)
    shifted = legal - legal.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def masked_softmax(logits: Float2D, mask: Bool2D) -> Float2D:
    """(B, A), (B, A) → (B, A) float64; rows sum to 1 and are 0 where masked. Each row needs a legal
    action."""
    probabilities = np.exp(log_masked_softmax(logits, mask))
    return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))


class Moments:
    """Mean (D,) and deviation (D,) of rows that come in blocks, whose means and squared deviations are combined as in
    Chan, Golub and LeVeque (1983)."""

    def __init__(self, n_features: int) -> None:
        self.n_rows = 0
        self.mean = np.zeros(n_features)
        self._squares = np.zeros(n_features)

    @property
    def deviation(self) -> NDArray[np.float64]:
        return np.asarray(np.sqrt(self._squares / self.n_rows))

    def add(self, rows: Float2D) -> None:
        """Count (B, D) more rows, one at least."""
        block = rows.astype(np.float64)
        weight = len(block) / (self.n_rows + len(block))
        difference = block.mean(axis=0) - self.mean
        self._squares += np.square(block - block.mean(axis=0)).sum(axis=0)
        self._squares += difference**2 * (self.n_rows * weight)
        self.mean += difference * weight
        self.n_rows += len(block)


@dataclass(frozen=True)
class Standardizer:
    """Mean 0 and deviation 1 per feature: `shift` (D,) and `scale` (D,) float32, both in feature units."""

    shift: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def fit(cls, observations: Float2D) -> Standardizer:
        """Take mean and deviation of (N, D); features that do not vary keep scale 1.

        Read by blocks of rows: (N, D) may be a memory map that is larger than memory.
        """
        moments = Moments(observations.shape[1])
        for start in range(0, len(observations), _ROWS_PER_BLOCK):
            moments.add(observations[start : start + _ROWS_PER_BLOCK])
        return cls.of_moments(moments)

    @classmethod
    def of_moments(cls, moments: Moments) -> Standardizer:
        """As `fit`, of rows that were counted elsewhere."""
        deviation = moments.deviation
        scale = np.where(deviation > SMALLEST_DEVIATION, deviation, 1.0)
        return cls(moments.mean.astype(np.float32), scale.astype(np.float32))

    def __call__(self, observations: Float2D) -> NDArray[np.float32]:
        """(B, D) → (B, D) float32, cut at ±STANDARD_CLIP."""
        standardised = (observations.astype(np.float32, copy=False) - self.shift) / self.scale
        return np.clip(standardised, -STANDARD_CLIP, STANDARD_CLIP, out=standardised)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` reads back."""
        return {"shift": self.shift, "scale": self.scale}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Standardizer:
        """The inverse of `arrays`. Raises PolicyError if an array is missing."""
        return cls(required_array(arrays, "shift"), required_array(arrays, "scale"))


class ScoreNetwork(ABC):
    """A network that gives one number per action: a value, or the logarithm of a preference.

    A subclass names its `kind` and joins `network_from_state` by being defined.
    """

    kind: ClassVar[str]
    reads_history = False
    """Whether it reads `Observations.history`."""
    reads_past = False
    """Whether it reads `Observations.past`."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _NETWORKS[cls.kind] = cls

    @property
    @abstractmethod
    def observation_size(self) -> int:
        """D."""

    @property
    @abstractmethod
    def n_actions(self) -> int:
        """A."""

    @abstractmethod
    def __call__(self, observations: Observations, action_mask: Bool2D) -> NDArray[np.float32]:
        """B observations, (B, A) → (B, A) float32. What stands at masked actions means nothing."""

    @abstractmethod
    def fields(self) -> dict[str, Any]:
        """What of the network is stored as JSON, beside its kind."""

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What of the network is stored as arrays."""

    @classmethod
    @abstractmethod
    def from_state(cls, fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> ScoreNetwork:
        """Rebuild the network from `fields()` and `arrays()`. Raises PolicyError if an array is missing."""

    def document(self) -> dict[str, Any]:
        """What `network_from_state` reads beside the arrays."""
        return {"kind": self.kind, **self.fields()}


_NETWORKS: dict[str, type[ScoreNetwork]] = {}


def network_from_state(document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> ScoreNetwork:
    """Rebuild a network from `document()` and `arrays()`. Raises PolicyError for an unknown kind."""
    kind = _NETWORKS.get(str(document.get("kind")))
    if kind is None:
        raise PolicyError(
            f"A stored network is of the kind {document.get('kind')!r}; known are {', '.join(sorted(_NETWORKS))}. "
            "Load it with the version of this project that wrote it."
        )
    return kind.from_state(document, arrays)


@dataclass(frozen=True)
class MLP(ScoreNetwork):
    """Standardised features → linear layers, each with layer norm where it has one, and ReLU → one number per action.

    `weights[i]` (out, in) and `biases[i]` (out,) float32; no ReLU after the last layer. `norms[i]` (2, out): scale and
    shift of the layer norm between the i-th linear layer and its ReLU; empty where there is none. With `is_dueling`
    the first output is the state's value, and the others are advantages, whose mean over the legal actions is taken
    off (Wang et al., 2016, arXiv:1511.06581; difference: the mean is over legal actions only).
    """

    standardizer: Standardizer
    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    norms: tuple[NDArray[np.float32], ...] = ()
    is_dueling: bool = False

    kind: ClassVar[str] = "mlp"

    @property
    def observation_size(self) -> int:
        return int(self.weights[0].shape[1])

    @property
    def n_actions(self) -> int:
        return int(self.weights[-1].shape[0]) - int(self.is_dueling)

    def __call__(self, observations: Observations, action_mask: Bool2D) -> NDArray[np.float32]:
        return dueling_values(self.outputs(observations.state), action_mask, self.is_dueling)

    def outputs(self, state: Float2D) -> NDArray[np.float32]:
        """(B, D) → (B, outputs) float32 of the last linear layer."""
        hidden = self.standardizer(np.asarray(state))
        for layer, (weight, bias) in enumerate(zip(self.weights[:-1], self.biases[:-1], strict=True)):
            hidden = hidden @ weight.T + bias
            if self.norms:
                hidden = layer_normed(hidden, *self.norms[layer])
            hidden = np.maximum(hidden, 0.0)
        return np.asarray(hidden @ self.weights[-1].T + self.biases[-1], dtype=np.float32)

    def scaled(self, factor: float) -> MLP:
        """The same network with its output multiplied by `factor`."""
        return replace(
            self,
            weights=(*self.weights[:-1], np.asarray(self.weights[-1] * factor, dtype=np.float32)),
            biases=(*self.biases[:-1], np.asarray(self.biases[-1] * factor, dtype=np.float32)),
        )

    def fields(self) -> dict[str, Any]:
        return {"is_dueling": self.is_dueling}

    def arrays(self) -> dict[str, NDArray[Any]]:
        layers = {f"weight_{index}": weight for index, weight in enumerate(self.weights)}
        layers |= {f"bias_{index}": bias for index, bias in enumerate(self.biases)}
        layers |= {f"norm_{index}": norm for index, norm in enumerate(self.norms)}
        return layers | self.standardizer.arrays()

    @classmethod
    def from_state(cls, fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> MLP:
        n_layers = sum(name.startswith("weight_") for name in arrays)
        if n_layers == 0:
            raise PolicyError("A stored network has no layers. Train the policy again.")
        n_norms = sum(name.startswith("norm_") for name in arrays)
        return cls(
            Standardizer.from_arrays(arrays),
            tuple(required_array(arrays, f"weight_{index}") for index in range(n_layers)),
            tuple(required_array(arrays, f"bias_{index}") for index in range(n_layers)),
            tuple(required_array(arrays, f"norm_{index}") for index in range(n_norms)),
            bool(fields["is_dueling"]),
        )


LAYER_NORM_EPSILON = 1e-5


def layer_normed(
    hidden: NDArray[np.float32], scale: NDArray[np.float32], shift: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(..., H) with mean 0 and variance 1 over the last axis, times `scale` plus `shift` (H,) (Ba et al., 2016)."""
    centred = hidden - hidden.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
    return np.asarray(centred / deviation * scale + shift, dtype=np.float32)


def dueling_values(outputs: NDArray[np.float32], action_mask: Bool2D, is_dueling: bool) -> NDArray[np.float32]:
    """(B, A + 1) value and advantages → (B, A) values; without `is_dueling`, the outputs as they are."""
    if not is_dueling:
        return outputs
    advantages = np.where(action_mask, outputs[:, 1:], 0.0)
    mean = advantages.sum(axis=1, keepdims=True) / action_mask.sum(axis=1, keepdims=True)
    return np.asarray(outputs[:, :1] + advantages - mean, dtype=np.float32)


def required_array(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """`arrays[name]`, or a PolicyError that names what is missing."""
    if name not in arrays:
        raise PolicyError(
            f"policy.safetensors has no array '{name}' (found {sorted(arrays)}). The folder is incomplete or "
            "was written by another version; train the policy again."
        )
    return arrays[name]


def mean_divergence(log_probabilities: Float2D, log_reference: Float2D) -> float:
    """Mean over rows of KL(policy ‖ reference) in nats, from two (B, A) arrays of log-probabilities."""
    return float(row_divergences(log_probabilities, log_reference).mean())


def row_divergences(log_probabilities: Float2D, log_reference: Float2D) -> Float1D:
    """KL(policy ‖ reference) in nats of each of B rows; an action of probability 0 adds nothing."""
    probabilities = np.exp(log_probabilities)
    with np.errstate(invalid="ignore"):
        terms = probabilities * (log_probabilities - log_reference)
    return np.asarray(np.where(probabilities > 0, terms, 0.0).sum(axis=1))
