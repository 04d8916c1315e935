"""What every trainer is: one method, and the record of what it reported while it ran.

Here: the protocol and the record. Not here: any algorithm, and the job that runs one (`rl.trainers.train`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from rl.datasets.transitions import TransitionSet
from rl.policies.storage import StoredPolicy
from rl.settings import TrainerSettings

OnMetric = Callable[[str, float, int], None]
"""`(name, value, step)`. Names carry a path such as `losses/td`; all are explained in rl/README.md."""


def ignore_metric(name: str, value: float, step: int) -> None:
    """The `OnMetric` of those who do not listen."""


class Trainer(Protocol):
    """Learns a policy from the training episodes of a transition set."""

    def fit(
        self,
        dataset: TransitionSet,
        settings: TrainerSettings,
        behavior: StoredPolicy,
        on_metric: OnMetric = ignore_metric,
    ) -> StoredPolicy:
        """Learn a policy.

        Reads `dataset.training()` only, with the discount `dataset.manifest.training_discount`. The result
        depends on the arguments alone: the same seed gives the same policy. `behavior` is the policy that the
        log followed.

        Raises DataError if the data set holds a number that is not finite, or nothing to learn from;
        TrainingError if the loss diverges.
        """
        ...


@dataclass
class TrainingRecord:
    """An `OnMetric` that remembers: one curve per metric, as steps and values; passes everything on to
    `forward`."""

    forward: OnMetric = ignore_metric
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def __call__(self, name: str, value: float, step: int) -> None:
        curve = self.curves.setdefault(name, {"steps": [], "values": []})
        curve["steps"].append(step)
        curve["values"].append(float(value))
        self.forward(name, value, step)

    def last(self, name: str) -> float | None:
        """The newest value of a metric; None where it was never reported."""
        return self.curves[name]["values"][-1] if name in self.curves else None
