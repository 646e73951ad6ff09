"""Examples to train the pair of `priors.gan` on: slices of known volumes through a simulated microscope, their
sinograms over half a turn, and what is shown of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from .data import Pose, Problem
from .exposures import Example, Library, box_in, imperfect, specimen
from .priors.density import typical
from .priors.gan import SinogramFill, grid, told
from .priors.score import geometry
from .series import TiltSeries
from .simulate import Microscope, average, expose
from .solvers.gan import STEPS, extended, guides, projections, slice_by_slice
from .solvers.sirt import sirt

COUNTS = (32, 64, 128)  # tilts of a simulated series: where fewer are drawn, some are there twice, with no weight


class Slab(NamedTuple):
    """Some rows of a specimen, relative to its density, and of its images.

    Attributes:
        truth: `[z, x, y]`.
        sinogram: `[angle, x, y]`, perfect ray sums over half a turn.
        guide: `[guide, z, x, y]`.
        seen: `[guide, angle, x, y]`, projections of the guides.
        far: `[angle]`, see `priors.gan.unmeasured`.
        geometry: `[5]`.
        images: `[tilt, x, y]`.
        tilt_deg, believed: `[tilt]`.
    """

    truth: np.ndarray
    sinogram: np.ndarray
    guide: np.ndarray
    seen: np.ndarray
    far: np.ndarray
    geometry: np.ndarray
    images: np.ndarray
    tilt_deg: np.ndarray
    believed: np.ndarray


class Filling(NamedTuple):
    """`sinogram [angle, x, y]`, what the first network is shown of it, `seen [guide, angle, x, y]` and
    `known [angle, 10]`, and `far [angle]`, all over one scale."""

    sinogram: np.ndarray
    seen: np.ndarray
    known: np.ndarray
    far: np.ndarray

    def patch(self, shape: Sequence[int], rng: np.random.Generator) -> Filling:
        """So many pixels across and rows; all angles, for the ends of half a turn meet."""
        box = box_in(self.sinogram.shape[1:], shape, rng)
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
        return Filling(self.sinogram[:, *box][..., flip], self.seen[:, :, *box][..., flip], self.known, self.far)


@dataclass(frozen=True)
class Slabs:
    """Slabs of a library, each simulated once and kept in a folder."""

    library: Library
    folder: Path

    def __call__(self, seed: Sequence[int], validation: bool = False) -> Slab:
        """The slab of a seed."""
        file = self.folder / ("_".join(map(str, seed)) + ".npz")
        if file.is_file():
            with np.load(file) as kept:
                return Slab(*(kept[name].astype(np.float32) for name in Slab._fields))
        slab = self.simulated(np.random.default_rng(seed), validation)
        # What is kept is rounded; the first to ask gets it as all others do.
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".part.npz")
        large = ("truth", "sinogram", "guide", "seen", "images")
        np.savez(beside, **{k: v.astype(np.float16 if k in large else np.float32) for k, v in slab._asdict().items()})
        beside.rename(file)
        return self(seed, validation)

    def simulated(self, rng: np.random.Generator, validation: bool) -> Slab:
        """A slab drawn at random."""
        fine = specimen(self.library.cut(rng, validation), rng)
        tilt_deg, microscope = conditions(rng)
        count = next(n for n in COUNTS if n >= len(tilt_deg))
        index = np.arange(count) % len(tilt_deg)
        series = expose(fine, tilt_deg[index], microscope, int(rng.integers(2**31))).series
        believed = (np.arange(count) < len(tilt_deg)).astype(np.float32)
        problem = Problem(series, Pose.nominal(series.tilt_deg), weights=believed)
        guide = guides(problem, self.library.spectrum)
        seen, scale, far = projections(problem, guide)
        perfect = expose(fine, np.rad2deg(grid()), Microscope(dose=math.inf)).series.images
        truth = average(fine).swapaxes(1, 2)
        unit = float(typical(truth))
        return Slab(
            truth / unit,
            perfect.swapaxes(1, 2) / unit,
            np.asarray(guide) / unit,
            np.asarray(seen * scale) / unit,
            np.asarray(far),
            np.asarray(geometry(problem)),
            np.asarray(problem.images) / unit,
            series.tilt_deg,
            believed,
        )

    def filling(self, seed: Sequence[int], validation: bool = False) -> Filling:
        """The example of a seed for the first network."""
        slab = self(seed, validation)
        scale = np.sqrt(np.mean(slab.seen[-1] ** 2)) + 1e-20
        known = np.asarray(told(jnp.asarray(slab.far), jnp.asarray(slab.geometry)))
        return Filling(slab.sinogram / scale, slab.seen / scale, known, slab.far)

    def cleaning(self, fill: SinogramFill, seed: Sequence[int], validation: bool = False) -> Example:
        """The example of a seed for the second network, told the volume of the sinogram that the first has filled."""
        slab = self(seed, validation)
        series = TiltSeries(slab.images.swapaxes(1, 2), slab.tilt_deg)
        problem = Problem(series, Pose.nominal(slab.tilt_deg), weights=slab.believed)
        volume = _volume(problem, slab, nnx.split(fill, nnx.Param, ...))
        # Its density is not known for sure either.
        off = float(np.exp(0.1 * np.random.default_rng((*seed, 1)).normal()))
        seen = np.concatenate([np.asarray(volume)[None], slab.guide])
        return Example(slab.truth / off, seen / off, slab.geometry)


@jax.jit
def _volume(problem, slab: Slab, fill):
    scale = jnp.sqrt(jnp.mean(slab.seen[-1] ** 2)) + 1e-20
    network, known = nnx.merge(*fill), told(slab.far, slab.geometry)
    sinogram = scale * slice_by_slice(lambda part: network(part, known), slab.seen / scale)
    whole, solver = extended(problem, sinogram, slab.far), sirt()
    state = lax.fori_loop(0, STEPS, lambda _, s: solver.step(whole, s, None)[0], solver.init(whole, None))
    return solver.read(whole, state)[0]


def conditions(rng: np.random.Generator) -> tuple[np.ndarray, Microscope]:
    """Tilts in degrees and a microscope, drawn over what is met: ±20° to ±85°, steps of 1° (of at most 128
    tilts) to 10°, some uneven."""
    most, step = rng.uniform(20, 85), np.exp(rng.uniform(0, np.log(10)))
    count = int(np.clip(round(1 + 2 * most / step), 5, COUNTS[-1]))
    tilts = np.linspace(-most, most, count) + (rng.normal(0, 3) if rng.random() < 0.3 else 0)
    if rng.random() < 0.2:
        tilts = tilts + rng.uniform(-0.4, 0.4, count) * step
    microscope = imperfect(rng)
    return np.sort(tilts), replace(microscope, dose=math.inf) if rng.random() < 0.1 else microscope
