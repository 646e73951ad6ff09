"""Quality without a truth: how well tilts that were left out are predicted, and how well two halves agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from . import metrics, parallel, resolution
from .data import Problem
from .errors import InputError
from .solve import CHUNK, Solver, run_steps

SLAB = 64  # slices, at most, that quality is judged on


@jax.jit
def prediction_error(problem: Problem, volume):
    """Relative residual norm of each tilt, `[tilt]`: ‖A_i v - y_i‖ / ‖y_i‖ over pixels that count; 0 without any."""
    problem = parallel.unpadded(problem)
    predicted = problem.explained(problem.project(volume))
    residual = jnp.sum(problem.weights * (predicted - problem.images) ** 2, (1, 2))
    signal = jnp.sum(problem.weights * problem.images**2, (1, 2))
    return jnp.sqrt(residual / jnp.maximum(signal, 1e-30))


def slab(problem: Problem, slices: int) -> Problem:
    """The middle `slices` of a problem; all of it where the pose or its shape does not let slices be cut out."""
    height = problem.shape[2]
    coupled = problem.pose.rotation is not None or problem.pose.second_tilt is not None
    if height <= slices or coupled or problem.pose.magnification is not None:
        return problem
    start = (height - slices) // 2
    rows = slice(start, start + slices)
    weights = jnp.broadcast_to(problem.weights, (*problem.weights.shape[:2], problem.images.shape[2]))[:, :, rows]
    if problem.pose.shift is not None:
        # Pixels whose slice of the specimen was cut off with its neighbours say nothing here.
        row = jnp.arange(slices) - problem.pose.shift[:, 1, None]
        weights = weights * ((row >= 0) & (row <= slices - 1))[:, None, :]
    shape = (*problem.shape[:2], slices)
    series = problem.series
    if series is not None:
        mask = None if series.mask is None else series.mask[:, rows]
        series = series.replace(images=series.images[:, rows], mask=mask)
    cut = problem.replace(images=problem.images[:, :, rows], weights=weights, shape=shape, series=series)
    return cut if problem.mesh is None else parallel.at_rest_again(cut)


def live_tilts(problem: Problem) -> np.ndarray:
    """Indices of the tilts that have any weight."""
    return np.flatnonzero(np.asarray(problem.weights).max((1, 2)) > 0)


def hold_out(problem: Problem, tilts) -> tuple[Problem, Problem]:
    """(the problem without `tilts`, the problem with only them): weights 0 instead of arrays cut, so that one
    compiled solver serves both."""
    out = np.zeros(problem.images.shape[0], bool)
    out[np.asarray(tilts)] = True
    if out.all() or not out.any():
        raise InputError(f"{out.sum()} of {out.size} tilts held out. Hold out at least one and keep at least one.")
    held = jnp.asarray(out, problem.weights.dtype)[:, None, None]
    return problem.replace(weights=problem.weights * (1 - held)), problem.replace(weights=problem.weights * held)


def spread(tilts: int, count: int) -> np.ndarray:
    """`count` indices spread evenly over `tilts`, at most half of them; the two ends, which nothing else can predict,
    are spared."""
    if tilts < 3 or not 1 <= count <= tilts // 2:
        raise InputError(f"{count} of {tilts} tilts to hold out. Hold out 1 to {tilts // 2}, of three tilts or more.")
    return np.round((np.arange(count) + 0.5) * tilts / count - 0.5).astype(int).clip(1, tilts - 2)


def solve(problem: Problem, solver: Solver, steps: int, key=None):
    """The volume `[z, x, y]` after `steps`, with nothing recorded."""
    key = jax.random.key(0) if key is None else key
    state = jax.tree.map(jnp.copy, solver.init(problem, key))
    for start in range(0, steps, CHUNK):
        state, _ = run_steps(problem, state, key, start, min(CHUNK, steps - start), step=solver.step)
    return solver.read(problem, state)[0]


def cross_check(problem: Problem, solver: Solver, steps: int, *, key=None, slices: int = SLAB) -> dict:
    """Reconstruct from the even and from the odd tilts of a slab, and compare.

    Returns a dict, empty for fewer than four tilts, for several channels or where a half diverged, of
        prediction_error: relative residual norm of tilts the volume was not made from, each half predicting the other;
        prediction_error_by_tilt: the same, `[tilt]`;
        fsc_frequency, fsc_curve: Fourier shell correlation of the two halves, cycles per voxel;
        fsc_mask: what the mask was, in words;
        fsc_cones: the same along the axes, see `resolution.by_direction`;
        resolution_voxels, resolution_nm: 1/frequency where it falls below 0.143 (NaN where it never does).
    Each half has twice the tilt step of the whole and shares its missing wedge and alignment: the error is
    an upper bound, and the resolution says nothing about the direction of the wedge.
    """
    if problem.images.ndim == 4:
        return {}
    voxel_nm = problem.series.pixel_nm if problem.series is not None else None
    problem = slab(problem, slices)
    live = live_tilts(problem)
    if live.size < 4:
        return {}
    halves, errors = [], np.zeros(problem.images.shape[0])
    for start in (0, 1):
        kept, held = hold_out(problem, live[start::2])
        volume = solve(kept, solver, steps, key)
        errors += np.asarray(prediction_error(held, volume))
        if not jnp.isfinite(volume).all():
            return {}
        halves.append(np.asarray(volume).swapaxes(1, 2))
    result = {"prediction_error": float(np.sqrt(np.mean(errors[live] ** 2))), "prediction_error_by_tilt": errors}
    if min(problem.shape) >= 8:
        frequency, curve = metrics.fsc(*halves, mask=metrics.cylinder(halves[0].shape))
        width = float(metrics.resolution(frequency, curve))
        result |= {
            "fsc_frequency": frequency,
            "fsc_curve": curve,
            "fsc_mask": f"cylinder about the tilt axis, soft edge, middle {problem.shape[2]} slices",
            "resolution_voxels": width,
            "resolution_nm": width * voxel_nm if voxel_nm else float("nan"),
            "fsc_cones": resolution.by_direction(*halves),
        }
    return result


def choose_weight(
    problem: Problem, make: Callable[[float], Solver], weights: Sequence[float], steps: int, *, key=None, count=None
) -> tuple[float, np.ndarray]:
    """The weight whose volume predicts held-out tilts best, and the prediction error of each, `[weight]`.

    Judged on the middle slices. `count` tilts, a fifth of them by default, are held out, spread over the range. The
    error is flat about its least, where the smoother volume is safer: of the weights whose error exceeds the least by
    at most a twentieth of the range of errors the largest is taken.
    """
    if problem.images.ndim == 4:
        raise InputError("a weight is chosen on one channel. Choose it on their sum, or give a weight.")
    problem = slab(problem, 32)
    live = live_tilts(problem)
    held = live[spread(live.size, max(1, live.size // 5) if count is None else count)]
    kept, left = hold_out(problem, held)
    errors = np.array(
        [
            np.sqrt(np.mean(np.asarray(prediction_error(left, solve(kept, make(w), steps, key)))[held] ** 2))
            for w in weights
        ]
    )
    good = np.flatnonzero(errors <= errors.min() + 0.05 * np.ptp(errors))
    return float(max(np.asarray(weights)[good])), errors
