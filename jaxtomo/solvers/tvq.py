"""Sparse gradients: squared voxels under Adam with |∇v|^q, q < 1, and count weights. To beat on particles."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..priors.voxels import voxels
from ..solve import Solver
from .fit import falling_adam, fit


def count_weights(problem):
    """1 / (box3×3(y⁺) + 0.3 mean(y⁺)), y⁺ = max(y, 0), rescaled so that mean(w y²) = mean(y²): the inverse variance of
    counts, as far as the images themselves tell it. A Poisson likelihood, which knows it, keeps the weights of the
    problem."""
    if getattr(problem.likelihood, "counts", False):
        return problem.weights
    if problem.images.ndim == 4:
        weights = jnp.broadcast_to(problem.weights, problem.images.shape)
        return lax.map(lambda a: count_weights(problem.replace(images=a[0], weights=a[1])), (problem.images, weights))
    images = jnp.maximum(problem.images, 0)
    live = jnp.broadcast_to(problem.weights, images.shape)
    mean = jnp.sum(live * images) / jnp.maximum(jnp.sum(live), 1e-20)
    weights = live / (around(images) + 0.3 * mean + 1e-20)
    scale = jnp.sum(live * images**2) / jnp.maximum(jnp.sum(weights * images**2), 1e-20)
    return weights * scale


def around(images):
    """Means over 3 × 3 pixels, of those that exist: a border is not a dark neighbour."""
    rows, columns = (neighbours(length) for length in images.shape[1:])
    return lax.reduce_window(images, 0.0, lax.add, (1, 3, 3), (1, 1, 1), "SAME") / (rows[:, None] * columns)


def neighbours(length: int) -> np.ndarray:
    """How many of three neighbours on a line exist, `[length]`: 3, but at the ends."""
    at = np.arange(length)
    return np.float32(3) - (at == 0) - (at == length - 1)


def tvq(weight: float = 0.4, power: float = 0.7, steps: int = 500, rate: float = 0.1, start=None) -> Solver:
    """min over p of Σ w (A v - y)² / Σ w y² + λ mean((|∇v|² + ε²)^(q/2)), v = density (p + 0.1)².

    Adam at `rate`, falling along a cosine to 2 % over `steps`. `weight` λ is for densities of about 1, which the
    solver sees to. Suits piecewise-constant specimens. From a `start [z, x, y]`, where there is one, fewer steps are
    enough.
    """
    settings = {"method": "tvq", "weight": weight, "power": power, "planned_steps": steps, "rate": rate}
    optimizer = falling_adam(rate, steps)
    return fit(
        voxels(weight, power, start=start), optimizer, pixel_weights=count_weights, settings=settings, steps=steps
    )
