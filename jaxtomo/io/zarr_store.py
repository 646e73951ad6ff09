"""OME-Zarr volumes (0.4 and 0.5), through the optional zarr package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .hdf5 import to_nm
from .keys import stated_axis
from .raw import Fact, Images, Raw, guarded


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray", ".zattrs"))


def read_zarr(path: Path, dataset: str | None) -> Raw:
    """The full-resolution level of an OME-Zarr image (or `dataset`), the last three axes."""
    try:
        import zarr
    except ImportError as error:
        raise InputError(f'{path}: reading Zarr needs zarr. Install it with: pip install "jaxtomo[zarr]"') from error
    with guarded(path, "a Zarr store"):
        root: Any = zarr.open(str(path), mode="r")
        scale: dict[str, Any] = {}
        ours: Any = {}
        if isinstance(root, zarr.Group):
            attributes: dict[str, Any] = dict(root.attrs)
            ome = attributes.get("ome", attributes)
            images = ome.get("multiscales") if isinstance(ome, dict) else None
            name = dataset or (images[0]["datasets"][0]["path"] if images else None)
            if name is None:
                raise InputError(f"{path}: is no OME-Zarr image. Name an array in it with dataset=... (--dataset).")
            scale = images[0] if images else {}
            ours = attributes.get("jaxtomo", {})
            array = root[name]
        else:
            array = root
        if not isinstance(array, zarr.Array) or len(array.shape) < 3 or any(n != 1 for n in array.shape[:-3]):
            raise InputError(
                f"{path}: holds no single volume [z, y, x]. Name another array with dataset=... (--dataset)."
            )
        lead, shape = len(array.shape) - 3, tuple(int(n) for n in array.shape[-3:])

    def fetch(box):
        with guarded(path, "a Zarr store"):
            return np.asarray(array[(0,) * lead + tuple(box)])

    tilts = ours.get("tilt_deg") if isinstance(ours, dict) and _axis_name(scale) == "tilt" else None
    return Raw(
        path,
        "Zarr",
        "OME-Zarr",
        Images(shape, np.dtype(array.dtype), fetch),
        angles=() if tilts is None else (Fact(np.asarray(tilts, np.float64), "the attribute jaxtomo"),),
        axis=() if tilts is None else stated_axis({"tilt_axis": ours.get("tilt_axis", "")}),
        pixel_nm=_voxel(scale),
    )


def _axis_name(multiscale: dict[str, Any]) -> str:
    """Name of the third axis from the end: z of a volume, tilt of a series that jaxtomo wrote."""
    axes = multiscale.get("axes")
    return str(axes[-3].get("name", "")) if isinstance(axes, list) and len(axes) > 2 else ""


def _voxel(multiscale: dict[str, Any]) -> tuple[Fact, ...]:
    """Voxel size of the first level along its last axis, if that axis has a unit of length."""
    try:
        unit = multiscale["axes"][-1]["unit"]
        transforms = multiscale["datasets"][0]["coordinateTransformations"]
        size = float(next(t["scale"] for t in transforms if t["type"] == "scale")[-1])
    except (KeyError, IndexError, TypeError, ValueError, StopIteration):
        return ()
    scale = to_nm(unit)
    return (Fact(size * scale, f"the OME-Zarr scale in {unit}"),) if scale is not None and size > 0 else ()
