"""Total variation by a preconditioned primal-dual method, with a duality gap that tells when it is done."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..errors import InputError
from ..likelihood import gaussian
from ..penalty import Field, divergence, gradient, squared_length
from ..solve import Solver
from .fit import rough
from .sirt import inverse, ray_lengths

RELAXATION = 1.8
BALANCE = 4  # dual steps over λ; 1 to 16 all converge, this fastest on specimens of few densities
GAP_EVERY = 10  # steps between two duality gaps, each of which costs about one step


class Whole(NamedTuple):
    """What a part must know of the problem it is cut from, so that all parts minimise the functional of the whole.

    Attributes:
        energy: Σ w y² of all images.
        voxels: of all the volume.
        density: that is typical of the specimen; see `fit.rough`.
    """

    energy: float | jax.Array
    voxels: float | jax.Array
    density: float | jax.Array


class State(NamedTuple):
    volume: jax.Array  # in units of the typical density
    images: jax.Array  # dual of the data, [tilt, x, y]
    field: Field  # dual of the gradient, |field| <= weight
    weight: jax.Array  # λ / number of voxels
    density: jax.Array
    energy: jax.Array  # Σ w y², in units of the density
    rows: jax.Array  # dual step sizes
    columns: jax.Array  # primal step sizes
    count: jax.Array
    gap: jax.Array


def tv(weight: float = 0.3, whole: Whole | None = None) -> Solver:
    """min over v >= 0 of Σ w (A v - y)² / Σ w y² + λ mean |∇v|, v in units of the specimen's density.

    Of a slab of a larger problem, `whole` gives the sum and the number of voxels that these two are relative to, and
    the density: the slab's share of the same functional is then minimised.

    Chambolle and Pock's primal-dual iteration, over-relaxed, with diagonal steps 1/(Aᵀ1 + 6), 1/(A1) and 1/2. Duals
    are of the order of λ where primals are of the order of 1, and so are the steps: this balance makes some hundred
    steps enough. Every tenth step refreshes the relative duality `gap`, for densities up to twice the largest
    present. Raises InputError for another likelihood than `gaussian()`.
    [Chambolle & Pock 2011; Pock & Chambolle 2011; Condat 2013 for the relaxation]
    """

    def init(problem, key):
        if problem.likelihood is not gaussian():
            raise InputError("tv solves the Gaussian likelihood only. Take fit(voxels(...)) for another.")
        return _init(problem, weight, whole)

    return Solver(init, _step, _read, {"method": "tv", "weight": weight}, steps=600)


@jax.jit
def _init(problem, weight, whole):
    images, size = problem.images, problem.shape
    volume, density = rough(problem)
    if whole is None:
        whole = Whole(jnp.sum(problem.weights * images**2), jnp.prod(jnp.asarray(size, images.dtype)), density)
    density = jnp.asarray(whole.density, images.dtype)
    weight = jnp.asarray(weight / whole.voxels, images.dtype)
    columns = 1 / (problem.back_project(jnp.ones_like(images)) + 6)
    return State(
        volume=volume / density,
        images=jnp.zeros_like(images),
        field=gradient(jnp.zeros(size, images.dtype)),
        weight=weight,
        density=density,
        energy=jnp.maximum(jnp.asarray(whole.energy, images.dtype) / density**2, 1e-30),
        rows=inverse(ray_lengths(problem), 0.01) * BALANCE * weight,
        columns=columns / (BALANCE * weight),
        count=jnp.asarray(0),
        gap=jnp.ones((), images.dtype),
    )


def _step(problem, state, key):
    measured = problem.images / state.density
    precision = 2 * problem.weights / state.energy
    slope = problem.back_project(state.images) - divergence(state.field)
    volume = jnp.maximum(state.volume - state.columns * slope, 0)
    ahead = 2 * volume - state.volume
    residual = problem.project(ahead) - measured
    # A masked pixel on a ray outside the volume has neither precision nor step: 0/0 without the floor.
    images = (state.images + state.rows * residual) * precision / jnp.maximum(precision + state.rows, 1e-30)
    field = jax.tree.map(lambda g, d: g + BALANCE * state.weight / 2 * d, state.field, gradient(ahead))
    shrink = 1 / jnp.maximum(1, jnp.sqrt(squared_length(field)) / state.weight)
    field = jax.tree.map(lambda g: g * shrink, field)
    count = state.count + 1

    def refresh():
        return _gap(problem, state.weight, measured, precision, volume, images, field)

    gap = lax.cond(count % GAP_EVERY == 0, refresh, lambda: state.gap)
    old, new = (state.volume, state.images, state.field), (volume, images, field)
    volume, images, field = jax.tree.map(lambda a, b: a + RELAXATION * (b - a), old, new)
    misfit = jnp.sqrt(jnp.sum(precision * residual**2) / jnp.maximum(jnp.sum(precision * measured**2), 1e-30))
    state = state._replace(volume=volume, images=images, field=field, count=count, gap=gap)
    return state, {"misfit": misfit, "gap": gap}


def _gap(problem, weight, measured, precision, volume, images, field):
    """(primal - dual) / primal, the dual taken over 0 <= v <= 2 max(v), where it is finite."""
    residual = problem.project(volume) - measured
    variation = jnp.sum(jnp.sqrt(squared_length(gradient(volume))))
    primal = jnp.sum(precision * residual**2) / 2 + weight * variation
    live = precision > 0
    conjugate = jnp.sum(jnp.where(live, images**2 / jnp.where(live, precision, 1), 0)) / 2
    slope = problem.back_project(images) - divergence(field)
    dual = 2 * jnp.max(volume) * jnp.sum(jnp.minimum(slope, 0)) - jnp.sum(measured * images) - conjugate
    return (primal - dual) / jnp.maximum(primal, 1e-30)  # both are 0 where nothing was measured


def _read(problem, state):
    return jnp.maximum(state.volume, 0) * state.density, problem.pose
