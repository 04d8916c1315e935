"""How updates are run: torch's own operations one after the other, compiled, or captured on a GPU; and in which
precision their matrix products are.

Here: tracing, compiling and capturing the one update that `rl.trainers.learner` defines. Not here: what an update
computes, when older networks are renewed (there).

The whole update, that is forward pass, backward pass and Adam, is traced once into a graph of plain operations. It then
runs without autograd, and the compiler sees all of it: it joins the small operations and Adam's passes, and writes
gradients where they are used.
"""

from __future__ import annotations

import os
import platform
import shutil
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from rl.errors import TrainingError
from rl.policies.networks import ScoreNetwork, Standardizer
from rl.trainers.batches import Gathered, by_step
from rl.trainers.networks import NetworkShape, Parameters
from rl.trainers.trees import changed, leaves, rebuilt

if TYPE_CHECKING:
    from rl.trainers.learner import Learner

STEPS_WORTH_COMPILING = 20_000
"""Updates from which `auto` compiles on a CPU: twice as many as pay for it. Measured once by hand on 2026-11-20, in
processor time on one core of an AMD EPYC, CQL at its defaults, 64 features, 50 actions: compiling takes 20 s; an update
takes 3.6 ms, compiled 1.6 ms; one of 12 members 27 ms, compiled 19 ms."""

UPDATES_PER_GRAPH = (16, 4, 1)
"""Sizes of captured graphs, largest first; any number of updates is put together from them."""

WARM_UP_UPDATES = 3
"""Before a capture, so that libraries and kernels are loaded and have chosen how they work."""


PRODUCT_AND_SUM: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.addmm.default: lambda bias, inputs, weight: torch.mm(inputs, weight) + bias,
    torch.ops.aten.baddbmm.default: lambda bias, inputs, weight: torch.bmm(inputs, weight) + bias,
}
"""Linear layers in two parts: the compiler adds the bias where it writes what follows, such as a ReLU."""


class Execution(Protocol):
    """Runs updates."""

    def __call__(self, gathered: Gathered, start: int, stop: int) -> Tensor:
        """Take the updates of the steps from `start` to `stop`; (metrics, M) the sums of what they report."""
        ...


def execution(learner: Learner) -> Execution:
    """The one that `settings.mode` asks for; `auto` decides by the settings alone, never by a clock or by the rows that
    happen to be resident, so that a training can be repeated and gone on with.

    Raises TrainingError if that mode cannot work here.
    """
    settings, device = learner.settings, learner.device
    mode: str = settings.mode
    if mode == "auto":
        pays = settings.n_steps >= STEPS_WORTH_COMPILING and not missing_for_compiling(device)
        mode = "graph" if device.type == "cuda" else "compiled" if pays else "eager"
    if mode == "graph":
        if device.type != "cuda":
            raise TrainingError(f"`mode: graph` captures CUDA graphs, and the device is {device}. Use `mode: auto`.")
        return Captured(learner)
    if mode == "compiled":
        if missing := missing_for_compiling(device):
            raise TrainingError(
                f"`mode: compiled` needs {missing}, which is not found. Install it, or use `mode: eager`."
            )
        return Compiled(learner)
    return Eager(learner)


