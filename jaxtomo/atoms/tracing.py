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
CUT = 3.0, 4.0  # widths at which a Gaussian ends, in a volume and in images
PADDED = 256  # atoms: their number is made up to a multiple of this, so that few sizes are compiled
STILL = 1e-2, 1e-3  # voxels, root mean square: a fit to a volume, or to images, that moves no more is done
DAMPING = 1e-2  # of the first step, over the curvature


class Guess(NamedTuple):
    """What is fitted, in voxels: positions `[atom, 3]` (x, y, z), amplitude `[atom]`, and widths that all share: one of
    images, of a volume those across the beam and along it."""

    positions: jax.Array
    amplitude: jax.Array
    width: jax.Array


def find(
    volume, voxel_nm: float | None, *, threshold: float = 0.1, apart: float = APART, rounds: int = 3, steps: int = 12
) -> Atoms:
    """Atoms of a volume: local maxima of the band-passed volume, then a sum of Gaussians fitted to all of it, then maxima
    of what that leaves, `rounds` times.

        V(r) = Σ_a A_a N(r - r_a; w, w, w_z)

    with one width across the beam and one along it, which a missing wedge makes longer, for all atoms.

    Args:
        volume: `[z, y, x]`.
        voxel_nm: side of a voxel.
        threshold: amplitude of the faintest, over that of the brighter ones (their 90th percentile).
        apart: Å, least distance of two.
        rounds: of looking for more.
        steps: of every fit.

    Raises InputError for a volume that is none, holds no atoms, or of an unknown voxel size.
    """
    volume = np.asarray(volume, np.float32)
    if volume.ndim != 3 or min(volume.shape) < 5:
        raise InputError(f"a volume of shape {volume.shape}. Give [z, y, x] of 5 voxels or more on a side.")
    if not np.isfinite(volume).all():
        raise InputError(f"{np.count_nonzero(~np.isfinite(volume))} voxels are not finite. Repair them first.")
    voxel = _voxel(voxel_nm)
    middle = (np.array(volume.shape[::-1]) - 1) / 2
    narrow = max(0.35 / voxel, 0.7)
    guess = Guess(np.zeros((0, 3)), np.zeros(0), np.array([narrow, narrow]))
    rest = volume
    for _ in range(rounds):
        places, heights = _maxima(rest, narrow, apart / voxel, guess.positions + middle)
        rough = heights * (2 * np.pi) ** 1.5 * guess.width[0] ** 2 * guess.width[1] * 2**1.5
        if not len(places) and not len(guess.amplitude):
            raise InputError("no maximum rises above the rest of the volume: there are no atoms to see.")
        everything = np.concatenate([guess.amplitude, rough])
        new = rough > threshold * np.percentile(everything, 90)
        if not new.any():
            break
        guess = _joined(guess, places[new] - middle, rough[new])
        guess, rest = _fit_volume(guess, volume, steps)
        guess = _thinned(guess, threshold * np.percentile(guess.amplitude, 90), apart / voxel, volume.shape[::-1])
    return atoms(guess.positions * voxel, guess.amplitude, guess.width[0] * voxel)


def refine(
    problem: Problem, found: Atoms, *, threshold: float = 0.5, apart: float = APART, rounds: int = 3, steps: int = 15
) -> Atoms:
    """Positions, amplitudes and a common width fitted to the images of `problem`, by its likelihood:

        p_i(u, v) = Σ_a A_a N((u, v) - s_i(r_a); w)

    with s_i where the pose of image i shows a point. Levenberg-Marquardt, its steps by conjugate gradients, no matrix
    being made. After each of `rounds` but the last, atoms are added where the back-projected residual shows one, and
    those taken out that are fainter than `threshold`.

    Args:
        problem: images of one channel, their poses and noise.
        found: a start; see `find`.
        threshold: amplitude of the faintest, over that of the fainter ones of `found` (their 5th percentile, once
            fitted).
        apart: Å, least distance of two.
        rounds: of adding and removing.
        steps: of every fit.

    Raises InputError for several channels, an unknown voxel size, or without atoms to start from.
    """
    if problem.images.ndim != 3:
        raise InputError(f"{problem.images.shape[0]} channels. Refine against the images of one.")
    voxel = _voxel(problem.voxel_nm)
    if not len(found.positions):
        raise InputError("no atoms to refine. Find some first, with a lower threshold.")
    guess = Guess(found.positions / voxel, found.amplitude, np.array([np.median(found.width) / voxel]))
    nz, nx, ny = problem.shape
    least = 0.0
    for k in range(rounds):
        guess, residual, _ = _fit_images(guess, problem, steps)
        least = threshold * float(np.percentile(guess.amplitude, 5)) if k == 0 else least
        if k < rounds - 1:
            missing = np.asarray(_missing(problem, residual, jnp.asarray(guess.width[0], jnp.float32)))
            middle = (np.array([nx, ny, nz]) - 1) / 2
            places, heights = _maxima(missing.transpose(0, 2, 1), 0, apart / voxel, guess.positions + middle)
            new = heights > least
            guess = _joined(guess, places[new] - middle, heights[new])
            guess, _, _ = _fit_images(guess, problem, steps)
        guess = _thinned(guess, least, apart / voxel, (nx, ny, nz))
    guess, residual, scale = _fit_images(guess, problem, steps)
    refined = atoms(guess.positions * voxel, guess.amplitude, guess.width[0] * voxel)
    noise = math.sqrt(float(_unexplained(problem, residual)))
    return refined._replace(
        position_error=voxel * noise / np.sqrt(np.maximum(scale.positions, 1e-30)),
        amplitude_error=noise / np.sqrt(np.maximum(scale.amplitude, 1e-30)),
    )


