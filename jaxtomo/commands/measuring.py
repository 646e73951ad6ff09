"""What `quantify` and `atoms` measure, the result of a run or a volume from a file, and where they write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from tyro.conf import arg

from .. import run_folder
from ..errors import InputError
from .options import NONE, UsageError, refuse_taken


@dataclass(frozen=True)
class Measuring:
    """The unit of lengths, and where results go."""

    voxel_nm: Annotated[float | None, arg(metavar="NM", help_behavior_hint="(default: as the file states)")] = None
    """Side of a voxel."""
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: inside RUN, or beside FILE)")] = None
    """Where to write."""
    overwrite: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Replace results that are there already."""

    def folder(self, place: Path, name: str, files: Sequence[str]) -> Path:
        """Where `files` go: the folder asked for, or `name` in that of a run, or one beside a file.

        Raises InputError where one of them is there already and may not be replaced, UsageError for no side of a voxel.
        """
        if self.voxel_nm is not None and not (math.isfinite(self.voxel_nm) and self.voxel_nm > 0):
            raise UsageError(f"--voxel-nm {self.voxel_nm:g}: give a number above 0.")
        out = Path(self.out or (place / name if place.is_dir() else place.with_name(f"{place.stem}_{name}")))
        refuse_taken([out / file for file in files], self.overwrite)
        return out


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
        # The angles that a run writes beside its volume are not the volume's.
        if not run_folder.is_run(place.parent) and inspect(place)["angles"] is not None:
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
