"""Isotropic power spectra of volumes: what a stationary Gaussian prior knows of a kind of material."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

EDGES = np.linspace(0, 0.5 * np.sqrt(3), 65)  # cycles per voxel; the last edge is the corner of the band
REFERENCE = 128  # the cube on which the power has mean 1


@dataclass(frozen=True)
class Spectrum:
    """How the variance of a kind of material is spread over spatial frequency, averaged over directions.

    Attributes:
        frequency: `[bin]` cycles per voxel, rising from near 0 to √3/2.
        power: `[bin]`, such that `np.interp(|f|, frequency, power)` has mean 1 over the discrete frequencies of a cube:
            times the variance it is the eigenvalue of a stationary covariance.
        mean: mean intensity of the example volumes, in their own units.
        std: standard deviation of the example volumes, in their own units.
        voxel_nm: their voxel size, NaN where it is not known.
    """

    frequency: np.ndarray
    power: np.ndarray
    mean: float
    std: float
    voxel_nm: float = float("nan")


def spectrum_of(volumes: Iterable[np.ndarray], voxel_nm: float = float("nan")) -> Spectrum:
    """The spectrum of example volumes `[z, y, x]`.

    Each has its mean subtracted and is tapered by a Hann window along each axis, so that its faces, which do not
    match, leave no cross in its spectrum. |FFT|² is averaged over shells of |f|; the spectra of the volumes, each
    scaled to unit variance, are averaged.
    """
    power, moments = [], []
    for volume in volumes:
        power.append(_mean_over_shells(_windowed_power(volume), _shells(volume.shape)[1]))
        wide = volume.astype(np.float64)
        moments.append((wide.size, wide.sum(), np.square(wide).sum()))
    size, total, square = np.sum(moments, axis=0)
    reference, shell = _shells((REFERENCE,) * 3)
    frequency, mean_power = _mean_over_shells(reference, shell), np.mean(power, axis=0)
    return Spectrum(
        frequency,
        mean_power / np.interp(reference, frequency, mean_power).mean(),
        float(total / size),
        float(np.sqrt(square / size - (total / size) ** 2)),
        voxel_nm,
    )


def _shells(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """|f| of every discrete frequency of `shape`, and the shell it falls in."""
    axes = np.meshgrid(*(np.fft.fftfreq(n).astype(np.float32) for n in shape), indexing="ij", sparse=True)
    frequency = np.sqrt(axes[0] ** 2 + axes[1] ** 2 + axes[2] ** 2)
    return frequency, np.clip(np.digitize(frequency, EDGES) - 1, 0, len(EDGES) - 2)


def _mean_over_shells(values: np.ndarray, shell: np.ndarray) -> np.ndarray:
    count = len(EDGES) - 1
    inside = np.bincount(shell.ravel(), minlength=count)
    return np.bincount(shell.ravel(), values.ravel(), count) / np.maximum(inside, 1)


def _windowed_power(volume: np.ndarray) -> np.ndarray:
    """|FFT|² of the tapered, mean-free volume, scaled to mean 1 over the discrete frequencies."""
    taper = np.ones((1, 1, 1), np.float32)
    for axis, n in enumerate(volume.shape):
        window = np.sin(np.pi * (np.arange(n) + 0.5) / n).astype(np.float32) ** 2
        taper = taper * np.expand_dims(window, [other for other in range(3) if other != axis])
    power = np.abs(np.fft.fftn((volume - volume.mean(dtype=np.float64)).astype(np.float32) * taper)) ** 2
    return power / power.mean(dtype=np.float64)