def seen(positions, pose: Pose) -> jax.Array:
    """`[tilt, atom, 2]` (u, v) in pixels from the detector's middle, of `positions [atom, 3]` (x, y, z) in voxels from the
    middle of the volume; see `Pose`."""
    x, y, z = positions.T

    def one(pose: Pose):
        if pose.second_tilt is None:
            along, depth = y, z
        else:
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


def _rendered(places, widths, amplitude, shape: tuple[int, ...], reach: tuple[int, ...]) -> jax.Array:
    """Gaussians of integral `amplitude [atom]` about `places [atom, axis]`, in voxels from the first, on a grid."""
    margin = np.array(reach)
    start = jnp.clip(jnp.round(jax.lax.stop_gradient(places)).astype(int) - margin, -margin, np.array(shape))
    profiles = []
    for axis, half in enumerate(reach):
        at = start[:, axis, None] + jnp.arange(2 * half + 1)
        away = (at - places[:, axis, None]) / widths[axis]
        profiles.append(jnp.exp(-0.5 * away**2) / (jnp.sqrt(2 * jnp.pi) * widths[axis]))
    profiles[0] = amplitude[:, None] * profiles[0]
    patch = jnp.einsum("ai,aj->aij" if len(reach) == 2 else "ai,aj,ak->aijk", *profiles)
    padded = jnp.zeros([n + 3 * m for n, m in zip(shape, reach, strict=True)], patch.dtype)
    axes = tuple(range(len(shape)))
    windows = jax.lax.ScatterDimensionNumbers(tuple(a + 1 for a in axes), (), axes)
    padded = jax.lax.scatter_add(
        padded, start + margin, patch, windows, mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS
    )
    return padded[tuple(slice(m, m + n) for n, m in zip(shape, reach, strict=True))]


def _images(guess: Guess, live, pose: Pose, shape: tuple[int, int], reach: int) -> jax.Array:
    """`[tilt, x, y]`."""
    middle = (jnp.array(shape) - 1) / 2

    def one(_, places):
        widths = jnp.broadcast_to(guess.width, (2,))
        return None, _rendered(places + middle, widths, live * guess.amplitude, shape, (reach, reach))

    return jax.lax.scan(one, None, seen(guess.positions, pose))[1]


def _marquardt(predict: Callable, problem: Problem | None, target, scale: Callable, start: Guess, steps: int, still):
    """(the `Guess` that explains best, what it predicts), by damped Gauss-Newton steps: (Jᵀ C J + λ D) s = -Jᵀ ∂L, with D the
    diagonal of Jᵀ C J without what neighbours share. [Marquardt 1963]"""
    if problem is None:
        misfit, curvature = lambda p: 0.5 * jnp.sum((p - target) ** 2), jnp.ones_like(target)
    else:
        misfit = lambda p: problem.likelihood(p, problem.images, problem.weights)  # noqa: E731
        curvature = jnp.maximum(problem.curvature(), 0)

    def step(state):
        i, guess, damping, loss, _ = state
        predicted, tangent = jax.linearize(predict, guess)
        pull = jax.linear_transpose(tangent, guess)
        (slope,) = pull(-jax.grad(misfit)(predicted))
        size = scale(guess, curvature, tangent)

        def normal(move):
            (curved,) = pull(curvature * tangent(move))
            return jax.tree.map(lambda c, s, m: c + damping * s * m, curved, size, move)

        def eased(move):
            return jax.tree.map(lambda s, m: m / ((1 + damping) * s), size, move)

        move, _ = jax.scipy.sparse.linalg.cg(normal, slope, tol=1e-2, maxiter=12, M=eased)
        # Beyond a width the Gaussians are no longer what they were linearised to.
        far = jnp.abs(move.positions) / guess.width[0]
        tried = Guess(
            guess.positions + jnp.where(far > 1, 1 / far, 1) * move.positions,
            guess.amplitude + move.amplitude,
            guess.width * jnp.exp(jnp.clip(move.width / guess.width, -0.1, 0.1)),
        )
        new = misfit(predict(tried))
        better = new < loss
        moved = jnp.sqrt(jnp.mean((tried.positions - guess.positions) ** 2))
        guess = jax.tree.map(lambda a, b: jnp.where(better, a, b), tried, guess)
        return i + 1, guess, jnp.where(better, damping / 3, damping * 5), jnp.where(better, new, loss), moved

    state = (0, start, jnp.asarray(DAMPING, start.width.dtype), misfit(predict(start)), jnp.asarray(jnp.inf))
    guess = jax.lax.while_loop(lambda state: (state[0] < steps) & (state[-1] > still), step, state)[1]
    return guess, predict(guess)


