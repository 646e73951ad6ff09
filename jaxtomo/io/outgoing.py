"""What a format writer is given: an array that is read slab by slab and checked on the way, and what is known of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..series import TiltSeries

if TYPE_CHECKING:
    from ..data import Reconstruction

SLAB_BYTES = 32 << 20  # of float32 read at once: large enough for a disk, small beside any volume
MOST_BYTES = 256 << 20  # of a slab as thick as a chunk of the file


@dataclass(frozen=True)
class Outgoing:
    """An array on its way to a file.

    Attributes:
        name: the file it goes to, for messages.
        array: anything that can be sliced: `[z, y, x]` or `[tilt, y, x]`, with leading channels where the format has
            room for them. NumPy, `np.memmap`, an h5py dataset, a Zarr array.
        axes: the name of each axis of `array`.
        voxel_nm: voxel or pixel size in nm; None if unknown.
        tilt_deg: `[tilt]` degrees of the images, or of those the volume was computed from; None if unknown.
        series: the tilt series, where `array` is its images or the volume was computed from it.
        result: the reconstruction `array` is the volume of.
    """

    name: str
    array: Any
    axes: tuple[str, ...]
    voxel_nm: float | None = None
    tilt_deg: np.ndarray | None = None
    series: TiltSeries | None = None
    result: Reconstruction | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.array.shape)

    @property
    def is_series(self) -> bool:
        return "tilt" in self.axes

    @property
    def nbytes(self) -> int:
        """Bytes as float32, which is how everything is written."""
        return 4 * math.prod(self.shape)

    def chunk(self, depth: int, height: int, width: int) -> tuple[int, ...]:
        """A chunk of at most so many sections, rows and columns; of fewer sections where so many of them are huge.

        Chunks at the end of an axis are padded in a file, so an axis is cut into nearly equal ones.
        """
        *channels, sections, ny, nx = self.shape
        most = (max(1, min(depth, MOST_BYTES // (4 * ny * nx))), height, width)
        counts = (-(-n // largest) for n, largest in zip((sections, ny, nx), most, strict=True))
        return (1,) * len(channels) + tuple(-(-n // count) for n, count in zip((sections, ny, nx), counts, strict=True))

    def slabs(self, multiple: int = 1) -> Iterator[tuple[tuple, np.ndarray]]:
        """The array in order, as (index, float32 block of `[section, y, x]`), a multiple of `multiple` sections each.

        Raises InputError if a value is NaN or infinite, saying how many are, or if the array cannot be read.
        """
        for index in self._indices(multiple):
            block = self._read(index)
            if not np.isfinite(block).all():
                raise InputError(self._not_finite(multiple))
            yield index, block

    def _indices(self, multiple: int) -> Iterator[tuple]:
        *channels, sections, ny, nx = self.shape
        thickness = multiple * max(1, SLAB_BYTES // (4 * ny * nx * multiple))
        for channel in np.ndindex(*channels):
            for start in range(0, sections, thickness):
                yield (*channel, slice(start, min(start + thickness, sections)))

    def _read(self, index: tuple) -> np.ndarray:
        try:
            block = np.asarray(self.array[index])
        except OSError as error:
            raise InputError(
                f"{self.name}: not written, its data could not be read: {error}. Check their file."
            ) from error
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is reported as such
            return np.ascontiguousarray(block, "<f4")

    def _not_finite(self, multiple: int) -> str:
        bad = sum(int(np.size(block) - np.isfinite(block).sum()) for block in map(self._read, self._indices(multiple)))
        values = f"{bad} of {math.prod(self.shape)} values are NaN, infinite or too large for float32"
        if self.is_series:
            return (
                f"{self.name}: not written, {values}. Repair the series first: fill_nan=True (--fill-nan) when reading."
            )
        return (
            f"{self.name}: not written, {values}. If a reconstruction made them it diverged: look at its misfit, lower "
            "its step size or raise its regularisation. To write them anyway, replace them with np.nan_to_num."
        )


def outgoing(name: str, thing: Any, voxel_nm: float | None = None) -> Outgoing:
    """`thing` (a Reconstruction, a TiltSeries or a volume) as an `Outgoing`; `voxel_nm` replaces what it says itself.

    Raises InputError if it is none of these, has no voxels, is not real numbers, or if `voxel_nm` is not a size.
    """
    if isinstance(thing, TiltSeries):
        found = Outgoing(name, thing.images, ("tilt", "y", "x"), thing.pixel_nm, thing.tilt_deg, series=thing)
    elif hasattr(thing, "volume") and hasattr(thing, "pose"):
        tilt_deg = np.rad2deg(np.asarray(thing.pose.tilt, np.float64)).reshape(-1)
        found = Outgoing(name, thing.volume, ("z", "y", "x"), thing.voxel_nm, tilt_deg, thing.series, thing)
    else:
        found = Outgoing(name, thing, ("z", "y", "x"))
    array = found.array
    if not hasattr(array, "shape") or not hasattr(array, "dtype") or hasattr(array, "block_until_ready"):
        array = np.asarray(array)  # lists; and JAX arrays, whose every differently sized slice would be compiled
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name}: not written, its values are {array.dtype}. Give real numbers.")
    if len(array.shape) not in (3, 4) or 0 in array.shape:
        raise InputError(f"{name}: not written, an array of shape {array.shape} is no volume. Give [z, y, x].")
    size = found.voxel_nm if voxel_nm is None else voxel_nm
    if size is not None and not (np.isfinite(size) and size > 0):
        raise InputError(
            f"{name}: not written, a voxel size of {size} nm makes no sense. Give voxel_nm in nm, or None."
        )
    axes = ("channel",) * (len(array.shape) - 3) + found.axes
    return replace(found, array=array, axes=axes, voxel_nm=None if size is None else float(size))


def without_channels(out: Outgoing) -> None:
    """Raises InputError for an array with a channel axis, for formats that have no room for one."""
    if "channel" in out.axes:
        raise InputError(
            f"{out.name}: not written, this format holds one channel and the array has {out.shape[0]}, {out.shape}. "
            "Write one channel at a time, or all of them as .h5, .zarr or .npy."
        )
