"""Examples to train a prior on: cuts of known volumes through a simulated microscope, and what linear algebra makes of
the images."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .data import Pose, Problem
from .errors import InputError
from .priors.score import mirrored
from .simulate import Microscope, average, expose
from .solvers.told import guided
from .spectrum import Spectrum, spectrum_of

TILTS = 61  # of every simulated series: where fewer are drawn, some are there twice, with no weight
CORNER = 64  # voxels a side that large volumes keep for validation
POOL = 96  # examples that batches are drawn from
LEAST, TRIES = 1e-3, 1000  # share of an example that is not nothing; places that are tried for one
NOTHING_KEPT = "one volume without room for a corner to keep: what is said of validation is of what is learned"
RENEWED = 24  # batches after which the oldest of them is replaced


class Example(NamedTuple):
    """A specimen `[z, x, y]`, the solutions of its images `[3, z, x, y]` that a network is told, both relative to its
    density, and what `priors.score.geometry` says of these."""

    truth: np.ndarray
    guide: np.ndarray
    geometry: np.ndarray

    def patch(self, shape: Sequence[int], rng: np.random.Generator) -> Example:
        """A random patch of it, flipped at random."""
        box = box_in(self.truth.shape, shape, rng)
        turned = rng.random(3) < 0.5
        flips = tuple(slice(None, None, -1 if t else 1) for t in turned)
        told = np.asarray(mirrored(self.geometry)) if turned[0] != turned[1] else self.geometry
        return Example(self.truth[box][flips], self.guide[:, *box][:, *flips], told)


def box_in(whole: Sequence[int], shape: Sequence[int], rng: np.random.Generator) -> tuple[slice, ...]:
    """A box of a shape at a random place. Raises InputError where there is none."""
    if any(n < part for n, part in zip(whole, shape, strict=True)):
        raise InputError(f"patches of {tuple(shape)} cannot be cut from examples of {tuple(whole)}.")
    starts = [int(rng.integers(0, n - part + 1)) for n, part in zip(whole, shape, strict=True)]
    return tuple(slice(start, start + part) for start, part in zip(starts, shape, strict=True))


@dataclass(frozen=True)
class Library:
    """Volumes to learn from, on a grid twice as fine as what is learned, and which part of them is not to be seen.

    Of volumes with room enough beside it the last corner of 64³ voxels (of what is learned) is kept for validation, of
    others every twentieth volume, or the last if they are fewer. Of one small volume nothing is kept.

    Attributes:
        volumes: `[z, y, x]` each, intensities from 0 for nothing.
        side: voxels of an example.
        spectrum: of what is not kept.
        rows: voxels of an example along the tilt axis, if others than `side`.
    """

    volumes: Sequence[np.ndarray]
    side: int
    spectrum: Spectrum
    rows: int | None = None

    @staticmethod
    def of(volumes: Sequence[np.ndarray], side: int, rows: int | None = None) -> Library:
        """Raises InputError for volumes smaller than an example, negative or empty."""
        box = sorted((2 * side, 2 * side, 2 * (rows or side)))
        for i, volume in enumerate(volumes):
            if volume.ndim != 3 or any(n < need for n, need in zip(sorted(volume.shape), box, strict=True)):
                raise InputError(
                    f"volume {i + 1} has shape {volume.shape}: examples of {side} voxels a side need "
                    f"{' × '.join(map(str, box))}, since they are projected on a grid twice as fine. Ask for smaller "
                    "examples."
                )
            if not np.isfinite(volume).all() or volume.min() < 0 or not volume.any():
                raise InputError(f"volume {i + 1} is empty, or has negative or non-finite voxels.")
        if not volumes:
            raise InputError("no volume to learn from.")
        library = Library(volumes, side, None, rows)  # type: ignore[arg-type]
        shown = map(_without_corner, volumes) if library.keeps_corner else library.shown(validation=False)
        spectrum = spectrum_of(average(_even(volume.astype(np.float32))) for volume in shown)
        return Library(volumes, side, spectrum, rows)

    @functools.cached_property
    def keeps_corner(self) -> bool:
        room = all(min(volume.shape) >= 2 * CORNER + 2 * self.side for volume in self.volumes)
        return room and self.side <= CORNER

    @property
    def keeps_any(self) -> bool:
        """Whether anything is kept for validation."""
        return self.keeps_corner or len(self.volumes) > 1

    def shown(self, validation: bool) -> Sequence[np.ndarray]:
        """Of volumes without a corner to keep, those to learn from or those kept."""
        kept = range(19, len(self.volumes), 20) or range(max(1, len(self.volumes) - 1), len(self.volumes))
        if not kept:
            return self.volumes
        return [volume for i, volume in enumerate(self.volumes) if (i in kept) == validation]

    def cut(self, rng: np.random.Generator, validation: bool = False) -> np.ndarray:
        """`[2 side, 2 rows, 2 side]` float32 of one of the volumes, at a random place that is not empty, turned by a
        random symmetry of the cube (of those that fit). Raises InputError where there is no such place."""
        for _ in range(TRIES):
            part = self._anywhere(rng, validation)
            if np.count_nonzero(part) >= LEAST * part.size:
                return part.astype(np.float32)
        raise InputError(f"{TRIES} examples drawn from the volumes were all but empty. Crop these to what is in them.")

    def _anywhere(self, rng: np.random.Generator, validation: bool) -> np.ndarray:
        box = 2 * np.array([self.side, self.rows or self.side, self.side])
        which = self.volumes if self.keeps_corner else self.shown(validation)
        volume = which[int(rng.integers(len(which)))]
        turns = [turn for turn in itertools.permutations(range(3)) if all(box <= np.take(volume.shape, turn))]
        turn = turns[int(rng.integers(len(turns)))]
        volume = volume.transpose(turn)
        while True:
            low = [n - 2 * CORNER if validation and self.keeps_corner else 0 for n in volume.shape]
            start = [int(rng.integers(a, n - b + 1)) for a, n, b in zip(low, volume.shape, box, strict=True)]
            into = all(s + b > n - 2 * CORNER for s, n, b in zip(start, volume.shape, box, strict=True))
            if validation or not self.keeps_corner or not into:
                break
        part = volume[tuple(slice(s, s + b) for s, b in zip(start, box, strict=True))]
        return part[tuple(slice(None, None, -1 if rng.random() < 0.5 else 1) for _ in range(3))]

    def example(self, seed: Sequence[int], validation: bool = False) -> Example:
        """The example of a seed: a cut, its tilt series under a random microscope, and what that is solved to."""
        rng = np.random.default_rng(seed)
        fine = specimen(self.cut(rng, validation), rng)
        tilt_deg, microscope = conditions(rng)
        index = np.arange(TILTS) % len(tilt_deg)
        series = expose(fine, tilt_deg[index], microscope, int(rng.integers(2**31))).series
        believed = (np.arange(TILTS) < len(tilt_deg)).astype(np.float32)
        problem = Problem(series, Pose.nominal(series.tilt_deg), weights=believed)
        guide, told, _ = guided(problem, self.spectrum)
        truth = average(fine).swapaxes(1, 2)
        density = np.sum(truth**2) / np.sum(truth) * np.exp(0.15 * rng.normal())
        return Example(truth / density, np.asarray(guide) / density, np.asarray(told))


def _without_corner(volume):
    """The largest box of a volume that leaves out its last corner: cut across its longest axis."""
    axis = int(np.argmax(volume.shape))
    return volume[(slice(None),) * axis + (slice(volume.shape[axis] - 2 * CORNER),)]


def _even(volume):
    return volume[tuple(slice(n - n % 2) for n in volume.shape)]


def specimen(cut: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A cut as a specimen for a microscope: another contrast curve, and of what fills its box sometimes a milled pillar
    or lamella with nothing around it."""
    largest = float(cut.max()) or 1.0
    cut = largest * (cut / largest) ** float(np.exp(0.15 * rng.normal()))
    if (cut > 0).mean() < 0.95 or rng.random() > 0.3:
        return cut
    n = len(cut)
    z, x = (line - (n - 1) / 2 for line in np.ogrid[:n, :n])
    turn, off = rng.uniform(0, np.pi), rng.uniform(-0.15, 0.15)
    across = np.hypot(z, x) if rng.random() < 0.5 else np.abs(z * np.cos(turn) + x * np.sin(turn) + off * n)
    inside = np.clip(rng.uniform(0.2, 0.48) * n - across, 0, 2) / 2
    return (cut * inside[:, None, :]).astype(np.float32)


