"""What the images themselves hint about the direction of the tilt axis."""

from __future__ import annotations

import numpy as np


def mass_variation(images: np.ndarray) -> tuple[float, float]:
    """How much the mass profile along y, and along x, changes over the tilts `[tilt, y, x]`, relative to its size.

    The mass in a plane across the tilt axis is the same at every tilt, so the profile along the axis changes least.
    It is a hint: drift, a changing detector gain, or an object larger than the image can mislead it.
    """
    n, ny, nx = images.shape  # a sample is enough, and a large stack must not be copied
    few = slice(None, None, max(1, ny // 512)), slice(None, None, max(1, nx // 512))
    images = np.stack([images[i][few] for i in range(0, n, max(1, n // 40))]).astype(np.float64)
    images = images - np.percentile(images.reshape(len(images), -1), 5, axis=1)[:, None, None]

    def variation(profile: np.ndarray) -> float:
        length = np.linalg.norm(profile, axis=1, keepdims=True)
        profile = profile / np.where(length > 0, length, 1)
        size = np.linalg.norm(profile)
        return float(np.linalg.norm(profile - profile.mean(axis=0)) / size) if size > 0 else 0.0

    return variation(images.sum(axis=2)), variation(images.sum(axis=1))