def _shared(guess: Guess, tangent: Callable) -> jax.Array:
    """The diagonal of Jᵀ J for the widths, which every atom shares."""
    still = jax.tree.map(jnp.zeros_like, guess)

    def one(unit):
        return tangent(still._replace(width=unit))

    return jnp.stack([jnp.sum(one(unit) ** 2) for unit in jnp.eye(guess.width.size, dtype=guess.width.dtype)])


def _image_scale(guess: Guess, live, pose: Pose, curvature, tangent) -> Guess:
    """The diagonal of Jᵀ C J with C as it is at every atom: ∫ N² = 1 / (4 π w²), ∫ (∂N)² = 1 / (8 π w⁴)."""
    places = seen(guess.positions, pose)
    shape = jnp.array(curvature.shape[1:])
    at = jnp.clip(jnp.round(places + (shape - 1) / 2).astype(int), 0, shape - 1)
    here = curvature[jnp.arange(len(places))[:, None], at[..., 0], at[..., 1]] / (4 * jnp.pi * guess.width[0] ** 2)
    # How a point's image moves with the point: the rows of a 2 × 3 matrix per tilt.
    moves = jnp.stack([seen(unit[None], pose) for unit in jnp.eye(3, dtype=places.dtype)], -1)[:, 0]
    moves = moves - seen(jnp.zeros((1, 3), places.dtype), pose)[:, 0, :, None]
    turned = jnp.einsum("ta,tk->ak", here, jnp.sum(moves**2, 1))
    amplitude = jnp.where(live, jnp.sum(here, 0), 0)
    positions = live[:, None] * guess.amplitude[:, None] ** 2 * turned / (2 * guess.width[0] ** 2)
    width = jnp.mean(curvature) * _shared(guess, tangent)
    return _positive(Guess(positions, amplitude, width))


def _volume_scale(guess: Guess, live, tangent) -> Guess:
    widths = jnp.array([1, 1, 0]) * guess.width[0] + jnp.array([0, 0, 1]) * guess.width[1]
    square = 1 / jnp.prod(2 * jnp.sqrt(jnp.pi) * widths)
    positions = live[:, None] * square * guess.amplitude[:, None] ** 2 / (2 * widths**2)
    return _positive(Guess(positions, live * square, _shared(guess, tangent)))


def _positive(scale: Guess) -> Guess:
    """With a floor, so that what nothing depends on stays where it is."""
    return jax.tree.map(lambda s: jnp.maximum(s, 1e-3 * jnp.mean(s) + 1e-30), scale)


@functools.partial(jax.jit, static_argnames=("reach", "steps"))
def _solve_images(guess: Guess, live, problem: Problem, reach: int, steps: int):
    shape = problem.images.shape[1:]

    def predict(guess):
        return _images(guess, live, problem.pose, shape, reach)

    def scale(guess, curvature, tangent):
        return _image_scale(guess, live, problem.pose, curvature, tangent)

    guess, predicted = _marquardt(predict, problem, None, scale, guess, steps, STILL[1])
    tangent = jax.linearize(predict, guess)[1]
    return guess, problem.images - problem.explained(predicted), scale(guess, problem.curvature(), tangent)


@functools.partial(jax.jit, static_argnames=("reach", "steps"))
def _solve_volume(guess: Guess, live, volume, reach: tuple[int, int, int], steps: int):
    middle = (jnp.array(volume.shape) - 1) / 2

    def predict(guess):
        widths = jnp.concatenate([guess.width[1:], guess.width[:1], guess.width[:1]])
        return _rendered(guess.positions[:, ::-1] + middle, widths, live * guess.amplitude, volume.shape, reach)

    guess, predicted = _marquardt(
        predict, None, volume, lambda guess, _, tangent: _volume_scale(guess, live, tangent), guess, steps, STILL[0]
    )
    return guess, volume - predicted


