"""Who did what in the log: a calibrated multinomial model of the behavior policy.

Here: the stored model, and its cross-fitted fit. Not here: judging policies with the propensities it gives
(`rl.evaluation`), imitation by a deeper network (`rl.trainers.behavior_cloning`).

Two things come out of a fit. The **policy** π_b(a|s), fitted on training customers, is where every candidate
starts from. The **out-of-fold probabilities** are the propensities of logs that have none: each row is
predicted by a model that saw no dialogue of its customer, because a model that saw the row flatters the
logged action and so makes importance weights too small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.datasets.transitions import PROPENSITY_LOGGED, TransitionSet
from rl.errors import DataError
from rl.policies.calibration import (
    MonotoneMap,
    ReliabilityCurve,
    best_temperature,
    expected_calibration_error,
    reliability_curve,
)
from rl.policies.networks import Standardizer, masked_softmax, required_array
from rl.policies.storage import StoredPolicy
from rl.settings import BehaviorModelSettings
from rl.types import Bool1D, Bool2D, Float2D, Observations

LBFGS_ITERATIONS = 40
"""Full-batch quasi-Newton steps. On 28,500 steps of the sample world the log loss of held-out rows was 2.1504 after
15, 30 and 100 of them; 40 take half the time of 100."""

LARGEST_FLOOR_MASS = 0.5
"""The floor never takes more than this share of a row's probability, however many actions are legal."""


