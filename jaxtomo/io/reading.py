"""The door: what is asked and what the file states become a TiltSeries, a volume or a description."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DoesNotFitError, InputError
from ..series import TiltSeries
from .beside import with_side_files
from .decide import Decision, Orientation, decide_angles, decide_axis, decide_pixel, kept_images
from .mass_hint import mass_variation
from .raw import Raw, guarded
from .repair import fill_with_neighbours
from .sniff import open_raw

_CHUNK = 64 * 2**20  # bytes read at a time: the file's pixels never stand in memory beside the float32 ones
_CONTRADICTED = 1.5  # the mass profile along the axis may vary this much more than the one across it


def read(
    path,
    *,
    angles=None,
    tilt_axis=None,
    pixel_nm: float | str | None = None,
    rows: slice | None = None,
    fill_nan: bool = False,
    skip: Sequence[int] = (),
    dataset: str | None = None,
) -> TiltSeries:
    """Read a tilt series: images with the tilt axis along y, sorted by angle, every value with its provenance.

    Args:
        path: a file, a folder of images, or a pattern such as `"tilt_*.tif"`.
        angles: a file of angles, `"start:stop:step"`, numbers in degrees (all in the file's order), `"header"` for the
            file's own where a side file disagrees, or None: from the file and the files beside it.
        tilt_axis: `"y"`, `"x"` (along +x), or degrees counter-clockwise from +y, y being the row index (IMOD's
            RotationAngle); None: as stated. The axis has a direction: turning it by 180 degrees mirrors the volume.
        pixel_nm: nm, `"unknown"`, or None: as stated.
        rows: only these rows along the tilt axis (a slice with step 1), counted after turning.
        fill_nan: replace pixels that are not finite by the median of their neighbours, and mask them.
        skip: images to leave out, numbered from 0 in the file's order.
        dataset: name of the array, in a file that holds several.

    Raises InputError naming the file, the fact and the cure for whatever is lacking, contradictory or damaged, and
    DoesNotFitError when the images need more memory than there is.
    """
    raw = _open_stack(path, dataset)
    chosen = {
        "tilt_deg": decide_angles(raw, angles, skip),
        "pixel_nm": decide_pixel(raw, pixel_nm),
        "tilt_axis": decide_axis(raw, tilt_axis),
    }
    _raise_troubles(raw, chosen)
    orientation: Orientation = chosen["tilt_axis"].value
    kept = kept_images(raw, skip)
    order = np.argsort(chosen["tilt_deg"].value, kind="stable")
    images = _load(raw, kept[order], orientation.turns, rows)
    images, mask, repaired = _finite(raw, images, kept[order], fill_nan)
    if raw.mask is not None:
        measured = _load(raw.replace(images=raw.mask), kept[order], orientation.turns, rows) > 0
        mask = measured if mask is None else mask & measured
    if rows is None:
        _check(raw, images, tilt_axis)
    return TiltSeries(
        images=images,
        tilt_deg=chosen["tilt_deg"].value[order],
        pixel_nm=chosen["pixel_nm"].value,
        tilt_axis_deg=orientation.residual_deg,
        provenance={
            "images": " ".join([_describe(raw, kept, rows), *raw.notes, *([repaired] if repaired else [])]),
            **{key: decision.source for key, decision in chosen.items()},
            **_order_sentences(raw, order),
        },
        source=os.fspath(path),
        mask=mask,
        exposure_order=_exposure_order(raw, kept, order),
    )


def check(path, images, *, tilt_axis=None, dataset: str | None = None) -> None:
    """What `read` makes sure of when it has read all rows, for a caller who read them a few at a time.

    Raises InputError if all `images [tilt, y, x]` are equal, or contradict a tilt axis that only a convention states.
    """
    _check(_open_stack(path, dataset), images, tilt_axis)


def inspect(
    path,
    *,
    angles=None,
    tilt_axis=None,
    pixel_nm: float | str | None = None,
    rows: slice | None = None,
    fill_nan: bool = False,
    skip: Sequence[int] = (),
    dataset: str | None = None,
) -> dict[str, Any]:
    """What `read` with the same arguments would find, as plain JSON values, from the headers alone.

    Lacking and contradictory facts are listed under `"problems"` with their cures. An unreadable file raises
    InputError, as `read` does. `rows` and `fill_nan` change nothing here.
    """
    raw = _open_stack(path, dataset)
    tilts, pixel, axis = decide_angles(raw, angles, skip), decide_pixel(raw, pixel_nm), decide_axis(raw, tilt_axis)
    provenance = {"images": " ".join([_describe(raw, kept_images(raw, skip), None), *raw.notes])}
    for key, decision in (("tilt_deg", tilts), ("pixel_nm", pixel), ("tilt_axis", axis)):
        if not decision.troubles:
            provenance[key] = decision.source
    return {
        "file": os.fspath(path),
        "format": raw.format,
        "dialect": raw.dialect,
        "shape": list(raw.images.shape),
        "dtype": str(raw.images.dtype),
        "bytes": raw.images.nbytes,
        "angles": None if tilts.value is None else _angle_summary(tilts.value),
        "tilt_axis": None
        if axis.value is None
        else {"quarter_turns": axis.value.turns, "residual_deg": axis.value.residual_deg},
        "pixel_nm": pixel.value,
        "range": None if raw.range is None else list(raw.range),
        "exposure_order": raw.order is not None,
        "side_files": list(raw.beside),
        "provenance": provenance,
        "problems": [
            {"fact": trouble.fact, "cure": trouble.cure}
            for decision in (tilts, axis, pixel)
            for trouble in decision.troubles
        ],
    }


def read_volume(path, slab: slice | None = None, *, dataset: str | None = None) -> tuple[np.ndarray, float | None]:
    """A volume `[z, y, x]` float32 as stored, and its voxel size in nm where the file states one.

    `slab` reads only these rows of y (a slice with step 1), the axis along which slices are independent.
    """
    raw = open_raw(path, dataset)
    if len(raw.images.shape) != 3 or 0 in raw.images.shape:
        raise InputError(
            f"{raw.path}: has shape {raw.images.shape}, not [z, y, x]. Name another array with dataset=...."
        )
    volume = _load(raw, np.arange(raw.images.shape[0]), 0, slab)
    pixel = decide_pixel(raw, None)
    return volume, pixel.value


def _open_stack(path, dataset: str | None) -> Raw:
    """What the file and the files beside it state. Raises InputError unless it is a stack of images."""
    raw = open_raw(path, dataset)
    shape = raw.images.shape
    if len(shape) not in (3, 4) or 0 in shape:
        raise InputError(f"{raw.path}: holds an array of shape {shape}, not [tilt, y, x]. Give the whole tilt series.")
    return with_side_files(raw)


def _raise_troubles(raw: Raw, chosen: dict[str, Decision]) -> None:
    troubles = [trouble for decision in chosen.values() for trouble in decision.troubles]
    if not troubles:
        return
    first, *more = map(str, troubles)
    message = " ".join([first, *(sentence[0].upper() + sentence[1:] for sentence in more)])
    if chosen["tilt_axis"].troubles and not raw.axis:
        message += _mass_hint(raw)
    raise InputError(f"{raw.path}: {message}")


def _mass_hint(raw: Raw) -> str:
    """A sentence on what the images themselves suggest; never used to decide."""
    if len(raw.images.shape) != 3 or raw.images.nbytes > 2**28 or raw.images.shape[0] < 3:
        return ""
    with guarded(raw.path, f"{raw.format} images"):
        images = np.nan_to_num(raw.images[(slice(None),) * 3].astype(np.float32), posinf=0, neginf=0)
    along_y, along_x = mass_variation(images)
    less, more = sorted((along_y, along_x))
    suggests = "decides nothing"
    if more > 1.2 * less:
        suggests = f"suggests {'y' if along_y < along_x else 'x'}, but drift can mislead it"
    return (
        f" Hint: the mass profile varies over the tilts by {along_y:.2%} along y and {along_x:.2%} along x, "
        f"which {suggests}."
    )


def _load(raw: Raw, which: np.ndarray, turns: int, rows: slice | None) -> np.ndarray:
    """Images `which` (file numbers, any order) as float32, turned, only `rows` of the turned image."""
    source = raw.images
    if source.dtype.kind not in "biuf":
        raise InputError(f"{raw.path}: pixels are {source.dtype}, not real numbers. Export real intensities.")
    ny, nx = source.shape[-2:]
    box, out_rows, out_cols = _turned_box(raw, ny, nx, turns, rows)
    lead = source.shape[:-3]
    shape = (*lead, len(which), out_rows, out_cols)
    _check_memory(raw, shape)
    images = np.empty(shape, np.float32)
    place = np.full(source.shape[-3], -1)
    place[which] = np.arange(len(which))
    step = max(1, int(_CHUNK // max(1, source.dtype.itemsize * ny * nx * int(np.prod(lead, initial=1)))))
    step = source.shape[-3] if source.whole else step
    for start in range(0, source.shape[-3], step):
        here = place[start : start + step]
        if (here < 0).all():
            continue
        with guarded(raw.path, f"{raw.format} images"), np.errstate(over="ignore", invalid="ignore"):
            block = source[(*(slice(None) for _ in lead), slice(start, start + len(here)), *box)]
            images[..., here[here >= 0], :, :] = np.rot90(block[..., here >= 0, :, :], turns, axes=(-2, -1))
    return images


def _turned_box(raw: Raw, ny: int, nx: int, turns: int, rows: slice | None) -> tuple[tuple[slice, slice], int, int]:
    """The box in the file that holds `rows` of the turned image, and the turned shape."""
    height, width = (ny, nx) if turns % 2 == 0 else (nx, ny)
    rows = slice(None) if rows is None else rows
    if not isinstance(rows, slice):
        raise InputError(f"rows={rows!r}: is not a slice. Give rows=slice(start, stop).")
    first, last, step = rows.indices(height)
    if step != 1 or first >= last:
        raise InputError(f"{raw.path}: rows {first} to {last} of {height} hold nothing. Give rows=slice(start, stop).")
    # np.rot90 by 0, 1, 2, 3 takes its rows from the file's rows, columns backwards, rows backwards, columns.
    backwards = slice(height - last, height - first)
    wanted = backwards if turns % 4 in (1, 2) else slice(first, last)
    box = (wanted, slice(0, nx)) if turns % 2 == 0 else (slice(0, ny), wanted)
    return box, last - first, width


def _check_memory(raw: Raw, shape: tuple[int, ...]) -> None:
    needed = 4 * math.prod(shape)
    free = _free_memory()
    if free is not None and needed > free:
        rows = max(1, int(shape[-2] * free / needed / 2))
        raise DoesNotFitError(
            f"{raw.path}: {shape} as float32 needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free. "
            f"Read slabs of {rows} rows with rows=slice(0, {rows}), or bin the images first."
        )


def _free_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _finite(raw: Raw, images: np.ndarray, numbers: np.ndarray, fill: bool) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Repair or refuse pixels that are not finite; (images, mask of measured pixels, sentence)."""
    stack = images.reshape(-1, *images.shape[-2:])
    counts = np.array([image.size - np.count_nonzero(np.isfinite(image)) for image in stack])
    if not counts.any():
        return images, None, ""
    fact = f"{counts.sum()} of {images.size} pixels in {np.count_nonzero(counts)} images are NaN or infinite"
    if not fill:
        raise InputError(f"{raw.path}: {fact}. Repair them with fill_nan=True (--fill-nan), or drop images with skip.")
    mask = np.ones(images.shape[-3:], bool)
    for i in np.flatnonzero(counts):
        tilt = i % images.shape[-3]
        bad = ~np.isfinite(stack[i])
        if bad.all():
            number = numbers[tilt]
            raise InputError(f"{raw.path}: image {number} has no finite pixel. Drop it with skip=[{number}] (--skip).")
        mask[tilt] &= ~bad
        stack[i] = fill_with_neighbours(stack[i], bad)
    return images, mask, f"{fact}: replaced by the median of their neighbours, and masked."


def _check(raw: Raw, images, tilt_axis) -> None:
    _check_content(raw, images)
    if tilt_axis is None and not raw.axis:
        _check_convention(raw, images)


def _check_content(raw: Raw, images: np.ndarray) -> None:
    stack = images if images.ndim == 3 else images[0]
    first, count = stack[0], stack.shape[0]
    if all(np.array_equal(stack[i], first) for i in range(1, count)):
        what = f"and every pixel is {first.flat[0]:g}" if np.ptp(first) == 0 else "so nothing was tilted"
        raise InputError(f"{raw.path}: all {count} images are equal, {what}. Export the tilt series again.")


def _check_convention(raw: Raw, images: np.ndarray) -> None:
    """An axis that only a convention states must not be contradicted by the images."""
    if images.ndim != 3:
        return
    along, across = mass_variation(images)
    if along > _CONTRADICTED * across and along > 0.05:
        convention = "the format's convention" if raw.convention is None else raw.convention.source
        raise InputError(
            f"{raw.path}: the tilt axis is ambiguous: {convention}, but the mass profile along it varies by "
            f"{along:.1%} over the tilts and by only {across:.1%} across it. "
            "Say which is right with tilt_axis='x', 'y' or degrees (--tilt-axis)."
        )


def _exposure_order(raw: Raw, kept: np.ndarray, order: np.ndarray) -> np.ndarray | None:
    """Rank in time of the images that are kept, in the order they are returned."""
    if raw.order is None or len(raw.order.value) != raw.images.shape[-3]:
        return None
    return np.argsort(np.argsort(raw.order.value[kept]))[order]


def _describe(raw: Raw, kept: np.ndarray, rows: slice | None) -> str:
    n, ny, nx = raw.images.shape[-3:]
    text = f"{n} images of {nx} x {ny} {raw.images.dtype} pixels from {raw.name}, {raw.format} ({raw.dialect})."
    if kept.size < n:
        text += f" Left out with skip: {sorted(set(range(n)) - set(kept.tolist()))}."
    if rows is not None:
        text += f" Rows {'' if rows.start is None else rows.start}:{'' if rows.stop is None else rows.stop} only."
    return text


def _order_sentences(raw: Raw, order: np.ndarray) -> dict[str, str]:
    found = {}
    if np.any(order != np.arange(order.size)):
        found["order"] = "Sorted by angle; the file has another order."
    if raw.order is not None and len(raw.order.value) == raw.images.shape[-3]:
        found["exposure_order"] = f"From {raw.order.source}."
    return found


def _angle_summary(degrees: np.ndarray) -> dict[str, Any]:
    steps = np.diff(np.sort(degrees))
    even = bool(steps.size and np.ptp(steps) <= 0.05)
    return {
        "count": int(degrees.size),
        "min": float(degrees.min()),
        "max": float(degrees.max()),
        "step": float(np.median(steps)) if steps.size else None,
        "even": even,
        "sorted": bool(np.all(np.diff(degrees) >= 0)),
    }
