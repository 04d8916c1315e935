"""Transitions on the device, ready to gather: rows of a transition set as tensors, and the batches drawn from them.

Here: which rows may start a transition, where the next observation lies, n-step rewards, the gather, the random
numbers. Not here: which set is resident (`rl.datasets.chunks`), networks, losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl.datasets.transitions import TransitionSet
from rl.errors import DataError
from rl.policies.networks import Standardizer
from rl.trainers.trees import changed, leaves
from rl.types import Bool1D, Bool2D, Int1D

GATHERED_BYTES, GATHERED_BYTES_ON_GPU = 2**21, 2**28
"""Size of the batches that are gathered together. Measured once by hand on 2026-11-20, batch 32 on one core of an AMD
EPYC with 1 MiB of second-level cache: 69, 42, 29, 24, 22 µs per update at 2**17, 2**18, … 2**21."""


@dataclass(frozen=True)
class Inputs:
    """What networks read of M members' B rows: `state` (M, B, D), standardised; for sequence encoders `utterances`
    (M, B, L, d), oldest first and zero-padded at the front, and `said` (M, B, L), which of them there are."""

    state: Tensor
    utterances: Tensor | None = None
    said: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """B transitions for each of M members. Rewards are divided by the data's reward scale."""

    inputs: Inputs
    actions: Tensor
    """(M, B) int64"""
    mask: Tensor
    """(M, B, A) bool: the actions that count at the observation."""
    rewards: Tensor
    """(M, B): discounted sum of the rewards of the transition's steps."""
    discounts: Tensor
    """(M, B): what the value of the next observation is multiplied with; 0 after a terminated episode."""
    next_inputs: Inputs
    next_mask: Tensor
    """(M, B, A) bool"""
    returns: Tensor
    """(M, B): discounted sum of the logged rewards from here to the end of the episode."""
    lambda_returns: Tensor | None = None
    """(M, B): λ-returns from here, where the settings ask for them; the bootstrap is in them."""


def check_finite(dataset: TransitionSet) -> None:
    """Raise DataError, naming the array and its first row, if an observation or reward is NaN or infinite."""
    arrays = {
        "observations": dataset.observations,
        "rewards": dataset.rewards,
        "final_observations": dataset.final_observations,
    }
    for name, array in arrays.items():
        broken = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        if len(broken):
            raise DataError(
                f"{len(broken)} of {len(array)} rows of `{name}` hold NaN or infinity; the first is row "
                f"{broken[0]}. Build the data set again."
            )


def check_final_masks(dataset: TransitionSet) -> None:
    """Raise DataError if the observation after a truncated episode has no legal action."""
    cut = dataset.truncated
    without_action = int((~dataset.final_action_mask[cut].any(axis=1)).sum())
    if without_action:
        raise DataError(
            f"{without_action} of {int(cut.sum())} truncated episodes have no legal action after their last step. "
            "Allow the catalogue's fallback in `final_action_mask`."
        )


def next_rows(dataset: TransitionSet) -> NDArray[np.int64]:
    """(N,) where the observation after each step lies: the next row, itself after a terminated episode's last
    step (never looked at), or N + i for the i-th truncated episode, whose final observation is stored behind
    the rows."""
    following = np.arange(dataset.n_steps) + 1
    last_rows = dataset.episode_offsets[1:] - 1
    following[last_rows] = last_rows
    cut = dataset.truncated
    following[last_rows[cut]] = dataset.n_steps + np.arange(int(cut.sum()))
    return following


def start_rows(dataset: TransitionSet, mask: Bool2D, legal_only: bool) -> NDArray[np.int64]:
    """Rows to learn from. Raises DataError if no logged action is legal."""
    if not legal_only:
        return np.arange(dataset.n_steps)
    rows = np.flatnonzero(mask[np.arange(dataset.n_steps), dataset.actions])
    if len(rows) == 0:
        raise DataError("No logged action is legal under today's rules, so nothing can be learned. Check the rules.")
    return rows