class BehaviorModel(StoredPolicy):
    """π_b(a|s) = softmax of a linear function of the standardised observation, over the legal actions.

    `weights` (A, D), `bias` (A,), already divided by the calibration temperature; `correction` maps what they give
    where calibration is isotonic. No legal action is less likely than `floor`, which bounds the importance weights of
    those who divide by it.
    """

    kind = "behavior_model"

    def __init__(
        self,
        standardizer: Standardizer,
        weights: NDArray[np.float32],
        bias: NDArray[np.float32],
        floor: float,
        name: str = "behavior",
        correction: MonotoneMap | None = None,
    ) -> None:
        super().__init__(name, int(weights.shape[0]), int(weights.shape[1]))
        self.correction = correction
        self.standardizer = standardizer
        self.weights = weights
        self.bias = bias
        self.floor = float(floor)

    def logits(self, state: Float2D) -> NDArray[np.float32]:
        """(B, D) → (B, A) float32."""
        return np.asarray(self.standardizer(state) @ self.weights.T + self.bias, dtype=np.float32)

    def corrected(self, temperature: float, correction: MonotoneMap | None) -> BehaviorModel:
        """The same model with its logits divided by `temperature`, and then mapped by `correction`."""
        weights = np.asarray(self.weights / temperature, dtype=np.float32)
        bias = np.asarray(self.bias / temperature, dtype=np.float32)
        return BehaviorModel(self.standardizer, weights, bias, self.floor, self.name, correction)

    def _probabilities(self, observations: Observations, action_mask: Bool2D) -> Float2D:
        probabilities = masked_softmax(self.logits(observations.state), action_mask)
        if self.correction is not None:
            probabilities = self.correction(probabilities, action_mask)
        return floored(probabilities, action_mask, self.floor)

    def fields(self) -> dict[str, Any]:
        return {"floor": self.floor}

    def arrays(self) -> dict[str, NDArray[Any]]:
        stored = {"weights": self.weights, "bias": self.bias, **self.standardizer.arrays()}
        if self.correction is not None:
            stored |= {"map_predicted": self.correction.predicted, "map_observed": self.correction.observed}
        return stored

    @classmethod
    def from_state(cls, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> BehaviorModel:
        is_mapped = "map_predicted" in arrays
        correction = MonotoneMap(arrays["map_predicted"], required_array(arrays, "map_observed")) if is_mapped else None
        return cls(
            Standardizer.from_arrays(arrays),
            required_array(arrays, "weights"),
            required_array(arrays, "bias"),
            document["floor"],
            document["name"],
            correction,
        )


@dataclass(frozen=True)
class FittedBehavior:
    """A behavior model and how far it may be trusted. All measures are out of fold, on all N rows."""

    policy: BehaviorModel
    """Fitted on the training episodes alone. Its calibration is of all rows, those that judge included, each predicted
    out of fold; no reward enters it."""
    out_of_fold: NDArray[np.float32]
    """(N, A) probabilities over `logged_mask`, each row by a model that saw no dialogue of its customer."""
    calibration_error: float
    """Mean |predicted − observed| over (row, legal action) pairs, in [0, 1]."""
    curve: ReliabilityCurve
    log_loss: float
    """Nats per decision; the uniform policy's is the mean log number of legal actions."""
    temperature: float
    """What the logits were divided by; above 1 where the uncalibrated model was too sure; 1 with isotonic
    calibration."""
    logged_propensity_difference: float | None
    """Mean |estimated − logged| probability of the logged action, where the log has it; None where it never
    does."""
    seconds: float


def fit_behavior_model(
    dataset: TransitionSet,
    settings: BehaviorModelSettings,
    on_fold: Callable[[int, int], None] = lambda done, total: None,
) -> FittedBehavior:
    """Fit π_b by multinomial logistic regression, cross-fitted by customer and calibrated out of fold.

    Parameters
    ----------
    dataset : TransitionSet
        Reads observations, actions, `logged_mask`, `customer_index`, `validation` and, to compare,
        `propensities`.
    settings : BehaviorModelSettings
        Folds, L2 weight, floor and seed.
    on_fold : (done, total) → None
        Called after each of the `n_folds + 1` fits.

    Raises
    ------
    DataError
        If an observation is not finite, or fewer than two customers are in the set or none to train on.

    Notes
    -----
    Minimises mean cross-entropy over the legal actions + (l2 / rows) · ‖W‖² by L-BFGS on standardised
    features. One temperature for all folds is chosen on the out-of-fold logits (Guo et al., 2017,
    arXiv:1706.04599); it is one number, so choosing it on the rows it is judged on does not flatter the
    calibration error noticeably. A monotone map has many: each fold is mapped by one that was fitted on the other
    folds, and the policy by one fitted on all.
    """
    started = time.perf_counter()
    _check(dataset)
    folds = customer_folds(dataset.customer_index[dataset.episode_index], settings.n_folds, settings.seed)
    n_folds = int(folds.max()) + 1
    logits = np.empty((dataset.n_steps, dataset.n_actions), dtype=np.float32)
    for fold in range(n_folds):
        model = _fit(dataset, folds != fold, settings)
        logits[folds == fold] = model.logits(dataset.observations[folds == fold])
        on_fold(fold + 1, n_folds + 1)
    temperature, correction, probabilities = _calibrated(logits, folds, dataset, settings)
    policy = _fit(dataset, ~dataset.validation[dataset.episode_index], settings).corrected(temperature, correction)
    on_fold(n_folds + 1, n_folds + 1)
    curve = reliability_curve(probabilities, dataset.actions, dataset.logged_mask)
    return FittedBehavior(
        policy=policy,
        out_of_fold=probabilities.astype(np.float32),
        calibration_error=expected_calibration_error(curve),
        curve=curve,
        log_loss=float(-np.log(probabilities[np.arange(dataset.n_steps), dataset.actions]).mean()),
        temperature=temperature,
        logged_propensity_difference=_logged_propensity_difference(dataset, probabilities),
        seconds=time.perf_counter() - started,
    )


def floored(probabilities: Float2D, mask: Bool2D, floor: float) -> Float2D:
    """(B, A) mixed with the uniform policy just so much that no legal action is less likely than `floor`."""
    n_legal = mask.sum(axis=1, keepdims=True)
    floors = np.minimum(floor, LARGEST_FLOOR_MASS / n_legal)
    return np.asarray(np.where(mask, floors + (1.0 - floors * n_legal) * probabilities, 0.0))


def customer_folds(customers: NDArray[Any], n_folds: int, seed: int) -> NDArray[np.int64]:
    """(N,) fold of each row; all rows of a customer share one. At most as many folds as customers.

    Raises DataError if all rows are of one customer.
    """
    names, index = np.unique(customers, return_inverse=True)
    if len(names) < 2:
        raise DataError(
            "All dialogues of the data set are of one customer, so no model can be judged on another. Check "
            "`customer_id` in the logs; leave it empty where it is unknown."
        )
    fold_of_customer = np.arange(len(names)) % min(n_folds, len(names))
    return np.asarray(np.random.default_rng(seed).permutation(fold_of_customer)[index], dtype=np.int64)


def _calibrated(
    logits: NDArray[np.float32], folds: NDArray[np.int64], dataset: TransitionSet, settings: BehaviorModelSettings
) -> tuple[float, MonotoneMap | None, Float2D]:
    """The temperature, the policy's monotone map, and the (N, A) calibrated, floored out-of-fold probabilities."""
    actions, mask = dataset.actions, dataset.logged_mask
    if settings.calibration == "temperature":
        temperature = best_temperature(logits, actions, mask)
        return temperature, None, floored(masked_softmax(logits / temperature, mask), mask, settings.floor)
    raw = masked_softmax(logits, mask)
    mapped = np.empty_like(raw)
    for fold in np.unique(folds):
        own = folds == fold
        mapped[own] = MonotoneMap.fit(raw[~own], actions[~own], mask[~own])(raw[own], mask[own])
    return 1.0, MonotoneMap.fit(raw, actions, mask), floored(mapped, mask, settings.floor)


def _check(dataset: TransitionSet) -> None:
    broken = np.flatnonzero(~np.isfinite(dataset.observations).all(axis=1))
    if len(broken):
        raise DataError(
            f"{len(broken)} of {dataset.n_steps} observations are not finite; the first is row {broken[0]}. "
            "Build the data set again."
        )
    if dataset.validation.all():
        raise DataError("No episode of the data set is for training. Lower `validation_share` or widen the window.")


def _fit(dataset: TransitionSet, rows: Bool1D, settings: BehaviorModelSettings) -> BehaviorModel:
    chosen = np.flatnonzero(rows)
    if len(chosen) > settings.max_rows:
        chosen = np.sort(np.random.default_rng(settings.seed).choice(chosen, settings.max_rows, replace=False))
    observations = np.asarray(dataset.observations[chosen])
    standardizer = Standardizer.fit(observations)
    weights, bias = _minimise_cross_entropy(
        standardizer(observations),
        np.asarray(dataset.actions[chosen]),
        np.asarray(dataset.logged_mask[chosen]),
        settings.l2 / len(chosen),
    )
    return BehaviorModel(standardizer, weights, bias, settings.floor)


def _minimise_cross_entropy(
    features: NDArray[np.float32], actions: NDArray[np.int64], mask: Bool2D, l2: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(A, D) weights and (A,) bias of the penalised multinomial regression; starts at zero, so it is
    deterministic."""
    import torch

    x, y = torch.from_numpy(features), torch.from_numpy(actions)
    penalty = torch.where(torch.from_numpy(mask), 0.0, -torch.inf)
    weights = torch.zeros(mask.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(mask.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, bias], max_iter=LBFGS_ITERATIONS, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = torch.addmm(bias, x, weights.T) + penalty
        loss = torch.nn.functional.cross_entropy(logits, y) + l2 * (weights**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach().numpy(), bias.detach().numpy()


def _logged_propensity_difference(dataset: TransitionSet, probabilities: Float2D) -> float | None:
    logged = (dataset.propensity_source == PROPENSITY_LOGGED) & ~np.isnan(dataset.propensities)
    if not logged.any():
        return None
    estimated = probabilities[np.arange(dataset.n_steps), dataset.actions]
    return float(np.abs(estimated[logged] - dataset.propensities[logged]).mean())
