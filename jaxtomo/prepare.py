"""Between the file and the problem: binning, the background and the pose of a series that is aligned already, and rows
cut out of a series."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .background import unmeasured, vacuum
from .data import Pose
from .errors import DoesNotFitError, InputError
from .io import inspect, read
from .io.reading import check
from .io.stored import Stored
from .series import TiltSeries

SMALLEST = 8  # pixels that a side must keep after binning
PART = 64 << 20  # bytes of a series that are read at once where it is read a few rows at a time


def read_binned(path, factor: int = 1, **reading) -> TiltSeries:
    """`jaxtomo.read` and `binned`; a series too large for memory is read and binned a few rows at a time."""
    if factor == 1:
        return read(path, **reading)
    try:
        return binned(read(path, **reading), factor)
    except DoesNotFitError:
        parts = [part for _, _, part in _few_rows_at_a_time(path, factor, reading)]
        masked = any(part.mask is not None for part in parts)
        masks = [np.ones(part.images.shape, bool) if part.mask is None else part.mask for part in parts]
        return parts[0].replace(
            images=np.concatenate([part.images for part in parts], axis=-2),
            mask=np.concatenate(masks, axis=-2) if masked else None,
        )


def read_to_disk(path, folder: Path, factor: int = 1, **reading) -> TiltSeries:
    """`read_binned` of a series of one channel, a few rows at a time, into files in `folder`; see `Stored`.

    Raises InputError as `jaxtomo.read` does, and if the disk has no room.
    """
    masked, files = False, []
    first: Any = None
    for height, rows, part in _few_rows_at_a_time(path, factor, reading):
        if first is None:
            first, shape = part, (part.images.shape[0], height, part.images.shape[2])
            files = [Stored(folder / "images", shape), Stored(folder / "mask", shape, np.dtype(bool))]
            for file in files:
                file.allocate()
        masked |= part.mask is not None
        files[0].put(rows, part.images)
        files[1].put(rows, np.ones(part.images.shape, bool) if part.mask is None else part.mask)
    images, mask = files
    check(path, images, tilt_axis=reading.get("tilt_axis"), dataset=reading.get("dataset"))
    return first.replace(images=images, mask=mask if masked else None)


def _few_rows_at_a_time(path, factor: int, reading: dict) -> Iterator[tuple[int, slice, TiltSeries]]:
    """A series in parts: how many rows the whole has after binning, which are in this part, and that."""
    facts = inspect(path, **reading)
    turns = (facts["tilt_axis"] or {"quarter_turns": 0})["quarter_turns"]
    *lead, ny, nx = facts["shape"]
    height, width = (ny, nx) if turns % 2 == 0 else (nx, ny)
    _check_binning(path, height, width, factor)
    step = max(1, int(PART // (4 * np.prod(lead) * width * factor)))
    for start in range(0, height // factor, step):
        rows = slice(start, min(start + step, height // factor))
        there = slice(rows.start * factor, rows.stop * factor)
        part = _means(read(path, **reading, rows=there), factor)
        said = part.provenance["images"].replace(f"Rows {there.start}:{there.stop} only.", "Read a few rows at a time.")
        yield height // factor, rows, part.replace(provenance={**part.provenance, "images": said})


def binned(series: TiltSeries, factor: int) -> TiltSeries:
    """Means over `factor` × `factor` pixels; what is left over at the far edges is cut off.

    A binned pixel counts as measured if all of its pixels were. Cutting moves the rotation centre of a series that is
    aligned already by less than half a binned pixel.

    Raises InputError if too little would be left.
    """
    height, width = series.images.shape[-2:]
    _check_binning(series.source, height, width, factor)
    return _means(series, factor)


def _check_binning(source, height: int, width: int, factor: int) -> None:
    small = height // factor if factor > 0 else 0, width // factor if factor > 0 else 0
    if factor != 1 and min(small) < SMALLEST:
        raise InputError(
            f"{source}: {height} × {width} pixels binned {factor}-fold leave {small[0]} × {small[1]}. "
            f"Bin by {max(1, min(height, width) // SMALLEST)} at most (--bin)."
        )


def _means(series: TiltSeries, factor: int) -> TiltSeries:
    if factor == 1:
        return series
    small = [n // factor for n in series.images.shape[-2:]]

    def blocks(image):
        return image[: small[0] * factor, : small[1] * factor].reshape(small[0], factor, small[1], factor)

    def each(array, dtype, reduced):
        out = np.empty((*array.shape[:-2], *small), dtype)
        for index in np.ndindex(array.shape[:-2]):  # one image at a time: they may be on disk
            out[index] = reduced(blocks(array[index]))
        return out

    return series.replace(
        images=each(series.images, np.float32, lambda block: block.mean((1, 3), dtype=np.float32)),
        pixel_nm=None if series.pixel_nm is None else series.pixel_nm * factor,
        mask=None if series.mask is None else each(series.mask, bool, lambda block: block.all((1, 3))),
        provenance={
            **series.provenance,
            "images": f"{series.provenance.get('images', '')} Binned {factor}-fold.".strip(),
            "pixel_nm": f"{series.provenance.get('pixel_nm', '')} Times {factor} by binning.".strip(),
        },
    )


def as_it_is(series: TiltSeries, background=None) -> tuple[TiltSeries, Pose]:
    """The series without its background, and the pose of a series that was aligned before: `jaxtomo.align` without
    its search.

    Args:
        series: as read. A tilt axis that is off y, as the file or the user states it, goes into the pose.
        background: the vacuum level, one number or one an image; None for the one that the images show, if they do.
    """
    images = series.images
    channels = [images] if images.ndim == 3 else list(images)
    mask = _measured(images if images.ndim == 3 else images.sum(0), series.mask)
    if background is None:
        found = [vacuum(channel, mask) for channel in channels]
        level = np.stack([v.level if v.seen.any() else np.zeros_like(v.level) for v in found])
        level = level.reshape(images.shape[:-2])
        note = (
            f"vacuum level {level.min():.6g} to {level.max():.6g}, the darkest that a part of each image agrees on, "
            "subtracted"
            if any(v.seen.any() for v in found)
            else "no vacuum is seen in the images, nothing subtracted"
        )
    else:
        level = np.broadcast_to(np.asarray(background, float), images.shape[:-2])
        note = f"{background:g} as given, subtracted"
    pose = Pose.nominal(series.tilt_deg)
    if series.tilt_axis_deg:
        turned = jnp.full(series.tilt_deg.size, np.deg2rad(series.tilt_axis_deg), jnp.float32)
        pose = pose.replace(rotation=turned)
    level = level[..., None, None].astype(np.float32)
    if isinstance(images, Stored):
        for i, image in enumerate(images):
            images.put_first(i, image - level[i])
    else:
        images = images - level
    provenance = {**series.provenance, "background": note}
    return series.replace(images=images, mask=mask, provenance=provenance), pose


def _measured(stack, mask) -> Any:
    """`mask` without the borders that an earlier alignment filled in; of a stack on disk, beside it."""
    if not isinstance(stack, Stored):
        filled = unmeasured(stack)
        return mask if filled is None else ~filled if mask is None else mask & ~filled
    for i, image in enumerate(stack):
        filled = unmeasured(image[None])
        if filled is not None and mask is None:
            mask = Stored(stack.path.with_name("mask"), stack.shape, np.dtype(bool)).allocate()
            for k in range(stack.shape[0]):
                mask.put_first(k, np.ones(stack.shape[1:], bool))
        if filled is not None:
            mask.put_first(i, mask[i] & ~filled[0])
    return mask


def on_disk(series: TiltSeries, folder: Path) -> TiltSeries:
    """The same series with its images, and its mask if there is one, in files in `folder`.

    Raises InputError if the disk has no room for them.
    """

    if isinstance(series.images, Stored):
        return series

    def stored(array, name):
        copy = Stored(folder / name, array.shape, array.dtype).allocate()
        copy.put(slice(0, array.shape[-2]), array)
        return copy

    return series.replace(
        images=stored(series.images, "images"), mask=None if series.mask is None else stored(series.mask, "mask")
    )


def rows_of(series: TiltSeries, pose: Pose, rows: slice) -> tuple[TiltSeries, Pose]:
    """The part of a problem that concerns only `rows` of the volume along the tilt axis.

    Slices across the tilt axis are independent, so each image is cut where it shows these rows: the whole pixels of
    its shift along the axis go into the cut, the fraction stays in the pose. Rows beyond an image are masked.

    Raises InputError if the pose mixes slices, or if `rows` holds nothing.
    """
    if any(value is not None for value in (pose.rotation, pose.magnification, pose.second_tilt)):
        raise InputError(
            f"{series.source}: its slices are mixed by a rotation, a magnification or a second tilt, so no rows can be "
            "cut out. Align it first (jaxtomo align), which turns the images, or reconstruct all rows."
        )
    *lead, ny, _ = series.images.shape
    start, stop = rows.start, rows.stop
    if not 0 <= start < stop <= ny:
        raise InputError(
            f"{series.source}: there are rows 0 to {ny}, not {start} to {stop}. Give two of those (--slab)."
        )
    shift = None if pose.shift is None else np.array(pose.shift, np.float64)
    whole = np.zeros(series.tilt_deg.size, int) if shift is None else np.rint(shift[:, 1]).astype(int)
    seen = np.arange(start, stop) + whole[:, None]  # [tilt, row]
    inside = (seen >= 0) & (seen < ny)
    index = np.clip(seen, 0, ny - 1)
    near = slice(index.min(), index.max() + 1)  # of images on disk only these rows are read
    index = index - near.start
    images = np.take_along_axis(series.images[..., near, :], index[(None,) * (len(lead) - 1) + (..., None)], axis=-2)
    mask = None if series.mask is None else np.take_along_axis(series.mask[:, near], index[..., None], axis=-2)
    if not inside.all():
        outside = np.broadcast_to(inside[..., None], (*inside.shape, images.shape[-1]))
        mask = outside.copy() if mask is None else mask & outside
    if shift is not None:
        shift[:, 1] -= whole
        pose = pose.replace(shift=jnp.asarray(shift, jnp.float32))
    return series.replace(images=images, mask=mask), pose


def shifted(series: TiltSeries, pose: Pose) -> TiltSeries:
    """The series with the shifts of `pose` taken out of the images, by cubic splines; what moved in is masked."""
    from scipy import ndimage

    if pose.shift is None:
        return series
    images, mask = np.zeros_like(series.images), np.zeros(series.images.shape[-3:], bool)
    before = np.ones(mask.shape, bool) if series.mask is None else series.mask
    for i, (u, v) in enumerate(np.asarray(pose.shift, float)):
        mask[i] = ndimage.shift(before[i].astype(np.float32), (-v, -u), order=1) > 0.999
        stack = series.images.reshape(-1, *mask.shape)
        for channel, out in zip(stack, images.reshape(stack.shape), strict=True):
            out[i] = np.where(mask[i], ndimage.shift(channel[i], (-v, -u), order=3, mode="nearest"), 0)
    note = "shifts taken out of the images by cubic splines"
    before_that = series.provenance.get("alignment")
    note = note if before_that is None else f"{before_that}; {note}"
    return series.replace(images=images, mask=mask, provenance={**series.provenance, "alignment": note})
