"""Conjugate gradients on the least-squares problem: the fastest way down, to be stopped early on noisy data."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..data import Problem
from ..errors import InputError
from ..likelihood import gaussian
from ..solve import Solver


class State(NamedTuple):
    volume: jax.Array
    residual: jax.Array  # y - A v
    direction: jax.Array
    energy: jax.Array  # |Aᵀ w r|²


def cgls() -> Solver:
    """CGLS for min_v Σ w (A v - y)²: linear, so densities can be negative. [Hestenes & Stiefel 1952; Björck 1996]

    Raises InputError for another likelihood than `gaussian()`.
    """
    return Solver(_init, _step, _read, {"method": "cgls"}, steps=15)


def _init(problem, key):
    if problem.likelihood is not gaussian():
        raise InputError("cgls solves the Gaussian likelihood only. Take sirt, tv or fit for another.")
    direction = jax.jit(Problem.back_project)(problem, problem.weights * problem.images)
    return State(jnp.zeros_like(direction), problem.images, direction, jnp.sum(direction**2))


def _step(problem, state, key):
    scale = jnp.sqrt(jnp.sum(problem.weights * problem.images**2))
    misfit = jnp.sqrt(jnp.sum(problem.weights * state.residual**2)) / jnp.maximum(scale, 1e-30)
    projected = problem.project(state.direction)
    curvature = jnp.sum(problem.weights * projected**2)
    length = jnp.where(curvature > 0, state.energy / jnp.where(curvature > 0, curvature, 1), 0)
    volume, residual = state.volume + length * state.direction, state.residual - length * projected
    slope = problem.back_project(problem.weights * residual)
    energy = jnp.sum(slope**2)
    turn = jnp.where(state.energy > 0, energy / jnp.where(state.energy > 0, state.energy, 1), 0)
    return State(volume, residual, slope + turn * state.direction, energy), {"misfit": misfit}


def _read(problem, state):
    return state.volume, problem.pose
