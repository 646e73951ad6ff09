"""ADF contrast: a support about particles whose images saturate with thickness and in which grains diffract, with and
without that in the model.

    python benchmarks/contrast.py          # 48³, 31 tilts, two seeds

Bar: above and below particles the support is as dense as elsewhere, to 5 %.
"""

from __future__ import annotations

import argparse

import machine
import numpy as np

import jaxtomo as jt
from jaxtomo.shapes import Body, ball, render
from jaxtomo.simulate import Microscope, expose

TILTS = np.arange(-60, 61, 4.0)
SUPPORT, RADIUS, THICK = 0.1, 0.1, 0.5
WHERE = [(-0.24, -0.25, 0.0), (0.2, -0.27, 0.03), (-0.02, 0.02, -0.03), (-0.25, 0.27, 0.02), (0.24, 0.25, 0.0)]


def specimen(size: int) -> np.ndarray:
    """Five balls in the middle of a thick slab of support, `[z, y, x]`."""
    slab = Body(lambda x, y, z: np.maximum(np.abs(z) - THICK / 2, np.abs(x) - 0.47) + 0 * y, SUPPORT)
    return render((size,) * 3, [slab, *(Body(ball(RADIUS), 1.0, centre, RADIUS) for centre in WHERE)])


def recorded(size: int, seed: int, saturation: float = 2.0, dose: float = 500.0, outliers: float = 1.0):
    """A series of which the thickest ray sum p reads (1 - exp(-s)) p / s, s = `saturation`, and the truth."""
    found = expose(specimen(2 * size), TILTS, Microscope(dose=float("inf"), outliers=outliers), seed)
    kappa = saturation / found.clean.max()
    bright = -np.expm1(-kappa * found.clean) / kappa + found.outliers
    scale = dose / bright.mean()
    images = np.random.default_rng(seed).poisson(scale * bright) / scale
    return jt.TiltSeries(images.astype(np.float32), TILTS), found.truth


def porosity(volume: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(density above and below particles over that of the rest of the support, density of the rest over the truth)."""
    size = len(truth)
    z, y, x = (np.arange(size) - (size - 1) / 2) / size, *(2 * [(np.arange(size) - (size - 1) / 2) / size])
    z, y, x = np.ix_(z, y, x)
    near = np.zeros(truth.shape, bool)
    apart = np.ones(truth.shape, bool)
    for cx, cy, cz in WHERE:
        across = np.hypot(x - cx, y - cy) + 0 * z
        gap = np.abs(z - cz) - RADIUS
        near |= (across < 0.6 * RADIUS) & (gap > 0.04) & (np.abs(z) < THICK / 2 - 0.04)
        apart &= across > 2 * RADIUS
    inside = (np.abs(z) < THICK / 2 - 0.04) & (np.abs(x) < 0.3) & (np.abs(y) < 0.42)
    rest = float(volume[apart & inside].mean())
    return float(volume[near].mean()) / rest, rest / SUPPORT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--weight", type=float, default=0.1)
    parser.add_argument("--picture", help="also draw the first seed's volumes, to this file")
    parser.add_argument("--markdown", action="store_true")
    asked = parser.parse_args()
    models = {
        "gaussian": jt.gaussian(),
        "robust": jt.robust(),
        "saturating gaussian": jt.saturating(jt.gaussian()),
        "saturating robust": jt.saturating(jt.robust()),
    }
    rows, slices = [], {}
    for seed in range(asked.seeds):
        series, truth = recorded(asked.size, seed)
        slices.setdefault("truth", truth[:, asked.size // 2])
        for name, model in models.items():
            solver = jt.tvq(asked.weight, power=1.0, steps=asked.steps)
            result = jt.reconstruct(jt.Problem(series, likelihood=model), solver, callbacks=(), assess=False)
            above, rest = porosity(result.volume, truth)
            slices.setdefault(name, result.volume[:, asked.size // 2])
            rows.append([f"{name}, seed {seed}", f"{100 * (above - 1):+.1f} %", f"{rest:.3f}"])
            print(*rows[-1], flush=True)
    header = ["", "above and below particles", "support over the truth"]
    machine.show(f"ADF contrast, {asked.size}³", header, rows, machine.described("jax"), markdown=asked.markdown)
    if asked.picture:
        from jaxtomo.plot import pictures

        shown = {name: [np.minimum(plane, 2 * SUPPORT)] for name, plane in slices.items()}
        pictures(shown).savefig(asked.picture, dpi=110)


if __name__ == "__main__":
    main()
