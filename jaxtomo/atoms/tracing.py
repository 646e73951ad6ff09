"""Where atoms are and how bright: a sum of Gaussians fitted to a volume, or to the images themselves.

`find` sees a volume, which a missing wedge makes longer along the beam; `refine` the images, which it does not. Both
take all atoms together, so that neighbours do not pull at each other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..data import Pose, Problem
from ..errors import InputError
from .table import Atoms, atoms

APART = 1.5  # Å: nearer than this no two atoms are
NARROW = 0.35  # Å: standard deviation of what looks like an atom
CUT = 3.0, 4.0  # widths at which a Gaussian ends, in a volume and in images
STILL = 1e-2, 1e-3  # voxels, and shares of amplitudes and widths, root mean square: a fit that changes less is done
FAINT = 0.5  # amplitude of the faintest over that of the fainter ones: what false atoms keep is well below
PADDED = 256  # atoms: their number is made up to a multiple of this, so that few sizes are compiled
COARSEST = 1.0  # Å: voxels in which atoms can be seen
CONVINCING = 0.6  # share of a volume's detail that atoms explain at least; of noise that was looked at, 0.16 to 0.54
DAMPING = 1e-2  # of the first step, over the curvature

Array = Any  # of JAX inside compiled functions, of NumPy outside


class Guess(NamedTuple):
    """What is fitted, in voxels: positions `[atom, 3]` (x, y, z) from the middle, amplitude `[atom]`, and widths that
    all share: one of images, of a volume those across the beam and along it."""

    positions: Array
    amplitude: Array
    width: Array


def find(
    volume, voxel_nm: float | None, *, threshold: float = 0.1, apart: float = APART, rounds: int = 3, steps: int = 12
) -> Atoms:
    """Atoms of a volume: maxima of the band-passed volume, then a sum of Gaussians fitted to all of it,

        V(r) = Σ_a A_a N(r - r_a; w, w, w_z)

    with one width across the beam and one along it, which a missing wedge makes longer, for all atoms; then maxima of
    what that leaves, `rounds` times. Volumes of many atoms want no streaks, which pass for faint ones:
    `root_tv(0.01)` and not few steps of `sirt`.

    Args:
        volume: `[z, y, x]`.
        voxel_nm: side of a voxel.
        threshold: amplitude of the faintest, over that of the brighter ones (their 90th percentile).
        apart: Å, least distance of two.
        rounds: of looking for more.
        steps: of every fit, at most.

    Raises InputError for a volume that is none, holds no atoms, or has voxels of unknown size.
    """
    volume = np.asarray(volume, np.float32)
    if volume.ndim != 3 or min(volume.shape) < 5:
        raise InputError(f"a volume of shape {volume.shape}. Give [z, y, x] of 5 voxels or more on a side.")
    if not np.isfinite(volume).all():
        raise InputError(f"{np.count_nonzero(~np.isfinite(volume))} voxels are not finite. Repair them first.")
    voxel, size = _angstrom(voxel_nm), volume.shape[::-1]
    if apart / voxel > max(size) / 2:
        raise InputError(f"atoms {apart:g} Å apart are {apart / voxel:.0f} voxels apart, the volume has {max(size)}.")
    narrow = max(NARROW / voxel, 0.7)
    guess, rest = Guess(np.zeros((0, 3)), np.zeros(0), np.array([narrow, narrow])), volume
    for _ in range(rounds):
        places, heights = _maxima(_band_passed(rest, narrow), apart / voxel, guess.positions)
        # A Gaussian as wide as the filter comes out of it 2^(3/2) times lower.
        bright = heights * (4 * np.pi) ** 1.5 * guess.width[0] ** 2 * guess.width[1]
        everything = np.concatenate([guess.amplitude, bright])
        new = bright > threshold * np.percentile(everything, 90) if len(everything) else np.zeros(0, bool)
        if not new.any():
            break
        guess, rest = _fit_volume(_joined(guess, places[new], bright[new]), volume, steps)
        guess = _thinned(guess, threshold * float(np.percentile(guess.amplitude, 90)), apart / voxel, size)
    if not len(guess.amplitude):
        raise InputError("nothing in the volume stands out as an atom. Are its voxels well below 1 Å?")
    return atoms(guess.positions * voxel, guess.amplitude, guess.width[0] * voxel)


def explained(volume, voxel_nm: float | None, found: Atoms, *, steps: int = 12) -> float:
    """The share of the detail of `volume [z, y, x]` that its atoms explain, 1 - ‖band-passed rest‖² / ‖band-passed‖²
    after a fit of `steps` at most. Maxima of noise can be traced too; below `CONVINCING` the atoms may be no more than
    that. Of small particles they explain as much as of atoms: these are told from atoms by nothing but their size."""
    volume, voxel = np.asarray(volume, np.float32), _angstrom(voxel_nm)
    narrow = max(NARROW / voxel, 0.7)
    start = Guess(found.positions / voxel, found.amplitude, np.full(2, np.median(found.width) / voxel))
    rest = _fit_volume(start, volume, steps)[1]
    detail, left = (float(np.sum(_band_passed(part, narrow) ** 2)) for part in (volume, rest))
    return 1 - left / max(detail, 1e-30)


def refine(
    problem: Problem, found: Atoms, *, threshold: float = 0.1, apart: float = APART, rounds: int = 3, steps: int = 15
) -> Atoms:
    """Positions, amplitudes and a common width fitted to the images of `problem`, by its likelihood:

        p_i(u, v) = Σ_a A_a N((u, v) - s_i(r_a); w)

    with s_i where the pose of image i shows a point. In up to `rounds`, atoms are added where the back-projected
    residual shows one, those that are too faint are taken out, and all are fitted again.

    Args:
        problem: images of one channel, their poses and noise.
        found: where to start; see `find`.
        threshold: amplitude of the faintest, over that of the brighter ones (their 90th percentile). Half the amplitude
            of the fainter ones (the 5th percentile of those above it) is asked too.
        apart: Å, least distance of two.
        rounds: of adding and removing.
        steps: of every fit, at most.

    Raises InputError for several channels, pixels of unknown size, or without atoms to start from.
    """
    if problem.images.ndim != 3:
        raise InputError(f"{problem.images.shape[0]} channels. Refine against the images of one.")
    voxel = _angstrom(problem.voxel_nm)
    if not len(found.positions):
        raise InputError("no atoms to refine. Find some first, with a lower threshold.")
    nz, nx, ny = problem.shape
    start = Guess(found.positions / voxel, found.amplitude, np.array([np.median(found.width) / voxel]))
    fit = _fit_images(start, problem, steps)
    least = threshold * float(np.percentile(fit.guess.amplitude, 90))
    if not least > 0:
        raise InputError("the images show none of the atoms. Were these found in a volume of other images?")
    sure = fit.guess.amplitude > least
    least = max(least, FAINT * float(np.percentile(fit.guess.amplitude[sure], 5)))
    for _ in range(rounds):
        missing = np.asarray(_missing(problem, fit.residual, jnp.float32(fit.guess.width[0]))).swapaxes(1, 2)
        places, heights = _maxima(missing, apart / voxel, fit.guess.positions)
        guess = _joined(fit.guess, places[heights > least], heights[heights > least])
        if len(guess.amplitude) > len(fit.guess.amplitude):
            guess = _fit_images(guess, problem, steps).guess
        kept = _thinned(guess, least, apart / voxel, (nx, ny, nz))
        if np.array_equal(kept.positions, fit.guess.positions):
            break
        fit = _fit_images(kept, problem, steps)
    refined = atoms(fit.guess.positions * voxel, fit.guess.amplitude, fit.guess.width[0] * voxel)
    noise = math.sqrt(float(_unexplained(problem, fit.residual)))
    return refined._replace(
        position_error=voxel * noise / np.sqrt(fit.scale.positions),
        amplitude_error=noise / np.sqrt(fit.scale.amplitude),
    )


def seen(positions, pose: Pose) -> jax.Array:
    """`[tilt, atom, 2]` (u, v) in pixels from the detector's middle, of `positions [atom, 3]` (x, y, z) in voxels from
    the middle of the volume; see `Pose`."""
    x, y, z = positions.T

    def one(pose: Pose):
        along, depth = y, z
        if pose.second_tilt is not None:
            c, s = jnp.cos(pose.second_tilt), jnp.sin(pose.second_tilt)
            along, depth = y * c - z * s, y * s + z * c
        across = x * jnp.cos(pose.tilt) + depth * jnp.sin(pose.tilt)
        if pose.rotation is not None:
            c, s = jnp.cos(pose.rotation), jnp.sin(pose.rotation)
            across, along = across * c - along * s, across * s + along * c
        place = jnp.stack([across, along], -1)
        place = place if pose.magnification is None else pose.magnification * place
        return place if pose.shift is None else place + pose.shift

    return jax.vmap(one)(pose)


def rendered(guess: Guess, pose: Pose, shape: tuple[int, int], reach: int) -> jax.Array:
    """`[tilt, x, y]` images of Gaussians that end `reach` pixels from their middles."""
    middle, widths = (jnp.array(shape) - 1) / 2, jnp.broadcast_to(guess.width, (2,))

    def one(_, places):
        return None, _drawn(places + middle, widths, guess.amplitude, shape, (reach, reach))

    return jax.lax.scan(one, None, seen(guess.positions, pose))[1]


def _drawn(places, widths, amplitude, shape: tuple[int, ...], reach: tuple[int, ...]) -> jax.Array:
    """Gaussians of integral `amplitude [atom]` about `places [atom, axis]`, in voxels from the first, on a grid."""
    margin = np.array(reach)
    start = jnp.clip(jnp.round(jax.lax.stop_gradient(places)).astype(int) - margin, -margin, np.array(shape))
    profiles = []
    for axis, half in enumerate(reach):
        away = (start[:, axis, None] + jnp.arange(2 * half + 1) - places[:, axis, None]) / widths[axis]
        profiles.append(jnp.exp(-0.5 * away**2) / (jnp.sqrt(2 * jnp.pi) * widths[axis]))
    profiles[0] = amplitude[:, None] * profiles[0]
    # Sums over a product of profiles, and their transposes, are four times quicker so than as broadcast products.
    patches = jnp.einsum("ai,aj->aij" if len(reach) == 2 else "ai,aj,ak->aijk", *profiles)
    axes = tuple(range(len(shape)))
    grid = jnp.zeros([n + 3 * m for n, m in zip(shape, reach, strict=True)], patches.dtype)
    windows = jax.lax.ScatterDimensionNumbers(tuple(a + 1 for a in axes), (), axes)
    inside = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS
    grid = jax.lax.scatter_add(grid, start + margin, patches, windows, mode=inside)
    return grid[tuple(slice(m, m + n) for n, m in zip(shape, reach, strict=True))]


def _marquardt(predict: Callable, misfit: Callable, curvature, scale: Callable, start: Guess, steps: int, still: float):
    """The `Guess` that explains best, by damped Gauss-Newton steps

        (Jᵀ C J + λ D) s = -Jᵀ ∂ misfit

    solved by conjugate gradients, with C the curvature of the misfit in every pixel and D = `scale`, the diagonal of
    Jᵀ C J but for neighbours. [Marquardt 1963]"""

    def step(state):
        i, guess, damping, loss, _ = state
        predicted, tangent = jax.linearize(predict, guess)
        pull = jax.linear_transpose(tangent, guess)
        (slope,) = pull(-jax.grad(misfit)(predicted))
        size = scale(guess, tangent)

        def normal(move):
            (curved,) = pull(curvature * tangent(move))
            return jax.tree.map(lambda c, s, m: c + damping * s * m, curved, size, move)

        def eased(move):
            return jax.tree.map(lambda s, m: m / ((1 + damping) * s), size, move)

        move, _ = jax.scipy.sparse.linalg.cg(normal, slope, tol=1e-2, maxiter=12, M=eased)
        # Beyond a width the Gaussians are no longer what they were linearised to.
        far = jnp.abs(move.positions) / guess.width[0]
        tried = Guess(
            guess.positions + jnp.where(far > 1, 1 / jnp.maximum(far, 1), 1) * move.positions,
            guess.amplitude + move.amplitude,
            guess.width * jnp.exp(jnp.clip(move.width / guess.width, -0.1, 0.1)),
        )
        new = misfit(predict(tried))
        better = new < loss
        moved = jnp.max(
            jnp.stack(
                [
                    _changed(tried.positions - guess.positions, 1.0),
                    *(_changed(a - b, jnp.sqrt(jnp.mean(b**2))) for a, b in zip(tried[1:], guess[1:], strict=True)),
                ]
            )
        )
        moved = jnp.where(better, moved, jnp.inf)
        guess = jax.tree.map(lambda a, b: jnp.where(better, a, b), tried, guess)
        return i + 1, guess, jnp.where(better, damping / 3, damping * 5), jnp.where(better, new, loss), moved

    state = (0, start, jnp.asarray(DAMPING, start.width.dtype), misfit(predict(start)), jnp.asarray(jnp.inf))
    return jax.lax.while_loop(lambda state: (state[0] < steps) & (state[-1] > still), step, state)[1]


def _changed(by, scale):
    return jnp.sqrt(jnp.mean(by**2)) / jnp.maximum(scale, 1e-30)


def _of_widths(guess: Guess, tangent: Callable, curvature) -> jax.Array:
    """The diagonal of Jᵀ C J for the widths, which every atom shares."""
    still = jax.tree.map(jnp.zeros_like, guess)
    units = jnp.eye(guess.width.size, dtype=guess.width.dtype)
    return jnp.stack([jnp.sum(curvature * tangent(still._replace(width=unit)) ** 2) for unit in units])


def _of_images(guess: Guess, live, pose: Pose, curvature, tangent: Callable) -> Guess:
    """The diagonal of Jᵀ C J with C as it is at every atom: ∫ N² = 1 / (4 π w²), ∫ (∂N)² = 1 / (8 π w⁴)."""
    places, shape = seen(guess.positions, pose), jnp.array(curvature.shape[1:])
    at = jnp.clip(jnp.round(places + (shape - 1) / 2).astype(int), 0, shape - 1)
    here = curvature[jnp.arange(len(places))[:, None], at[..., 0], at[..., 1]] / (4 * jnp.pi * guess.width[0] ** 2)
    # `[tilt, 2, 3]`: how the image of a point moves with it.
    moves = jnp.swapaxes(seen(jnp.eye(3), pose) - seen(jnp.zeros((1, 3)), pose), 1, 2)
    turned = jnp.einsum("ta,tk->ak", here, jnp.sum(moves**2, 1))
    positions = live[:, None] * guess.amplitude[:, None] ** 2 * turned / (2 * guess.width[0] ** 2)
    return _positive(Guess(positions, live * jnp.sum(here, 0), _of_widths(guess, tangent, curvature)))


def _of_volume(guess: Guess, live, tangent: Callable) -> Guess:
    widths = jnp.stack([guess.width[0], guess.width[0], guess.width[1]])
    square = 1 / jnp.prod(2 * jnp.sqrt(jnp.pi) * widths)
    positions = live[:, None] * square * guess.amplitude[:, None] ** 2 / (2 * widths**2)
    return _positive(Guess(positions, live * square, _of_widths(guess, tangent, 1.0)))


def _positive(scale: Guess) -> Guess:
    """With a floor, so that what nothing depends on stays where it is."""
    return jax.tree.map(lambda s: jnp.maximum(s, 1e-3 * jnp.mean(s) + 1e-30), scale)


class Fit(NamedTuple):
    """A guess that was fitted to images, `[tilt, x, y]` that it leaves, and the curvature in each of its numbers."""

    guess: Guess
    residual: Array
    scale: Guess


@functools.partial(jax.jit, static_argnames=("reach", "steps"))
def _solve_images(guess: Guess, live, problem: Problem, reach: int, steps: int) -> Fit:
    curvature = jnp.maximum(problem.curvature(), 0)
    shape = curvature.shape[1], curvature.shape[2]

    def predict(guess):
        return rendered(guess._replace(amplitude=live * guess.amplitude), problem.pose, shape, reach)

    def misfit(predicted):
        return problem.likelihood(predicted, problem.images, problem.weights)

    def scale(guess, tangent):
        return _of_images(guess, live, problem.pose, curvature, tangent)

    guess = _marquardt(predict, misfit, curvature, scale, guess, steps, STILL[1])
    predicted, tangent = jax.linearize(predict, guess)
    return Fit(guess, problem.images - problem.explained(predicted), scale(guess, tangent))


@functools.partial(jax.jit, static_argnames=("reach", "steps"))
def _solve_volume(guess: Guess, live, volume, reach: tuple[int, int, int], steps: int):
    middle = (jnp.array(volume.shape) - 1) / 2

    def predict(guess):
        widths = jnp.stack([guess.width[1], guess.width[0], guess.width[0]])
        return _drawn(guess.positions[:, ::-1] + middle, widths, live * guess.amplitude, volume.shape, reach)

    def misfit(predicted):
        return 0.5 * jnp.sum((predicted - volume) ** 2)

    guess = _marquardt(
        predict, misfit, 1.0, lambda guess, tangent: _of_volume(guess, live, tangent), guess, steps, STILL[0]
    )
    return guess, volume - predict(guess)


def _fit_images(guess: Guess, problem: Problem, steps: int) -> Fit:
    padded, live, n = _padded(guess)
    reach = math.ceil(CUT[1] * 1.15 * float(guess.width[0]))
    fit = _solve_images(padded, live, problem, reach, steps)
    return fit._replace(guess=_unpadded(fit.guess, n), scale=_unpadded(fit.scale, n))


def _fit_volume(guess: Guess, volume, steps: int) -> tuple[Guess, np.ndarray]:
    padded, live, n = _padded(guess)
    across, along = (math.ceil(CUT[0] * 1.15 * float(w)) for w in guess.width)
    fitted, rest = _solve_volume(padded, live, jnp.asarray(volume), (along, across, across), steps)
    fitted = _unpadded(fitted, n)
    if CUT[0] * fitted.width[0] > across or CUT[0] * fitted.width[1] > along:  # wider than what was drawn of them
        return _fit_volume(fitted._replace(width=np.minimum(fitted.width, 1.5 * guess.width)), volume, steps)
    return fitted, np.asarray(rest)


def _padded(guess: Guess) -> tuple[Guess, jax.Array, int]:
    n = len(guess.amplitude)
    more = -n % PADDED
    wide = Guess(np.pad(guess.positions, ((0, more), (0, 0))), np.pad(guess.amplitude, (0, more)), guess.width)
    return Guess(*(jnp.asarray(a, jnp.float32) for a in wide)), jnp.arange(n + more) < n, n


def _unpadded(guess: Guess, n: int) -> Guess:
    positions, amplitude, width = (np.asarray(a, float) for a in guess)
    return Guess(positions[:n], amplitude[:n], width)


@jax.jit
def _missing(problem: Problem, residual, width) -> jax.Array:
    """`[z, x, y]`: the amplitude with which an atom at each voxel explains most of the residual, by a matched filter:
    Σ C residual N / Σ C N²."""
    curvature = jnp.broadcast_to(jnp.maximum(problem.curvature(), 0), residual.shape)
    kernel = jnp.exp(-0.5 * (jnp.arange(-8, 9) / width) ** 2) / (jnp.sqrt(2 * jnp.pi) * width)

    def smooth(images, axis):
        return jnp.apply_along_axis(lambda line: jnp.convolve(line, kernel, mode="same"), axis, images)

    matched = problem.back_project(smooth(smooth(curvature * residual, 1), 2))
    return matched / jnp.maximum(problem.back_project(curvature * jnp.sum(kernel**2) ** 2), 1e-20)


@jax.jit
def _unexplained(problem: Problem, residual) -> jax.Array:
    """Variance of the residual over what the curvature of the likelihood takes it to be."""
    curvature = jnp.broadcast_to(jnp.maximum(problem.curvature(), 0), residual.shape)
    return jnp.sum(curvature * residual**2) / jnp.maximum(jnp.sum(curvature > 0), 1)


def _band_passed(volume, narrow: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(volume, narrow) - gaussian_filter(volume, 3 * narrow)


def _maxima(volume, apart: float, taken) -> tuple[np.ndarray, np.ndarray]:
    """(places `[peak, 3]` (x, y, z) in voxels from the middle, heights) of the maxima above 0 of `volume [z, y, x]`,
    none nearer than `apart` to another or to a place that is `taken`."""
    from scipy.ndimage import maximum_filter
    from scipy.spatial import KDTree

    half = max(int(apart), 1)
    ball = sum((axis - half) ** 2 for axis in np.indices((2 * half + 1,) * 3)) <= max(apart, 1.5) ** 2
    highest = np.asarray(maximum_filter(volume, footprint=ball, mode="constant", cval=-np.inf))
    peaks = np.argwhere((volume == highest) & (volume > 0))
    heights = volume[tuple(peaks.T)].astype(float)
    places = peaks[:, ::-1] - (np.array(volume.shape[::-1]) - 1) / 2
    if len(taken) and len(places):
        free = np.asarray(KDTree(taken).query(places)[0]) >= apart
        places, heights = places[free], heights[free]
    return places, heights


def _joined(guess: Guess, positions, amplitude) -> Guess:
    every = np.concatenate([guess.positions, positions]), np.concatenate([guess.amplitude, amplitude])
    return Guess(*every, guess.width)


def _thinned(guess: Guess, least: float, apart: float, size) -> Guess:
    """Without those fainter than `least`, outside, or nearer than `apart` to a brighter one."""
    from scipy.spatial import KDTree

    inside = (np.abs(guess.positions) <= np.array(size) / 2).all(1)
    kept = inside & (guess.amplitude >= least)
    for i, j in KDTree(guess.positions).query_pairs(apart):
        if kept[i] and kept[j]:
            kept[i if guess.amplitude[i] < guess.amplitude[j] else j] = False
    return Guess(guess.positions[kept], guess.amplitude[kept], guess.width)


def _angstrom(voxel_nm: float | None) -> float:
    if voxel_nm is None or not (math.isfinite(voxel_nm) and voxel_nm > 0):
        raise InputError("the side of a voxel is not known, and atoms are apart by Å. Give it with --voxel-nm.")
    if voxel_nm > COARSEST / 10:
        raise InputError(f"voxels of {10 * voxel_nm:g} Å show no atoms. Give a finer volume, or its --voxel-nm.")
    return 10 * voxel_nm
