"""How well coarse alignment finds the shifts and the tilt axis: real series next to what others found, phantoms next to
the truth.

python benchmarks/alignment.py --data ../shared/data          # the folder with needle_haadf_raw.npz and others
python benchmarks/alignment.py --size 128 --misfit            # phantoms twice as large; SIRT misfits of the needle
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import machine
import numpy as np

import jaxtomo as jt
from jaxtomo import phantoms
from jaxtomo.alignment import Alignment, apply, coarse
from jaxtomo.correlate import binned, straightened
from jaxtomo.data import Pose
from jaxtomo.series import TiltSeries

BAR_PX = 1.5
PHANTOMS = (
    "supported_particles",
    "core_shell",
    "porous_support",
    "hollow_particles",
    "graded_needle",
    "atoms",
    "tissue",
)
RANGES = {"±60/10°": np.arange(-60, 61, 10.0), "±70/2°": np.arange(-70, 71, 2.0), "±30/2°": np.arange(-30, 31, 2.0)}
AXIS_DEG = 2.0

GAUGE = (
    "Removed by least squares before comparing: a movement of the specimen, a cos θ + b sin θ across the axis and c "
    "along it. A constant across the axis is the rotation centre and is not removed, unless it says so."
)


def disagreement(found, reference, tilt_deg, axis_deg=0.0, centre_free=False) -> tuple[float, float]:
    """RMS difference (u, v) in pixels of two alignments `[tilt, 2]` in the raw images' frame, the gauge removed."""
    tilt, axis = np.deg2rad(tilt_deg), np.deg2rad(axis_deg)
    across, along = np.array([np.cos(axis), np.sin(axis)]), np.array([-np.sin(axis), np.cos(axis)])
    free = [(np.cos(tilt), across), (np.sin(tilt), across), (np.ones_like(tilt), along)]
    free += [(np.ones_like(tilt), across)] * centre_free
    basis = np.stack([np.outer(curve, direction).ravel() for curve, direction in free], 1)
    difference = (np.asarray(found) - reference).ravel()
    rest = (difference - basis @ np.linalg.lstsq(basis, difference, rcond=None)[0]).reshape(-1, 2)
    return float(np.sqrt(np.mean((rest @ across) ** 2))), float(np.sqrt(np.mean((rest @ along) ** 2)))


def in_raw_frame(alignment: Alignment) -> np.ndarray:
    """The shifts as seen in the images before they were turned."""
    axis = np.deg2rad(alignment.axis_deg) if alignment.turn else 0.0
    c, s = np.cos(axis), np.sin(axis)
    return alignment.shift @ np.array([[c, s], [-s, c]])


def row(name, series, reference, axis_deg, centre_free=False):
    start = time.perf_counter()
    alignment = coarse(series)
    seconds = time.perf_counter() - start
    u, v = disagreement(in_raw_frame(alignment), reference, series.tilt_deg, axis_deg or 0.0, centre_free)
    axis = f"{alignment.axis_deg:.2f} ± {alignment.axis_error_deg:.2f}"
    expected = "-" if axis_deg is None else f"{axis_deg:.2f}"
    suspect = int(alignment.suspect.sum())
    return alignment, (name, f"{u:.2f}", f"{v:.2f}", f"{np.hypot(u, v):.2f}", axis, expected, suspect, f"{seconds:.1f}")


HEADER = ("", "u px", "v px", "RMS px", "axis °", "expected °", "suspect", "seconds")


def needle(folder: Path):
    """The raw series, turned by a quarter so that its axis is near y, and its published shifts and axis in degrees."""
    data = np.load(folder / "needle_haadf_raw.npz")
    images = np.rot90(data["projections"], k=-1, axes=(-2, -1)).astype(np.float32)
    axis = -float(data["etspy_tiltaxis_deg"])
    lateral = -float(data["etspy_global_yshift_px"]) * np.array([np.cos(np.deg2rad(axis)), np.sin(np.deg2rad(axis))])
    return TiltSeries(images, data["tilts_deg"]), data["etspy_shifts_yx"] * [1, -1] + lateral, axis


def real(folder: Path, markdown: bool) -> None:
    series, published, axis = needle(folder)
    alignment, first = row("needle, raw, against the published", series, published, axis)
    _, second = row("the same, rotation centre left free", series, published, axis, centre_free=True)
    level = series.images.min()
    aligned = straightened(series.images - level, np.deg2rad(axis), published)
    again = TiltSeries(aligned, series.tilt_deg)
    _, third = row("needle, aligned as published, against no shift", again, 0 * published, 0.0)
    rows = [first, second, third]
    lamella = folder / "idp_eds_haadf_tiltseries.npz"
    if lamella.exists():
        data = np.load(lamella)
        by_hand = data["tomviz_shifts"] * [-1.0, 1.0]
        for name in ("haadf", "eds_total"):
            dust = TiltSeries(data[name].astype(np.float32), data["tilts_deg"])
            rows.append(row(f"dust lamella, {name}, against tomviz's whole pixels", dust, by_hand, None)[1])
    u, v = disagreement(in_raw_frame(alignment), published, series.tilt_deg, axis)
    met = "met" if np.hypot(u, v) < BAR_PX else "MISSED"
    notes = [
        f"Bar for the needle: {BAR_PX} px RMS, {met}.",
        GAUGE,
        f"Largest published shift {np.abs(published).max():.0f} px of {series.images.shape[-1]}.",
    ]
    machine.show("Real series", HEADER, rows, notes, markdown=markdown)