def reward_scale(rewards: NDArray[Any], episode_offsets: Int1D) -> float:
    """Deviation of the undiscounted return-to-go over the rows, in reward units: learned values then vary by
    about 1.

    1 where it does not vary. Learning rate and CQL's weight keep their meaning whatever the reward's unit.
    """
    return scale_of_deviation(float(still_to_come(rewards, episode_offsets).std()))


def scale_of_deviation(deviation: float) -> float:
    """The deviation, or 1 where nothing varies."""
    return deviation if deviation > 1e-12 else 1.0


def still_to_come(rewards: NDArray[Any], episode_offsets: Int1D) -> NDArray[np.float64]:
    """(N,) plain sum of the rewards from each step to the end of its episode."""
    total = np.cumsum(rewards, dtype=np.float64)
    before = np.concatenate(([0.0], total[:-1]))
    at_end = np.repeat(total[episode_offsets[1:] - 1], np.diff(episode_offsets))
    return np.asarray(at_end - before)


def returns_to_go(dataset: TransitionSet, discount: float) -> NDArray[np.float32]:
    """(N,) discounted sum of the rewards from each step to the end of its episode, in reward units."""
    returns = np.zeros(dataset.n_steps + 1, dtype=np.float64)
    steps_left = dataset.episode_offsets[1:][dataset.episode_index] - np.arange(dataset.n_steps)
    for left in range(1, int(steps_left.max()) + 1):
        rows = np.flatnonzero(steps_left == left)
        following = returns[rows + 1] if left > 1 else 0.0
        returns[rows] = dataset.rewards[rows] + discount * following
    return returns[:-1].astype(np.float32)


def said_before(dataset: TransitionSet) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N + truncated,) where the utterances before each row end, and how many of its dialogue there are; the final
    observations of truncated episodes, behind the rows, have their last step's."""
    until = dataset.utterance_offsets[1:]
    first = dataset.utterance_offsets[dataset.episode_offsets[:-1]][dataset.episode_index]
    rows = np.concatenate((np.arange(dataset.n_steps), dataset.episode_offsets[1:][dataset.truncated] - 1))
    return until[rows], (until - first)[rows]


def steps_linked(dataset: TransitionSet, mask: Bool2D) -> NDArray[np.int64]:
    """(N,) steps from each row to the end of its episode, or to the next step whose logged action the mask forbids:
    what the log earned from there on came through an action that may not be chosen."""
    rows = np.arange(dataset.n_steps)
    forbidden = np.flatnonzero(~mask[rows, dataset.actions])
    stops = np.union1d(dataset.episode_offsets[1:], forbidden)
    return np.asarray(stops[np.searchsorted(stops, rows, side="right")] - rows)


class Draws:
    """Row numbers for each step and member: a function of the member's seed and the step alone.

    Nothing is carried from step to step, so a resumed training draws what it would have drawn, and a member draws the
    same alone and among others.
    """

    PER_BLOCK = 64
    """Steps drawn at a time."""

    def __init__(self, seeds: tuple[int, ...], batch_size: int) -> None:
        self._seeds = seeds
        self.batch_size = batch_size

    def block(self, number: int, n_starts: int) -> NDArray[np.int64]:
        """(PER_BLOCK, M, B) positions in [0, n_starts) for the steps of block `number`."""
        shape = (self.PER_BLOCK, self.batch_size)
        drawn = [np.random.default_rng([seed, number]).integers(n_starts, size=shape) for seed in self._seeds]
        return np.stack(drawn, axis=1)


