"""What the trainers reach where the truth is known: in the storefront, from logs of 20,000 and 200,000 dialogues.

Needs no night: logs are played in memory. A training is measured twice: behind the decision head at its default limit,
as a night uses it, and acting as it learned, by its actor or greedily on its values. The best of ours is chosen as a
night can choose, by the lower bound on the dialogues that were kept for selection; truth is looked at afterwards.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestration.console import progress
from orchestration.plots import ACCENT, INK, PALE, SHADES
from orchestration.settings import TalktrackSettings
from rl.datasets.transitions import TransitionSet
from rl.encoders.dialogue import DialogueEncoder
from rl.encoders.encoder import load_encoder, prepare_encoder
from rl.environments.storefront_encoded import StorefrontEncoder, encoded_policy
from rl.environments.storefront_items import SEGMENTS, read_storefront_catalogue
from rl.environments.storefront_policies import StorefrontPolicy, informed_policy, uniform_policy
from rl.policies import fit_behavior_model
from rl.policies.regularized import RegularizedQPolicy
from rl.policies.softmax import SoftmaxPolicy
from rl.policies.storage import StoredPolicy
from rl.settings import BehaviorModelSettings, DatasetSettings
from rl.trainers import ALGORITHMS, D3RLPY, TrainingRecord, trainer, trainer_settings
from rl.trainers.train import within_epochs
from tests.studies import exact_worlds
from tests.studies.memory import Memory, StudyRow
from tests.studies.storefront_logs import behavior_policies, played_set
from tests.studies.storefront_online import (
    OnlineSettings,
    best_script,
    online_training,
    script_policy,
    true_value,
)

PREFIX = "trainers/storefront/"
BEHIND = " behind the head"
REPORTED = "reported"
STAGE = "true values of trained policies"
KNOWN_ERROR, TRAINED_ERROR = 0.003, 0.01
"""Standard errors over true values: of what others are measured by, and of a trained policy, of which there are many.
The second takes 8,192 dialogues, four seconds of a core."""

N_PROCESSES = 2
"""Trainings at a time, with one thread each."""


@dataclass(frozen=True)
class Log:
    """Which trainings are run on logs of one size."""

    n_dialogues: int
    seeds: tuple[int, ...]
    """Of the log and of the training."""
    algorithms: tuple[str, ...]
    share: float
    """Of the way from the behavior policy to the optimum, that the best of ours is to go."""
    settings: dict[str, Any] = field(default_factory=dict)
    """That differ from the defaults."""
    label: str = ""
    """Ends the ids of its rows."""


LARGE = {"n_steps": 3500, "batch_size": 512}
"""Of the trainings on 200,000 dialogues: about one and a half passes over their steps."""


@dataclass(frozen=True)
class Plan:
    """What the study runs; the tests run a smaller one. Log 0 is left out: defaults were tuned by its true values."""

    logs: tuple[Log, ...] = (
        Log(20_000, (1, 2, 3, 4, 5), (*ALGORITHMS, *D3RLPY), share=0.8),
        Log(200_000, (1,), ("cql", "double_dqn"), 0.9, LARGE, ", 200,000 dialogues"),
    )
    online: OnlineSettings = field(default_factory=OnlineSettings)
    script_dialogues: int = 8192
    n_processes: int = N_PROCESSES


@dataclass(frozen=True)
class Task:
    """One training, and the true values of what it learned."""

    algorithm: str
    n_dialogues: int
    seed: int
    settings: dict[str, Any]
    encoder: Path
    """Folder of the text encoder."""

    @property
    def key(self) -> list[Any]:
        """What the result depends on."""
        chosen = trainer_settings(algorithm=self.algorithm, seed=self.seed, **self.settings)
        return ["trainers", self.n_dialogues, self.encoder.name, chosen.model_dump(mode="json")]


def run(settings: TalktrackSettings, memory: Memory) -> tuple[list[StudyRow], Any]:
    """The trainers' policies between the behavior policy and the best that can be done."""
    _, folder = prepare_encoder(settings.encoder, settings.paths.encoders)
    rows, figure = storefront(memory, Plan(), folder)
    return rows + exact_worlds.rows(memory, progress), figure


def storefront(memory: Memory, plan: Plan, folder: Path) -> tuple[list[StudyRow], Any]:
    """The storefront's rows and picture, with the text encoder in `folder`."""
    known = {name: memory.remembered([name, *key], value) for name, key, value in _known(plan, folder)}
    found = _measured(memory, plan, folder)
    rows = [_known_row(name, value) for name, value in known.items()]
    for log in plan.logs:
        rows += _log_rows(log, known, found)
    return rows, _figure(plan.logs[0], known, rows)


# ---------- what trained policies are compared with


