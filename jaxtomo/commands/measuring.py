"""What is measured: the result of a run, or a volume from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError


class Found(NamedTuple):
    """A volume `[z, y, x]` and the file it is from, the side of a voxel or None, and the result of a run or None."""

    source: Path
    volume: Any
    voxel_nm: float | None
    result: Any


def find(place: Path, voxel_nm: float | None) -> Found:
    """What `place`, a volume or the folder of a run, holds; `voxel_nm` goes before what it states.

    Raises InputError for a run that is not finished, or of several channels, and for a tilt series.
    """
    from ..io import inspect, read_volume
    from ..io.reconstruction import read_reconstruction

    if not place.is_dir():
        volume, stated = read_volume(place)
        angles = inspect(place)["angles"]
        if angles is not None:
            raise InputError(
                f"{place}: is a tilt series, of {len(volume)} images with an angle each, not a volume. Reconstruct it "
                "first with jaxtomo reconstruct, and give the folder of that run."
            )
        return Found(place, volume, voxel_nm or stated, None)
    source = place / "reconstruction.h5"
    if not source.is_file():
        raise InputError(f"{place}: holds no finished run. Give a volume, or finish it with reconstruct --resume.")
    result = read_reconstruction(source)
    if result.volume.ndim == 4:
        raise InputError(f"{source}: holds {len(result.volume)} channels. Give the volume of one.")
    return Found(source, result.volume, voxel_nm or result.voxel_nm, result)
