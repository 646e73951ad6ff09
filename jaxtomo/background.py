"""What an image shows where there is no specimen: the vacuum level of every tilt, and the pixels never measured."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Side of the square blocks whose means are compared, pixels: averaging over one divides the noise by this number.
BLOCK = 4
# A block belongs to the vacuum if its mean is within this many standard errors of the level.
NEAR = 4.0
# A level is believed to be the vacuum if few blocks are darker, and many agree on it, or some do and crowd about it as
# noise does: this share of them is within half the distance; of evenly spread ones half are.
DARKER, MANY, SOME, CROWD = 0.1, 0.3, 0.02, 0.6


class Vacuum(NamedTuple):
    """The vacuum of every image: `level [tilt]` and `noise [tilt]` (standard deviation of a pixel) in the images'
    units, `share [tilt]` of the measured area it covers, and whether it was `seen [tilt]` at all."""

    level: np.ndarray
    noise: np.ndarray
    share: np.ndarray
    seen: np.ndarray


def vacuum(images: np.ndarray, measured: np.ndarray | None = None) -> Vacuum:
    """The darkest level that a sizeable part of an image agrees on, for each of `images [tilt, y, x]`.

    Starting from a low percentile, the level moves to the median of the block means around it until it stays: the
    lowest mode, found by mean shift. If few blocks agree on it, or they do not crowd about it, it is no vacuum (the
    specimen fills the image); such an image gets the level of the nearest ones that show it, in the order of the
    series, or, if none does, the lowest of all: one of its own would be the specimen's.
    `measured [tilt, y, x]` says which pixels to trust.
    """
    found = [_darkest(image, None if measured is None else measured[i]) for i, image in enumerate(images)]
    level, noise, share, seen = (np.array(column) for column in zip(*found, strict=True))
    seen &= seen.mean() > 0.2  # in a few images it is chance
    index = np.arange(len(level))
    shared = np.interp(index, index[seen], level[seen]) if seen.any() else level.min()
    return Vacuum(np.where(seen, level, shared), noise, share, seen)


def _darkest(image, measured) -> tuple[float, float, float, bool]:
    """Level, pixel noise, share of the blocks and whether that is the vacuum, of one image."""
    ny, nx = (size // BLOCK for size in image.shape)
    blocks = _blocks(image, ny, nx)
    if measured is not None and (whole := _blocks(measured, ny, nx).all(1)).any():
        blocks = blocks[whole]
    mean, spread = blocks.mean(1, dtype=np.float64), blocks.std(1)
    floor = 1e-6 * max(float(np.ptp(mean)), 1e-30)
    dark = np.argsort(mean)[: max(8, mean.size // 20)]
    level, noise = float(np.percentile(mean, 3)), max(float(np.median(spread[dark])), floor)
    near = np.zeros(mean.size, bool)
    for _ in range(30):
        near = np.abs(mean - level) < NEAR * noise / BLOCK
        if not near.any():
            break
        moved, noise = float(np.median(mean[near])) - level, max(float(np.median(spread[near])), floor)
        level += moved
        if abs(moved) < 1e-3 * noise:
            break
    off = (mean - level) * BLOCK / (NEAR * noise)
    share, crowd = float(near.mean()), (np.abs(off) < 0.5).sum() / max(near.sum(), 1)
    seen = (off < -1).mean() <= DARKER and (share >= MANY or (share >= SOME and crowd >= CROWD))
    return level, noise, share, bool(seen)


def _blocks(image, ny, nx):
    cut = image[: ny * BLOCK, : nx * BLOCK].reshape(ny, BLOCK, nx, BLOCK)
    return cut.swapaxes(1, 2).reshape(ny * nx, BLOCK * BLOCK)


def unmeasured(images: np.ndarray) -> np.ndarray | None:
    """Borders filled in by an earlier alignment: `[tilt, y, x]` bool, True where a pixel was filled; None if none was.

    A filled border is a run of exactly one value from an edge of the image inwards, of a value that hardly occurs
    elsewhere. A vacuum counted without noise is that too, so one of these must hold as well: it consists of whole rows
    and columns; or it is brighter than the vacuum; or it ends in straight lines in the midst of a clear vacuum.
    """
    filled = np.zeros(images.shape, bool)
    for image, out in zip(images, filled, strict=True):
        corners = {image[j, i].item() for j in (0, -1) for i in (0, -1) if _even(image[:: 1 + 2 * j, :: 1 + 2 * i])}
        for value in corners:
            same = image == value
            lengths = [_lengths(same), _lengths(same[:, ::-1]), _lengths(same.T), _lengths(same.T[:, ::-1])]
            y, x = np.indices(same.shape, sparse=True)
            runs = (x < lengths[0][:, None]) | (x >= same.shape[1] - lengths[1][:, None])
            runs |= (y < lengths[2]) | (y >= same.shape[0] - lengths[3])
            if not max(image.shape) <= runs.sum() <= 0.9 * runs.size or same[~runs].sum() > 0.01 * same.size:
                continue
            lines = runs.all(0) | runs.all(1)[:, None]
            level, noise, *_ = _darkest(image, ~runs)
            if runs.sum() < 1.02 * lines.sum() or value > level + NEAR * noise:
                out |= runs
            elif np.ptp(image[~runs]) > 30 * noise and _straight(lengths):
                touching = np.abs(image[_rim(runs)] - level) < NEAR * noise
                out |= runs & (touching.mean() > 0.5)
    return filled if filled.any() else None


def _even(image):
    """Whether the first pixels of `image` along either edge are all the same."""
    return bool((image[:4, 0] == image[0, 0]).all() or (image[0, :4] == image[0, 0]).all())


def _lengths(same):
    """How many pixels from the left are True in each row."""
    return np.logical_and.accumulate(same, axis=1).sum(1)


def _straight(lengths) -> bool:
    """Whether the ends of runs lie on lines, by second differences over an eighth of the image."""
    bent = []
    for length in lengths:
        step = max(2, length.size // 8)
        middle = length[step:-step]
        bend = np.abs(length[: -2 * step] - 2 * middle + length[2 * step :])
        bent.append(bend[(middle > 0) & (middle < length.max())])
    bends = np.concatenate(bent)
    return bool(bends.size and (bends <= 1.5).mean() > 0.7)


def _rim(runs):
    """The pixels that touch a run from inside."""
    grown = np.pad(runs, 1)
    return (grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]) & ~runs