def _fit_images(guess: Guess, problem: Problem, steps: int):
    padded, live, n = _padded(guess)
    reach = math.ceil(CUT[1] * 1.15 * float(guess.width[0]))
    fitted, residual, scale = _solve_images(padded, live, problem, reach, steps)
    scale = Guess(np.asarray(scale.positions)[:n], np.asarray(scale.amplitude)[:n], np.asarray(scale.width))
    return _unpadded(fitted, n), residual, scale


def _fit_volume(guess: Guess, volume, steps: int):
    padded, live, n = _padded(guess)
    across, along = (math.ceil(CUT[0] * 1.15 * float(w)) for w in guess.width)
    fitted, rest = _solve_volume(padded, live, jnp.asarray(volume), (along, across, across), steps)
    return _unpadded(fitted, n), np.asarray(rest)


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
    """`[z, x, y]`: the amplitude an atom at every voxel would have that explains most of the residual: a matched filter,
    Σ C residual N / Σ C N²."""
    curvature = jnp.broadcast_to(jnp.maximum(problem.curvature(), 0), residual.shape)
    offsets = jnp.arange(-8, 9)
    kernel = jnp.exp(-0.5 * (offsets / width) ** 2) / (jnp.sqrt(2 * jnp.pi) * width)

    def along(a, axis):
        return jnp.apply_along_axis(lambda line: jnp.convolve(line, kernel, mode="same"), axis, a)

    matched = along(along(curvature * residual, 1), 2)
    return problem.back_project(matched) / jnp.maximum(problem.back_project(curvature / (4 * jnp.pi * width**2)), 1e-20)


@jax.jit
def _unexplained(problem: Problem, residual) -> jax.Array:
    """Residual variance in units of what the likelihood's curvature takes it to be."""
    curvature = jnp.broadcast_to(problem.curvature(), residual.shape)
    return jnp.sum(curvature * residual**2) / jnp.maximum(jnp.sum(curvature > 0), 1)


def _maxima(volume, narrow: float, apart: float, taken) -> tuple[np.ndarray, np.ndarray]:
    """(positions `[peak, 3]` (x, y, z) in voxels from the first, heights) of local maxima of `volume [z, y, x]`, band-passed
    if `narrow` is not 0, nowhere nearer than `apart` to each other or to what is `taken`."""
    from scipy.ndimage import gaussian_filter, maximum_filter
    from scipy.spatial import KDTree

    seen = volume if not narrow else gaussian_filter(volume, narrow) - gaussian_filter(volume, 3 * narrow)
    half = max(int(apart), 1)
    ball = np.sum(np.indices((2 * half + 1,) * 3) - half, 0)
    ball = sum((axis - half) ** 2 for axis in np.indices((2 * half + 1,) * 3)) <= max(apart, 1) ** 2
    peaks = np.argwhere((seen == maximum_filter(seen, footprint=ball, mode="constant", cval=-np.inf)) & (seen > 0))
    heights = seen[tuple(peaks.T)]
    peaks = peaks[:, ::-1].astype(float)
    if len(taken) and len(peaks):
        free = KDTree(taken).query(peaks)[0] >= apart
        peaks, heights = peaks[free], heights[free]
    return peaks, heights


def _joined(guess: Guess, positions, amplitude) -> Guess:
    return Guess(
        np.concatenate([guess.positions, positions]), np.concatenate([guess.amplitude, amplitude]), guess.width
    )


def _thinned(guess: Guess, least: float, apart: float, size) -> Guess:
    """Without those fainter than `least`, outside, or nearer than `apart` to a brighter one."""
    from scipy.spatial import KDTree

    inside = (np.abs(guess.positions) <= np.array(size) / 2).all(1)
    kept = inside & (guess.amplitude >= least)
    for i, j in KDTree(guess.positions).query_pairs(apart):
        if kept[i] and kept[j]:
            kept[i if guess.amplitude[i] < guess.amplitude[j] else j] = False
    return Guess(guess.positions[kept], guess.amplitude[kept], guess.width)


def _voxel(voxel_nm: float | None) -> float:
    """In Å."""
    if voxel_nm is None or not (math.isfinite(voxel_nm) and voxel_nm > 0):
        raise InputError("the side of a voxel is not known, and atoms are apart by Å. Give it with --voxel-nm.")
    return 10 * voxel_nm