def missing_for_compiling(device: torch.device) -> str | None:
    """What torch's compiler needs and does not find; None where it can work."""
    if device.type == "cuda" and find_spec("triton") is None:
        return "the package triton"
    compiler = os.environ.get("CXX", "clang++" if platform.system() == "Darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"a C++ compiler ({compiler}; the variable CXX names another)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.exists() else f"Python's headers ({header})"


class Eager:
    """Operation by operation."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def __call__(self, gathered: Gathered, start: int, stop: int) -> Tensor:
        corrections = self._learner.corrections(start, stop)
        metrics = [
            self._learner.update_eagerly(rebuilt(gathered.batch, gathered.tensors(step)), corrections[step - start])
            for step in range(start, stop)
        ]
        return torch.stack(metrics).sum(dim=0)


class Compiled:
    """By torch's compiler: C++ on a CPU, Triton on a GPU."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._state = list(leaves(learner.update_tensors()))
        self._update: Callable[..., Tensor] | None = None

    def __call__(self, gathered: Gathered, start: int, stop: int) -> Tensor:
        corrections = self._learner.corrections(start, stop)
        if self._update is None:
            self._update = traced(self._learner, gathered.part(start, start + 1), corrections[0], is_compiled=True)
            self._layout = _layout(gathered.tensors(start))
        # What is compiled reads memory as it lay when it was traced, and does not look again.
        assert self._layout == _layout(gathered.tensors(start))
        total: Tensor | None = None
        with torch.no_grad():
            for step in range(start, stop):
                metrics = self._update(*self._state, corrections[step - start], *gathered.tensors(step))
                total = metrics if total is None else total.add_(metrics)
        assert total is not None
        return total


class Captured:
    """By CUDA graphs of several updates, which a GPU runs without the processor. The updates are compiled before where
    that is possible.

    A graph reads its batches from a place of its own, where they are copied before each replay; weights, moments and
    older networks it reads and writes where they are. Nothing here makes the processor wait for the GPU.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._state = list(leaves(learner.update_tensors()))
        self._update: Callable[..., Tensor] | None = None
        self._graphs: dict[int, _Graph] = {}
        self._pool: Any = None

    def __call__(self, gathered: Gathered, start: int, stop: int) -> Tensor:
        total: Tensor | None = None
        with torch.cuda.device(self._learner.device), torch.no_grad():
            while start < stop:
                size = next(size for size in UPDATES_PER_GRAPH if size <= stop - start)
                batches = changed(gathered.part(start, start + size), partial(by_step, n_steps=size))
                corrections = self._learner.corrections(start, start + size)
                if size not in self._graphs:
                    self._graphs[size] = self._capture(size, batches, corrections)
                metrics = self._graphs[size].replay(batches, corrections)
                total = metrics.clone() if total is None else total.add_(metrics)
                start += size
        assert total is not None
        return total

    def _capture(self, size: int, batches: Any, corrections: Tensor) -> _Graph:
        # A step's batch lies the same way whatever the size, because an update is compiled for one layout.
        place = changed(batches, lambda tensor: tensor.clone(memory_format=torch.contiguous_format))
        factors = corrections.clone()
        steps = [(factors[number], *(tensor[number] for tensor in leaves(place))) for number in range(size)]
        if self._update is None:
            is_compiled = missing_for_compiling(self._learner.device) is None
            self._update = traced(self._learner, changed(place, lambda tensor: tensor[0]), factors[0], is_compiled)
            self._warm_up(steps[0])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            total = self._update(*self._state, *steps[0])
            for step in steps[1:]:
                total = total + self._update(*self._state, *step)
        self._pool = graph.pool()
        return _Graph(graph, place, factors, total)

    def _warm_up(self, step: tuple[Tensor, ...]) -> None:
        """Run updates outside of a graph, on a stream of their own as a capture asks for, and undo them."""
        assert self._update is not None
        before = [tensor.clone() for tensor in self._state]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_UPDATES):
                self._update(*self._state, *step)
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, value in zip(self._state, before, strict=True):
            tensor.copy_(value)


@dataclass(frozen=True)
class _Graph:
    """Captured updates and where they read and write."""

    graph: torch.cuda.CUDAGraph
    batches: Any
    """(steps, M, B, …)"""
    corrections: Tensor
    metrics: Tensor

    def replay(self, batches: Any, corrections: Tensor) -> Tensor:
        """Run them on these batches; (metrics, M) sums, overwritten by the next replay."""
        for place, tensor in zip(leaves(self.batches), leaves(batches), strict=True):
            place.copy_(tensor, non_blocking=True)
        self.corrections.copy_(corrections, non_blocking=True)
        self.graph.replay()
        return self.metrics


def traced(learner: Learner, batch: Any, corrections: Tensor, is_compiled: bool) -> Callable[..., Tensor]:
    """The update as a function of plain tensors: state (in the order of its leaves), corrections (2,), batch.

    It writes into the state and returns the metrics. `batch` gives the shapes; its numbers do not matter.
    """
    state = learner.update_tensors()
    # Copies, because tracing runs the update once, and because the compiler takes care of tensors that share memory,
    # which weights in one flat tensor do and which costs time: none of them overlaps another.
    example = [*leaves(changed(state, torch.clone)), corrections.clone(), *leaves(batch)]
    n_state = len(example) - 1 - len(list(leaves(batch)))

    def update(*tensors: Tensor) -> tuple[Tensor]:
        batch_now = rebuilt(batch, tensors[n_state + 1 :])
        return (learner.update_on(rebuilt(state, tensors[:n_state]), batch_now, tensors[n_state]),)

    on_cpu = learner.device.type == "cpu"
    parts = PRODUCT_AND_SUM if on_cpu and is_compiled else None
    run: Callable[..., Any] = make_fx(update, decomposition_table=parts, tracing_mode="fake")(*example)
    if is_compiled:
        from torch import _inductor

        # On a CPU what calls the kernels is compiled too, and no pattern puts products and sums together again: an
        # update at batch 32 took 0.53 ms for 0.60 ms, and 0.48 for 0.51, measured once by hand on 2026-11-20. On a GPU
        # captured graphs do without calls.
        options = {"cpp_wrapper": True, "pattern_matcher": False} if on_cpu else {}
        run = _inductor.compile(run, example, options=options)  # type: ignore[arg-type]

    def metrics_of(*tensors: Tensor) -> Tensor:
        (metrics,) = run(*tensors)
        assert isinstance(metrics, Tensor)
        return metrics

    return metrics_of


def _layout(tensors: Iterable[Tensor]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(tensor.shape, tensor.stride()) for tensor in tensors]


@contextmanager
def matrix_products(precision: str, device: torch.device) -> Iterator[None]:
    """TF32 products while it lasts, where the settings ask for them and the device is a GPU."""
    before = torch.get_float32_matmul_precision()
    wanted = "high" if precision == "tf32" and device.type == "cuda" else before
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def in_precision(shape: NetworkShape, precision: str, device: torch.device) -> NetworkShape:
    """The network as it is, or with matrix products in bfloat16."""
    return _Bfloat16Products(shape, device.type) if precision == "bfloat16" else shape


@dataclass(frozen=True)
class _Bfloat16Products:
    """A network whose matrix products are in bfloat16; its weights and what it gives are in float32."""

    shape: NetworkShape
    device_type: str

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        return self.shape.initial(generator)

    def __call__(self, parameters: Parameters, inputs: Any) -> Tensor:
        # No cache: a weight that was first converted without a gradient would be reused without one.
        with torch.autocast(self.device_type, torch.bfloat16, cache_enabled=False):
            return self.shape(parameters, inputs).float()

    def stored(
        self, parameters: Mapping[str, NDArray[Any]], standardizer: Standardizer, scale: float = 1.0
    ) -> ScoreNetwork:
        return self.shape.stored(parameters, standardizer, scale)