def recorded(fine, tilt_deg, dose, rng, size) -> tuple[TiltSeries, np.ndarray]:
    """A specimen projected on a twice finer grid, its axis turned, shifted by 4 % of the field, counted; its shifts."""
    n = len(tilt_deg)
    shift = 0.04 * size * rng.normal(size=(n, 2))
    turned = jnp.full(n, np.deg2rad(AXIS_DEG), jnp.float32)
    pose = Pose.nominal(tilt_deg).replace(shift=jnp.asarray(2 * shift, jnp.float32), rotation=turned)
    clean = np.maximum(binned(np.asarray(jt.project(jnp.asarray(fine), pose)), 2), 0)
    counts = rng.poisson(dose * clean / clean.mean()) + rng.normal(0, 0.5, clean.shape)
    gain, offset = np.exp(0.1 * rng.normal(size=(n, 1, 1))), rng.normal(-1000, 2, (n, 1, 1))
    return TiltSeries((gain * counts + offset).astype(np.float32), tilt_deg), shift


def simulated(size: int, cut: int, markdown: bool) -> None:
    """Phantoms of `size` pixels, of which the detector shows the middle `cut`."""
    rows = []
    for name in PHANTOMS:
        fine = np.asarray(getattr(phantoms, name)((2 * size,) * 3, seed=1), np.float32)
        for label, tilt_deg in RANGES.items():
            for dose in (10.0, 100.0):
                series, shift = recorded(fine, tilt_deg, dose, np.random.default_rng(7), size)
                edge = (size - cut) // 2
                series = series.replace(images=series.images[:, edge : size - edge, edge : size - edge])
                rows.append(row(f"{name} {label}, {dose:g} counts a pixel", series, shift, AXIS_DEG)[1])
    errors = [float(r[3]) for r in rows]
    notes = [
        f"{size} pixels; shifts of {0.04 * size:.1f} px (standard deviation) along each axis, gains of 10 %, offsets.",
        f"Worst {max(errors):.2f} px, median {np.median(errors):.2f} px.",
        GAUGE,
    ]
    title = "Phantoms" if cut == size else f"Phantoms larger than the field: its middle {cut} of {size} pixels"
    machine.show(title, HEADER, rows, notes, markdown=markdown)


def misfits(folder: Path, markdown: bool) -> None:
    """What SIRT cannot explain of the needle at half size, raw, as published and as found."""
    series, published, axis = needle(folder)
    alignment = coarse(series)
    c, s = np.cos(np.deg2rad(axis)), np.sin(np.deg2rad(axis))
    by_others = replace(alignment, shift=published @ np.array([[c, -s], [s, c]]), axis_deg=axis)
    nothing = replace(alignment, shift=0 * published, axis_deg=0.0, turn=False)
    rows = []
    for name, each in (("raw", nothing), ("published", by_others), ("found", alignment)):
        found, pose = apply(series, each)
        mask = None if found.mask is None else binned(found.mask.astype(np.float32), 2) > 0.99
        half = found.replace(images=binned(found.images, 2), mask=mask)
        assert pose.shift is not None
        problem = jt.Problem(half, pose.replace(shift=pose.shift / 2))
        result = jt.reconstruct(problem, jt.sirt(), 30, callbacks=(), assess=False)
        rows.append((name, f"{result.history['misfit'][-1]:.4f}"))
    machine.show("Needle at half size, SIRT, 30 steps", ("alignment", "relative misfit"), rows, markdown=markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--size", type=int, default=64, help="of the phantoms, pixels")
    parser.add_argument("--misfit", action="store_true", help="also reconstruct the needle with each alignment")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    print(*machine.described("jaxtomo", "numpy", "scipy"), sep="\n")
    if (options.data / "needle_haadf_raw.npz").exists():
        real(options.data, options.markdown)
        if options.misfit:
            misfits(options.data, options.markdown)
    else:
        print(f"{options.data}: no real series here, so only phantoms.")
    for cut in (options.size, 2 * (options.size * 5 // 16)):
        simulated(options.size, cut, options.markdown)


if __name__ == "__main__":
    main()
