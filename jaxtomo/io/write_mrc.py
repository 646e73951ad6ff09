"""MRC, with the angles of a tilt series where microscopes put them: FEI1 records, one a section."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE, get_ext_header_dtype

from .. import __version__
from .outgoing import Outgoing, without_channels

HEADER = HEADER_DTYPE.itemsize  # bytes before the voxels of a volume

# which fields of an FEI1 record say something: application and its version, alpha tilt, tilt axis, pixel sizes
_APPLICATION, _ALPHA_TILT, _TILT_AXIS, _PIXEL_SIZE = 0b11 << 3, 1 << 7, 1 << 12, 0b11 << 14


def write_mrc(partial: Path, out: Outgoing) -> None:
    """Writes mode 2 (float32), little-endian, columns x, rows y, sections z or tilts, voxel size in Å (0: unknown).

    A plain file is written section after section rather than a memory map: on a full disk a map kills the process.
    """
    without_channels(out)
    records = _fei1(out) if out.is_series else b""
    with open(partial, "wb") as file:
        file.write(bytes(HEADER) + records)
        header = _header(out, len(records), file)
        file.seek(0)
        file.write(header)


def complete_mrc(path: Path, out: Outgoing) -> None:
    """Writes the header of a volume whose voxels are in the file already, from byte `HEADER` on: `out` reads them."""
    header = _header(out, 0, None)
    with open(path, "r+b") as file:
        file.write(header)


def _header(out: Outgoing, extended: int, file: BinaryIO | None) -> bytes:
    """The header, with the statistics of all sections, which are written to `file`, if given, on the way."""
    count, total, square, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    for _, block in out.slabs():
        if file is not None:
            file.write(block.data)
        wide = block.astype(np.float64)
        count, total, square = count + wide.size, total + wide.sum(), square + np.square(wide).sum()
        low, high = min(low, float(block.min())), max(high, float(block.max()))
    mean = total / count
    rms = np.sqrt(max(square / count - mean * mean, 0.0))
    nz, ny, nx = out.shape
    voxel_A = 10.0 * (out.voxel_nm or 0.0)
    header: Any = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    header["nx"], header["ny"], header["nz"], header["mode"] = nx, ny, nz, 2
    # MRC2014: a volume is space group 1 with mz = nz, a stack of images is 0 with mz = 1
    header["ispg"] = 0 if out.is_series else 1
    header["mx"], header["my"], header["mz"] = nx, ny, 1 if out.is_series else nz
    header["cella"] = tuple(voxel_A * int(header[m]) for m in ("mx", "my", "mz"))
    header["cellb"] = (90, 90, 90)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["dmin"], header["dmax"], header["dmean"], header["rms"] = low, high, mean, rms
    header["nsymbt"], header["exttyp"], header["nversion"] = extended, b"FEI1" if extended else b"", 20141
    header["map"], header["machst"] = b"MAP ", (0x44, 0x44, 0, 0)
    labels = [line.encode("ascii", "replace")[:80] for line in _labels(out)]
    header["nlabl"], header["label"][: len(labels)] = len(labels), labels
    return header.tobytes()


def _labels(out: Outgoing) -> list[str]:
    if out.is_series:
        axis = out.series.tilt_axis_deg if out.series else 0.0
        return [
            f"jaxtomo {__version__}: tilt series, tilt angles in the FEI1 extended header",
            f"    Tilt axis angle = {axis:.6g}, counter-clockwise from +y",
        ]
    return [
        f"jaxtomo {__version__}: volume, columns x, rows y (tilt axis), sections z (beam at 0)",
        "Handedness as in IMOD after trimvol -rx: image x = x cos(tilt) + z sin(tilt)",
    ]


def _fei1(out: Outgoing) -> bytes:
    tilts = out.shape[0]
    records: Any = np.zeros(tilts, get_ext_header_dtype(b"FEI1", "<"))
    records["Metadata size"] = records.dtype.itemsize
    records["Bitmask 1"] = _APPLICATION | _ALPHA_TILT | _TILT_AXIS | (_PIXEL_SIZE if out.voxel_nm else 0)
    records["Application"], records["Application version"] = b"jaxtomo", __version__.encode()
    records["Alpha tilt"] = out.tilt_deg
    records["Tilt axis angle"] = out.series.tilt_axis_deg if out.series else 0.0
    records["Pixel size X"] = records["Pixel size Y"] = 1e-9 * (out.voxel_nm or 0.0)
    return records.tobytes()
