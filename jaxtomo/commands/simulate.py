"""`jaxtomo simulate`: the tilt series of a known specimen through an imperfect microscope, and the truth."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..console import Console, table
from ..errors import InputError
from ..simulate import Microscope
from . import device
from .options import NONE, Outcome, Showing, UsageError, refuse_taken, required

Phantom = Literal[
    "atoms",
    "chiral",
    "core_shell",
    "graded_needle",
    "hollow_particles",
    "porous_support",
    "supported_particles",
    "tissue",
]


@dataclass(frozen=True)
class Simulate:
    """Record a specimen of known truth: a tilt series to reconstruct, and the volume to compare with.

    Projected on a grid twice as fine as the one that is written, so that no method is flattered.
    """

    phantom: Annotated[Phantom | None, Positional, arg(metavar="PHANTOM", help_behavior_hint=NONE)] = None
    """atoms, chiral, core_shell, graded_needle, hollow_particles, porous_support, supported_particles or tissue."""
    size: Annotated[int, arg(metavar="N")] = 64
    """Voxels a side."""
    thickness: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: as the size)")] = None
    """Voxels along the beam."""
    tilts: Annotated[str, arg(metavar="START:STOP:STEP|FILE")] = "-60:60:2"
    """Tilt angles in degrees."""
    pixel_nm: Annotated[float, arg(metavar="NM")] = 1.0
    """Pixel size in nm."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of the specimen and of every accident."""
    out: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="(default: PHANTOM.mrc)")] = None
    """The series: .mrc (with its .rawtlt), .h5, .emd, .tif or .npy. The truth goes beside it as NAME_truth."""
    overwrite: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Replace files that are there already."""
    microscope: Microscope = field(default_factory=Microscope)
    showing: Showing = field(default_factory=Showing)


def run(settings: Simulate, console: Console) -> Outcome:
    name = required(settings.phantom, "PHANTOM")
    if settings.size < 8 or (settings.thickness or 8) < 8:
        raise UsageError("--size and --thickness are at least 8.")
    out = Path(settings.out or f"{name}.mrc")
    truth_out = out.with_name(f"{out.stem}_truth{out.suffix}")
    refuse_taken([out, truth_out], settings.overwrite)
    tilt_deg = _angles(settings.tilts)
    device.start()
    from .. import phantoms
    from ..io import write
    from ..simulate import simulate

    depth = settings.thickness or settings.size
    console.say(f"{name}: {depth} × {settings.size} × {settings.size} voxels, {tilt_deg.size} tilts")
    fine = getattr(phantoms, name)((2 * depth, 2 * settings.size, 2 * settings.size), settings.seed)
    series, truth, pose = simulate(fine, tilt_deg, settings.microscope, settings.seed, settings.pixel_nm)
    write(truth_out, truth, voxel_nm=settings.pixel_nm)
    write(out, series)
    rows = [
        ("images", f"{tilt_deg.size} of {settings.size} × {settings.size} pixels, {_dose(settings.microscope)}"),
        ("tilts", f"{tilt_deg.min():.4g}° to {tilt_deg.max():.4g}°"),
        ("series", out),
        ("truth", truth_out),
    ]
    document = {
        "series": str(out),
        "truth": str(truth_out),
        "phantom": name,
        "shape": list(truth.shape),
        "tilt_deg": tilt_deg,
        "pixel_nm": settings.pixel_nm,
        "seed": settings.seed,
        "microscope": asdict(settings.microscope),
        "true_shift_px": pose.shift,
    }
    return Outcome(f"{name}\n{table(rows)}", document)


def _angles(text: str):
    from ..io.angles import from_file, from_range, is_range

    if is_range(text):
        return from_range(text)
    if not Path(text).is_file():
        raise InputError(f"--tilts {text}: neither start:stop:step in degrees nor a file of angles.")
    return from_file(Path(text))


def _dose(microscope: Microscope) -> str:
    if microscope.dose == float("inf"):
        return "no noise of counting"
    return f"{microscope.dose:g} counts a pixel on average" + (" if it were linear" if microscope.saturation else "")
