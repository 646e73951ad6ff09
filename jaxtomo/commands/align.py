"""`jaxtomo align`: find where every tilt looked, and write the aligned series."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import Positional, arg

from ..console import Console, table
from ..errors import InputError
from ..freedom import freedom
from . import device
from .options import NONE, Outcome, Reading, Showing, refuse_taken, required


@dataclass(frozen=True)
class Align:
    """Align a raw tilt series: shifts by cross-correlation and common mass, tilt axis by search, background removed.

    Writes the images with the shifts taken out and the tilt axis along y, for other programs. To reconstruct with
    jaxtomo give the raw series to reconstruct instead: it aligns by itself and never resamples for a shift.
    """

    file: Annotated[str | None, Positional, arg(metavar="FILE", help_behavior_hint=NONE)] = None
    """The tilt series."""
    out: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="(default: NAME_aligned.mrc)")] = None
    """Where to write it: .mrc (with its .rawtlt), .h5, .emd, .tif, .npy or .zarr."""
    joint: Annotated[str | None, arg(metavar="WHAT", help_behavior_hint=NONE)] = None
    """Then refine the poses together with a volume. WHAT are some of shift, axis, tilt, centre, each with how far it is
    expected to be wrong if you know: shift,axis for example, or shift,axis,tilt=0.3."""
    xf: Annotated[str | None, arg(metavar="FILE.xf", help_behavior_hint=NONE)] = None
    """Also write the transforms from the raw to the aligned images, one a view, as IMOD has them; beside them the
    angles (.tlt) if these were refined."""
    bin: Annotated[int, arg(metavar="N")] = 1
    """Bin the images N × N first."""
    axis_deg: Annotated[float | None, arg(metavar="DEG", help_behavior_hint="(default: searched)")] = None
    """The small angle left between the tilt axis and y, if it is known."""
    background: Annotated[float | None, arg(metavar="LEVEL", help_behavior_hint="(default: the vacuum's)")] = None
    """The intensity where there is no specimen."""
    overwrite: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Replace files that are there already."""
    reading: Reading = field(default_factory=Reading)
    showing: Showing = field(default_factory=Showing)


def run(settings: Align, console: Console) -> Outcome:
    source = required(settings.file, "FILE")
    out = Path(settings.out or f"{Path(source).stem or 'series'}_aligned.mrc")
    free = None if settings.joint is None else freedom(settings.joint)
    beside = [Path(settings.xf)] if settings.xf else []
    if beside and free is not None and free.tilt_deg:
        beside.append(Path(settings.xf or "").with_suffix(".tlt"))
    refuse_taken([out, *beside], settings.overwrite)
    if free is not None and (free.rotation_deg or free.second_tilt_deg or free.magnification):
        raise InputError(
            f"--joint {settings.joint}: images can be written shifted and turned together, not turned or magnified one "
            "by one or tilted. Leave that out, or give it to jaxtomo reconstruct --refine-poses."
        )
    device.start()
    from ..alignment import apply, coarse
    from ..io import write
    from ..methods import noise_model
    from ..prepare import read_binned, shifted
    from .posing import jointly, straightened

    console.say(f"reading {source}")
    series = read_binned(source, settings.bin, **settings.reading.arguments())
    count, height, width = series.images.shape[-3:]
    if settings.xf:
        _check_order(settings, series)
    console.say(f"aligning {count} images of {width} × {height} pixels")
    alignment = coarse(series, tilt_axis_deg=settings.axis_deg, background=settings.background)
    learned: dict[str, Any] = {}
    tilt_deg = series.tilt_deg
    if free is not None:
        refined, _ = jointly(*apply(series, alignment), free, console, noise_model("gaussian", True))
        alignment = straightened(series, alignment, refined) or alignment
        tilt_deg, learned = tilt_deg + refined.change.get("tilt_deg", 0.0), refined.plain()
    transforms = None if settings.xf is None else _transforms(alignment, series, settings)
    aligned = shifted(*apply(series, alignment)).replace(tilt_deg=tilt_deg)
    if alignment.suspect.any():
        which = ",".join(map(str, np.flatnonzero(alignment.suspect)))
        console.warn(f"images that agree badly with their neighbours: {which}. Look at them, or leave out with --skip.")
    write(out, aligned)
    if transforms is not None and settings.xf:
        from ..io.write import write_angles
        from ..io.xf import write_xf

        write_xf(settings.xf, transforms)
        for angles in beside[1:]:
            write_angles(angles, tilt_deg)
    shift = alignment.shift
    rows: list[tuple[str, Any]] = [
        ("shifts", f"{_span(shift[:, 0])} px across the axis, {_span(shift[:, 1])} px along it"),
        ("tilt axis", f"{alignment.axis_deg:.2f}° off y" + (", images turned" if alignment.turn else "")),
        ("background", f"{_span(alignment.background)} subtracted"),
        ("agreement", f"correlation with neighbours {np.median(alignment.confidence):.3f}"),
        ("files", ", ".join(map(str, [out, *beside]))),
    ]
    document = {"aligned": str(out), "xf": settings.xf, "tilt_deg": tilt_deg, **alignment.plain(), **learned}
    return Outcome(f"{source}\n{table(rows)}", document)


def _check_order(settings: Align, series) -> None:
    """Raises InputError unless the images are in the file's order, and all there."""
    if settings.reading.skip or "order" in series.provenance:
        raise InputError(
            f"{settings.xf}: not written, the transforms belong to the images in the file's order, and some were left "
            "out or sorted. Leave --xf out, or sort the file by angle first."
        )


def _transforms(alignment, series, settings: Align) -> np.ndarray:
    """`[view, 6]` of the raw images, in the file's order."""
    from ..io import inspect
    from ..io.xf import from_pose

    facts = inspect(settings.file, **settings.reading.arguments())
    angle = np.deg2rad(alignment.axis_deg) if alignment.turn else 0.0
    c, s = np.cos(angle), np.sin(angle)
    shift = settings.bin * alignment.shift @ np.array([[c, s], [-s, c]])  # from the turned images to the raw ones
    rotation = np.full(len(shift), angle)
    return from_pose(shift, rotation, quarter_turns=facts["tilt_axis"]["quarter_turns"])


def _span(values: np.ndarray) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    low, high = (f"{value:.2f}" if abs(value) >= 100 else f"{value:.3g}" for value in (low, high))
    return low if low == high else f"{low} to {high}"
