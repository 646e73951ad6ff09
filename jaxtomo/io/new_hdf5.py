"""HDF5 files that a full disk cannot spoil in silence."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

_CACHE = 1 << 20  # bytes of chunks that HDF5 may hold back
_BALLAST = 8 << 20  # bytes: more than those, with their index and whatever else it holds back


@contextlib.contextmanager
def new_hdf5(partial: Path) -> Iterator[h5py.File]:
    """A new HDF5 file. Where the disk fills, it raises OSError and HDF5 is still able to close the file.

    HDF5 that cannot write what it holds back when it closes a file loses the error, and later the process crashes. So
    some space is set aside beside the file, and given back before closing.
    """
    ballast = partial.with_name(f"{partial.name}.ballast")
    try:
        with open(ballast, "wb") as file:
            file.write(bytes(_BALLAST))
            file.flush()
            os.fsync(file.fileno())
        with h5py.File(partial, "w", rdcc_nbytes=_CACHE) as file:
            try:
                yield file
                file.flush()
            except RuntimeError as error:  # what h5py makes of some system errors
                if found := re.search(r"errno = (\d+)", str(error)):
                    raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
                raise
            finally:
                ballast.unlink()
    finally:
        ballast.unlink(missing_ok=True)


def put(group: h5py.Group, name: str, data: Any, **options: Any) -> h5py.Dataset:
    """A small dataset, written at once: what HDF5 would hold back is lost in silence if it cannot be written later."""
    dataset = group.create_dataset(name, data=data, **options)
    dataset.flush()
    return dataset
