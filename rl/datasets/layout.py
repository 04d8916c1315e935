"""The arrays of a transition set, and where they stand in its file.

Here: names, dtypes and axes; the safetensors file (8 bytes length of the header, JSON header, data), its header, its
memory map; cutting a set into ranges of whole episodes. Not here: what values may be (`rl.datasets.contract`), writing
(`rl.datasets.writer`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.errors import DataError

ARRAYS_FILE = "transitions.safetensors"

# N steps, E episodes, A actions, D observation features, K reward parts, U utterances of d dimensions.
ARRAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "observations": ("float32", ("N", "D")),
    "actions": ("int64", ("N",)),
    "logged_mask": ("bool", ("N", "A")),
    "action_mask": ("bool", ("N", "A")),
    "rewards": ("float32", ("N",)),
    "reward_parts": ("float32", ("N", "K")),
    "propensities": ("float32", ("N",)),
    "propensity_source": ("int8", ("N",)),
    "policy_version": ("int32", ("N",)),
    "segment": ("int32", ("N",)),
    "state_bucket": ("int32", ("N",)),
    "item_action": ("int32", ("N",)),
    "episode_offsets": ("int64", ("E+1",)),
    "terminated": ("bool", ("E",)),
    "truncated": ("bool", ("E",)),
    "started_at": ("int64", ("E",)),
    "customer_index": ("int32", ("E",)),
    "is_customer_known": ("bool", ("E",)),
    "validation": ("bool", ("E",)),
    "final_observations": ("float32", ("E", "D")),
    "final_action_mask": ("bool", ("E", "A")),
    "utterance_vectors": ("float16", ("U", "d")),
    "utterance_offsets": ("int64", ("N+1",)),
}

DATA_START = 4096
"""Byte at which the data begins. The header of these 23 arrays takes at most 2.9 KB, whatever their sizes; the rest is
spaces, so that it can be written when everything else is known."""

STEPS_PER_RANGE = 65_536
"""Steps that are checked, written or read at a time: some 35 MB at 128 features."""

_SAFETENSORS_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "bool": "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _SAFETENSORS_NAMES.items()}


@dataclass(frozen=True)
class Place:
    """Where an array is: bytes [start, stop) of the file's data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Range:
    """Whole consecutive episodes of a set, as arrays whose offsets begin at 0."""

    first_episode: int
    first_step: int
    first_utterance: int
    arrays: dict[str, NDArray[Any]]


def lay_out(sizes: Mapping[str, int]) -> dict[str, Place]:
    """Places of all arrays for the sizes N, E, A, D, K, U and d.

    Wide items come first, so that every array is aligned and, as the format wants it, no byte lies between two.
    """
    places, start = {}, 0
    for name in sorted(ARRAYS, key=lambda name: -np.dtype(ARRAYS[name][0]).itemsize):
        dtype, dims = ARRAYS[name]
        shape = shape_of(dims, sizes)
        stop = start + np.dtype(dtype).itemsize * math.prod(shape)
        places[name] = Place(dtype, shape, start, stop)
        start = stop
    return places


def shape_of(dims: tuple[str, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Sizes of named axes; `N+1` is one more than `N`."""
    return tuple(sizes[dim.removesuffix("+1")] + dim.endswith("+1") for dim in dims)


def header_bytes(places: Mapping[str, Place]) -> bytes:
    """What stands before the data: DATA_START bytes."""
    entries = {
        name: {
            "dtype": _SAFETENSORS_NAMES[place.dtype],
            "shape": place.shape,
            "data_offsets": (place.start, place.stop),
        }
        for name, place in places.items()
    }
    size = DATA_START - 8
    return size.to_bytes(8, "little") + json.dumps(entries, separators=(",", ":")).encode().ljust(size)


def read_layout(path: Path) -> tuple[int, dict[str, Place]]:
    """The byte at which a safetensors file's data begins, and the places of its arrays.

    Raises DataError if the file is missing, cut off, or not of this format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            data_start = 8 + int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(data_start - 8, size)))
        header.pop("__metadata__", None)
        places = {name: _place(entry) for name, entry in header.items()}
        if size != data_start + max(place.stop for place in places.values()):
            raise ValueError("the data ends elsewhere")
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Build the data set again.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} is cut off or not a safetensors file. Build the data set again.") from None
    return data_start, places


def mapped_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file as read-only views of one memory map. Raises DataError as `read_layout`."""
    data_start, places = read_layout(path)
    data = np.memmap(path, dtype=np.uint8, mode="r")[data_start:]
    return {
        name: np.asarray(data[place.start : place.stop]).view(place.dtype).reshape(place.shape)
        for name, place in places.items()
    }


def ranges(arrays: Mapping[str, NDArray[Any]], max_steps: int = STEPS_PER_RANGE) -> Iterator[Range]:
    """Cut a set into ranges of at most `max_steps` steps, or of one episode where that has more. The offsets must be
    right; other arrays are views."""
    episodes, utterances = arrays["episode_offsets"], arrays["utterance_offsets"]
    first, n_episodes = 0, len(episodes) - 1
    while first < n_episodes:
        last = int(np.searchsorted(episodes, episodes[first] + max_steps, side="right")) - 1
        last = min(max(last, first + 1), n_episodes)
        rows = slice(int(episodes[first]), int(episodes[last]))
        said = slice(int(utterances[rows.start]), int(utterances[rows.stop]))
        axes = {"N": rows, "E": slice(first, last), "U": said}
        part = {name: arrays[name][axes[dims[0]]] for name, (_, dims) in ARRAYS.items() if dims[0] in axes}
        part["episode_offsets"] = episodes[first : last + 1] - rows.start
        part["utterance_offsets"] = utterances[rows.start : rows.stop + 1] - said.start
        yield Range(first, rows.start, said.start, part)
        first = last


def _place(entry: dict[str, Any]) -> Place:
    start, stop = entry["data_offsets"]
    place = Place(_DTYPES[entry["dtype"]], tuple(entry["shape"]), start, stop)
    if stop - start != np.dtype(place.dtype).itemsize * math.prod(place.shape):
        raise ValueError("an array's bytes do not fit its shape")
    return place