def _known(plan: Plan, folder: Path) -> Iterator[tuple[str, list[Any], Callable[[], dict[str, float]]]]:
    """Names, what they depend on, and true values with standard errors."""
    yield "behavior", [], lambda: _of_mixture(behavior_policies())
    yield "uniform", [], lambda: _of_policy(uniform_policy)
    yield "informed", [], lambda: _of_policy(informed_policy)
    yield "script", [plan.script_dialogues], lambda: _of_policy(script_policy(best_script(plan.script_dialogues)))
    yield "optimum", [folder.name, *plan.online.key], lambda: _online(plan.online, folder)


def _of_policy(policy: StorefrontPolicy) -> dict[str, float]:
    found = true_value(policy, KNOWN_ERROR)
    return {"value": found.value, "error": found.standard_error}


def _of_mixture(policies: Sequence[tuple[StorefrontPolicy, float]]) -> dict[str, float]:
    """Of several policies, each for its share of the customers."""
    found = [(true_value(policy, KNOWN_ERROR), share) for policy, share in policies]
    error = np.sqrt(sum((share * value.standard_error) ** 2 for value, share in found))
    return {"value": sum(share * value.value for value, share in found), "error": float(error)}


def _online(settings: OnlineSettings, folder: Path) -> dict[str, float]:
    encoder = storefront_encoder(folder)
    online = online_training(encoder, settings, lambda done, total: progress("training in the simulator", done, total))
    return _of_policy(encoded_policy(online.policy, encoder)) | {"dialogues": online.n_dialogues}


def storefront_encoder(folder: Path) -> StorefrontEncoder:
    """As a night encodes the storefront's dialogues with the text encoder of `folder`."""
    settings = DatasetSettings()
    encoder = DialogueEncoder(
        load_encoder(folder),
        read_storefront_catalogue(),
        tuple(SEGMENTS),
        settings.turn_limit,
        settings.n_last_strategies,
    )
    return StorefrontEncoder(encoder)


# ---------- trainings


def _measured(memory: Memory, plan: Plan, folder: Path) -> dict[tuple[int, str, int], dict[str, Any]]:
    """Results by number of dialogues, algorithm and seed; those that memory lacks are computed, some at a time."""
    tasks = [
        Task(algorithm, log.n_dialogues, seed, log.settings, folder)
        for log in plan.logs
        for seed in log.seeds
        for algorithm in log.algorithms
    ]
    missing = [task for task in tasks if not memory.knows(task.key)]
    progress(STAGE, len(tasks) - len(missing), len(tasks))
    for done, (task, found) in enumerate(_in_parallel(missing, plan.n_processes), start=1):
        memory.remembered(task.key, lambda found=found: found)
        progress(STAGE, len(tasks) - len(missing) + done, len(tasks))
    return {
        (task.n_dialogues, task.algorithm, task.seed): memory.remembered(task.key, partial(measure, task))
        for task in tasks
    }


def _in_parallel(tasks: list[Task], n_processes: int) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Each task and its result, as they come; in this process where one is asked for."""
    if n_processes == 1:
        yield from ((task, measure(task)) for task in tasks)
        return
    pool = ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn"), initializer=_one_thread)
    with pool:
        futures = {pool.submit(measure, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _one_thread() -> None:
    torch.set_num_threads(1)


def measure(task: Task) -> dict[str, Any]:
    """Train, and play what was learned: behind the decision head, and as it was learned.

    Gives both true values, the lower bound that the trainer's own selection gave the policy behind the head (None
    where it made none), and the seconds of training.
    """
    encoder, dataset, behavior = _log(task.n_dialogues, task.seed, task.encoder)
    chosen = within_epochs(trainer_settings(algorithm=task.algorithm, seed=task.seed, **task.settings), dataset)
    record = TrainingRecord()
    started = time.perf_counter()
    policy = trainer(task.algorithm).fit(dataset, chosen, behavior, record)
    seconds = time.perf_counter() - started
    plain = as_learned(policy, task.algorithm)
    learned = true_value(encoded_policy(plain, encoder), TRAINED_ERROR).value
    is_headless = plain is policy
    return {
        "learned": learned,
        "head": None if is_headless else true_value(encoded_policy(policy, encoder), TRAINED_ERROR).value,
        "low": record.selection.get("low"),
        "seconds": seconds,
    }


@lru_cache(maxsize=1)
def _log(n_dialogues: int, seed: int, folder: Path) -> tuple[StorefrontEncoder, TransitionSet, StoredPolicy]:
    """The log, nobody held out since the truth is known, and the behavior model fitted to it."""
    encoder = storefront_encoder(folder)
    dataset = played_set(n_dialogues, seed, encoder, validation_share=0.0)
    behavior = fit_behavior_model(dataset, BehaviorModelSettings(n_folds=2, max_rows=50_000))
    return encoder, dataset, behavior.policy


def as_learned(policy: StoredPolicy, algorithm: str) -> StoredPolicy:
    """The policy without its decision head: the actor's own choice, or the greedy one on the values."""
    if not isinstance(policy, RegularizedQPolicy):
        return policy
    found: Any = trainer(algorithm)
    if getattr(found, "algorithm", found).decides_by == "actor":
        return SoftmaxPolicy(policy.values, policy.name)
    return RegularizedQPolicy(policy.values, policy.behavior, 0.0, policy.name, policy.support)


