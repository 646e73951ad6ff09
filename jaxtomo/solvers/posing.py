"""Poses that follow a volume while a method makes it: a few gradient steps at a time."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..freedom import Freedom
from ..poses import independent_pixels, movable, moved, surprise
from .consistent import Images
from .fit import falling_adam


class Following(NamedTuple):
    """How poses are learned.

    Attributes:
        freedom: what of them may move, and how far they are expected to be wrong.
        optimizer: of the poses, in pixels by which they move what is at the rim of the field.
        times: steps of it for every volume.
    """

    freedom: Freedom
    optimizer: optax.GradientTransformation
    times: int


@functools.cache
def following(freedom: Freedom, volumes: int, times: int = 10, rate: float = 0.1) -> Following:
    """Adam, in steps that fall along a cosine over `volumes` of `times` steps each."""
    return Following(freedom, falling_adam(rate, volumes * times), times)


def at_rest(problem, how: Following) -> dict[str, Any]:
    """The state of poses that have not moved."""
    moves = movable(problem, how.freedom)
    return {"moves": moves, "optimizer": how.optimizer.init(moves)}


def followed(problem, how: Following, state, images: Images, volume):
    """The state after some steps down Σ (A v - y)²/σ_y² + Σ (move / its expected standard deviation)², v held.

    What is not explained counts as noise too, over the pixels that are independent of each other.
    """

    def loss(moves):
        posed = problem.replace(pose=moved(problem, moves))
        residual = posed.explained(posed.project(volume)) - problem.images
        total = jnp.sum(images.precision * residual**2)
        pixels = independent_pixels(residual, images.precision)
        return total + jax.lax.stop_gradient(jnp.maximum(total / pixels, 1)) * surprise(problem, how.freedom, moves)

    def step(_, state):
        change, inner = how.optimizer.update(jax.grad(loss)(state["moves"]), state["optimizer"], state["moves"])
        return {"moves": optax.apply_updates(state["moves"], change), "optimizer": inner}

    return jax.lax.fori_loop(0, how.times, step, state)
