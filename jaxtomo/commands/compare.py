"""`jaxtomo compare`: how far two volumes agree."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ..console import Console, table
from ..errors import InputError
from .options import NONE, Gates, Outcome, Showing, check_gates, missed_gates, required

METRICS = ("psnr", "ssim", "rmse", "resolution_voxels", "resolution_nm")


@dataclass(frozen=True)
class Compare:
    """Compare a volume with the truth, or with another volume: PSNR, SSIM, RMSE, Fourier shell correlation in all
    directions and along each axis, all within one mask, and how much longer structures and edges are along the beam.

    Intensities are compared as they are. PSNR and SSIM refer to the range of the second volume.
    """

    volume: Annotated[str | None, Positional, arg(metavar="A", help_behavior_hint=NONE)] = None
    """The volume to judge: a file, or the folder of a run."""
    truth: Annotated[str | None, Positional, arg(metavar="B", help_behavior_hint=NONE)] = None
    """The truth, or another volume of the same shape."""
    data_range: Annotated[float | None, arg(metavar="NUMBER", help_behavior_hint="(default: max - min of B)")] = None
    """The range of intensities that PSNR and SSIM refer to."""
    fail_under: Annotated[Gates, arg(help_behavior_hint=NONE)] = field(default_factory=dict)
    """Exit with 5 where a number is worse: psnr or ssim below, rmse or resolution above."""
    showing: Showing = field(default_factory=Showing)


def run(settings: Compare, console: Console) -> Outcome:
    from .. import metrics, resolution

    check_gates(settings.fail_under, METRICS)
    paths = [_volume(required(settings.volume, "A")), _volume(required(settings.truth, "B"))]
    (volume, voxel_nm), (truth, other_nm) = (_read(path) for path in paths)
    if volume.shape != truth.shape:
        raise InputError(
            f"{paths[0]} is {_shape(volume)} voxels [z, y, x], {paths[1]} {_shape(truth)}. "
            "Crop or bin one to match the other."
        )
    if voxel_nm and other_nm and abs(voxel_nm / other_nm - 1) > 0.01:
        console.warn(f"voxels of {paths[0]} are {voxel_nm:g} nm, of {paths[1]} {other_nm:g} nm.")
    found: dict[str, Any] = {
        "psnr": metrics.psnr(volume, truth, settings.data_range),
        "ssim": metrics.ssim(volume, truth, settings.data_range, window=min(7, (min(volume.shape) - 1) // 2 * 2 + 1))
        if min(volume.shape) >= 3
        else math.nan,
        "rmse": metrics.rmse(volume, truth),
    }
    directed = volume.ndim == 3 and min(volume.shape) >= 8
    cones = resolution.by_direction(volume, truth) if directed else None
    if cones is None:
        frequency, curve = metrics.fsc(volume, truth)
    else:  # where the cones are looked at, for one to be compared with the other
        a, b = resolution.middle(volume), resolution.middle(truth)
        frequency, curve = metrics.fsc(a, b, mask=metrics.cylinder(a.shape))
    voxels = metrics.resolution(frequency, curve, 0.5)
    found |= {
        "resolution_voxels": voxels,
        "resolution_nm": voxels * voxel_nm if voxel_nm else math.nan,
        "fsc_frequency": frequency,
        "fsc_curve": curve,
        "fsc_mask": None if cones is None else cones["mask"],
    }
    if cones is not None:
        found["fsc_cones"] = cones
        found["sharpness"] = {"a": resolution.sharpness(volume), "b": resolution.sharpness(truth)}
    missed = missed_gates(settings.fail_under, found)
    rows = [
        ("PSNR", f"{found['psnr']:.2f} dB"),
        ("SSIM", f"{found['ssim']:.4f}"),
        ("RMSE", f"{found['rmse']:.5g}"),
        ("FSC 0.5 at", _length(voxels, voxel_nm)),
        *(_by_direction(found, voxel_nm) if "fsc_cones" in found else ()),
    ]
    document = {"a": str(paths[0]), "b": str(paths[1]), "shape": list(volume.shape), **found, "missed": missed}
    text = f"{paths[0]} against {paths[1]}, {_shape(volume)} voxels\n{table(rows)}"
    return Outcome(text, document, code=5 if missed else 0, warning="; ".join(missed))


def _volume(path: str) -> Path:
    return Path(path) / "volume.mrc" if (Path(path) / "volume.mrc").is_file() else Path(path)


def _read(path: Path):
    from ..io import read_volume

    return read_volume(path)


def _shape(volume) -> str:
    return " × ".join(map(str, volume.shape))


def _by_direction(found: dict[str, Any], voxel_nm: float | None) -> list[tuple[str, str]]:
    said = {"z": "along the beam, z", "x": "across it, x", "y": "along the tilt axis, y"}
    at = {axis: _length(found["fsc_cones"][axis]["resolution_voxels_at_0.5"], voxel_nm) for axis in said}
    rows = [(said[axis], where) for axis, where in at.items()]
    a, b = (found["sharpness"][name] for name in "ab")

    def pair(one: float, other: float, unit: str = "") -> str:
        first, second = (f"{value:.3g}{unit}" if math.isfinite(value) else "not told" for value in (one, other))
        return f"{first}; of B {second}"

    edges = ((axis, a["edge_width_voxels"][axis], b["edge_width_voxels"][axis]) for axis in said)
    rows += [(f"edges along {axis}", pair(one, other, " voxels")) for axis, one, other in edges]
    longer = (pair(a["elongation"][what], b["elongation"][what]) for what in ("structures", "edges"))
    rows.append(("FSC within", found["fsc_cones"]["mask"]))
    return [*rows, ("elongation", next(longer)), ("of edges", next(longer))]


def _length(voxels: float, voxel_nm: float | None) -> str:
    if math.isnan(voxels):
        return "not told: too few frequencies"
    if not math.isfinite(voxels):
        return "no frequency: they do not agree"
    return f"{voxels:.3g} voxels" + (f", {voxels * voxel_nm:.3g} nm" if voxel_nm else "")
