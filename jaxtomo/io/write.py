"""The one door for writing: which format a name asks for, what goes beside the file, and that it is whole or not there.

Whatever the format, an array keeps the order of its axes and their direction: element [z, y, x] of a volume is written
as the voxel x, y, z, and y is the tilt axis. How that meets other programs:

    IMOD    the same handedness and the same sign of the angles as a tomogram rotated with `trimvol -rx` (its own `.rec`
            is [y, -z, x]); the tilt axis of a series is y, as in an aligned stack.
    tomviz  a volume is the same x, y, z; a tilt series is turned so that the tilt axis is tomviz's x. See `write_emd`.
    Warp    takes the tilt angles with the opposite sign.
    ImageJ  shows row 0 at the top, IMOD at the bottom; nothing is flipped for either.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..series import TiltSeries
from .atomic import replacing, require_space
from .outgoing import Outgoing, outgoing

if TYPE_CHECKING:
    from ..data import Reconstruction

KNOWN = ".mrc (.rec, .st, .ali, .mrcs, .map), .h5 (.hdf5), .emd, .zarr, .tif (.tiff), .npy"


def write(path: str | os.PathLike, thing: Reconstruction | TiltSeries | Any, voxel_nm: float | None = None) -> Path:
    """Writes a reconstruction, a tilt series or a volume, in the format that the suffix of `path` names.

    The file appears whole or not at all: it is written beside `path` and renamed. Volumes may be larger than memory:
    anything that can be sliced along its first axis is read slab by slab.

    Args:
        path: `.mrc` and IMOD's other suffixes, `.h5`, `.emd`, `.zarr` (OME-Zarr 0.5), `.tif` (ImageJ) or `.npy`. Only
            `.h5` holds all of a Reconstruction; the others hold its volume. The tilt angles go beside an `.mrc`, and
            beside a tilt series in `.tif` or `.npy`, in a `.rawtlt` file of the same name.
        thing: a Reconstruction, a TiltSeries, or a volume `[z, y, x]` (NumPy, JAX, `np.memmap`, h5py, Zarr).
        voxel_nm: voxel size in nm, instead of the one that `thing` states.

    Returns the path. Raises InputError, naming file, fact and cure, for an unknown suffix, values that are NaN or
    infinite, no permission, a full disk, no folder.
    """
    path = Path(path)
    form = _form(path)
    out = outgoing(str(path), thing, voxel_nm)
    if form not in ("hdf5", "zarr"):  # those compress, so that their size is not known before
        require_space(path, out.nbytes)
    with contextlib.ExitStack() as files:
        if out.tilt_deg is not None and (form == "mrc" or (out.is_series and form in ("tiff", "npy"))):
            angles = files.enter_context(replacing(path.with_suffix(".rawtlt")))
            write_angles(angles, out.tilt_deg)
        partial = files.enter_context(replacing(path, folder=form == "zarr"))
        _writer(form)(partial, out)
    return path


def write_angles(path: Path, tilt_deg) -> None:
    """Writes a `.rawtlt` file: degrees, one a line."""
    path.write_text("".join(f"{angle:.6f}\n" for angle in tilt_deg), encoding="ascii")


def _form(path: Path) -> str:
    name = path.name.lower()
    match Path(name).suffix:
        case ".mrc" | ".rec" | ".st" | ".ali" | ".mrcs" | ".map":
            return "mrc"
        case ".h5" | ".hdf5":
            return "hdf5"
        case ".emd":
            return "emd"
        case ".zarr":
            return "zarr"
        case ".tif" | ".tiff" if not name.endswith((".ome.tif", ".ome.tiff")):
            return "tiff"
        case ".npy":
            return "npy"
        case _:
            raise InputError(f"{path}: not written, its suffix names no format jaxtomo writes. Use one of {KNOWN}.")


def _writer(form: str) -> Callable[[Path, Outgoing], None]:
    """Imported when used, so that a missing or slow library costs only those who asked for its format."""
    match form:
        case "mrc":
            from .write_mrc import write_mrc as writer
        case "hdf5":
            from .reconstruction import write_hdf5 as writer
        case "emd":
            from .write_emd import write_emd as writer
        case "zarr":
            from .write_zarr import write_zarr as writer
        case "tiff":
            from .write_tiff import write_tiff as writer
        case _:
            from .write_npy import write_npy as writer
    return writer
