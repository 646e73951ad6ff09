"""Annular dark field that is not linear: pores that saturation makes in a homogeneous support between heavy particles,
with and without it in the model, and crystals that diffract, with and without a robust likelihood.

    python benchmarks/contrast.py                     # 64³, 29 tilts to ±70°, a minute a row on one core
"""

from __future__ import annotations

import argparse
import time

import machine
import numpy as np

import jaxtomo as jt
from jaxtomo import metrics, phantoms, saturation
from jaxtomo.shapes import Body, ball, grid, render
from jaxtomo.simulate import Exposure, Microscope, expose

TILTS = np.arange(-70, 71, 5.0)
SUPPORT = 0.15  # intensity of the support, of the particles 1
SATURATION = 2.0  # the brightest ray is recorded at 86 % of the ceiling
WEIGHTS, ROOT_TV = (0.1, 0.3, 1.0, 3.0), 0.1


def pillar(x, y, z):
    return np.maximum(np.sqrt(x * x + z * z) - 0.3, np.abs(y) - 0.45)


def film(x, y, z):
    return np.maximum(np.maximum(np.abs(x) - 0.3, np.abs(z) - 0.15), np.abs(y) - 0.45)


SHAPES = {"pillar": (pillar, 0.22), "film": (film, 0.15)}  # and how far from its middle the particles are


def specimen(kind: str, seed: int):
    """(bodies, `[(centre, radius)]` of the particles): four pairs of balls, on either side of a support along the beam
    at zero tilt."""
    rng = np.random.default_rng(seed)
    support, height = SHAPES[kind]
    balls = []
    for y in np.linspace(-0.33, 0.33, 4):
        x, radius = rng.uniform(-0.12, 0.12), rng.uniform(0.05, 0.08)
        balls += [((x, y, side * height), radius) for side in (-1, 1)]
    return [Body(support, SUPPORT), *(Body(ball(r), 1.0, c, r) for c, r in balls)], balls


def regions(kind: str, balls, size: int):
    """Where support is above or below a particle, and where it is not; both 2.5 voxels from any edge."""
    voxel, sides = grid((size,) * 3)
    z, y, x = np.meshgrid(*sides, indexing="ij")
    inside = SHAPES[kind][0](x, y, z) < -2.5 * voxel
    shadow, far = np.zeros(inside.shape, bool), np.ones(inside.shape, bool)
    for (a, b, c), radius in balls:
        beside = np.hypot(x - a, y - b)
        inside &= np.hypot(beside, z - c) > radius + 2.5 * voxel
        shadow |= beside < 0.8 * radius
        far &= beside > radius + 2 * voxel
    return inside & shadow, inside & far


def solved(problem, solver=None, steps: int = 300):
    """The volume; of tv, with the weight that left-out tilts choose, if no solver is given."""
    if solver is None:
        solver = jt.tv(jt.validate.choose_weight(problem, jt.tv, WEIGHTS, 80)[0])
    return jt.reconstruct(problem, solver, steps, callbacks=(), assess=False).volume


def pores(size: int, doses, seeds: int) -> list[list[str]]:
    rows = []
    for kind in SHAPES:
        for dose in doses:
            for seed in range(seeds):
                bodies, balls = specimen(kind, seed)
                fine = render((2 * size,) * 3, bodies)
                bent = expose(fine, TILTS, Microscope(dose, saturation=SATURATION), seed)
                straight = expose(fine, TILTS, Microscope(dose), seed)
                kappa = SATURATION / bent.clean.max()
                found = saturation.find(jt.Problem(bent.series))
                said = f"κ {found.kappa:.4f} for {kappa:.4f}"
                model = jt.saturated(jt.gaussian(), found.kappa)
                linear = jt.Problem(saturation.linearised(bent.series, found.kappa))
                cases = {
                    "tv, nothing saturates": (jt.Problem(straight.series), None, ""),
                    "tv": (jt.Problem(bent.series), None, ""),
                    "tv, saturation found": (saturation.trusted(linear, found.kappa), None, said),
                    "root-tv": (jt.Problem(bent.series), jt.root_tv(ROOT_TV, steps=300), ""),
                    "root-tv, in its model": (
                        jt.Problem(bent.series, likelihood=model),
                        jt.root_tv(ROOT_TV, steps=300),
                        said,
                    ),
                }
                shadow, far = regions(kind, balls, size)
                for name, (problem, solver, note) in cases.items():
                    began = time.perf_counter()
                    volume = solved(problem, solver)
                    level = volume[far].mean()
                    low, high = np.percentile(volume[shadow], (5, 95)) / level
                    spread = volume[shadow | far].std() / level
                    mean, level = volume[shadow].mean() / level, level / SUPPORT
                    numbers = f"{mean:.3f}", f"{low:.2f} to {high:.2f}", f"{spread:.3f}", f"{level:.3f}"
                    rows.append([f"{kind}, dose {dose:g}, seed {seed}: {name}", *numbers, note])
                    print("  ".join(rows[-1]), f"{time.perf_counter() - began:.0f} s", flush=True)
    return rows


def diffraction(size: int, doses, seeds: int) -> list[list[str]]:
    """PSNR of root-tv with a likelihood that outliers pull at, and with one that they do not."""
    rows = []
    for dose in doses:
        for seed in range(seeds):
            fine = phantoms.supported_particles((2 * size,) * 3, seed)
            for rate in (0.0, 1.0, 4.0):
                exposed: Exposure = expose(fine, TILTS, Microscope(dose, outliers=rate), seed)
                row = [f"dose {dose:g}, seed {seed}, {rate:g} grains an image"]
                for likelihood in (jt.gaussian(), jt.robust()):
                    problem = jt.Problem(exposed.series, likelihood=likelihood)
                    volume = solved(problem, jt.root_tv(ROOT_TV, steps=300))
                    row.append(f"{metrics.psnr(volume, exposed.truth):.2f}")
                rows.append(row)
                print("  ".join(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--doses", type=float, nargs="+", default=[60.0, 400.0])
    parser.add_argument("--markdown", action="store_true")
    asked = parser.parse_args()
    given = asked.size, asked.doses, asked.seeds
    notes = [
        "Shadow: mean of the support above and below particles over that of the support elsewhere, and its 5th and "
        "95th percentile; bar 0.95 to 1.05. Spread: standard deviation over all the support. Level: mean over the "
        "truth. The weight of tv is chosen by left-out tilts.",
        *machine.described("jax"),
    ]
    title = f"Saturation, {asked.size}³, {len(TILTS)} tilts to ±{TILTS[-1]:g}°"
    header = ["", "shadow", "5 to 95 %", "spread", "level", ""]
    machine.show(title, header, pores(*given), notes, markdown=asked.markdown)
    header = ["PSNR, dB", "gaussian", "robust"]
    machine.show(
        "Diffraction contrast, root-tv",
        header,
        diffraction(asked.size, asked.doses[:1], asked.seeds),
        [],
        markdown=asked.markdown,
    )


if __name__ == "__main__":
    main()