def conditions(rng: np.random.Generator) -> tuple[np.ndarray, Microscope]:
    """Tilts in degrees and a microscope, drawn over what is met: ±4° to ±75°, 5 to 61 tilts, 10 to 10,000 electrons."""
    most, count = np.exp(rng.uniform(np.log(4), np.log(75))), round(np.exp(rng.uniform(np.log(5), np.log(TILTS))))
    count = int(np.clip(count, 1 + 2 * most / 20, 1 + 2 * most / 0.5))
    middle = rng.normal(0, 3) if rng.random() < 0.3 else 0.0
    return middle + np.linspace(-most, most, count), imperfect(rng)


def imperfect(rng: np.random.Generator) -> Microscope:
    """A microscope of 10 to 10,000 electrons, of which some drift, jump in gain, or blur."""
    moving = rng.random() < 0.3
    return Microscope(
        dose=float(np.exp(rng.uniform(np.log(10), np.log(10_000)))),
        shift_jitter_px=rng.uniform(0, 0.5) if moving else 0.0,
        tilt_jitter_deg=rng.uniform(0, 0.3) if moving else 0.0,
        gain=rng.uniform(0, 0.02) if moving else 0.0,
        blur=rng.uniform(0, 0.6) if rng.random() < 0.3 else 0.0,
    )


class Batches:
    """Batches of examples for training, the same for the same seed and number, whichever were asked for before.

    Batch i is drawn from the examples i/24 to i/24 + 96, flipped and cut to patches at random.
    """

    def __init__(
        self,
        example: Callable[[tuple[int, ...], bool], Any],
        size: int,
        patch: Sequence[int],
        seed: int = 0,
        validation: bool = False,
    ):
        """Args:
        example: `(seed, validation)` to an example, a tuple of arrays; its method `patch(shape, rng)` cuts one.
        size: of a batch.
        patch: shape of what is cut from an example.
        seed: of everything.
        validation: of the examples that are kept for it; batch i is then of the same `size` examples.
        """
        self.example, self.size, self.patch, self.seed, self.validation = example, size, patch, seed, validation
        self.pool: dict[int, Any] = {}

    def __call__(self, i: int):
        """Batch `i`: an example of arrays with a leading axis."""
        first = 0 if self.validation else i // RENEWED
        count = self.size if self.validation else POOL
        for j in [j for j in self.pool if j < first]:
            del self.pool[j]
        for j in range(first, first + count):
            if j not in self.pool:
                self.pool[j] = self.example((self.seed, int(self.validation), j), self.validation)
        rng = np.random.default_rng((self.seed, 2, i))
        which = range(count) if self.validation else first + rng.integers(0, count, self.size)
        parts = [self.pool[int(j)].patch(self.patch, rng) for j in which]
        return type(parts[0])(*map(np.stack, zip(*parts, strict=True)))
