"""Where bodies end, and the specimen that they are in."""

from __future__ import annotations

from typing import Any

import numpy as np

NEAR = 2.0  # voxels beyond a body in which its surface, or samples of it, may lie
RIM, AROUND = 1.5, 1.5  # voxels beside a body that are its edge; over which what is further away is averaged
HALF = 0.5  # of the contrast: where a surface lies


def bounded(labels, field, envelope, share: float = HALF) -> tuple[np.ndarray, np.ndarray]:
    """Bodies up to where the intensity is midway between what is inside them and what is around: half height, the
    surface that metrology by tomography takes (ISO 50 %), which hardly depends on how they were found.

    Args:
        labels: `[z, y, x]` of bodies that were found.
        field: `[z, y, x]`, brighter in them than around.
        envelope: `[z, y, x]` bool, in which they and what is around them lie.
        share: of the contrast, from 0, what is around, to 1, what is inside.

    Returns labels, and the level `[z, y, x]` at which they end, which varies with what is around.
    """
    from scipy import ndimage

    known = np.arange(1, labels.max() + 1)
    if not known.size:
        return labels, np.zeros(labels.shape, np.float32)
    depth = np.asarray(ndimage.distance_transform_edt(labels > 0))
    deepest = np.append(0.0, np.asarray(ndimage.maximum(depth, labels, known)))
    core = np.where(depth >= deepest[labels] / 2, labels, 0)
    inside = np.append(0.0, np.asarray(ndimage.median(field, core, known))).astype(np.float32)
    distances: Any = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    away, nearest = distances
    owner = labels[tuple(nearest)]
    beside = envelope & (away > RIM)
    usual = float(np.median(field[beside])) if beside.any() else float(field.min())
    weight = np.asarray(ndimage.gaussian_filter(beside.astype(np.float32), AROUND))
    total = np.asarray(ndimage.gaussian_filter(np.where(beside, field - usual, 0).astype(np.float32), AROUND))
    around = usual + total / np.maximum(weight, 1e-3)
    level = around + share * (inside[owner] - around)
    return _whole(np.where(envelope & (away <= NEAR) & (field > level), owner, 0)), level


def _whole(labels) -> np.ndarray:
    """Of each body the largest piece."""
    from scipy import ndimage

    kept = np.zeros_like(labels)
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        if box is not None:
            found: Any = ndimage.label(labels[box] == label)
            largest = np.bincount(found[0].ravel())[1:].argmax() + 1
            kept[box][found[0] == largest] = label
    return kept


def closed(solid, reach: float) -> np.ndarray:
    """A boolean volume grown by a ball of `reach` voxels and shrunk by it again, holes inside filled."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt

    margin = int(np.ceil(reach)) + 1
    wide = np.pad(solid, margin)
    grown = np.asarray(distance_transform_edt(~wide)) <= reach
    shrunk = np.asarray(distance_transform_edt(grown)) > reach
    inside = slice(margin, -margin)
    return np.asarray(binary_fill_holes(shrunk[inside, inside, inside] | solid))
