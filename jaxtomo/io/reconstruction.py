"""jaxtomo's own HDF5 file: its layout, how it is written, and how a Reconstruction is read back from it.

    /                   attributes format ("jaxtomo"), version, layout (1), conventions, message, settings (JSON)
    /volume             [z, y, x] float32; attributes axes, voxel_nm (absent if unknown)
    /samples            [sample, z, y, x] float32, of an ensemble or a posterior
    /pose/tilt          [tilt] rad; and shift [tilt, 2] px, rotation rad, magnification, second_tilt rad
    /history/misfit, …  [step]
    /metrics/…          numbers and curves, nested as the metrics are; what is neither is JSON text
    /series/data        [tilt, y, x] float32: the images the volume came from; attributes axes, pixel_nm
    /series/theta       [tilt] degrees; and mask [tilt, y, x], exposure_order [tilt], where there are any
    /series             attributes tilt_axis_deg, source, provenance (JSON)

A volume alone has `/volume` only. In a tilt series alone `/series` is called `/exchange`, which makes it a DXchange
file, and its pixel size is also in `/measurement/instrument/detector`, where DXchange has it. Arrays are compressed in
chunks of 16 sections × 16 rows × 256 columns, so that a slab along z (or the tilts) or along y reads little more than
itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from .. import __version__
from ..errors import InputError
from ..series import TiltSeries
from .new_hdf5 import new_hdf5, put, put_slab
from .outgoing import Outgoing, outgoing
from .raw import guarded

if TYPE_CHECKING:
    from ..data import Reconstruction

LAYOUT = 1
CONVENTIONS = (
    "Volume [z, y, x], right-handed. The tilt axis is y, the beam is z at zero tilt; "
    "image x = x cos(tilt) + z sin(tilt), image y = y, from the centres ((n-1)/2)."
)
_CHUNK = (16, 16, 256)
_UNITS = {"tilt": "rad", "shift": "px", "rotation": "rad", "second_tilt": "rad", "magnification": "1"}


def write_hdf5(partial: Path, out: Outgoing) -> None:
    """Writes the volume or the images, and for a Reconstruction all that goes with it."""
    with new_hdf5(partial) as file:
        file.attrs.update(format="jaxtomo", version=__version__, layout=LAYOUT, conventions=CONVENTIONS)
        if out.is_series and out.series is not None:
            _write_series(file.create_group("exchange"), out.series, out)
            if out.voxel_nm:
                detector = file.create_group("measurement/instrument/detector")
                for name in ("pixel_size_x", "pixel_size_y"):
                    put(detector, name, out.voxel_nm).attrs["units"] = "nm"
            return
        _write_array(file, "volume", out, "voxel_nm")
        if out.result is not None:
            _write_result(file, out.result)
        if out.series is not None:
            _write_series(file.create_group("series"), out.series, outgoing(out.name, out.series))


def _write_array(group: h5py.Group, name: str, out: Outgoing, size: str) -> None:
    chunk = out.chunk(*_CHUNK)
    data = group.create_dataset(
        name, out.shape, "<f4", chunks=chunk, compression="gzip", compression_opts=1, shuffle=True
    )
    for index, block in out.slabs(chunk[-3]):
        put_slab(data, index, block)
    data.flush()  # an error that comes when HDF5 lets go of the dataset would be lost
    data.attrs["axes"] = " ".join(out.axes)
    if out.voxel_nm:
        data.attrs[size] = out.voxel_nm


def _write_result(file: h5py.File, result: Reconstruction) -> None:
    file.attrs.update(message=result.message, settings=_json(dict(result.settings)))
    if result.samples is not None:
        shape = result.samples.shape
        chunks = (*[1] * (len(shape) - 3), *(min(n, most) for n, most in zip(shape[-3:], _CHUNK, strict=True)))
        put(file, "samples", result.samples, chunks=chunks, compression="gzip", compression_opts=1, shuffle=True)
    pose = file.create_group("pose")
    for field in dataclasses.fields(result.pose):
        value = getattr(result.pose, field.name)
        if value is not None:
            put(pose, field.name, np.asarray(value)).attrs["units"] = _UNITS.get(field.name, "")
    _write_tree(file.create_group("history"), result.history)
    _write_tree(file.create_group("metrics"), result.metrics)


def _write_series(group: h5py.Group, series: TiltSeries, out: Outgoing) -> None:
    _write_array(group, "data", out, "pixel_nm")
    put(group, "theta", series.tilt_deg).attrs["units"] = "deg"
    group.attrs.update(
        tilt_axis_deg=series.tilt_axis_deg, source=str(series.source), provenance=_json(dict(series.provenance))
    )
    for name in ("mask", "exposure_order"):
        if getattr(series, name) is not None:
            put(group, name, np.asarray(getattr(series, name)), compression="gzip", compression_opts=1)


def _write_tree(group: h5py.Group, tree: Mapping[str, Any]) -> None:
    for name, value in tree.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            _write_tree(group.create_group(name), value)
        elif isinstance(value, (str, list, tuple)) or value is None or np.asarray(value).dtype.kind not in "fiubc":
            put(group, name, _json(value)).attrs["json"] = True
        else:
            put(group, name, np.asarray(value))


def _read_tree(group: Any) -> dict[str, Any]:
    return {
        name: _read_tree(node) if isinstance(node, h5py.Group) else _read_leaf(node) for name, node in group.items()
    }


def _read_leaf(node: Any) -> Any:
    if node.attrs.get("json", False):
        return json.loads(node.asstr()[()])
    return node[()] if node.ndim else node[()].item()


def _json(value: Any) -> str:
    return json.dumps(value, default=lambda other: other.tolist() if hasattr(other, "tolist") else str(other))


def read_reconstruction(path: str | Path) -> Reconstruction:
    """The Reconstruction that `write` put into an HDF5 file, its series included, wholly in memory.

    Raises InputError if the file cannot be read as one.
    """
    import jax.numpy as jnp  # the only function of io that needs JAX

    from ..data import Pose, Reconstruction

    file: Any  # h5py's nodes have no static type
    with guarded(Path(path), "a reconstruction"), h5py.File(path, "r") as file:
        if file.attrs.get("format") != "jaxtomo" or "volume" not in file or "pose" not in file:
            raise InputError(f"{path}: not a reconstruction that jaxtomo wrote. Read its volume with read_volume.")
        if file.attrs["layout"] > LAYOUT:
            raise InputError(f"{path}: written by jaxtomo {file.attrs['version']}, which is newer. Update jaxtomo.")
        return Reconstruction(
            volume=file["volume"][()],
            pose=Pose(**{name: jnp.asarray(value) for name, value in _read_tree(file["pose"]).items()}),
            series=_read_series(file["series"]) if "series" in file else None,
            history=_read_tree(file["history"]),
            metrics=_read_tree(file["metrics"]),
            settings=json.loads(file.attrs["settings"]),
            message=file.attrs["message"],
            samples=file["samples"][()] if "samples" in file else None,
        )


def _read_series(group: Any) -> TiltSeries:
    pixel_nm = group["data"].attrs.get("pixel_nm")
    return TiltSeries(
        images=group["data"][()],
        tilt_deg=group["theta"][()],
        pixel_nm=None if pixel_nm is None else float(pixel_nm),
        tilt_axis_deg=float(group.attrs["tilt_axis_deg"]),
        provenance=json.loads(group.attrs["provenance"]),
        source=group.attrs["source"],
        mask=group["mask"][()] if "mask" in group else None,
        exposure_order=group["exposure_order"][()] if "exposure_order" in group else None,
    )
