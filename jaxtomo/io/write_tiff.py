"""A multi-page TIFF that ImageJ and Fiji open as a calibrated stack."""

from __future__ import annotations

from pathlib import Path

import tifffile

from ..errors import InputError
from .outgoing import Outgoing, without_channels

_LIMIT = 1 << 32  # ImageJ's TIFF has 32-bit offsets


def write_tiff(partial: Path, out: Outgoing) -> None:
    """Writes float32 pages `[y, x]`, one a section z or a tilt, in order and unflipped; sizes in nm.

    Raises InputError for more than 4 GiB.
    """
    without_channels(out)
    if out.nbytes > _LIMIT - (1 << 20):
        raise InputError(
            f"{out.name}: not written, TIFF ends at 4 GiB and this is {out.nbytes / 1e9:.1f} GB. "
            "Write .mrc, .h5 or .zarr instead."
        )
    calibration = {}
    if out.voxel_nm:
        calibration = {"unit": "nm"} if out.is_series else {"unit": "nm", "spacing": out.voxel_nm}
    with tifffile.TiffWriter(partial, imagej=True) as file:
        file.write(
            data=(page for _, block in out.slabs() for page in block),
            shape=out.shape,
            dtype="<f4",
            resolution=(1 / out.voxel_nm, 1 / out.voxel_nm) if out.voxel_nm else None,
            metadata={"axes": "TYX" if out.is_series else "ZYX", **calibration},
        )
