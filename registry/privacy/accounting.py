"""What a customer's loss adds up to, and how it reads as (ε, δ).

Here: addition of zCDP, the conversion in both directions, the figure of a year. Not here: what was spent (`budget`),
what a release will cost (`plan`).

Loss is counted in zCDP (Bun and Steinke, 2016, arXiv:1605.02065): the ρ of releases that see the same customer add
up. ε is never added up: it is computed once, from the sum, where somebody wants to read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rl.errors import SettingsError

_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class PrivacyLoss:
    """What one customer can lose: zCDP, and the probability with which a threshold fails."""

    rho: float
    delta: float = 0.0
    """Of thresholds alone. The δ at which ε is stated comes on top of it."""

    def epsilon(self, delta: float) -> float:
        """ε of the (ε, δ + thresholds' δ) that this loss implies."""
        return epsilon(self.rho, delta)


def epsilon(rho: float, delta: float) -> float:
    r"""Smallest ε for which ρ-zCDP is known to imply (ε, δ)-differential privacy.

    Notes
    -----
    :math:`\varepsilon = \min_{\alpha > 1} \alpha\rho + \log(1 - 1/\alpha) - \log(\alpha\delta) / (\alpha - 1)`. Each α
    gives a valid ε, so that a minimum that is missed by a little errs on the safe side.

    Source: Canonne, Kamath and Steinke (2020), "The Discrete Gaussian for Differential Privacy", arXiv:2004.00010,
    corollary 13. At ρ 0.02 and δ 1e-6 it gives 0.90, the textbook's :math:`\rho + 2\sqrt{\rho\log(1/\delta)}` 1.07.

    Raises
    ------
    SettingsError
        If ρ is negative or δ is not between 0 and 1.
    """
    if not rho >= 0 or not 0 < delta < 1:
        raise SettingsError(
            f"rho {rho:g} at delta {delta:g} is no privacy loss: rho must not be negative, and delta lies between 0 "
            "and 1, well below one over the number of customers (privacy.delta)."
        )
    if rho == 0:
        return 0.0
    # A good start: for small ρ the best α is close to 1 + √(log(1/δ) / ρ).
    centre = math.log(-math.log(delta) / rho) / 2
    return max(0.0, _minimum(lambda log_order: _epsilon_at(math.exp(log_order), rho, delta), centre - 6, centre + 6))


def rho_for(epsilon_at_most: float, delta: float) -> float:
    """Largest ρ whose `epsilon` at this δ is not above the given one."""
    if not epsilon_at_most > 0 or math.isinf(epsilon_at_most):
        raise SettingsError(f"epsilon {epsilon_at_most:g} buys nothing: it must be finite and above zero.")
    low, high = 0.0, 1.0
    while epsilon(high, delta) <= epsilon_at_most:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon(middle, delta) <= epsilon_at_most else (low, middle)
    return low


def compose(losses: Iterable[PrivacyLoss]) -> PrivacyLoss:
    """The loss of a customer whom all of these saw: ρ adds up, and so do the thresholds' δ."""
    listed = list(losses)
    return PrivacyLoss(math.fsum(loss.rho for loss in listed), math.fsum(loss.delta for loss in listed))


def windows_touched(days: int, window_days: int) -> int:
    """Most windows of the calendar that a span of `days` days can touch; one more than fit into it, or two."""
    return 1 + math.ceil((days - 1) / window_days)


def yearly(window: PrivacyLoss, window_days: int) -> PrivacyLoss:
    """The loss of a customer who talks all year: of every window that any 365 days can touch."""
    return compose([window] * windows_touched(365, window_days))


def _epsilon_at(excess_order: float, rho: float, delta: float) -> float:
    """ε by the Rényi divergence of order α = 1 + `excess_order`."""
    order = 1 + excess_order
    return order * rho + math.log(excess_order / order) - math.log(order * delta) / excess_order


def _minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """Least value of a function with one valley (golden-section search)."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > 1e-9:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
    return min(at_left, at_right)
