"""EMD as NCEM defined it and tomviz reads it: `/data/tomography/{data, dim1, dim2, dim3}`.

tomviz takes the first axis of `data` for its x and wants the dims in float32. A volume goes in as data[x, y, z], which
keeps x, y, z and their handedness. In a tilt series tomviz has the tilts first and the tilt axis along its x: the
images are turned by a quarter turn, as `np.rot90(images, 1, (1, 2))`, so that tomviz's x is our y and its y our -x;
the angles keep their sign. (tomviz's "Generate Tilt Series" then agrees with `jaxtomo.project`; its reconstruction
operators return their volume with y and z exchanged, that is, mirrored.) The attribute `tilt_axis` says "x".
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from .new_hdf5 import new_hdf5, put, put_slab
from .outgoing import Outgoing, without_channels

_CHUNK = 32  # voxels: slabs come in along z, and z is the last axis of the file


def write_emd(partial: Path, out: Outgoing) -> None:
    """Writes the volume, or the images with their angles, as float32."""
    without_channels(out)
    with new_hdf5(partial) as file:
        file.attrs.create("version_major", 0, dtype="<u4")
        file.attrs.create("version_minor", 2, dtype="<u4")
        group = file.create_group("data/tomography")
        group.attrs.create("emd_group_type", 1, dtype="<u4")
        if out.is_series:
            _text(_write_images(group, out), "name", "images")
        else:
            _text(_write_volume(group, out), "name", "intensity")


def _write_volume(group: h5py.Group, out: Outgoing) -> h5py.Dataset:
    nz, ny, nx = out.shape
    chunk = out.chunk(_CHUNK, _CHUNK, _CHUNK)
    data = group.create_dataset("data", (nx, ny, nz), "<f4", chunks=chunk[::-1])
    for (sections,), block in out.slabs(chunk[0]):
        put_slab(data, (slice(None), slice(None), sections), block.transpose(2, 1, 0))
    data.flush()
    for number, (name, n) in enumerate(zip("xyz", (nx, ny, nz), strict=True), 1):
        _length(group, number, name, n, out.voxel_nm)
    return data


def _write_images(group: h5py.Group, out: Outgoing) -> h5py.Dataset:
    tilts, ny, nx = out.shape
    data = group.create_dataset("data", (tilts, nx, ny), "<f4", chunks=(1, nx, ny))
    for (sections,), block in out.slabs():
        put_slab(data, (sections,), np.rot90(block, 1, axes=(1, 2)))
    data.flush()
    _dim(group, 1, "angles", "[deg]", out.tilt_deg)
    _length(group, 2, "y", nx, out.voxel_nm)
    _length(group, 3, "x", ny, out.voxel_nm)
    _text(group, "tilt_axis", "x")
    group.attrs["tilt_axis_deg"] = out.series.tilt_axis_deg if out.series else 0.0
    return data


def _length(group: h5py.Group, number: int, name: str, n: int, voxel_nm: float | None) -> None:
    _dim(group, number, name, "[n_m]" if voxel_nm else "[px]", (voxel_nm or 1.0) * np.arange(n))


def _dim(group: h5py.Group, number: int, name: str, units: str, values) -> None:
    dim = put(group, f"dim{number}", np.asarray(values, "<f4"))
    _text(dim, "name", name)
    _text(dim, "units", units)


def _text(where: h5py.Group | h5py.Dataset, name: str, value: str) -> None:
    where.attrs[name] = np.bytes_(value)  # fixed length, no array: what tomviz, ncempy and rosettasciio all take
