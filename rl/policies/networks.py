"""The arithmetic that policies act with, in numpy: standardisation, a multilayer perceptron, a masked
softmax.

Here: what a stored policy needs to answer, so that it loads and acts without torch and without d3rlpy.
Not here: gradients and fitting (`rl.policies.behavior`, `rl.trainers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.errors import PolicyError
from rl.types import Bool2D, Float1D, Float2D

STANDARD_CLIP = 10.0
"""Standardised features are cut here. A one-hot feature that one row in 10,000 has would be 100 otherwise."""

SMALLEST_DEVIATION = 1e-4
"""Features that vary less are constants; dividing by their deviation would only amplify rounding."""


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


@dataclass(frozen=True)
class Standardizer:
    """Mean 0 and deviation 1 per feature: `shift` (D,) and `scale` (D,) float32, both in feature units."""

    shift: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def fit(cls, observations: Float2D) -> Standardizer:
        """Take mean and deviation of (N, D); features that do not vary keep scale 1."""
        deviation = observations.std(axis=0, dtype=np.float64)
        scale = np.where(deviation > SMALLEST_DEVIATION, deviation, 1.0)
        return cls(observations.mean(axis=0, dtype=np.float64).astype(np.float32), scale.astype(np.float32))

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


@dataclass(frozen=True)
class Network:
    """Standardised features → linear and ReLU layers → one number per action.

    `weights[i]` (out, in) and `biases[i]` (out,) float32; no ReLU after the last layer.
    """

    standardizer: Standardizer
    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]

    @property
    def observation_size(self) -> int:
        """D."""
        return int(self.weights[0].shape[1])

    @property
    def n_actions(self) -> int:
        """A."""
        return int(self.weights[-1].shape[0])

    def __call__(self, observations: Float2D) -> NDArray[np.float32]:
        """(B, D) → (B, A) float32."""
        hidden = self.standardizer(observations)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = np.maximum(hidden @ weight.T + bias, 0.0)
        return np.asarray(hidden @ self.weights[-1].T + self.biases[-1], dtype=np.float32)

    def scaled(self, factor: float) -> Network:
        """The same network with its output multiplied by `factor`."""
        return Network(
            self.standardizer,
            (*self.weights[:-1], np.asarray(self.weights[-1] * factor, dtype=np.float32)),
            (*self.biases[:-1], np.asarray(self.biases[-1] * factor, dtype=np.float32)),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `from_arrays` reads back."""
        layers = {f"weight_{index}": weight for index, weight in enumerate(self.weights)}
        layers |= {f"bias_{index}": bias for index, bias in enumerate(self.biases)}
        return layers | self.standardizer.arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Network:
        """The inverse of `arrays`. Raises PolicyError if an array is missing."""
        n_layers = sum(name.startswith("weight_") for name in arrays)
        if n_layers == 0:
            raise PolicyError("A stored network has no layers. Train the policy again.")
        return cls(
            Standardizer.from_arrays(arrays),
            tuple(required_array(arrays, f"weight_{index}") for index in range(n_layers)),
            tuple(required_array(arrays, f"bias_{index}") for index in range(n_layers)),
        )


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