class ResidentRows:
    """The rows of a transition set on a device, and the gather of batches from them.

    With `longest_history` above 0 networks also read so many of the newest utterances before each row. Of a truncated
    episode's final observation they read what was said before its last step: the set keeps no more.

    Observations are standardised once. `uses_logged_mask`: imitation learns from all rows and their `logged_mask`;
    others from the rows whose logged action is legal today, and `action_mask`.
    """

    def __init__(
        self,
        dataset: TransitionSet,
        standardizer: Standardizer,
        scale: float,
        discounts: tuple[float, ...],
        return_steps: int,
        device: torch.device,
        uses_logged_mask: bool = False,
        longest_history: int = 0,
    ) -> None:
        check_finite(dataset)
        mask = dataset.logged_mask if uses_logged_mask else dataset.action_mask
        if not uses_logged_mask:
            check_final_masks(dataset)
        cut = dataset.truncated
        self.n_rows = dataset.n_steps
        self.starts = self._to(start_rows(dataset, mask, legal_only=not uses_logged_mask), device)
        self.states = self._to(
            np.concatenate((standardizer(dataset.observations), standardizer(dataset.final_observations[cut]))), device
        )
        self.masks = self._to(np.concatenate((mask, dataset.final_action_mask[cut])), device)
        self.actions = self._to(dataset.actions, device)
        self.rewards = self._to(dataset.rewards / np.float32(scale), device)
        self.next_row = self._to(next_rows(dataset), device)
        ends = dataset.episode_offsets[1:][dataset.episode_index]
        self.steps_left = self._to(ends - np.arange(dataset.n_steps), device)
        self.steps_linked = self._to(steps_linked(dataset, mask), device)
        terminal: Bool1D = dataset.is_last & dataset.terminated[dataset.episode_index]
        self.continues = self._to((~terminal).astype(np.float32), device)
        distinct = {gamma: returns_to_go(dataset, gamma) / np.float32(scale) for gamma in set(discounts)}
        self.returns = self._to(np.stack([distinct[gamma] for gamma in discounts]), device)
        """(M, N)"""
        self.lambda_returns: Tensor | None = None
        """(M, N), kept by `rl.trainers.lambda_returns` where the settings ask for them."""
        self.discounts = torch.tensor(discounts, dtype=torch.float32, device=device)[:, None]
        self._return_steps = return_steps
        self._members = torch.arange(len(discounts), device=device)[:, None]
        self._longest_history = longest_history
        if longest_history:
            spoken = dataset.utterance_vectors
            # One row at least, for the places that nothing was said at.
            self.utterances = self._to(spoken if len(spoken) else np.zeros((1, spoken.shape[1]), spoken.dtype), device)
            self.said_until, self.n_said = (self._to(each, device) for each in said_before(dataset))

    @staticmethod
    def _to(array: NDArray[Any], device: torch.device) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    def batch(self, positions: Tensor) -> Batch:
        """(M, B) positions among the start rows → the transitions that begin there."""
        rows = self.starts[positions]
        span, rewards = self._rewards(rows)
        last = rows + span - 1
        next_row = self.next_row[last]
        return Batch(
            inputs=self.inputs(rows),
            actions=self.actions[rows],
            mask=self._rows_of(self.masks, rows),
            rewards=rewards,
            discounts=self.discounts**span * self.continues[last],
            next_inputs=self.inputs(next_row),
            next_mask=self._rows_of(self.masks, next_row),
            returns=self.returns[self._members, rows],
            lambda_returns=None if self.lambda_returns is None else self.lambda_returns[self._members, rows],
        )

    def inputs(self, rows: Tensor) -> Inputs:
        """(M, B) rows, those behind the set included → what networks read there."""
        state = self._rows_of(self.states, rows)
        return Inputs(state, *self._said(rows)) if self._longest_history else Inputs(state)

    def _said(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(M, B) rows → (M, B, L, d) newest utterances before each, zeros in front, and (M, B, L) which there are."""
        back = torch.arange(self._longest_history, 0, -1, device=rows.device)
        said = back <= self.n_said[rows].unsqueeze(-1)
        places = (self.said_until[rows].unsqueeze(-1) - back).clamp(min=0)
        return self._rows_of(self.utterances, places).float() * said.unsqueeze(-1), said

    def _rewards(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(M, B) steps of each transition, and their discounted rewards."""
        if self._return_steps == 1:
            return torch.ones_like(rows), self.rewards[rows]
        span = self.steps_linked[rows].clamp(max=self._return_steps)
        steps = torch.arange(self._return_steps, device=rows.device)
        taken = self.rewards[(rows.unsqueeze(-1) + steps).clamp(max=self.n_rows - 1)]
        weights = self.discounts.unsqueeze(-1) ** steps * (steps < span.unsqueeze(-1))
        return span, (taken * weights).sum(dim=-1)

    @staticmethod
    def _rows_of(table: Tensor, rows: Tensor) -> Tensor:
        """(R, …), (M, B) → (M, B, …); faster than advanced indexing."""
        return table.index_select(0, rows.flatten()).view(*rows.shape, *table.shape[1:])


@dataclass(frozen=True)
class Gathered:
    """The batches of `n_steps` steps from `first` on, in one: (M, n_steps · B, …)."""

    first: int
    n_steps: int
    batch: Any
    """What `ResidentRows.batch` gives."""

    @cached_property
    def _steps(self) -> list[tuple[Tensor, ...]]:
        return list(zip(*(by_step(tensor, self.n_steps).unbind() for tensor in leaves(self.batch)), strict=True))

    def tensors(self, step: int) -> tuple[Tensor, ...]:
        """Of the batch of one step, in the order of its fields."""
        return self._steps[step - self.first]

    def part(self, start: int, stop: int) -> Any:
        """The batches of the steps from `start` to `stop`, in one as they lie here."""
        size = next(leaves(self.batch)).shape[1] // self.n_steps
        return changed(self.batch, lambda tensor: tensor.narrow(1, (start - self.first) * size, (stop - start) * size))


def by_step(tensor: Tensor, n_steps: int) -> Tensor:
    """(M, n_steps · B, …) as (n_steps, M, B, …), a view."""
    return tensor.view(len(tensor), n_steps, -1, *tensor.shape[2:]).transpose(0, 1)


class Gatherer:
    """Gathers the batches of several steps at once: a dozen small operations then serve all of them.

    The steps that are gathered together begin at the same numbers wherever a training was stopped and resumed. So a
    batch lies the same way in memory, and its products come out the same to the last bit.
    """

    def __init__(self, draws: Draws, device: torch.device) -> None:
        self._draws, self._device = draws, device
        self._limit = GATHERED_BYTES_ON_GPU if device.type == "cuda" else GATHERED_BYTES
        self._steps_at_once: int | None = None
        self._drawn: tuple[int, ResidentRows, Tensor] | None = None
        self._gathered: tuple[ResidentRows, Gathered] | None = None

    def __call__(self, rows: ResidentRows, step: int) -> Gathered:
        """What holds the batch of `step`."""
        if self._gathered is not None:
            source, gathered = self._gathered
            if source is rows and gathered.first <= step < gathered.first + gathered.n_steps:
                return gathered
        number, at = divmod(step, Draws.PER_BLOCK)
        positions = self._positions(rows, number)
        if self._steps_at_once is None:
            self._steps_at_once = self._affordable(rows.batch(positions[0]))
        low = at - at % self._steps_at_once
        wanted = positions[low : low + self._steps_at_once].transpose(0, 1).flatten(1)
        gathered = Gathered(step - at + low, self._steps_at_once, rows.batch(wanted))
        self._gathered = (rows, gathered)
        return gathered

    def forget(self) -> None:
        """Gather anew: what the rows hold has changed."""
        self._gathered = None

    def _positions(self, rows: ResidentRows, number: int) -> Tensor:
        """(PER_BLOCK, M, B). The copy to a GPU does not make the processor wait."""
        if self._drawn is None or self._drawn[:2] != (number, rows):
            drawn = torch.from_numpy(self._draws.block(number, len(rows.starts)))
            if self._device.type == "cuda":
                drawn = drawn.pin_memory().to(self._device, non_blocking=True)
            self._drawn = (number, rows, drawn)
        return self._drawn[2]

    def _affordable(self, batch: Any) -> int:
        """Steps, a power of two, whose batches stay within the limit."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in leaves(batch))
        return int(min(Draws.PER_BLOCK, 2 ** max(0, (self._limit // size).bit_length() - 1)))
