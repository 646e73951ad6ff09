"""Arrays that stay on disk: plain numbers in a file, of which only the box that is asked for is in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .atomic import require_space

FLOAT = np.dtype("<f4")


@dataclass(frozen=True)
class Stored:
    """An array in a file, in C order from `offset` on. Indexing reads and copies, as NumPy's does of an array.

    Files are mapped for one reading at a time: pages of a mapping count as memory of the process.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype = FLOAT
    offset: int = 0

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def end(self) -> int:
        """Bytes of a file that holds all of it."""
        return self.offset + self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, index) -> np.ndarray:
        return np.array(np.memmap(self.path, self.dtype, "r", self.offset, self.shape)[index])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(self.shape[0]))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[...], dtype)

    def allocate(self) -> Stored:
        """Make the file, of zeros. Raises InputError if the disk has no room for it."""
        require_space(self.path, self.end)
        with open(self.path, "wb") as file:
            file.truncate(self.end)
        return self

    def put_first(self, index: int, block: np.ndarray) -> None:
        """Write `block` as `self[index]`."""
        with open(self.path, "r+b") as file:
            file.seek(self.offset + index * self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64)))
            file.write(np.ascontiguousarray(block, self.dtype).data)

    def put(self, rows: slice, block: np.ndarray) -> None:
        """Write `block [..., row, x]` as `rows` of the last axis but one: hand it to the system, which may take a while
        to bring it to the disk; see `sync`."""
        *lead, height, width = self.shape
        block = block.reshape(-1, rows.stop - rows.start, width)
        with open(self.path, "r+b") as file:
            for i in range(int(np.prod(lead, dtype=np.int64))):
                file.seek(self.offset + self.dtype.itemsize * (i * height + rows.start) * width)
                file.write(np.ascontiguousarray(block[i], self.dtype).data)

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        with open(self.path, "r+b") as file:
            os.fsync(file.fileno())
