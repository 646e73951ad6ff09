"""The names under which .npz, .mat and plain HDF5 files may hold images, angles, pixel size and axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .raw import Fact, Raw

IMAGE_KEYS = ("images", "projections", "tilt_series", "tiltseries", "data", "volume")
ANGLE_KEYS = {
    "tilt_deg": 1.0,
    "tilts_deg": 1.0,
    "angles_deg": 1.0,
    "tilt_angles": 1.0,
    "tiltangles": 1.0,
    "tilts": 1.0,
    "angles": 1.0,
    "theta": 1.0,
    "tilt_rad": float(np.rad2deg(1.0)),
    "angles_rad": float(np.rad2deg(1.0)),
}
PIXEL_KEYS = ("pixel_nm", "pixel_size_nm", "voxel_nm")
_MOST_NUMBERS = 10**6  # a larger array is never angles


def choose(path: Path, shapes: Mapping[str, tuple[int, ...]], dataset: str | None) -> str:
    """The array that holds the images: `dataset`, else the known name, else the only one with three axes."""
    if dataset is not None:
        name = dataset.strip("/")
        if name not in shapes:
            raise InputError(f"{path}: has no array {dataset!r}. Name one of {_listed(shapes)} with dataset=....")
        if len(shapes[name]) not in (3, 4):
            raise InputError(f"{path}: {dataset!r} has shape {shapes[name]}, not [tilt, y, x]. Name another array.")
        return name
    stacks = {key: shape for key, shape in shapes.items() if len(shape) == 3 and min(shape) > 0}
    named = [key for wanted in IMAGE_KEYS for key in stacks if key.split("/")[-1].lower() == wanted]
    candidates = named[:1] or list(stacks)
    if len(candidates) != 1:
        raise InputError(
            f"{path}: {len(candidates)} arrays could be the images. "
            f"Name one of {_listed(stacks or shapes)} with dataset=... (--dataset)."
        )
    return candidates[0]


def with_keyed_facts(
    raw: Raw, shapes: Mapping[str, tuple[int, ...]], load: Callable[[str], np.ndarray], *, tilt_last: bool = False
) -> Raw:
    """`raw` with angles, pixel size and axis from the arrays of those names, in any case and in any group.

    The number of angles says which axis of the images is the tilts where it can; else it is the first, or the last if
    `tilt_last` says that this is the format's habit.
    """
    small = {
        key.split("/")[-1].lower(): key for key, shape in shapes.items() if np.prod(shape, dtype=float) < _MOST_NUMBERS
    }

    def first(names: Iterable[str], size: int | None = None) -> tuple[str, np.ndarray] | None:
        for name in names:
            if name in small and (values := load(small[name])).dtype.kind in "iuf" and size in (None, values.size):
                return name, values.astype(np.float64)
        return None

    if (found := first(ANGLE_KEYS)) is not None:
        degrees = ANGLE_KEYS[found[0]] * _tilts(raw.path, *found)
        raw = raw.replace(angles=(Fact(degrees, f"the array {small[found[0]]!r}"),))
    if (found := first(PIXEL_KEYS, size=1)) is not None:
        raw = raw.replace(pixel_nm=(Fact(float(found[1].ravel()[0]), f"the array {small[found[0]]!r}"),))
    raw = raw.replace(
        axis=stated_axis({key: load(small[key]) for key in ("tilt_axis", "tilt_axis_deg") if key in small})
    )
    return _tilt_first(raw, tilt_last)


def _tilt_first(raw: Raw, tilt_last: bool) -> Raw:
    if len(raw.images.shape) != 3:
        return raw
    count = raw.angles[0].value.size if raw.angles else None
    fits = [i for i in (0, 2) if raw.images.shape[i] == count]
    if not (fits == [2] if len(fits) == 1 else tilt_last):
        return raw
    why = f"it has as many elements as there are angles, {count}" if fits == [2] else "MATLAB's habit"
    return raw.replace(
        images=raw.images.moved(2, 0, 1), notes=(*raw.notes, f"The last axis was taken as the tilts: {why}.")
    )


def _tilts(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Angles as (N,), (1, N), (N, 1), or the one varying column of (N, 3) Euler angles."""
    if values.ndim == 2 and min(values.shape) == 3:
        euler = values if values.shape[1] == 3 else values.T
        varying = [i for i in range(3) if np.ptp(euler[:, i]) > 1e-9]
        if len(varying) != 1:
            raise InputError(
                f"{path}: {name!r} holds Euler angles of which {len(varying)} vary. "
                "Give the tilts with angles=... (--angles)."
            )
        return euler[:, varying[0]]
    return values.ravel()


def stated_axis(values: Mapping[str, Any]) -> tuple[Fact, ...]:
    """The axis from `tilt_axis` ("x", "y" or degrees) or `tilt_axis_deg`."""
    for key, value in values.items():
        item = np.ravel(np.asarray(value))
        if item.size != 1:
            continue
        text = item[0].decode("utf-8", errors="replace") if isinstance(item[0], bytes) else str(item[0])
        degrees = {"y": 0.0, "x": -90.0}.get(text.strip().lower())
        try:
            degrees = float(text) if degrees is None else degrees
        except ValueError:
            continue
        if np.isfinite(degrees):
            return (Fact(degrees, repr(key)),)
    return ()


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    listed = [f"{key} {shape}" for key, shape in list(shapes.items())[:12]]
    return ", ".join(listed) + (", ..." if len(shapes) > 12 else "") if listed else "(it holds no array)"