# ---------- rows


Known = dict[str, dict[str, float]]
Found = dict[tuple[int, str, int], dict[str, Any]]


def _known_row(name: str, known: dict[str, float]) -> StudyRow:
    low, high = known["value"] - 1.96 * known["error"], known["value"] + 1.96 * known["error"]
    check = f"{PREFIX}{name}"
    return StudyRow(check=check, value=known["value"], low=low, high=high, aim=REPORTED, holds=True, seeds=(1,))


def _log_rows(log: Log, known: Known, found: Found) -> list[StudyRow]:
    """Means and spreads by algorithm, and how far the best of ours goes, chosen without the truth."""
    rows = []
    for algorithm in log.algorithms:
        results = [found[log.n_dialogues, algorithm, seed] for seed in log.seeds]
        rows.append(_spread_row(algorithm, [each["learned"] for each in results], log))
        behind = [each["head"] for each in results if each["head"] is not None]
        if behind:
            rows.append(_spread_row(f"{algorithm}{BEHIND}", behind, log))
    chosen = [_chosen(log, seed, found) for seed in log.seeds]
    learned = np.array([found[log.n_dialogues, algorithm, seed]["learned"] for algorithm, seed in chosen])
    shares = (learned - known["behavior"]["value"]) / (known["optimum"]["value"] - known["behavior"]["value"])
    far_enough = float(shares.mean()) >= log.share
    rows.append(_spread_row("share of the way", shares.tolist(), log, f">= {log.share:g}", far_enough))
    peers = [name for name in log.algorithms if name in D3RLPY]
    if peers:
        best_peer = max(
            np.mean([found[log.n_dialogues, peer, seed]["learned"] for seed in log.seeds]) for peer in peers
        )
        ahead = learned - float(best_peer)
        rows.append(_spread_row("ahead of d3rlpy's best", ahead.tolist(), log, "> 0", float(ahead.mean()) > 0))
    return rows


def _chosen(log: Log, seed: int, found: Found) -> tuple[str, int]:
    """Of ours, the algorithm whose policy behind the head has the largest lower bound on the selection dialogues."""
    ours = [name for name in log.algorithms if name in ALGORITHMS]
    bounds = {name: found[log.n_dialogues, name, seed]["low"] for name in ours}
    return max((name for name in ours if bounds[name] is not None), key=lambda name: bounds[name]), seed


def _spread_row(name: str, values: list[float], log: Log, aim: str = REPORTED, holds: bool = True) -> StudyRow:
    """Mean, and a standard deviation over the seeds to either side."""
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    check = f"{PREFIX}{name}{log.label}"
    return StudyRow(
        check=check, value=mean, low=mean - spread, high=mean + spread, aim=aim, holds=holds, seeds=log.seeds
    )


# ---------- the picture


def _figure(log: Log, known: Known, rows: list[StudyRow]) -> Any:
    from matplotlib.figure import Figure

    values = {row.check.removeprefix(PREFIX): row for row in rows}
    names = sorted(log.algorithms, key=lambda name: values[name].value)
    figure = Figure(figsize=(8.4, 1.4 + 0.3 * len(names)), layout="constrained")
    axis = figure.subplots()
    for form, offset, colour in (("", 0.14, ACCENT), (BEHIND, -0.14, SHADES[0])):
        drawn = [(y + offset, values[f"{name}{form}"]) for y, name in enumerate(names) if f"{name}{form}" in values]
        for y, row in drawn:
            axis.plot([row.low, row.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        label = "behind the decision head" if form else "as learned"
        axis.plot([row.value for _, row in drawn], [y for y, _ in drawn], "o", color=colour, markersize=4, label=label)
    for name, style in (("uniform", ":"), ("behavior", "-"), ("script", "--"), ("optimum", "-")):
        axis.axvline(known[name]["value"], color=PALE if style != "-" else INK, linestyle=style, linewidth=1, zorder=0)
        axis.annotate(
            name, (known[name]["value"], 1.0), xycoords=("data", "axes fraction"), fontsize=8, ha="center", va="bottom"
        )
    axis.set_yticks(range(len(names)), names, fontsize=8.5)
    axis.set_xlabel(f"EUR per dialogue; mean and spread over {len(log.seeds)} logs", fontsize=9, color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(f"True values after {log.n_dialogues:,} dialogues", fontsize=11, color=INK, x=0.01, ha="left")
    return figure
