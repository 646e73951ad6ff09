"""HDF5 files that a full disk cannot spoil in silence, and whose writing Ctrl-C stops."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

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


def put_slab(dataset: h5py.Dataset, index: tuple, block: np.ndarray) -> None:
    """`dataset[index] = block`, after which a Ctrl-C that came meanwhile takes effect.

    Coming while h5py is at work, it would mostly be raised in one of h5py's own callbacks, and lost there.
    """
    # other threads get no signals, and a handler that is not Python's (None) could not be put back
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        dataset[index] = block
        return
    came: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        dataset[index] = block
    finally:
        signal.signal(signal.SIGINT, usual)
    if came:
        signal.raise_signal(signal.SIGINT)
