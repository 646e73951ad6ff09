"""Makes the volumes that the weights `slices` are trained on: slabs of random polygons and particles, simulated
specimens, particles measured by electron tomography, etched silicon, and tissue.

    python benchmarks/make_slices.py FOLDER_WITH_THE_VOLUMES slices
    jaxtomo train gan --data slices --out slices-training

The first folder holds autolcet_shapes.npz, nanopores3d_si.npz and the two FlyEM volumes, whose last corners of 128³
voxels, which benchmarks use, are left out. Phantoms have seeds from 5,000 on, which no benchmark uses, and two kinds of
them, hollow_particles and chiral, are left to the benchmarks. Slabs are `[z, y, x]` uint8 of 256 × 32 × 256 voxels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from make_nano import measured
from make_spectra import shapes
from scipy import ndimage

from jaxtomo import phantoms
from jaxtomo.shapes import Body, Waves, half_space, intersection, render

SIDE, ROWS, FIRST_SEED, LEVELS = 256, 32, 5000, 160
PHANTOMS = {
    "supported_particles": 14,
    "core_shell": 14,
    "porous_support": 14,
    "graded_needle": 20,
    "atoms": 4,
    "tissue": 20,
}
POLYGONS, MEASURED, SILICON, TISSUE = 40, 12, 8, 12


def polygons(seed: int) -> np.ndarray:
    """Up to twenty convex polygons, which lean a little along y, even, graded or textured, some inside others."""
    rng = np.random.default_rng(seed)
    bodies = []
    for _ in range(rng.integers(2, 21)):
        radius = np.exp(rng.uniform(np.log(0.02), np.log(0.3)))
        angle, out = rng.uniform(0, 2 * np.pi), (0.46 - radius) * np.sqrt(rng.random())
        faces = rng.uniform(0, 2 * np.pi, rng.integers(3, 9))
        leans = 0.3 * rng.normal(size=len(faces))
        sides = [
            half_space((np.cos(a), lean, np.sin(a)), radius * rng.uniform(0.5, 1))
            for a, lean in zip(faces, leans, strict=True)
        ]

        def round_off(x, y, z, radius=radius):
            return np.sqrt(x * x + z * z) - radius

        value = rng.uniform(0.15, 1.0)
        kind = rng.choice(["even", "graded", "textured"], p=[0.4, 0.3, 0.3])
        if kind == "even":
            inside = value
        else:
            waves = Waves.draw(rng, rng.uniform(0.02, 0.1) if kind == "textured" else rng.uniform(0.3, 1.0), 0.4)
            depth = rng.uniform(0.1, 0.4)

            def inside(x, y, z, waves=waves, value=value, depth=depth):
                return value * np.clip(1 + depth * waves(x, y, z), 0, 2)

        centre = (out * np.cos(angle), 0.0, out * np.sin(angle))
        bodies.append(Body(intersection(round_off, *sides), inside, centre))
    return render((SIDE, ROWS, SIDE), bodies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)

    def keep(name: str, volume: np.ndarray) -> None:
        np.save(options.output / f"{name}.npy", np.clip(volume * LEVELS, 0, 255).astype(np.uint8))

    def slab(volume: np.ndarray) -> np.ndarray:
        """As large as the others, interpolated, somewhere along y; of a cube along any axis."""
        volume = volume.transpose(rng.permutation(3) if len(set(volume.shape)) == 1 else (0, 1, 2))
        middle = (volume.shape[1] - ROWS) // 2
        start = int(rng.integers(middle // 2, middle + middle // 2 + 1))
        part = volume[:, start : start + ROWS]
        return ndimage.zoom(part, (SIDE / part.shape[0], 1, SIDE / part.shape[2]), order=1)

    for i in range(POLYGONS):
        keep(f"polygons_{i:02d}", polygons(FIRST_SEED + i))
    for name, count in PHANTOMS.items():
        for i in range(count):
            keep(f"{name}_{i:02d}", getattr(phantoms, name)((SIDE, ROWS, SIDE), FIRST_SEED + i))
    particles = list(shapes(np.load(options.data / "autolcet_shapes.npz")))
    for i in range(MEASURED):
        keep(f"measured_{i:02d}", slab(measured(particles, rng)))
    silicon = np.load(options.data / "nanopores3d_si.npz")["volume"].astype(np.float32)
    for i in range(SILICON):
        keep(f"silicon_{i:02d}", slab(silicon / silicon.max()))
    for i in range(TISSUE):
        tissue = np.load(options.data / f"flyem_fib25_train{1 + i % 2}_250.npz")["volume"]
        keep(f"tissue_measured_{i:02d}", slab((255 - tissue[:, :120].astype(np.float32)) / 255))


if __name__ == "__main__":
    main()
