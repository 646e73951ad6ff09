"""What a score network expects beside what it is told, each weighed by how well it predicts left-out tilts: for
specimens unlike those that the network learned from."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from ..priors.score import Weights
from ..solve import Solver
from .expected import TRUST, expected, explained
from .told import Told, first_answer, tell

EVERY = 5  # one tilt of so many is left out


def stacked(weights: Weights, steps: int = 16, trust: float = TRUST) -> Solver:
    """The mixture of the network's answer and of the three solutions that it is told, made consistent with the images.

    The shares are those with which the mixture, made without every fifth tilt, predicts these best; none is negative,
    and they add up to 1. [Wolpert 1992; Breiman 1996] A network that knows such specimens has nearly all, one that has
    never seen any nearly none.
    """
    alone = expected(weights, steps, trust)

    def init(problem, key):
        kept, left = left_out(problem)
        return {**alone.init(problem, key), "shares": shares(left, parts(tell(kept, weights)))}

    settings = {"method": "stacked", "weights": weights.name, "planned_steps": steps, "trust": trust}
    return Solver(init, _stepper(alone.step), _read, settings, steps)


@functools.lru_cache(16)
def _stepper(alone):
    def step(problem, state, key):
        new, info = alone(problem, {name: value for name, value in state.items() if name != "shares"}, key)
        return {**new, "shares": state["shares"]}, {**info, "network_share": state["shares"][0]}

    return step


@jax.jit
def _read(problem, state):
    told: Told = state["told"]
    answers = parts(told, state["sum"] / jnp.maximum(state["count"], 1))
    mixed = jnp.tensordot(state["shares"], answers, 1)
    return explained(problem, told, mixed, state["trust"]), problem.pose


def left_out(problem):
    """(the problem without every fifth of the tilts that count, the problem with only these)."""
    live = jnp.broadcast_to(problem.weights, problem.images.shape).any((1, 2))
    out = (live & (jnp.cumsum(live) % EVERY == EVERY // 2)).astype(problem.weights.dtype)[:, None, None]
    return problem.replace(weights=problem.weights * (1 - out)), problem.replace(weights=problem.weights * out)


def parts(told: Told, answer=None):
    """`[4, z, x, y]`: the network's answer, by default from one look, and the solutions that it is told."""
    score = told.score()
    answer = score.outward(first_answer(told), told.density) if answer is None else answer
    return jnp.concatenate([answer[None], score.outward(told.guide, told.density)])


@jax.jit
def shares(problem, volumes):
    """`[volume]`: not negative, adding up to 1, with Σ w (A Σ share v - y)² least; all to the first where no tilt says
    anything. Of every choice of volumes that share, of which there are few, the best without bounds is known in closed
    form; the answer is the best of these without a negative one."""
    residuals = lax.map(lambda v: jnp.sqrt(problem.weights) * (problem.project(v) - problem.images), volumes)
    gram = jnp.einsum("iabc,jabc->ij", residuals, residuals)
    size, count = jnp.max(jnp.diag(gram)), len(volumes)
    gram = gram / jnp.maximum(size, 1e-30) + 1e-7 * jnp.eye(count)
    chosen = jnp.asarray([[(n >> i) & 1 for i in range(count)] for n in range(1, 2**count)], gram.dtype)

    def best(mask):
        found = jnp.linalg.solve(gram * mask[:, None] * mask + jnp.diag(1 - mask), mask)
        found = found / jnp.sum(found)
        return found, jnp.where((found >= 0).all(), found @ gram @ found, jnp.inf)

    found, left = jax.vmap(best)(chosen)
    return jnp.where(size > 0, found[jnp.argmin(left)], jnp.eye(count)[0])
