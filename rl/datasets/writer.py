"""Writing a transition set range by range, with a few ranges in memory and never the whole.

Here: `manifest.json` and `transitions.safetensors` as files that grow, checked on the way and put in place at the end.
Not here: where the arrays come from (`rl.datasets.build`), what they must keep (`rl.datasets.contract`).

How many utterances there are is known at the end only. So the file is laid out as: a header in reserved space, arrays
of 8 and of 4 bytes an item at their final places, the utterances, one after the other; arrays of one byte an item grow
in a second file, which is appended. Every array is aligned then, and the set's hash is taken from the finished file:
it does not depend on the ranges.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from rl.datasets.contract import as_stored, check_shapes, check_split, check_values, sizes_of
from rl.datasets.layout import ARRAYS, ARRAYS_FILE, DATA_START, Range, header_bytes, lay_out
from rl.datasets.manifest import MANIFEST_FILE, Manifest, described
from rl.errors import DataError
from rl.files import replaced_folder, write_json
from rl.types import Bool1D

_BUFFER_BYTES = 4 * 2**20
"""Read at a time for the hash; larger ones were no faster."""


class TransitionSetWriter:
    """A transition set that is being written. `TransitionSetWriter.replacing` makes one."""

    manifest: Manifest
    """What the arrays mean. Names that only the rows tell (policy versions, items) may be set until the end; then it
    has counts and hashes, as it was stored."""

    def __init__(
        self, folder: Path, manifest: Manifest, sizes: Mapping[str, int], data: BinaryIO, bytewise: BinaryIO
    ) -> None:
        self.folder, self.manifest = folder, manifest
        self._sizes, self._data, self._bytewise = dict(sizes), data, bytewise
        self._places = lay_out(self._sizes)
        self._utterances_start = self._places["utterance_vectors"].start
        self._n_steps = self._n_episodes = 0
        self._customers: list[NDArray[np.int32]] = []
        self._validation: list[Bool1D] = []
        data.truncate(DATA_START + self._utterances_start)

    @classmethod
    @contextmanager
    def replacing(
        cls, folder: Path, manifest: Manifest, *, n_steps: int, n_episodes: int, observation_size: int
    ) -> Iterator[Self]:
        """A writer of a set of known size; `folder` is replaced as a whole when the block ends without an error.

        More files may be written into `writer.folder` until then.

        Raises DataError if the disk has too little room, or at the end if rows are missing or a customer is on both
        sides of the split. What was there is then left as it was.
        """
        sizes = {"N": n_steps, "E": n_episodes, "A": len(manifest.catalogue), "D": observation_size}
        sizes |= {"K": len(manifest.reward.parts), "U": 0, "d": 0}
        with _full_disk_named(folder), replaced_folder(folder) as temporary:
            _require_room(temporary, sizes)
            aside = temporary / "bytewise"
            with (temporary / ARRAYS_FILE).open("w+b") as data, aside.open("w+b") as bytewise:
                writer = cls(temporary, manifest, sizes, data, bytewise)
                yield writer
                writer._finish()
            aside.unlink()

    def add(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Check and write the next whole episodes.

        `arrays` are those of a `TransitionSet`, all of them, of these episodes alone: their offsets begin at 0. Other
        dtypes are cast.

        Raises DataError (PropensityError for propensities) naming the first rows, counted over the whole set, that
        break the contract.
        """
        if set(arrays) != set(ARRAYS):
            wrong = ", ".join(sorted(set(arrays) ^ set(ARRAYS)))
            raise DataError(f"A range of a transition set needs all of its arrays and no others. Look at {wrong}.")
        part = {name: as_stored(name, arrays[name]) for name in ARRAYS}
        found = sizes_of(part, self.manifest)
        if self._n_steps == 0:
            self._sizes["d"] = found["d"]
        check_shapes(part, found | {"D": self._sizes["D"], "d": self._sizes["d"]})
        check_values(Range(self._n_episodes, self._n_steps, self._sizes["U"], part), self.manifest)
        self._require_announced(self._n_steps + found["N"], self._n_episodes + found["E"], is_end=False)
        self._write_range(part)
        self._customers.append(part["customer_index"])
        self._validation.append(part["validation"])
        self._n_steps += found["N"]
        self._n_episodes += found["E"]
        self._sizes["U"] += found["U"]

    def _require_announced(self, n_steps: int, n_episodes: int, *, is_end: bool) -> None:
        announced = self._sizes["N"], self._sizes["E"]
        is_more = n_steps > announced[0] or n_episodes > announced[1]
        if is_more or (is_end and (n_steps, n_episodes) != announced):
            raise DataError(
                f"The transition set was announced with {announced[0]} steps of {announced[1]} episodes and is given "
                f"{n_steps} of {n_episodes}. Count the rows again; the marts may have changed meanwhile."
            )

    def _write_range(self, part: Mapping[str, NDArray[Any]]) -> None:
        rows = {"N": self._n_steps, "E": self._n_episodes, "U": self._sizes["U"]}
        for name, (_, dims) in ARRAYS.items():
            if dims[0] in rows:
                self._write(name, rows[dims[0]], part[name])
        # The first offset of all is 0, which is what an untouched place of the file holds.
        self._write("episode_offsets", rows["E"] + 1, part["episode_offsets"][1:] + rows["N"])
        self._write("utterance_offsets", rows["N"] + 1, part["utterance_offsets"][1:] + rows["U"])

    def _write(self, name: str, row: int, values: NDArray[Any]) -> None:
        if values.size == 0:
            return
        place = self._places[name]
        at = place.start + row * values[0].nbytes
        if values.itemsize == 1:
            self._bytewise.seek(at - self._utterances_start)
            self._bytewise.write(values.reshape(-1).data)
        else:
            self._data.seek(DATA_START + at)
            self._data.write(values.reshape(-1).data)

    def _finish(self) -> None:
        self._require_announced(self._n_steps, self._n_episodes, is_end=True)
        check_split(np.concatenate(self._customers), np.concatenate(self._validation))
        self._places = lay_out(self._sizes)
        self._data.seek(0, 2)
        self._bytewise.seek(0)
        shutil.copyfileobj(self._bytewise, self._data, _BUFFER_BYTES)
        self._data.seek(0)
        self._data.write(header_bytes(self._places))
        self.manifest = described(self.manifest, self._sizes, self._contents)
        write_json(self.folder / MANIFEST_FILE, self.manifest.model_dump(mode="json"))

    def _contents(self, name: str) -> Iterator[bytes]:
        place = self._places[name]
        self._data.seek(DATA_START + place.start)
        for at in range(place.start, place.stop, _BUFFER_BYTES):
            yield self._data.read(min(_BUFFER_BYTES, place.stop - at))


def _require_room(folder: Path, sizes: Mapping[str, int]) -> None:
    needed = max(place.stop for place in lay_out(sizes).values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"The transition set takes {needed / 1e9:.1f} GB without its utterances; the disk of {folder.parent} has "
            f"{free / 1e9:.1f} GB free. Make room, or choose a shorter window."
        )


@contextmanager
def _full_disk_named(folder: Path) -> Iterator[None]:
    """The utterances are in no estimate, and others write to the disk, too."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(
            f"The disk of {folder.parent} is full; the transition set was not finished and what was written of it is "
            "removed. Make room, or choose a shorter window."
        ) from None
