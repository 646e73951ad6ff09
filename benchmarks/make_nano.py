"""Makes the volumes that the weights `nano` are trained on: simulated specimens, particles measured by electron
tomography, etched silicon.

    python benchmarks/make_nano.py FOLDER_WITH_THE_VOLUMES nano
    jaxtomo train score --data nano --side 64 --steps 5000 --out nano-training

The first folder holds autolcet_shapes.npz and nanopores3d_si.npz. Phantoms have seeds from 1,000 on, which no benchmark
uses. Volumes are `[z, y, x]` uint8 of 128³ voxels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from make_spectra import shapes
from scipy import ndimage

from jaxtomo import phantoms
from jaxtomo.shapes import random_rotation

SIDE, SMALLEST, FIRST_SEED = 128, 88, 1000
PHANTOMS = {
    "supported_particles": 44,
    "core_shell": 44,
    "porous_support": 30,
    "hollow_particles": 44,
    "chiral": 8,
    "graded_needle": 30,
    "atoms": 8,
    "tissue": 16,
}
MEASURED, SILICON = 24, 10
PHANTOM_LEVELS, LEVELS = 160, 250  # grey levels of density 1; some phantoms are denser in places


def padded(volume: np.ndarray) -> np.ndarray:
    before = (SIDE - len(volume)) // 2
    return np.pad(volume, [(before, SIDE - len(volume) - before)] * 3)


def measured(particles: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A few of the measured particles, turned, scaled, and apart from each other."""
    volume, middle = np.zeros((SIDE,) * 3, np.float32), (SIDE - 1) / 2
    for _ in range(rng.integers(1, 6)):
        shape = particles[rng.integers(len(particles))].astype(np.float32)
        inside = np.argwhere(shape > 0)
        extent = np.linalg.norm(inside - inside.mean(0), axis=1).max()
        radius = rng.uniform(12, 34)
        turn = random_rotation(rng) * extent / radius
        for _ in range(50):
            centre = middle + 14 * rng.normal(size=3)
            if np.linalg.norm(centre - middle) + radius < 58:
                break
        else:
            continue
        body = ndimage.affine_transform(shape, turn, inside.mean(0) - turn @ centre, (SIDE,) * 3, order=1)
        value = rng.choice([1.0, 0.7, 0.85])
        if body[volume > 0.1].sum() < 0.02 * body.sum():
            volume = np.maximum(volume, value * body)
    return volume


def rod(silicon: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A rod along y, cut from porous silicon at random."""
    corner = rng.integers(0, np.array(silicon.shape) - SIDE + 1)
    cut = silicon[tuple(slice(c, c + SIDE) for c in corner)].transpose(rng.permutation(3))
    z, x = (line - (SIDE - 1) / 2 for line in np.ogrid[:SIDE, :SIDE])
    inside = np.clip((rng.uniform(38, 60) - np.hypot(z, x)) / 2 + 0.5, 0, 1)
    along = np.abs(np.arange(SIDE) - (SIDE - 1) / 2) < rng.uniform(45, 60)
    return cut * inside[:, None, :] * along[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)

    def keep(name: str, volume: np.ndarray, levels: int) -> None:
        np.save(options.output / f"{name}.npy", np.clip(volume * levels, 0, 255).astype(np.uint8))

    particles = list(shapes(np.load(options.data / "autolcet_shapes.npz")))
    silicon = np.load(options.data / "nanopores3d_si.npz")["volume"].astype(np.float32)
    silicon /= silicon.max()
    for i in range(MEASURED):
        keep(f"measured_{i:02d}", measured(particles, rng), LEVELS)
    for i in range(SILICON):
        keep(f"silicon_{i:02d}", rod(silicon, rng), LEVELS)
    for name, count in PHANTOMS.items():
        for i in range(count):
            size = 2 * int(rng.integers(SMALLEST // 2, SIDE // 2 + 1))
            volume = padded(getattr(phantoms, name)((size,) * 3, FIRST_SEED + i))
            keep(f"{name}_{i:02d}", volume, PHANTOM_LEVELS)


if __name__ == "__main__":
    main()
