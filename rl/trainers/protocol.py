"""What every trainer is: one method, and the record of what happened while it ran.

Here: the protocol and the record. Not here: any algorithm, the job that runs one (`rl.trainers.train`), how a
checkpoint or setting is chosen (`rl.trainers.selection`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rl.datasets.transitions import TransitionSet
from rl.policies.storage import StoredPolicy
from rl.trainers.settings import TrainerSettings

OnMetric = Callable[[str, float, int], None]
"""`(name, value, step)`. Names carry a path such as `losses/td`; all are explained in rl/README.md."""


def ignore_metric(name: str, value: float, step: int) -> None:
    """The `OnMetric` of those who do not listen."""


def ignore_message(text: str) -> None:
    """The `say` of those who do not listen."""


Curves = dict[str, dict[str, list[float]]]
"""By metric: `steps` and `values`."""


@dataclass
class TrainingRecord:
    """What a training reports and leaves behind beside the policy.

    A trainer calls it with each number (`record(name, value, step)`); numbers of one member of a sweep go to
    `member_curves`, through `member`.
    """

    forward: OnMetric = ignore_metric
    """Hears every number of `curves` as it comes."""
    say: Callable[[str], None] = ignore_message
    """Hears a sentence about the training itself, such as that a checkpoint is not gone on from."""
    checkpoint: Path | None = None
    """Where a masked trainer keeps its state while it runs, and goes on from; who stores the policy removes it. None:
    nowhere."""
    curves: Curves = field(default_factory=dict)
    """Means over the members of a sweep."""
    member_curves: list[Curves] = field(default_factory=list)
    """The same for each member."""
    leaderboard: list[dict[str, Any]] = field(default_factory=list)
    """One row per setting of a sweep, best first: knobs, selected step, estimate on the selection episodes."""
    selection: dict[str, Any] = field(default_factory=dict)
    """What was chosen and by what: setting, step, its estimate and that of the last step."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the policy card."""

    def __call__(self, name: str, value: float, step: int) -> None:
        _append(self.curves, name, value, step)
        self.forward(name, value, step)

    def member(self, number: int, name: str, value: float, step: int) -> None:
        """Note a number of one member."""
        while len(self.member_curves) <= number:
            self.member_curves.append({})
        _append(self.member_curves[number], name, value, step)

    def take_up(self, curves: Curves, member_curves: list[Curves]) -> None:
        """Go on from the curves of a training that was stopped; they are forwarded once more, in the order of steps."""
        self.curves, self.member_curves = curves, member_curves
        points = [
            (step, name, value)
            for name, curve in curves.items()
            for step, value in zip(curve["steps"], curve["values"], strict=True)
        ]
        for step, name, value in sorted(points, key=lambda point: point[0]):
            self.forward(name, value, int(step))

    def last(self, name: str) -> float | None:
        """The newest value of a metric; None where it was never reported."""
        return self.curves[name]["values"][-1] if name in self.curves else None


def _append(curves: Curves, name: str, value: float, step: int) -> None:
    curve = curves.setdefault(name, {"steps": [], "values": []})
    curve["steps"].append(step)
    curve["values"].append(float(value))


class Trainer(Protocol):
    """Learns a policy from the training episodes of a transition set."""

    def fit(
        self,
        dataset: TransitionSet,
        settings: TrainerSettings,
        behavior: StoredPolicy,
        record: TrainingRecord | None = None,
    ) -> StoredPolicy:
        """Learn a policy.

        Reads the episodes that are not `dataset.validation` only, with the discount
        `dataset.manifest.training_discount`. The result depends on the arguments alone: the same seed gives the same
        policy. `behavior` is the policy that the log followed. `record` is filled on the way.

        Raises DataError if the data set holds a number that is not finite, or nothing to learn from; TrainingError if
        the loss diverges.
        """
        ...
