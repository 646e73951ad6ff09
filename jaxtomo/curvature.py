"""How well the images determine their poses: the curvature of the misfit and of what was expected."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .data import Problem
from .freedom import Freedom
from .poses import displaced, movement, units, widths

DIFFERENCE = 0.25  # pixels: step of the central differences


def uncertainty(problem: Problem, freedom: Freedom, volume, moves: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """The standard deviation of every learned pose parameter, by its name in `Freedom`.

    H = Σ J J / σ² + 1 / width² of each tilt, J the derivative of its image with the volume `[z, x, y]` held fast, σ²
    the mean square of what it leaves unexplained. Parameters of all tilts are marginalised over those of each.

    This is what the noise of an image leaves open. Errors of the model, and what the volume explains of a wrong pose,
    come on top: on phantoms true errors were one to nine times this for shifts, two to seventeen for tilts, and up to
    fifty for the axis.
    """
    own = [name for name, move in moves.items() if move.ndim]
    common = [name for name, move in moves.items() if not move.ndim]
    columns = [(name, axis) for name in own for axis in (range(2) if name == "shift" else (None,))]
    columns += [(name, None) for name in common]
    matrix = np.asarray(_curvature(problem, volume, moves, tuple(columns)), np.float64)
    expected, scales, split = widths(problem, freedom), units(problem), len(columns) - len(common)
    precision = np.array([1 / expected[name] ** 2 for name, _ in columns]) + 1e-9
    inverse = np.linalg.inv(matrix[:, :split, :split] + np.diag(precision[:split]))
    deviations = np.sqrt(np.diagonal(inverse, axis1=1, axis2=2))
    found: dict[str, np.ndarray] = {}
    for name in own:
        known, pixels = scales[name]
        picked = deviations[:, [i for i, (n, _) in enumerate(columns[:split]) if n == name]] / pixels
        found[known] = picked if name == "shift" else picked[:, 0]
    if common:
        cross = matrix[:, :split, split:]
        left = (matrix[:, split:, split:] - cross.swapaxes(1, 2) @ inverse @ cross).sum(0)
        shared = np.sqrt(np.diag(np.linalg.inv(left + np.diag(precision[split:]))))
        for name, deviation in zip(common, shared, strict=True):
            found[scales[name][0]] = np.asarray(deviation / scales[name][1])
    return found


@functools.partial(jax.jit, static_argnames="columns")
def _curvature(problem: Problem, volume, moves, columns):
    """Σ J J / σ² of every tilt, `[tilt, parameter, parameter]`."""
    there = movement(problem, moves)

    def predicted(moves):
        return problem.replace(pose=displaced(problem, moves)).project(volume)

    def slope(name, axis):
        unit = jnp.ones_like(there[name])
        unit = DIFFERENCE * (unit if axis is None else unit.at[:, 1 - axis].set(0))
        ahead, behind = (predicted({**there, name: there[name] + way * unit}) for way in (1, -1))
        return (ahead - behind) / (2 * DIFFERENCE)

    residual = problem.explained(predicted(there)) - problem.images
    seen = jnp.broadcast_to(problem.weights > 0, residual.shape)
    variance = jnp.sum(seen * residual**2, (1, 2)) / jnp.maximum(jnp.sum(seen, (1, 2)), 1)
    slopes = jnp.stack([slope(*column) for column in columns])
    believed = seen / jnp.maximum(variance, 1e-20)[:, None, None]
    return jnp.einsum("atxy,btxy,txy->tab", slopes, slopes, believed)
