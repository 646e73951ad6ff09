"""Pixels that are not numbers, counted and repaired; and the mass profile that hints at the tilt axis."""

from __future__ import annotations

import numpy as np


def fill_with_neighbours(image: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """`image` `[y, x]` with each `bad` pixel replaced by the median of its good neighbours, from the rim inwards.

    A wholly bad image is returned unchanged: there is nothing to repair it from.
    """
    image, bad = np.where(bad, np.nan, image), bad.copy()
    if bad.all():
        return image
    ny, nx = image.shape
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    while bad.any():
        y, x = np.nonzero(bad)
        around = np.full((len(y), len(steps)), np.nan, image.dtype)
        for i, (dy, dx) in enumerate(steps):
            inside = (y + dy >= 0) & (y + dy < ny) & (x + dx >= 0) & (x + dx < nx)
            around[inside, i] = image[y[inside] + dy, x[inside] + dx]
        around.sort(axis=1)  # NaN goes last
        good = np.count_nonzero(np.isfinite(around), axis=1)
        now = good > 0
        rows, good = np.flatnonzero(now), good[now]
        image[y[now], x[now]] = (around[rows, (good - 1) // 2] + around[rows, good // 2]) / 2
        bad[y[now], x[now]] = False
    return image


def mass_variation(images: np.ndarray) -> tuple[float, float]:
    """How much the mass profile along y, and along x, changes over the tilts `[tilt, y, x]`, relative to its size.

    The mass in a plane across the tilt axis is the same at every tilt, so the profile along the axis changes least.
    It is a hint: drift, a changing detector gain, or an object larger than the image can mislead it.
    """
    n, ny, nx = images.shape  # a sample is enough, and a large stack must not be copied
    images = images[:: max(1, n // 40), :: max(1, ny // 512), :: max(1, nx // 512)].astype(np.float64)
    images = images - np.percentile(images.reshape(len(images), -1), 5, axis=1)[:, None, None]

    def variation(profile: np.ndarray) -> float:
        length = np.linalg.norm(profile, axis=1, keepdims=True)
        profile = profile / np.where(length > 0, length, 1)
        size = np.linalg.norm(profile)
        return float(np.linalg.norm(profile - profile.mean(axis=0)) / size) if size > 0 else 0.0

    return variation(images.sum(axis=2)), variation(images.sum(axis=1))
