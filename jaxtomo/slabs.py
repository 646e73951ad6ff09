"""Volumes larger than memory: reconstructed a few rows along the tilt axis at a time, into a file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .data import Pose, Problem, Reconstruction
from .plan import MARGIN
from .prepare import binned, rows_of
from .series import TiltSeries
from .solve import Solver, reconstruct


def cuts(rows: int, slabs: int) -> list[slice]:
    """`rows` in `slabs` nearly equal parts."""
    ends = [rows * i // slabs for i in range(slabs + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def reconstruct_slabs(
    series: TiltSeries,
    pose: Pose,
    problem: Callable[[TiltSeries, Pose, np.ndarray | None], Problem],
    solver: Solver,
    steps: int,
    volume: Any,
    slabs: int,
    *,
    first: int = 0,
    callbacks: Callable[[int], Sequence[Callable]],
    weights: np.ndarray | None = None,
    key=None,
) -> Iterator[tuple[Reconstruction, float]]:
    """Fill `volume [z, y, x]` (anything that can be assigned to) slab by slab, from slab `first` on.

    Yields after each slab its Reconstruction and the energy Σ w y² of its images. Slices across the tilt axis are
    independent, so the result is that of one run, for a method that treats them so. Where shifts along the axis are
    no whole number of pixels neighbouring slices touch: a margin of `plan.MARGIN` rows is computed too, and dropped.

    Args:
        problem: `(series, pose, weights)` of a slab to its Problem.
        callbacks: what watches each slab's run, by its number; see `jaxtomo.callbacks`.
        weights: extra weights `[tilt]`.

    Raises InputError if the pose mixes slices.
    """
    height = series.images.shape[-2]
    parts = cuts(height, slabs)
    count = min(height, max(rows.stop - rows.start for rows in parts) + 2 * MARGIN)  # one shape, compiled once
    for number, rows in enumerate(parts):
        if number < first:
            continue
        start = min(max(0, rows.start - MARGIN), height - count)
        wide = slice(start, start + count)
        asked = problem(*rows_of(series, pose, wide), weights)
        part = reconstruct(asked, solver, steps, key=key, callbacks=callbacks(number), assess=False)
        volume[:, rows] = part.volume[:, rows.start - wide.start : rows.stop - wide.start]
        yield part, float(jnp.sum(asked.weights * asked.images**2))


def for_report(result: Reconstruction, longest: int = 320) -> Reconstruction:
    """The result on a coarser grid, small enough to be looked at as a whole: `volume` may be a file on disk."""
    factor = -(-max(result.volume.shape) // longest)
    if factor == 1 or result.series is None:
        return result
    nz, ny, nx = (n // factor for n in result.volume.shape)
    volume = np.empty((nz, ny, nx), np.float32)
    for z in range(nz):
        thick = np.asarray(result.volume[z * factor : (z + 1) * factor, : ny * factor, : nx * factor])
        volume[z] = thick.reshape(factor, ny, factor, nx, factor).mean((0, 2, 4))
    series = binned(result.series, factor)
    # A ray crosses `factor` times fewer of the larger voxels.
    series = series.replace(images=series.images / np.float32(factor))
    pose = result.pose if result.pose.shift is None else result.pose.replace(shift=result.pose.shift / factor)
    settings = {**result.settings, "binned_for_report": factor}
    return result.replace(volume=volume, series=series, pose=pose, settings=settings)
