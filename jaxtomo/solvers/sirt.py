"""Simultaneous iterative reconstruction: every tilt corrects the volume at once."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..solve import Solver


class State(NamedTuple):
    volume: jax.Array
    rows: jax.Array  # 1 / (A 1)
    columns: jax.Array  # 1 / (Aᵀ w)
    relaxation: jax.Array
    least: jax.Array  # the lowest density allowed


def inverse(sums, least):
    """1 / sums, and 0 where a ray or voxel meets next to nothing."""
    return jnp.where(sums > least, 1 / jnp.maximum(sums, least), 0)


def ray_lengths(problem):
    """A 1: how much volume each ray meets, `[tilt, x, y]`."""
    return problem.project(jnp.ones(problem.shape, problem.images.dtype))


def sirt(relaxation: float = 1.0, nonnegative: bool = True) -> Solver:
    """v ← max(0, v + ω C Aᵀ R w (y - A v)), R = 1/(A 1), C = 1/(Aᵀ w).

    With another likelihood than the Gaussian, w (y - A v) is minus its first derivative and w its second.
    `relaxation` ω in (0, 2). [Gilbert 1972; Gregor & Benson 2008]
    """

    least = 0.0 if nonnegative else -jnp.inf
    settings = {"method": "sirt", "relaxation": relaxation, "nonnegative": nonnegative}
    return Solver(lambda problem, key: _init(problem, relaxation, least), _step, _read, settings)


@jax.jit
def _init(problem, relaxation, least):
    curvature = problem.curvature()
    rows = inverse(ray_lengths(problem), 0.1)
    columns = inverse(problem.back_project(curvature), 1e-3 * jnp.max(curvature))
    volume = jnp.zeros(problem.shape, problem.images.dtype)
    return State(volume, rows, columns, jnp.asarray(relaxation, volume.dtype), jnp.asarray(least, volume.dtype))


def _step(problem, state, key):
    misfit, residual = problem.misfit(problem.project(state.volume))
    change = state.columns * problem.back_project(state.rows * residual)
    volume = jnp.maximum(state.volume + state.relaxation * change, state.least)
    return state._replace(volume=volume), {"misfit": misfit}


def _read(problem, state):
    return state.volume, problem.pose
