"""OME-Zarr 0.5, for napari and for data in the cloud: the array and its pyramid of halved copies, sizes in nm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import InputError
from .outgoing import Outgoing

_CHUNK = (32, 128, 128)
_SMALLEST = 64  # the pyramid ends when no side is longer


def write_zarr(partial: Path, out: Outgoing) -> None:
    """Writes a group with levels "0", "1", … `[z, y, x]` float32, each a mean over 2 × 2 × 2 voxels of the one before.

    The images of a tilt series are halved along y and x only; its angles are in the attribute `jaxtomo`.
    Raises InputError if `zarr` 3 is not installed.
    """
    zarr = _zarr(out.name)
    halved = (False,) * (len(out.shape) - 3) + (not out.is_series, True, True)
    root = zarr.create_group(store=str(partial), zarr_format=3)
    level = _create(root, "0", out)
    for index, block in out.slabs(level.chunks[-3]):
        _put(level, index, block)
    datasets = [_dataset(0, out, halved)]
    while max(n for n, half in zip(level.shape, halved, strict=True) if half) > _SMALLEST:
        level = _halve(root, str(len(datasets)), level, halved, out)
        datasets.append(_dataset(len(datasets), out, halved))
    multiscale = {"name": Path(out.name).name, "axes": [_axis(name, out) for name in out.axes], "datasets": datasets}
    multiscale |= {"type": "mean"}
    root.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    root.attrs["jaxtomo"] = {"version": __version__, **_tilts(out)}


def _tilts(out: Outgoing) -> dict[str, Any]:
    """The angles in degrees; of images also the angle left between their tilt axis and y."""
    axis = {"tilt_axis": out.series.tilt_axis_deg} if out.is_series and out.series else {}
    return axis if out.tilt_deg is None else {"tilt_deg": [float(angle) for angle in out.tilt_deg], **axis}


def _zarr(name: str) -> Any:
    try:
        import zarr
    except ImportError as error:
        raise InputError(
            f'{name}: not written, Zarr needs a package. Install it: pip install "jaxtomo[zarr]"'
        ) from error
    if int(zarr.__version__.split(".")[0]) < 3:
        raise InputError(
            f'{name}: not written, zarr {zarr.__version__} is too old. Update it: pip install "jaxtomo[zarr]"'
        )
    return zarr


def _create(root: Any, name: str, out: Outgoing) -> Any:
    chunk = out.chunk(*_CHUNK)
    return root.create_array(name, shape=out.shape, dtype="float32", chunks=chunk, dimension_names=out.axes)


def _halve(root: Any, name: str, finer: Any, halved: tuple[bool, ...], out: Outgoing) -> Any:
    """The next level of the pyramid, made from the one before slab by slab, so that memory holds one slab."""
    shape = tuple(-(-n // 2) if half else n for n, half in zip(finer.shape, halved, strict=True))
    level = _create(root, name, replace(out, array=np.broadcast_to(np.float32(0), shape)))
    step = 2 if halved[-3] else 1
    for index, block in replace(out, array=finer).slabs(step * level.chunks[-3]):
        *channel, sections = index
        coarser = slice(sections.start // step, -(-sections.stop // step))
        _put(level, (*channel, coarser), _means(block, halved[-3:]))
    return level


def _put(level: Any, index: tuple, block: np.ndarray) -> None:
    """Writes a slab chunk after chunk: of several at once, Zarr's threads go on writing some when one has failed."""
    *channel, sections = index
    depth, height, width = level.chunks[-3:]
    for z in range(0, block.shape[0], depth):
        for y in range(0, block.shape[1], height):
            for x in range(0, block.shape[2], width):
                part = block[z : z + depth, y : y + height, x : x + width]
                here = (slice(at, at + n) for at, n in zip((sections.start + z, y, x), part.shape, strict=True))
                level[(*channel, *here)] = part


def _means(block: np.ndarray, halved: tuple[bool, ...]) -> np.ndarray:
    """Means over pairs along the `halved` axes; an odd last section counts as its own pair."""
    for axis, half in enumerate(halved):
        if half:
            starts = np.arange(0, block.shape[axis], 2)
            pairs = np.minimum(2, block.shape[axis] - starts).astype(np.float32)
            sums = np.add.reduceat(block, starts, axis=axis)
            block = sums / np.expand_dims(pairs, [other for other in range(block.ndim) if other != axis])
    return block


def _axis(name: str, out: Outgoing) -> dict[str, str]:
    if name in ("z", "y", "x"):
        return {"name": name, "type": "space"} | ({"unit": "nanometer"} if out.voxel_nm else {})
    return {"name": name, "type": "channel"} if name == "channel" else {"name": name, "type": "angle"}


def _dataset(level: int, out: Outgoing, halved: tuple[bool, ...]) -> dict[str, Any]:
    """Where level `level` lies: the centre of its first voxel is that of the 2^level voxels it is the mean of."""
    size = out.voxel_nm or 1.0
    unit = [size if name in ("z", "y", "x") else 1.0 for name in out.axes]
    scale = [u * 2.0**level if half else u for u, half in zip(unit, halved, strict=True)]
    shift = [u * (2.0**level - 1) / 2 if half else 0.0 for u, half in zip(unit, halved, strict=True)]
    transformations = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
    return {"path": str(level), "coordinateTransformations": transformations}
