"""Makes `jaxtomo/samples/spectra.npz`: the isotropic power spectra of real volumes, as a prior for reconstructions.

    python benchmarks/make_spectra.py FOLDER_WITH_THE_VOLUMES jaxtomo/samples/spectra.npz

The folder holds flyem_fib25_train1_250.npz, flyem_fib25_train2_250.npz, nanopores3d_si.npz and autolcet_shapes.npz.
A volume has its mean subtracted and is tapered by a Hann window along each axis, so that its faces, which do not match,
leave no cross in its spectrum. |FFT|² is averaged over shells of |f|; the spectra of a group of volumes, each scaled to
unit variance, are averaged. See `jaxtomo.samples.Spectrum` for the normalisation.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import scipy.fft

EDGES = np.linspace(0, 0.5 * np.sqrt(3), 65)  # cycles per voxel; the last edge is the corner of the band
REFERENCE = 128  # the cube on which the power has mean 1


def shells(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """|f| of every discrete frequency of `shape`, and the shell it falls in."""
    axes = np.meshgrid(*(np.fft.fftfreq(n).astype(np.float32) for n in shape), indexing="ij", sparse=True)
    frequency = np.sqrt(sum(axis * axis for axis in axes))
    return frequency, np.clip(np.digitize(frequency, EDGES) - 1, 0, len(EDGES) - 2)


def mean_over_shells(values: np.ndarray, shell: np.ndarray) -> np.ndarray:
    count = len(EDGES) - 1
    inside = np.bincount(shell.ravel(), minlength=count)
    return np.bincount(shell.ravel(), values.ravel(), count) / np.maximum(inside, 1)


def windowed_power(volume: np.ndarray) -> np.ndarray:
    """|FFT|² of the tapered, mean-free volume, scaled to mean 1 over the discrete frequencies."""
    taper = np.ones((1, 1, 1), np.float32)
    for axis, n in enumerate(volume.shape):
        window = np.sin(np.pi * (np.arange(n) + 0.5) / n).astype(np.float32) ** 2
        taper = taper * np.expand_dims(window, [other for other in range(3) if other != axis])
    power = np.abs(scipy.fft.fftn((volume - volume.mean(dtype=np.float64)).astype(np.float32) * taper)) ** 2
    return power / power.mean(dtype=np.float64)


def group(volumes: Iterable[np.ndarray]) -> tuple[np.ndarray, float, float]:
    """Power per shell averaged over `volumes`, and the mean and standard deviation of all their voxels together."""
    power, moments = [], []
    for volume in volumes:
        _, shell = shells(volume.shape)
        power.append(mean_over_shells(windowed_power(volume), shell))
        wide = volume.astype(np.float64)
        moments.append((wide.size, wide.sum(), np.square(wide).sum()))
    size, total, square = np.sum(moments, axis=0)
    return np.mean(power, axis=0), total / size, float(np.sqrt(square / size - (total / size) ** 2))


def shapes(file) -> Iterator[np.ndarray]:
    yield from file["chiralAu"]
    yield from file["Cu3As"]
    yield from np.unpackbits(file["PdAu"], axis=-1)[..., : int(file["PdAu_shape"][-1])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    tissue = [np.load(options.folder / f"flyem_fib25_train{region}_250.npz") for region in (1, 2)]
    groups = {
        "fib_sem": ((file["volume"] for file in tissue), float(tissue[0]["voxel_nm"])),
        "porous_silicon": ([np.load(options.folder / "nanopores3d_si.npz")["volume"]], np.nan),
        "nanoparticles": (shapes(np.load(options.folder / "autolcet_shapes.npz")), np.nan),
    }
    reference, shell = shells((REFERENCE,) * 3)
    frequency = mean_over_shells(reference, shell)
    result = {"frequency": frequency}
    for name, (volumes, voxel_nm) in groups.items():
        power, mean, std = group(volumes)
        result[name] = power / np.interp(reference, frequency, power).mean()
        result |= {f"{name}_mean": mean, f"{name}_std": std, f"{name}_voxel_nm": voxel_nm}
    np.savez(options.output, **result)


if __name__ == "__main__":
    main()
