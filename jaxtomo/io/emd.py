"""EMD: HDF5 files of NCEM and tomviz (`data` with `dim1`, `dim2`, ...) and of Thermo Fisher's Velox (`/Data/Image`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import InputError
from .hdf5 import array_at, attribute, group_at, lazy, to_nm, vector
from .keys import stated_axis
from .raw import Fact, Raw

_ANGLE_NAMES = ("angles", "angle", "tilt", "tilts", "tilt angle", "tilt_angle", "alpha")


def ncem_groups(file: Any) -> list[str]:
    """Paths of the groups that hold an EMD data set: an n-D `data` and one `dim` vector for each of its axes."""
    found: list[str] = []

    def visit(name: str, item: Any) -> None:
        data = array_at(item, "data") if isinstance(item, h5py.Group) else None
        n = 0 if data is None else len(data.shape)
        if n >= 3 and all(array_at(item, f"dim{i + 1}") is not None for i in range(n)):
            found.append(name)

    file.visititems(visit)
    return found


def read_ncem(path: Path, file: Any, groups: list[str], dataset: str | None) -> Raw:
    """A tilt series (an axis named angles, or in degrees or radians) or a volume (axes x, y, z)."""
    wanted = [g for g in groups if dataset is None or dataset.strip("/") in (g, f"{g}/data")]
    if len(wanted) != 1:
        raise InputError(
            f"{path}: holds {len(groups)} data sets: {', '.join(groups)}. Name one with dataset=... (--dataset)."
        )
    group = file[wanted[0]]
    images = lazy(path, group["data"])
    dims = [_dim(group[f"dim{i + 1}"]) for i in range(len(images.shape))]
    if len(dims) != 3:
        raise InputError(f"{path}: {wanted[0]} has shape {images.shape}. Export one image a tilt, without other axes.")
    sizes = tuple(len(values) for values, *_ in dims)
    if sizes != images.shape and sizes == images.shape[::-1]:  # Fortran order: the array reads backwards
        images = images.moved(2, 1, 0)
    tomviz = wanted[0] == "data/tomography" or any(key.startswith("tomviz") for key in (*file, *group))
    where = f"{wanted[0]} of the EMD file"
    angular = [i for i, (_, name, unit) in enumerate(dims) if name in _ANGLE_NAMES or unit in ("deg", "rad")]
    pixel = _spacing(dims, angular, where)
    if not angular:
        at = [next((i for i, (_, name, _) in enumerate(dims) if name == axis), None) for axis in "zyx"]
        known = [i for i in at if i is not None]
        order = known if sorted(known) == [0, 1, 2] else [0, 1, 2]
        kind = "tomviz" if tomviz else "NCEM"
        return Raw(path, "EMD", f"{kind}, volume", images.moved(*order), pixel_nm=pixel)
    if len(angular) > 1:
        raise InputError(f"{path}: {where} has {len(angular)} axes of angles. Give angles=... and an image stack.")
    first = angular[0]
    values, _, unit = dims[first]
    degrees = np.rad2deg(values) if unit == "rad" else values
    rest = [i for i in range(3) if i != first]
    images = images.moved(first, *rest)
    stated = f"{where}, axis {dims[first][1] or first + 1!r} in {unit or 'degrees (no unit given)'}"
    axis = stated_axis({key: group.attrs[key] for key in ("tilt_axis",) if key in group.attrs})
    if axis:
        left = float(group.attrs.get("tilt_axis_deg", 0.0))  # what jaxtomo could not turn out
        axis = (Fact(axis[0].value + left, f"{where}, attribute tilt_axis"),)
    convention = None
    if tomviz and [dims[i][1] for i in rest] == ["y", "x"]:
        convention = Fact(-90.0, "tomviz's convention, the tilt axis along image x (nothing states an axis)")
    return Raw(
        path,
        "EMD",
        "tomviz, tilt series" if tomviz else "NCEM, tilt series",
        images,
        angles=(Fact(degrees, stated),) if np.any(values != 0) else (),
        axis=axis,
        pixel_nm=pixel,
        convention=convention,
    )


def _dim(data: Any) -> tuple[np.ndarray, str, str]:
    """(values, name, unit) of one axis; units are written as [n_m], [deg]."""
    unit = attribute(data, "units").strip("[] ").replace("_", "").replace(" ", "")
    unit = {"degree": "deg", "degrees": "deg", "°": "deg", "radian": "rad", "radians": "rad"}.get(unit, unit)
    return vector(data).astype(np.float64), attribute(data, "name").strip().lower(), unit


def _spacing(dims, angular: list[int], where: str) -> tuple[Fact, ...]:
    found = []
    for i, (values, name, unit) in enumerate(dims):
        scale = to_nm(unit)
        if i not in angular and scale is not None and len(values) > 1:
            step = (values[-1] - values[0]) / (len(values) - 1) * scale
            if np.isfinite(step) and step > 0:
                found.append(Fact(float(step), f"{where}, axis {name or i + 1!r} in {unit}"))
    same = len(found) > 1 and all(abs(f.value / found[0].value - 1) < 1e-3 for f in found)
    return tuple(found[:1] if same else found)


def read_velox(path: Path, file: Any, dataset: str | None) -> Raw:
    """A stack of Velox: `/Data/Image/<id>/Data` is [y, x, frame], its `Metadata` one JSON text a frame."""
    groups = {f"Data/Image/{key}": group_at(file, f"Data/Image/{key}") for key in file["Data/Image"]}
    stacks = {
        name: group
        for name, group in groups.items()
        if (data := array_at(group, "Data")) is not None and len(data.shape) == 3
    }
    several = {name: group for name, group in stacks.items() if group["Data"].shape[2] > 1} or stacks
    names = {name: _detector(group) for name, group in several.items()}
    wanted = [
        name
        for name in several
        if dataset is None or dataset.strip("/") in (name, f"{name}/Data", name.split("/")[-1], names[name])
    ]
    if len(wanted) != 1:
        listed = ", ".join(f"{name} ({detector or 'no detector named'})" for name, detector in names.items())
        raise InputError(
            f"{path}: holds {len(several)} image stacks: {listed}. "
            "Name one with dataset=... (--dataset), by its path or detector."
        )
    group = several[wanted[0]]
    frames = group["Data"].shape[2]
    texts = list(_metadata(group, frames))
    where = f"Velox's metadata of {names[wanted[0]] or wanted[0]}"
    alpha = np.array([_number(text, "Stage", "AlphaTilt") for text in texts])
    known = np.isfinite(alpha).any() and np.any(alpha != 0)
    angles = (Fact(np.rad2deg(alpha), f"{where}, Stage.AlphaTilt in radians"),) if known else ()
    pixel = ()
    if texts:
        width = _number(texts[0], "BinaryResult", "PixelSize", "width")
        unit = str(texts[0].get("BinaryResult", {}).get("PixelUnitX", "m"))
        scale = to_nm(unit)
        if scale is not None and np.isfinite(width) and width > 0:
            pixel = (Fact(width * scale, f"{where}, PixelSize in {unit}"),)
    return Raw(
        path,
        "EMD",
        f"Velox, {names[wanted[0]] or 'image stack'}",
        lazy(path, group["Data"]).moved(2, 0, 1),
        angles=angles,
        pixel_nm=pixel,
    )


def _metadata(group: Any, frames: int) -> Iterator[dict]:
    data = array_at(group, "Metadata")
    if data is None or data.dtype != np.uint8 or len(data.shape) != 2 or data.shape[0] > 2**24:
        return
    for frame in range(min(frames, data.shape[1])):
        text = bytes(np.ascontiguousarray(data[:, frame]).tobytes()).split(b"\0")[0]
        try:
            parsed = json.loads(text.decode("utf-8", errors="replace"))
        except (ValueError, RecursionError):
            parsed = {}
        yield parsed if isinstance(parsed, dict) else {}


def _detector(group: Any) -> str:
    first = next(_metadata(group, 1), {})
    return str(first.get("BinaryResult", {}).get("Detector", "")) if isinstance(first.get("BinaryResult"), dict) else ""


def _number(text: dict, *keys: str) -> float:
    value: object = text
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return float("nan")
