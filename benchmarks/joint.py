"""Joint refinement: misaligned phantoms next to the truth, after coarse alignment and after `jt.refine`, and the raw
needle next to its published alignment.

    python benchmarks/joint.py                                # phantoms of 64³, ten minutes on one core
    python benchmarks/joint.py --data ../shared/data          # and the needle, by tilts that are left out

Shifts up to 10 pixels, an axis 3 degrees off, tilts wrong by 0.5 degrees (standard deviation), gains of 10 %.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import machine
import numpy as np
from alignment import needle

import jaxtomo as jt
from jaxtomo import metrics, phantoms
from jaxtomo.alignment import apply, coarse
from jaxtomo.commands.posing import straightened
from jaxtomo.correlate import binned
from jaxtomo.data import Pose
from jaxtomo.prepare import binned as bin_series
from jaxtomo.refinement import refine
from jaxtomo.series import TiltSeries
from jaxtomo.validate import hold_out, prediction_error

PHANTOMS = ("supported_particles", "core_shell", "porous_support", "graded_needle", "tissue")
SCHEMES = {
    "±60/2°": np.arange(-60, 61, 2.0),
    "±60/10°": np.arange(-60, 61, 10.0),
    "±45/5°": np.arange(-45, 46, 5.0),
}
AXIS_DEG, SHIFT_PX, TILT_DEG, GAIN = 3.0, 10.0, 0.5, 0.1
FREE = jt.Freedom(axis_deg=np.inf, tilt_deg=TILT_DEG)
BARS = {"u px": 0.15, "v px": 0.15, "axis °": 0.1, "tilt °": 0.15}
MODEL = jt.fitted_intensity(jt.gaussian(), offset=False)


def recorded(name: str, tilt_deg, size: int, dose: float, seed: int) -> tuple[TiltSeries, np.ndarray, Pose]:
    """A misaligned series, the specimen, and the true poses in the images as recorded."""
    rng, n = np.random.default_rng(100 + seed), len(tilt_deg)
    fine = np.asarray(getattr(phantoms, name)((2 * size,) * 3, seed=seed), np.float32)
    shift = jnp.asarray(rng.uniform(-SHIFT_PX, SHIFT_PX, (n, 2)), jnp.float32)
    turned = jnp.full(n, np.deg2rad(AXIS_DEG), jnp.float32)
    true = Pose.nominal(tilt_deg + TILT_DEG * rng.normal(size=n)).replace(shift=shift, rotation=turned)
    clean = np.maximum(binned(np.asarray(jt.project(jnp.asarray(fine), true.replace(shift=2 * shift))), 2) / 2, 0)
    counts = rng.poisson(dose * clean / clean.mean()) * clean.mean() / dose
    gain = np.exp(GAIN * rng.normal(size=(n, 1, 1)))
    truth = fine.reshape(size, 2, size, 2, size, 2).mean((1, 3, 5))
    return TiltSeries((gain * counts).astype(np.float32), tilt_deg), truth, true


def turned_by(pose: Pose, angle: float) -> Pose:
    """The pose of images that were turned by minus `angle` (rad) about their centre."""
    c, s = np.cos(angle), np.sin(angle)
    rotation = (0.0 if pose.rotation is None else pose.rotation) - angle + jnp.zeros_like(pose.tilt)
    return pose.replace(rotation=rotation, shift=pose.shift @ jnp.array([[c, -s], [s, c]]))


def compared(pose: Pose, true: Pose) -> tuple[dict[str, float], Pose]:
    """RMS errors beyond what the specimen's own movement explains, and the pose with that movement taken over from the
    truth, so that a volume made with it lies where the true one does."""
    tilt, rotation = np.asarray(true.tilt, float), np.asarray(true.rotation, float)
    c, s = np.cos(rotation), np.sin(rotation)
    apart = np.asarray(pose.shift, float) - np.asarray(true.shift, float)
    across, along = apart[:, 0] * c + apart[:, 1] * s, apart[:, 1] * c - apart[:, 0] * s
    basis = np.stack([np.cos(tilt), np.sin(tilt)], 1)
    own = basis @ np.linalg.lstsq(basis, across, rcond=None)[0]
    lift = along.mean()
    angles = np.asarray(pose.tilt, float) - tilt
    offset = angles.mean()
    found = np.zeros_like(tilt) if pose.rotation is None else np.asarray(pose.rotation, float)

    def rms(values):
        return float(np.sqrt(np.mean(values**2)))

    errors = {
        "u px": rms(across - own),
        "v px": rms(along - lift),
        "axis °": abs(float(np.rad2deg((found - rotation).mean()))),
        "tilt °": rms(np.rad2deg(angles - offset)),
    }
    back = np.stack([own * c - lift * s, own * s + lift * c], 1)
    there = pose.replace(tilt=pose.tilt - jnp.float32(offset), shift=pose.shift - jnp.asarray(back, jnp.float32))
    return errors, there


def phantom_rows(options):
    for name in options.phantoms:
        for label, tilt_deg in SCHEMES.items():
            series, truth, true = recorded(name, tilt_deg, options.size, options.dose, 1)
            began = time.perf_counter()
            found = coarse(series)
            aligned, start = apply(series, found)
            middle = time.perf_counter()
            refined = refine(jt.Problem(aligned, start, MODEL), FREE)
            ended = time.perf_counter()
            here = turned_by(true, np.deg2rad(found.axis_deg) if found.turn else 0.0)

            def quality(series, pose, truth=truth):
                solver = jt.root_tv(0.3, 600, power=0.75)
                result = jt.reconstruct(jt.Problem(series, pose, MODEL), solver, callbacks=(), assess=False)
                return metrics.psnr(result.volume, truth)

            before, _ = compared(start, here)
            after, there = compared(refined.pose, here)
            lost = quality(series, true) - quality(aligned, there)
            met = all(after[k] <= bar for k, bar in BARS.items()) and lost <= 0.7
            yield (
                f"{name}, {label}",
                " / ".join(f"{v:.2f}" for v in before.values()),
                " / ".join(f"{v:.3f}" for v in after.values()),
                f"{lost:+.2f}",
                f"{middle - began:.1f} + {ended - middle:.0f}",
                "met" if met else "MISSED",
            )
            print(name, label, after, f"{lost:.2f}", flush=True)


def needle_rows(folder: Path, binning: int):
    """How well tilts that were left out are predicted by volumes made with each alignment, percent."""
    series, published, axis = needle(folder)
    found = coarse(series)
    c, s = np.cos(np.deg2rad(axis)), np.sin(np.deg2rad(axis))
    by_others = replace(found, shift=published @ np.array([[c, -s], [s, c]]), axis_deg=axis, turn=True)

    def half(alignment):
        turned, pose = apply(series, alignment)
        return bin_series(turned, binning), pose.replace(shift=pose.shift / binning)

    def predicted(images, pose):
        problem = jt.Problem(images, pose)
        held = np.arange(2, len(images.tilt_deg), 5)
        kept, rest = hold_out(problem, held)
        errors = []
        for solver in (jt.sirt(), jt.tv(0.1), jt.root_tv(0.1, 600)):
            stop = (jt.callbacks.stop_when_converged(),)
            result = jt.reconstruct(kept, solver, 30 if solver.steps == 100 else None, callbacks=stop, assess=False)
            each = np.asarray(prediction_error(rest, jnp.asarray(result.volume.swapaxes(1, 2))))[held]
            errors.append(f"{100 * np.sqrt(np.mean(each**2)):.3f}")
        return errors

    images, pose = half(found)
    yield ("published", *predicted(*half(by_others)), "")
    yield ("coarse", *predicted(images, pose), "")
    for label, free in (
        ("refined: shift", jt.Freedom()),
        ("refined: shift, axis", jt.Freedom(axis_deg=np.inf)),
        ("refined: shift, axis, tilt=0.1", jt.Freedom(axis_deg=np.inf, tilt_deg=0.1)),
    ):
        refined = refine(jt.Problem(images, pose, jt.fitted_intensity(jt.gaussian())), free)
        whole = replace(refined, pose=refined.pose.replace(shift=binning * refined.pose.shift))
        turned, straight = half(straightened(series, found, whole))
        tilts = float(np.std(refined.change.get("tilt_deg", 0.0)))
        turn = float(refined.change.get("axis_deg", 0.0))
        changed = f"shifts {np.std(refined.change['shift_px']):.3f} px, axis {turn:.3f}°, tilts {tilts:.3f}°"
        yield (label, *predicted(turned, straight.replace(tilt=refined.pose.tilt)), changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--dose", type=float, default=60.0)
    parser.add_argument("--phantoms", nargs="*", default=PHANTOMS)
    parser.add_argument("--data", type=Path, help="the folder with needle_haadf_raw.npz")
    parser.add_argument("--binning", type=int, default=4, help="of the needle")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    print(*machine.described("jaxtomo", "jax", "numpy"), sep="\n")
    order = " / ".join(BARS)
    bars = " / ".join(f"{bar:g}" for bar in BARS.values())
    head = ("", f"coarse: {order}", "refined", "dB lost", "seconds", f"bar {bars}, 0.7 dB")
    if options.phantoms:
        title = f"Phantoms {options.size}³, dose {options.dose:g}, misaligned"
        machine.show(title, head, [*phantom_rows(options)], markdown=options.markdown)
    if options.data:
        head = ("held-out tilts, error %", "SIRT", "TV", "root-tv", "changed by")
        title = f"Raw needle, {options.binning}-fold binned"
        machine.show(title, head, [*needle_rows(options.data, options.binning)], markdown=options.markdown)


if __name__ == "__main__":
    main()
