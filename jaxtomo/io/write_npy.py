"""NumPy's `.npy`: the bare array."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .outgoing import Outgoing


def write_npy(partial: Path, out: Outgoing) -> None:
    """Writes float32 `[z, y, x]` or `[tilt, y, x]`, with leading channels if there are any; no voxel size."""
    with open(partial, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": out.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for _, block in out.slabs():
            file.write(block.data)
