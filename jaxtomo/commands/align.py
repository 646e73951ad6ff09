"""`jaxtomo align`: find where every tilt looked, and write the aligned series."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import Positional, arg

from ..console import Console, table
from ..errors import InputError
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
    xf: Annotated[str | None, arg(metavar="FILE.xf", help_behavior_hint=NONE)] = None
    """Also write the transforms from the raw to the aligned images, one a view, as IMOD has them."""
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
    refuse_taken([out, *([Path(settings.xf)] if settings.xf else [])], settings.overwrite)
    device.start()
    from ..alignment import apply, coarse
    from ..io import write
    from ..prepare import read_binned, shifted

    console.say(f"reading {source}")
    series = read_binned(source, settings.bin, **settings.reading.arguments())
    count, height, width = series.images.shape[-3:]
    console.say(f"aligning {count} images of {width} × {height} pixels")
    alignment = coarse(series, tilt_axis_deg=settings.axis_deg, background=settings.background)
    transforms = None if settings.xf is None else _transforms(alignment, series, settings)
    aligned = shifted(*apply(series, alignment))
    if alignment.suspect.any():
        which = ",".join(map(str, np.flatnonzero(alignment.suspect)))
        console.warn(f"images that agree badly with their neighbours: {which}. Look at them, or leave out with --skip.")
    write(out, aligned)
    if transforms is not None and settings.xf:
        from ..io.xf import write_xf

        write_xf(settings.xf, transforms)
    shift = alignment.shift
    rows: list[tuple[str, Any]] = [
        ("shifts", f"{_span(shift[:, 0])} px across the axis, {_span(shift[:, 1])} px along it"),
        ("tilt axis", f"{alignment.axis_deg:.2f}° off y" + (", images turned" if alignment.turn else "")),
        ("background", f"{_span(alignment.background)} subtracted"),
        ("agreement", f"correlation with neighbours {np.median(alignment.confidence):.3f}"),
        ("files", str(out) + (f", {settings.xf}" if settings.xf else "")),
    ]
    document = {"aligned": str(out), "xf": settings.xf, "tilt_deg": series.tilt_deg, **alignment.plain()}
    return Outcome(f"{source}\n{table(rows)}", document)


def _transforms(alignment, series, settings: Align) -> np.ndarray:
    """`[view, 6]` of the raw images, in the file's order, which must be that of the angles."""
    from ..io import inspect
    from ..io.xf import from_pose

    if settings.reading.skip or "order" in series.provenance:
        raise InputError(
            f"{settings.xf}: not written, the transforms belong to the images in the file's order, and some were left "
            "out or sorted. Leave --xf out, or sort the file by angle first."
        )
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
