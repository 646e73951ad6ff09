"""HyperSpy's model of a signal (axes and a metadata tree), read from .hspy; ETSpy and rosettasciio speak it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .hdf5 import array_at, attribute, group_at, lazy, to_nm, vector
from .raw import Fact, Images, Raw


def read_hspy(path: Path, file: Any, dataset: str | None) -> Raw:
    """The experiment named by `dataset`, or the only one."""
    experiments = [k for k in file["Experiments"] if array_at(file, f"Experiments/{k}/data") is not None]
    wanted = [k for k in experiments if dataset is None or dataset.strip("/").split("/")[-1] == k]
    if len(wanted) != 1:
        raise InputError(
            f"{path}: holds {len(experiments)} experiments: {', '.join(experiments)}. Name one with dataset=...."
        )
    group = file[f"Experiments/{wanted[0]}"]
    images = lazy(path, group["data"])
    axes = [_axis(group_at(group, f"axis-{i}")) for i in range(len(images.shape))]
    tilts = array_at(group, "metadata/Tomography/_sig_tilts/data")
    stage = group_at(group, "metadata/Acquisition_instrument/TEM/Stage")
    alpha = array_at(stage, "tilt_alpha")
    if alpha is not None:
        alpha = vector(alpha).astype(np.float64)
    elif stage is not None and "tilt_alpha" in stage.attrs:
        alpha = np.atleast_1d(np.asarray(stage.attrs["tilt_alpha"], np.float64))
    return signal_facts(
        path,
        "HSPY",
        images,
        axes,
        None if tilts is None else vector(tilts).astype(np.float64),
        alpha,
        etspy=attribute(group, "package") == "etspy" or group_at(group, "metadata/Tomography") is not None,
    )


def _axis(group: Any) -> dict[str, Any]:
    if group is None:
        return {}
    values = {key: group.attrs.get(key, default) for key, default in (("scale", 1.0), ("offset", 0.0))}
    return {"name": attribute(group, "name"), "units": attribute(group, "units"), **values}


def signal_facts(
    path: Path,
    kind: str,
    images: Images,
    axes: Sequence[Mapping[str, Any]],
    sig_tilts: np.ndarray | None = None,
    tilt_alpha: np.ndarray | None = None,
    *,
    etspy: bool = False,
) -> Raw:
    """A signal `[tilt, y, x]` with what its axes and metadata state.

    Three places may hold the angles. ETSpy's `_sig_tilts` is the truth where it exists; else `tilt_alpha`, which can
    be longer than the series; else the calibration of the first axis.
    """
    if len(images.shape) != 3:
        raise InputError(f"{path}: holds an array of shape {images.shape}, not [tilt, y, x]. Export one image a tilt.")
    n = images.shape[0]
    angles: tuple[Fact, ...] = ()
    if sig_tilts is not None and sig_tilts.size and np.any(sig_tilts != 0):
        angles = (Fact(sig_tilts, "metadata.Tomography._sig_tilts, ETSpy's angles"),)
    elif tilt_alpha is not None and tilt_alpha.size > 1 and np.any(tilt_alpha[:n] != 0):
        angles = (Fact(tilt_alpha[:n], f"metadata Stage.tilt_alpha, the first {n} of {tilt_alpha.size} values"),)
    elif (scale := _angular(str(axes[0].get("units", "")))) is not None:
        values = (float(axes[0].get("offset", 0)) + float(axes[0].get("scale", 1)) * np.arange(n)) * scale
        if not (scale == 1 and float(axes[0].get("scale", 1)) == 1 and float(axes[0].get("offset", 0)) == 0):
            angles = (Fact(values, f"the calibration of axis {axes[0].get('name') or 0!r}"),)
    pixel = []
    for axis in axes[1:]:
        scale, size = to_nm(str(axis.get("units", ""))), float(axis.get("scale", 1))
        if scale is not None and size > 0 and size != 1.0:  # HyperSpy's default scale is 1
            pixel.append(Fact(size * scale, f"the calibration of axis {axis.get('name')!r} in {axis.get('units')}"))
    same = len(pixel) == 2 and abs(pixel[0].value / pixel[1].value - 1) < 1e-3
    return Raw(
        path,
        kind,
        "ETSpy" if etspy else "signal",
        images,
        angles=angles,
        pixel_nm=tuple(pixel[:1] if same else pixel),
        convention=Fact(-90.0, "ETSpy's convention, the tilt axis along image x (nothing states an axis)")
        if etspy
        else None,
    )


def _angular(unit: str) -> float | None:
    unit = unit.strip("[] ").lower()
    if unit.startswith("rad"):
        return float(np.rad2deg(1.0))
    return 1.0 if unit.startswith("deg") or unit == "°" else None
