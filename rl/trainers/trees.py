"""Nested tensors: dataclasses and dictionaries of tensors, taken apart and put together again.

Here: the walk over them. Not here: what they mean (`rl.trainers.batches`, `rl.trainers.learner`). What is compiled or
captured is a function of plain tensors; batches and weights are kept in names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

Tree = TypeVar("Tree")
"""A tensor, None, or a dataclass or dictionary of such."""


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors, in the order of fields and keys."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for _, value in _items(tree):
            yield from leaves(value)


def changed(tree: Tree, change: Callable[[Tensor], Tensor]) -> Tree:
    """The tree with `change` applied to each tensor, in the order of `leaves`."""
    if tree is None:
        return tree
    if isinstance(tree, Tensor):
        return change(tree)  # type: ignore[return-value]
    parts = {name: changed(value, change) for name, value in _items(tree)}
    return replace(tree, **parts) if is_dataclass(tree) else type(tree)(parts)  # type: ignore[call-arg, return-value, type-var]


def rebuilt(tree: Tree, tensors: Iterable[Tensor]) -> Tree:
    """The tree with other tensors in its places, in the order of `leaves`."""
    given = iter(tensors)
    return changed(tree, lambda _: next(given))


def _items(tree: Any) -> list[tuple[Any, Any]]:
    if tree is None:
        return []
    return list(tree.items()) if isinstance(tree, dict) else [(f.name, getattr(tree, f.name)) for f in fields(tree)]
