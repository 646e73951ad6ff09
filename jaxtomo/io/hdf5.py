"""HDF5: which layout a file has, DXchange, NXtomo, jaxtomo's own results, and any other file by `dataset=`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import InputError
from .keys import choose, with_keyed_facts
from .raw import Fact, Images, Raw, check_held, guarded

_NM = {
    "m": 1e9,
    "mm": 1e6,
    "um": 1e3,
    "µm": 1e3,
    "μm": 1e3,
    "micron": 1e3,
    "microns": 1e3,
    "micrometer": 1e3,
    "nm": 1.0,
    "nanometer": 1.0,
    "nanometers": 1.0,
    "micrometers": 1e3,
    "meter": 1e9,
    "millimeter": 1e6,
    "å": 0.1,
    "a": 0.1,
    "angstrom": 0.1,
    "angstroms": 0.1,
    "pm": 1e-3,
}


def to_nm(unit: str) -> float | None:
    """Nanometres in one `unit`; None if it is no length."""
    return _NM.get(unit.strip("[] ").replace("_", "").lower())


def attribute(item: Any, name: str) -> str:
    """An attribute as text; empty when absent."""
    value = item.attrs.get(name, "")
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def group_at(group: Any, name: str) -> Any:
    """The group `name` inside `group`, or None if there is none."""
    found = group.get(name)
    return found if isinstance(found, h5py.Group) else None


def array_at(group: Any, name: str) -> Any:
    """The data set `name` inside `group` (which may be None), or None if there is none."""
    found = None if group is None else group.get(name)
    return found if isinstance(found, h5py.Dataset) and found.shape is not None else None


def vector(data: Any) -> np.ndarray:
    """A small data set, flat. One that claims to be large is no list of angles, and a damaged one must not allocate."""
    if data.size > 10**6 or data.dtype.kind not in "biuf":
        raise InputError(
            f"{data.file.filename}: {data.name} {data.shape} is no list of numbers. Export the file again."
        )
    return np.asarray(data[()]).ravel()


def lazy(path: Path, dataset: Any) -> Images:
    """A data set to be read box by box, checked to be really in the file."""
    shape, dtype, name = tuple(int(n) for n in dataset.shape), dataset.dtype, str(dataset.name)
    if dtype.kind not in "biuf":
        raise InputError(f"{path}: {name} holds {dtype}, not real numbers. Name another array with dataset=....")
    images = Images(shape, dtype, lambda box: _fetch(path, name, box))
    if dataset.is_virtual or dataset.external is not None:
        return images  # the pixels are in other files
    stored, packed = int(dataset.id.get_storage_size()), dataset.chunks is not None
    if packed:  # HDF5 allocates whole chunks
        check_held(path, f"a chunk of {name}", dtype.itemsize * math.prod(dataset.chunks), max(stored, 1), packed=True)
    check_held(path, f"{name} {shape}", images.nbytes, stored, packed=packed)
    check_held(path, f"{name} {shape}", stored, path.stat().st_size)
    return images


def _fetch(path: Path, name: str, box) -> np.ndarray:
    with guarded(path, "an HDF5 file"), h5py.File(path, "r") as file:
        data: Any = file[name]
        return np.asarray(data[box])


def read_hdf5(path: Path, dataset: str | None) -> Raw:
    """Any HDF5 file: the layout is told by its content, never by its extension."""
    from . import emd, hspy, numpy_mat  # they build on this module's helpers

    with guarded(path, "an HDF5 file"), h5py.File(path, "r") as file:
        if attribute(file, "file_format").lower() == "hyperspy" and group_at(file, "Experiments"):
            return hspy.read_hspy(path, file, dataset)
        if group_at(file, "Data/Image"):
            return emd.read_velox(path, file, dataset)
        if array_at(file, "exchange/data") and dataset is None:
            return _read_dxchange(path, file)
        if (entry := _nxtomo(file)) is not None and dataset is None:
            return _read_nxtomo(path, file, entry)
        if file.userblock_size >= 512:
            return numpy_mat.read_mat73(path, file, dataset)
        if attribute(file, "format") == "jaxtomo":
            return _read_jaxtomo(path, file, dataset)
        if groups := emd.ncem_groups(file):
            return emd.read_ncem(path, file, groups, dataset)
        return _read_other(path, file, dataset)


def _read_dxchange(path: Path, file: Any) -> Raw:
    """DXchange: `/exchange/data` [theta, y, x] with `/exchange/theta` in degrees; its rotation axis is vertical."""
    images, ours = lazy(path, file["exchange/data"]), attribute(file, "format") == "jaxtomo"
    if len(images.shape) != 3 and not (ours and len(images.shape) == 4):
        raise InputError(f"{path}: /exchange/data has shape {images.shape}, not [tilt, y, x]. Export it again.")
    theta = array_at(file, "exchange/theta")
    detector = group_at(file, "measurement/instrument/detector")
    axis = file["exchange"].attrs.get("tilt_axis_deg") if ours else None
    mask, order = (array_at(file, f"exchange/{name}") if ours else None for name in ("mask", "exposure_order"))
    white = [name for name in ("data_white", "data_dark") if f"exchange/{name}" in file]
    return Raw(
        path,
        "HDF5",
        "DXchange, written by jaxtomo" if ours else "DXchange",
        images,
        angles=() if theta is None else (_degrees(theta, "/exchange/theta"),),
        axis=() if axis is None else (Fact(float(axis), "/exchange, attribute tilt_axis_deg"),),
        order=None if order is None else Fact(vector(order), "/exchange/exposure_order"),
        mask=None if mask is None else lazy(path, mask),
        pixel_nm=_pixel(detector, ("pixel_size_x", "x_pixel_size", "pixel_size", "actual_pixel_size_x")),
        convention=Fact(0.0, "DXchange's convention, a vertical axis (nothing states an axis)"),
        notes=(f"Not corrected with /exchange/{' and '.join(white)}.",) if white else (),
    )


def _nxtomo(file: Any) -> str | None:
    """Path of the entry that follows NXtomo, at most two groups deep."""
    for name in file:
        entry = group_at(file, name)
        for inner in ("", *(entry or ())):
            if array_at(file, f"{name}/{inner}/instrument/detector/data"):
                return f"{name}/{inner}".rstrip("/")
    return None


def _read_nxtomo(path: Path, file: Any, entry: str) -> Raw:
    """NXtomo: detector/data [frame, y, x]; image_key 0 marks projections (1 flat, 2 dark, 3 invalid)."""
    detector = file[f"{entry}/instrument/detector"]
    images = lazy(path, detector["data"])
    if len(images.shape) != 3:
        raise InputError(f"{path}: {entry}/instrument/detector/data has shape {images.shape}, not [tilt, y, x].")
    key, rotation, notes = array_at(detector, "image_key"), array_at(file, f"{entry}/sample/rotation_angle"), ()
    angles = () if rotation is None else (_degrees(rotation, "sample/rotation_angle"),)
    if key is not None:
        kept = np.flatnonzero(vector(key)[: images.shape[0]] == 0)
        if kept.size == 0:
            raise InputError(f"{path}: image_key marks no frame as a projection (0). Correct {entry}'s image_key.")
        if kept.size < images.shape[0]:
            notes = (f"{kept.size} of {images.shape[0]} frames are projections by image_key; no others are read.",)
            if angles and angles[0].value.size == images.shape[0]:
                angles = (Fact(angles[0].value[kept], angles[0].source),)
            images = images.taken(kept)
    return Raw(
        path,
        "HDF5",
        "NXtomo",
        images,
        angles=angles,
        pixel_nm=_pixel(detector, ("x_pixel_size",)),
        convention=Fact(0.0, "NXtomo's convention, a vertical axis (nothing states an axis)"),
        notes=notes,
    )


def _degrees(data: Any, where: str) -> Fact:
    unit = attribute(data, "units").lower() or attribute(data, "unit").lower()
    values = vector(data).astype(np.float64)
    return Fact(np.rad2deg(values) if unit.startswith("rad") else values, f"{where} in {unit or 'degrees'}")


def _pixel(group: Any, names: tuple[str, ...]) -> tuple[Fact, ...]:
    """Pixel size with the unit its attribute states; without a unit it is not believed."""
    for data in (array_at(group, name) for name in names):
        if data is not None and data.size == 1:
            unit = attribute(data, "units") or attribute(data, "unit")
            scale, value = to_nm(unit), float(vector(data)[0])
            if scale is not None and np.isfinite(value) and value > 0:
                return (Fact(value * scale, f"{data.name} in {unit}"),)
    return ()


def _read_jaxtomo(path: Path, file: Any, dataset: str | None) -> Raw:
    """jaxtomo's own results: `volume` [z, y, x] with the attribute `voxel_nm` (see `reconstruction.py`)."""
    name = dataset or "volume"
    data = array_at(file, name)
    if data is None:
        return _read_other(path, file, dataset)
    voxel = data.attrs.get("voxel_nm", 0.0)
    pixel = (Fact(float(voxel), "jaxtomo's HDF5 file"),) if np.size(voxel) == 1 and float(voxel) > 0 else ()
    return Raw(path, "HDF5", f"jaxtomo, {name}", lazy(path, data), pixel_nm=pixel)


def _read_other(path: Path, file: Any, dataset: str | None) -> Raw:
    """An unknown layout: the array is named, or the only one of three axes; angles and pixel by their key names."""
    arrays: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            arrays[name] = item

    file.visititems(visit)
    shapes = {name: tuple(data.shape) for name, data in arrays.items()}
    name = choose(path, shapes, dataset)
    raw = Raw(path, "HDF5", f"array {name}", lazy(path, arrays[name]))
    return with_keyed_facts(raw, shapes, lambda key: np.asarray(arrays[key][()]))
