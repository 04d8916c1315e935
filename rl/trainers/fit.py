"""From a transition set to the chosen policy: what all masked algorithms share around their updates.

Here: the order of things while a training runs. Not here: the updates (`rl.trainers.learner`), an algorithm's loss (its
module), which rows are resident (`rl.trainers.feed`), the judgement of checkpoints and settings
(`rl.trainers.selection`), their file (`rl.trainers.checkpoints`), the job (`rl.trainers.train`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl.datasets.chunks import EpisodeChunks
from rl.datasets.transitions import TransitionSet
from rl.errors import SettingsError
from rl.policies.storage import StoredPolicy
from rl.trainers.algorithm import Algorithm, Sizes
from rl.trainers.batches import Draws
from rl.trainers.checkpoints import Checkpoint, training_key
from rl.trainers.decision import Situations
from rl.trainers.ensembles import Ensembles, Weights
from rl.trainers.feed import Feed, chunk_bytes
from rl.trainers.learner import Learner
from rl.trainers.means import Means
from rl.trainers.prepared import Prepared
from rl.trainers.protocol import TrainingRecord
from rl.trainers.selection import CONFIDENCE, Contest, Judge, Look, parted, rows_of_a_look, spread_episodes
from rl.trainers.settings import MaskedTrainerSettings, TrainerSettings

STEPS_AT_ONCE = 4 * Draws.PER_BLOCK
"""Updates between two moments at which a checkpoint can be written. Sums of metrics are cut there, too, so that a
resumed training adds up the same numbers."""


class MaskedTrainer:
    """Trains all members of one of our algorithms together; keeps the contract of `rl.trainers.protocol.Trainer`."""

    def __init__(self, algorithm: type[Algorithm]) -> None:
        self.algorithm = algorithm

    def fit(
        self,
        dataset: TransitionSet,
        settings: TrainerSettings,
        behavior: StoredPolicy,
        record: TrainingRecord | None = None,
    ) -> StoredPolicy:
        """Learn a policy; see `Trainer.fit`."""
        assert isinstance(settings, MaskedTrainerSettings)
        training = _Training(self.algorithm, dataset, settings, behavior, record or TrainingRecord())
        training.run()
        return training.finish()


class _Training:
    """One training: its parts, and what it has come to."""

    def __init__(
        self,
        algorithm: type[Algorithm],
        dataset: TransitionSet,
        settings: MaskedTrainerSettings,
        behavior: StoredPolicy,
        record: TrainingRecord,
    ) -> None:
        self.settings, self.record, self.unit = settings, record, dataset.manifest.reward.unit
        learning, choosing = parted(dataset, settings.selection_share)
        self.prepared = Prepared.of(dataset, learning, choosing)
        device = chosen_device(settings.device)
        members = settings.members(dataset.manifest.training_discount)
        discounts = tuple(member.knobs["discount"] for member in members)
        sizes = Sizes(dataset.observation_size, dataset.n_actions, dataset.utterance_vectors.shape[1])
        learned = algorithm(settings, sizes)
        chunks = EpisodeChunks(dataset, learning, chunk_bytes(settings.memory_limit_gb), settings.seed)
        self.feed = Feed(
            chunks,
            settings.batch_size,
            lambda chunk: learned.rows(chunk, self.prepared.standardizer, self.prepared.scale, discounts, device),
        )
        learned.prepare(dataset.returns[learning], self.prepared.scale)
        self.learner = Learner(learned, members, settings, device)
        self.ensembles = Ensembles(self.learner, self.prepared)
        most_rows = rows_of_a_look(settings)
        self.judge = Judge(dataset, choosing, behavior, most_rows) if settings.selection_share else None
        self.situations = (
            self.judge.situations if self.judge else _all_of(spread_episodes(dataset, learning, most_rows), behavior)
        )
        self.contest = Contest.of(len(self.ensembles))
        self.kept: Weights = self.ensembles.weights()
        self.metrics = Means()
        self.checkpoint = Checkpoint(record.checkpoint, training_key(dataset, settings, behavior), record.say)

    def run(self) -> None:
        """Update and look in turn, until the steps are done or nothing gets better."""
        self._note_chunks()
        self._resume()
        for end in looks(self.settings.n_steps, self.settings.n_looks):
            if end <= self.learner.step:
                continue
            if self.settings.patience is not None and self.contest.looks_without_gain >= self.settings.patience:
                break
            self._advance_to(end)
            self._look()
            if self.checkpoint.is_due(at_look=True):
                self._save()

    def finish(self) -> StoredPolicy:
        """The policy of the leading setting at its best look; the record's last entries."""
        self.ensembles.restore(self.kept)
        ranking = self.contest.ranking()
        decided = self.ensembles.decided(ranking[0], self.situations)
        for name, value in decided.reached.items():
            self.record(name, value, self.learner.step)
        self.record.leaderboard[:] = [self._row(setting) for setting in ranking]
        self.record.selection.clear()
        self.record.selection.update(self._selection(ranking[0]))
        if self.judge:
            self.record.notes.append(self.judge.note(self._best(ranking[0])))
        self._note_ensemble(self._best(ranking[0]))
        return decided.policy

    def _advance_to(self, end: int) -> None:
        while self.learner.step < end:
            step, started = self.learner.step, time.perf_counter()
            rows = self.feed.rows(step)
            stop = min(end, (step // STEPS_AT_ONCE + 1) * STEPS_AT_ONCE, self.feed.until or end)
            self.metrics.add(self.learner.advance(rows, stop - step), stop - step)
            self.metrics.seconds += time.perf_counter() - started
            if stop < end and self.checkpoint.is_due(at_look=False):
                self._save()

    def _look(self) -> None:
        """Report the metrics since the last look, and judge every setting as it is now."""
        self._report()
        step, started = self.learner.step, time.perf_counter()
        looks_now = [self._looked_at(setting) for setting in range(len(self.ensembles))]
        for setting in self.contest.enter(looks_now):
            self.ensembles.keep(setting, self.kept)
        if self.judge:
            leading = looks_now[self.contest.ranking()[0]]
            for name, value in (("selection/value", leading.value), ("selection/low", leading.low)):
                if value is not None:
                    self.record(name, value, step)
            self.record("seconds/look", time.perf_counter() - started, step)

    def _looked_at(self, setting: int) -> Look:
        if self.judge is None:
            return Look(self.learner.step)
        decided = self.ensembles.decided(setting, self.situations)
        values = self.ensembles.values(setting, self.situations, decided)
        return self.judge.look(decided, values, self.learner.step)

    def _report(self) -> None:
        step = self.learner.step
        for name, values in self.metrics.taken().items():
            values = values * self.prepared.scale if name.startswith("values/") else values
            self.record(name, float(values.mean()), step)
            for number, value in enumerate(values):
                self.record.member(number, name, float(value), step)
        self.record("seconds/step", self.metrics.seconds_per_step, step)
        self.metrics = Means()
        self.record("data/chunks", self.feed.n_chunks, step)
        self.record("data/passes", step * self.settings.batch_size / self.prepared.n_rows, step)

    def _note_chunks(self) -> None:
        if self.feed.n_chunks > 1:
            self.record.notes.append(
                f"The training steps exceed the memory limit of {self.settings.memory_limit_gb:g} GiB: they were "
                f"learned from in {self.feed.n_chunks} chunks, one after the other, drawn anew in each pass."
            )

    def _save(self) -> None:
        tensors = {f"learner.{name}": tensor for name, tensor in self.learner.state().items()}
        tensors |= {f"kept.{network}.{name}": tensor for (network, name), tensor in self.kept.items()}
        document = {
            "chunk": self.feed.number,
            "until": self.feed.until,
            "contest": self.contest.document(),
            "curves": self.record.curves,
            "member_curves": self.record.member_curves,
            "metrics": self.metrics.document(),
        }
        self.checkpoint.write(tensors, document)

    def _resume(self) -> None:
        if (state := self.checkpoint.read()) is None:
            return
        tensors, document = state
        self.learner.load_state(_under("learner.", tensors))
        for network, name in self.kept:
            self.kept[network, name].copy_(tensors[f"kept.{network}.{name}"])
        self.feed.go_on_from(document["chunk"], document["until"])
        self.contest = Contest.from_document(document["contest"])
        self.metrics = Means.from_document(document["metrics"])
        self.record.take_up(document["curves"], document["member_curves"])

    def _row(self, setting: int) -> dict[str, Any]:
        """Of the leaderboard."""
        members = self.ensembles.members(setting)
        first = self.learner.members[members.start]
        return {
            "setting": first.setting,
            "knobs": first.knobs,
            "members": list(range(members.start, members.stop)),
            **asdict(self._best(setting)),
        }

    def _note_ensemble(self, best: Look) -> None:
        """How far the members disagree, for the policy card."""
        settings = self.settings
        if settings.n_members == 1 or best.spread is None:
            return
        taken_off = f"; {settings.pessimism:g} of it is taken off every value" if settings.acts_by_values else ""
        self.record.notes.append(
            f"{settings.n_members} networks act as one. About the value of the action taken they differ by "
            f"{best.spread:.3g} {self.unit} (standard deviation, mean over decisions){taken_off}."
        )

    def _best(self, setting: int) -> Look:
        best = self.contest.best[setting]
        assert best is not None
        return best

    def _selection(self, leading: int) -> dict[str, Any]:
        best, last = self._best(leading), self.contest.last[leading]
        assert last is not None
        chosen = {"setting": self.learner.members[self.ensembles.members(leading).start].setting, "last": asdict(last)}
        if self.judge is None:
            return {"by": "nothing: selection_share is 0, so the last step was kept", **chosen, **asdict(best)}
        by = "lower bound" if best.is_judged else "nothing: too few selection customers do what the policies do"
        return {"by": by, "confidence": CONFIDENCE, **self.judge.logged(), **chosen, **asdict(best)}


def looks(n_steps: int, n_looks: int) -> list[int]:
    """Steps at which each look is taken, the last at `n_steps`; where they are far enough apart, at whole blocks of
    draws."""
    ends = np.linspace(0, n_steps, n_looks + 1)[1:]
    unit = Draws.PER_BLOCK if n_steps >= n_looks * Draws.PER_BLOCK else 1
    ends = np.maximum(1, (ends / unit).round()).astype(int) * unit
    ends[-1] = n_steps
    return [int(end) for end in np.unique(np.minimum(ends, n_steps))]


def chosen_device(name: str) -> torch.device:
    """`auto`: a GPU where there is one. Raises SettingsError if the device is not there."""
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"`device` is {name}, and torch finds {torch.cuda.device_count()} GPUs. Set `cpu` or `auto`, or install a "
            "torch that finds the GPU."
        )
    return device


def _all_of(dataset: TransitionSet, behavior: StoredPolicy) -> Situations:
    return Situations(dataset, behavior, np.arange(dataset.n_steps))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
