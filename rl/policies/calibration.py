"""Are predicted probabilities as frequent as they say? Reliability curve, calibration error, and two corrections.

Here: measures and corrections (a temperature, a monotone map), on arrays. Not here: the model whose probabilities they
are (`rl.policies.behavior`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rl.policies.networks import log_masked_softmax
from rl.types import Bool2D, Float1D, Float2D, Int1D

N_BINS = 15
MAP_KNOTS = 200
"""Points kept of a monotone map; between them it is a straight line."""
LEAST_PROBABILITY = 1e-6
"""What a monotone map gives at least, so that a row of actions that were all rare still has a sum."""
SMALLEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE = -2.0, 3.0
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class ReliabilityCurve:
    """Predicted and observed rates of (row, legal action) pairs, in bins of equally many pairs.

    `predicted`, `observed` (bins,) in [0, 1]; `n_pairs` (bins,) int64. A calibrated model has them equal.
    """

    predicted: Float1D
    observed: Float1D
    n_pairs: Int1D

    def as_lists(self) -> dict[str, list[float]]:
        """JSON-able columns."""
        return {
            "predicted": [float(value) for value in self.predicted],
            "observed": [float(value) for value in self.observed],
            "n_pairs": [float(value) for value in self.n_pairs],
        }


def reliability_curve(probabilities: Float2D, actions: Int1D, mask: Bool2D, n_bins: int = N_BINS) -> ReliabilityCurve:
    """Compare each legal action's predicted probability with how often it was the logged one.

    `probabilities`, `mask` (N, A); `actions` (N,). Pairs of equal prediction may fall into neighbouring bins.
    """
    taken = np.arange(probabilities.shape[1]) == np.asarray(actions)[:, None]
    predicted, observed = probabilities[mask], taken[mask]
    order = np.argsort(predicted, kind="stable")
    bins = [part for part in np.array_split(order, n_bins) if len(part)]
    return ReliabilityCurve(
        predicted=np.array([predicted[part].mean() for part in bins]),
        observed=np.array([observed[part].mean() for part in bins]),
        n_pairs=np.array([len(part) for part in bins], dtype=np.int64),
    )


def expected_calibration_error(curve: ReliabilityCurve) -> float:
    """Mean of |predicted − observed| over all (row, legal action) pairs, in [0, 1] (Naeini et al., 2015).

    Difference: all actions count, not only the likeliest one, because an importance weight divides by the
    probability of whichever action was logged; bins have equally many pairs, not equal width.
    """
    return float(np.average(np.abs(curve.predicted - curve.observed), weights=curve.n_pairs))


def best_temperature(logits: Float2D, actions: Int1D, mask: Bool2D) -> float:
    """The T > 0 for which softmax(logits / T) has the least log loss on the rows given (Guo et al., 2017).

    Golden-section search over log T: the loss is convex in 1/T, so it has one minimum.
    """
    low, high = SMALLEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE

    def loss(log_temperature: float) -> float:
        return log_loss(logits / np.exp(log_temperature), actions, mask)

    for _ in range(30):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


@dataclass(frozen=True)
class MonotoneMap:
    """Predicted probability → observed rate, increasing and piecewise linear, the same for all actions.

    `predicted`, `observed` (K,) float64 in [0, 1]. Zadrozny and Elkan (2002); difference: one map for all actions,
    since rare ones have too few rows for one of their own.
    """

    predicted: Float1D
    observed: Float1D

    @classmethod
    def fit(cls, probabilities: Float2D, actions: Int1D, mask: Bool2D) -> MonotoneMap:
        """Isotonic regression of what was chosen on what was predicted, over (row, legal action) pairs."""
        from sklearn.isotonic import IsotonicRegression

        taken = np.arange(probabilities.shape[1]) == np.asarray(actions)[:, None]
        fitted = IsotonicRegression(y_min=LEAST_PROBABILITY, y_max=1.0, out_of_bounds="clip")
        fitted.fit(probabilities[mask], taken[mask])
        knots = np.unique(np.quantile(probabilities[mask], np.linspace(0, 1, MAP_KNOTS)))
        return cls(knots, np.asarray(fitted.predict(knots), dtype=np.float64))

    def __call__(self, probabilities: Float2D, mask: Bool2D) -> Float2D:
        """(B, A) → (B, A) mapped, and made to sum to 1 over the legal actions."""
        mapped = np.where(mask, np.interp(probabilities, self.predicted, self.observed), 0.0)
        return np.asarray(mapped / mapped.sum(axis=1, keepdims=True))


def log_loss(logits: Float2D, actions: Int1D, mask: Bool2D) -> float:
    """Mean of −log softmax(logits)[logged action] in nats per decision."""
    return float(-log_masked_softmax(logits, mask)[np.arange(len(actions)), actions].mean())
