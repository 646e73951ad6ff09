"""Total variation by a preconditioned primal-dual method, with a duality gap that tells when it is done."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..errors import InputError
from ..likelihood import gaussian
from ..penalty import divergence, gradient
from ..solve import Solver
from .fit import typical_density
from .sirt import inverse, ray_lengths


class State(NamedTuple):
    volume: jax.Array  # in units of the typical density
    images: jax.Array  # dual of the data, [tilt, x, y]
    field: jax.Array  # dual of the gradient, [3, z, x, y], |field| <= weight
    weight: jax.Array  # λ, per voxel
    density: jax.Array
    rows: jax.Array  # A 1
    columns: jax.Array  # Aᵀ 1
    balance: jax.Array  # dual steps are multiplied by this, primal ones divided


def tv(weight: float = 0.01, balance: float = 1.0) -> Solver:
    """min over v >= 0 of Σ w (A v - y)² / Σ w y² + λ mean |∇v|, v in units of the specimen's density.

    Chambolle and Pock's primal-dual iteration with diagonal steps. Each step
    reports the relative duality `gap`, computed for densities up to twice the largest present.
    Raises InputError for another likelihood than `gaussian()`. [Chambolle & Pock 2011; Pock & Chambolle 2011]
    """

    def init(problem, key):
        if problem.likelihood is not gaussian():
            raise InputError("tv solves the Gaussian likelihood only. Take fit(voxels(...)) for another.")
        images = problem.images
        ones = jnp.ones(problem.shape, images.dtype)
        return State(
            jnp.zeros_like(ones),
            jnp.zeros_like(images),
            jnp.zeros((3, *problem.shape), images.dtype),
            jnp.asarray(weight / ones.size, images.dtype),
            typical_density(problem),
            ray_lengths(problem),
            problem.back_project(jnp.ones_like(images)),
            jnp.asarray(balance, images.dtype),
        )

    return Solver(init, _step, _read, {"method": "tv", "weight": weight})
