"""Volumes larger than memory: reconstructed a few rows along the tilt axis at a time, between two files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .data import Problem, Reconstruction
from .parallel import unpadded
from .prepare import binned
from .solve import Solver, reconstruct
from .solvers.fit import rough
from .solvers.sirt import sirt
from .solvers.tv import Whole


class Slab(NamedTuple):
    """Rows along the tilt axis: those of the volume that are `kept`, and the wider range that is `computed` for it.

    Slices across the tilt axis are independent but for what couples neighbours: shifts along the axis that are no
    whole number of pixels, and total variation. How far that reaches is the margin; see `plan.SLICED`.
    """

    kept: slice
    computed: slice

    @property
    def inside(self) -> slice:
        """The kept rows among those computed."""
        return slice(self.kept.start - self.computed.start, self.kept.stop - self.computed.start)


class Survey(NamedTuple):
    """What one slab adds to the knowledge of the whole: Σ w y² of its images, the largest density of its rough volume,
    and Σ v⁴ and Σ v⁵ of that in units of the largest."""

    energy: float
    largest: float
    fourth: float
    fifth: float


def cuts(rows: int, slabs: int, margin: int) -> list[Slab]:
    """`rows` in `slabs` nearly equal parts, each computed with `margin` rows beside it; all of one shape, so that they
    are compiled once."""
    ends = [rows * i // slabs for i in range(slabs + 1)]
    count = min(rows, -(-rows // slabs) + 2 * margin)
    return [
        Slab(slice(a, b), slice(start := min(max(0, a - margin), rows - count), start + count))
        for a, b in itertools.pairwise(ends)
        if a < b
    ]


def reconstruct_slabs(
    slabs: Sequence[Slab],
    read: Callable[[slice], Problem],
    write: Callable[[Slab, Reconstruction, float], Callable[[], None]],
    solver: Solver,
    steps: int,
    *,
    callbacks: Callable[[Slab], Sequence[Callable]],
    split: Callable[[Problem, Solver], tuple[Problem, Solver]] = lambda *given: given,
    key=None,
) -> None:
    """Solve slab after slab.

    While one is computed the next is read and the last goes to the disk, each in a thread of its own; of the last none
    is held in memory any more, so that what a slab needs does not hang on the speed of the disk. Every slab takes as
    many steps as the first, which `callbacks` may end early: then all are at the same point of their way, and what is
    unfinished about it cannot show at the seams.

    Args:
        slabs: in the order in which they are to be made.
        read: some rows of the volume to their Problem.
        write: called with each slab, its Reconstruction (of the computed rows) and the energy Σ w y² of its images;
            hands it to the system, and returns a function that waits until it is on the disk.
        callbacks: what watches the run of a slab; see `jaxtomo.callbacks`.
        split: a slab's problem and solver to those for many devices; see `parallel.split`.

    Raises what `read`, `write` or a callback raises, after what was finished before has been written.
    """
    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as writing:
        ahead, written = reading.submit(read, slabs[0].computed), None
        for slab, following in itertools.zip_longest(slabs, slabs[1:]):
            problem = ahead.result()
            if following is not None:
                ahead = reading.submit(read, following.computed)
            problem, shared = split(problem, solver)
            part = reconstruct(problem, shared, steps, key=key, callbacks=callbacks(slab), assess=False)
            steps = part.settings["steps"]
            energy = float(_energy(problem, slab.inside.start, slab.inside.stop))
            if written is not None:
                written.result()
            written = writing.submit(write(slab, part, energy))
            del problem, part
        if written is not None:
            written.result()


def survey(
    slabs: Sequence[Slab],
    read: Callable[[slice], Problem],
    seen: Callable[[Slab], None],
    split: Callable[[Problem, Solver], tuple[Problem, Solver]] = lambda *given: given,
) -> list[Survey]:
    """A first look at every slab, for methods whose slabs have to know of the whole; `seen` is called before each."""
    found = []
    with ThreadPoolExecutor(1) as reading:
        ahead = reading.submit(read, slabs[0].computed)
        for slab, following in itertools.zip_longest(slabs, slabs[1:]):
            seen(slab)
            problem = ahead.result()
            if following is not None:
                ahead = reading.submit(read, following.computed)
            problem, _ = split(problem, sirt())
            found.append(Survey(*map(float, _survey(problem, slab.inside.start, slab.inside.stop))))
    return found


def whole(surveys: Sequence[Survey], voxels: int) -> Whole:
    """What `solvers.tv` has to know of the problem that slabs are cut from: exactly what it would find itself."""
    largest = max(part.largest for part in surveys)
    if not largest > 0:
        return Whole(sum(part.energy for part in surveys), voxels, 1.0)
    fourth, fifth = (
        sum(getattr(part, name) * (part.largest / largest) ** power for part in surveys)
        for name, power in (("fourth", 4), ("fifth", 5))
    )
    return Whole(sum(part.energy for part in surveys), float(voxels), largest * fifth / fourth)


@jax.jit
def _survey(problem, start, stop):
    problem = unpadded(problem)
    volume = jnp.where(_between(problem, start, stop), rough(problem)[0], 0)
    largest = jnp.max(volume)
    relative = volume / jnp.where(largest > 0, largest, 1)
    return _energy(problem, start, stop), largest, jnp.sum(relative**4), jnp.sum(relative**5)


@jax.jit
def _energy(problem, start, stop):
    """Σ w y² of the images of some rows."""
    problem = unpadded(problem)
    return jnp.sum(jnp.where(_between(problem, start, stop), problem.weights * problem.images**2, 0))


def _between(problem, start, stop):
    row = jnp.arange(problem.shape[2])
    return (row >= start) & (row < stop)


def for_report(result: Reconstruction, longest: int) -> Reconstruction:
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
