"""Atoms of a metallic glass that was measured by atomic electron tomography, found again at real dose.

    python benchmarks/atoms.py --data aet_CoPdPt_glass_MIT.npz --markdown           # a ball of 1,654 atoms
    python benchmarks/atoms.py --data aet_CoPdPt_glass_MIT.npz --whole --solver root-tv --markdown   # all 18,356
    python benchmarks/atoms.py --data aet_CoPdPt_glass_MIT.npz --methods --markdown # which volume to look in

The atoms are those of Yang et al., Nature 592, 60 (2021), taken for Co, Pd and Pt. Their images are made without
jaxtomo's projector and with another model of an atom than the one that is fitted: points blurred in Fourier space by an
aberration-free probe (200 kV, 25 mrad: an Airy pattern, 0.51 Å wide), a source of 0.35 Å and each species' own thermal
motion, sampled at pixels of 0.347 Å, with the cross-section 0.04 Å² (Z / 78)^1.7, and counted as Poisson numbers.

Found is an atom with one of the results within 1 Å, one to one, nearest first. Bars: 97 % found, 25 pm, 95 % of Pt and
Co told apart.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import machine
import numpy as np
from scipy.spatial import KDTree

import jaxtomo as jt
from jaxtomo import atoms

NAMES, NUMBERS = ("Co", "Pd", "Pt"), np.array([27, 46, 78])
VIBRATION = np.array([0.095, 0.09, 0.085])  # Å, root mean square along a line
CROSS_SECTION = 0.04  # Å², of Pt into the detector
WAVELENGTH, CONVERGENCE, SOURCE = 0.02508, 0.025, 0.35  # Å, rad, Å full width at half maximum
PIXEL = 0.347  # Å
FINER = 4  # points of the images' making, a pixel
TILTS = 57
DOSE = 4e5  # electrons a Å², all images together
NEAR = 1.0  # Å
SOLVERS = {"sirt": (jt.sirt(), 40), "root-tv": (jt.root_tv(0.01, 150), 150)}  # and their steps


class Specimen(NamedTuple):
    """positions `[atom, 3]` (x, y, z) in Å about the middle, kind `[atom]` by `NAMES`."""

    positions: np.ndarray
    kind: np.ndarray


def specimen(path: str, radius: float) -> Specimen:
    with np.load(path) as file:
        positions, kind = file["xyz_A"], file["type"].astype(int) - 1
    positions = positions - positions.mean(0)
    inside = np.linalg.norm(positions, axis=1) < radius
    return Specimen(positions[inside], kind[inside])


def transfer(frequency) -> np.ndarray:
    """Of an incoherent image by an aberration-free probe: the autocorrelation of its aperture; and of the source."""
    x = np.clip(frequency * WAVELENGTH / (2 * CONVERGENCE), 0, 1)
    probe = 2 / np.pi * (np.arccos(x) - x * np.sqrt(1 - x * x))
    return probe * np.exp(-2 * np.pi**2 * (frequency * SOURCE / 2.355) ** 2)


def exposed(body: Specimen, most: float, size: int, dose: float, seed: int, loose: bool) -> jt.TiltSeries:
    """Counts in `size`² pixels at tilts of up to `most` degrees; `loose` ones are 0.1 Å and 0.2° off what is stated."""
    rng = np.random.default_rng(seed)
    stated = np.linspace(-most, most, TILTS)
    tilts = np.deg2rad(stated + (0.2 * rng.normal(size=TILTS) if loose else 0))
    moved = 0.1 * rng.normal(size=(TILTS, 2)) * loose
    fine, step = size * FINER, PIXEL / FINER
    line = np.fft.fftfreq(fine, step)
    frequency = np.hypot(line[:, None], line)
    # Points are laid between four of the grid, which blurs them by a triangle along each side.
    sharp = transfer(frequency) / (np.sinc(line * step)[:, None] * np.sinc(line * step)) ** 2
    images = np.zeros((TILTS, size, size), np.float32)
    for image, tilt, (du, dv) in zip(images, tilts, moved, strict=True):
        x, y, z = body.positions.T
        seen = np.stack([y + dv, x * np.cos(tilt) + z * np.sin(tilt) + du]) / step + FINER * (size - 1) / 2
        low = np.floor(seen).astype(int)
        part = seen - low
        waves = np.zeros((fine, fine), complex)
        for kind, number in enumerate(NUMBERS):
            mine, points = body.kind == kind, np.zeros((fine, fine))
            for a in (0, 1):
                for b in (0, 1):
                    share = np.abs(1 - a - part[0]) * np.abs(1 - b - part[1])
                    np.add.at(points, (low[0, mine] + a, low[1, mine] + b), share[mine])
            strength = CROSS_SECTION * (number / 78) ** 1.7
            waves += strength * np.fft.fft2(points) * np.exp(-2 * np.pi**2 * (frequency * VIBRATION[kind]) ** 2)
        fraction = np.fft.ifft2(waves * sharp).real[::FINER, ::FINER] / step**2
        image[:] = rng.poisson(np.maximum(fraction, 0) * dose / TILTS * PIXEL**2)
    return jt.TiltSeries(images, stated, PIXEL / 10, source="glass")


def matched(true, found, near: float = NEAR) -> np.ndarray:
    """`[pair, 2]`: which is which, one to one, nearest first."""
    distances, which = KDTree(found).query(true, k=4, distance_upper_bound=near)
    rows, columns = np.nonzero(np.isfinite(distances))
    pairs, mine, theirs = [], set(), set()
    for k in np.argsort(distances[rows, columns]):
        a, b = int(rows[k]), int(which[rows[k], columns[k]])
        if a not in mine and b not in theirs:
            pairs.append((a, b))
            mine.add(a)
            theirs.add(b)
    return np.array(pairs, int).reshape(-1, 2)


def judged(body: Specimen, found: atoms.Atoms) -> list[str]:
    """Found %, false, RMSD in pm, that along x, y and z, by species, and how often species are right, %."""
    a, b = matched(body.positions, found.positions).T
    apart = 100 * (found.positions[b] - body.positions[a])
    square = (apart**2).sum(1)
    kind = body.kind[a]
    told = atoms.species(found, len(NAMES), NUMBERS.tolist()).species[b]
    heavy = kind != 1
    return [
        f"{100 * len(a) / len(body.kind):.2f}",
        f"{len(found.positions) - len(b)}",
        f"{np.sqrt(square.mean()):.1f}",
        ", ".join(f"{e:.1f}" for e in np.sqrt((apart**2).mean(0))),
        ", ".join(f"{np.sqrt(square[kind == k].mean()):.1f}" for k in range(len(NAMES))),
        f"{100 * np.mean(told[heavy] == kind[heavy]):.2f}",
        f"{100 * np.mean(told == kind):.2f}",
    ]


HEAD = ("found %", "false", "RMSD pm", "x, y, z", "Co, Pd, Pt", "Pt or Co right %", "species right %")


def measure(options) -> None:
    body = specimen(options.data, np.inf if options.whole else options.radius)
    size = 8 * int(np.ceil((2 * np.abs(body.positions).max() / PIXEL + 12) / 8))
    cases = [(60.0, options.dose, False), (70.0, options.dose, False)]
    if not options.whole:
        cases += [(60.0, options.dose / 4, False), (60.0, options.dose, True)]
    solver, steps = SOLVERS[options.solver]
    rows, notes = [], []
    for most, dose, loose in cases[: options.cases]:
        series = exposed(body, most, size, dose, 1, loose)
        problem = jt.Problem(series)
        took = [time.perf_counter()]
        result = jt.reconstruct(problem, solver, steps=steps, callbacks=(), assess=False)
        took.append(time.perf_counter())
        found = atoms.find(result.volume, series.pixel_nm)
        took.append(time.perf_counter())
        name = f"±{most:g}°, {dose:.0e} e/Å²" + (", loose poses" if loose else "")
        rows.append((f"{name}: volume", *judged(body, found)))
        print(rows[-1], flush=True)
        refined = atoms.refine(problem, found)
        took.append(time.perf_counter())
        rows.append((f"{name}: images", *judged(body, refined)))
        print(rows[-1], flush=True)
        a, b = matched(body.positions, refined.positions).T
        scaled = (refined.positions[b] - body.positions[a]) / refined.position_error[b]
        seconds = ", ".join(f"{t:.0f} s" for t in np.diff(took))
        notes.append(
            f"{name}: mean count {series.images.mean():.1f}; {options.solver}, find, refine took {seconds}; "
            f"errors over those stated: {np.sqrt(np.mean(scaled**2)):.2f}."
        )
    title = f"{len(body.kind)} atoms, {TILTS} tilts, volume {size}³, {PIXEL} Å"
    machine.show(title, ("", *HEAD), rows, notes, markdown=options.markdown)


def compare(options) -> None:
    body = specimen(options.data, options.radius)
    size = 8 * int(np.ceil((2 * np.abs(body.positions).max() / PIXEL + 12) / 8))
    problem = jt.Problem(exposed(body, 60.0, size, options.dose, 1, False))
    methods = {
        "wbp": (jt.wbp(), 1),
        "sirt, 20 steps": (jt.sirt(), 20),
        "sirt, 40 steps": (jt.sirt(), 40),
        "sirt, 80 steps": (jt.sirt(), 80),
        **{f"tv {w:g}": (jt.tv(w), 150) for w in (0.003, 0.01, 0.03)},
        **{f"root-tv {w:g}": (jt.root_tv(w), 150) for w in (0.01, 0.03)},
    }
    rows = []
    for name, (solver, steps) in methods.items():
        volume = jt.reconstruct(problem, solver, steps=steps, callbacks=(), assess=False).volume
        rows.append((name, *judged(body, atoms.find(volume, PIXEL / 10))))
        print(rows[-1], flush=True)
    title = f"{len(body.kind)} atoms, ±60°, {options.dose:.0e} e/Å²: found in the volume alone"
    machine.show(title, ("method", *HEAD), rows, markdown=options.markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="npz with xyz_A [atom, 3] and type [atom], 1 to 3")
    parser.add_argument("--radius", type=float, default=20.0, help="of the ball, Å")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--methods", action="store_true")
    parser.add_argument("--dose", type=float, default=DOSE)
    parser.add_argument("--solver", default="sirt", choices=SOLVERS)
    parser.add_argument("--cases", type=int, default=4, help="how many of the cases")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    print(*machine.described("jaxtomo", "jax", "numpy"), sep="\n")
    (compare if options.methods else measure)(options)


if __name__ == "__main__":
    main()
