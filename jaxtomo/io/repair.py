"""Pixels that are not numbers, repaired from their neighbours."""

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
