"""The expected volume behind the images, by a score network that is told them: the point estimate of least error."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..priors.score import SIGMA_MAX, Score, Weights, geometry, mirrored
from ..solve import Solver
from .consistent import Images, chi_square, consistent, measured
from .gaussian import gaussian

DENSITIES = tuple(float(f) for f in np.exp(np.linspace(np.log(0.7), np.log(2.8), 8)))
"""What the specimen's density is tried to be, times that of the guide."""


class Told(NamedTuple):
    """What a network knows of a problem, and itself.

    Attributes:
        guide: `[z, x, y]`, the Gaussian solution in the network's units.
        geometry: `[5]`.
        density: that the network's units are relative to.
        images: what is known of their noise.
        network: graph, parameters and the rest of the network.
    """

    guide: jax.Array
    geometry: jax.Array
    density: jax.Array
    images: Images
    network: Any

    def score(self) -> Score:
        return nnx.merge(*self.network)


def guided(problem, spectrum, steps: int = 100):
    """(guide, geometry): the Gaussian solution `[z, x, y]` of a problem and what a network is told of its images."""
    solver = gaussian(spectrum)
    return _solved(problem, solver.init(problem, None), step=solver.step, read=solver.read, steps=steps)


@functools.partial(jax.jit, static_argnames=("step", "read", "steps"))
def _solved(problem, state, *, step, read, steps):
    return read(problem, jax.lax.fori_loop(0, steps, lambda _, s: step(problem, s, None)[0], state))[0], geometry(
        problem
    )


def tell(problem, weights: Weights) -> Told:
    """What the network is told. The specimen's density, which it must be told as well, is that with which its answer
    explains the images best."""
    guide, shown = guided(problem, weights.spectrum)
    images = measured(problem)
    filled = jnp.maximum(guide, 0)
    start = jnp.sum(filled**2) / jnp.maximum(jnp.sum(filled), 1e-20)
    network = nnx.split(weights.score, nnx.Param, ...)

    def at(factor):
        density = factor * start
        return Told(weights.score.inward(guide, density), shown, density, images, network)

    misfits = [float(_misfit(problem, at(factor))) for factor in DENSITIES]
    best = int(np.argmin(misfits))
    factor = DENSITIES[best]
    if 0 < best < len(misfits) - 1:  # the vertex of the parabola through the three
        low, mid, high = misfits[best - 1 : best + 2]
        shift = 0.5 * (low - high) / max(low - 2 * mid + high, 1e-20)
        factor *= (DENSITIES[1] / DENSITIES[0]) ** float(np.clip(shift, -0.5, 0.5))
    return at(factor)


@jax.jit
def _misfit(problem, told):
    score = told.score()
    return chi_square(problem, told.images, score.outward(denoised(score, None, SIGMA_MAX, told), told.density))


def denoised(score: Score, noisy, sigma, told: Told):
    """D(noisy; σ, guide), or the expected volume given the guide alone if `noisy` is None."""
    noisy = jnp.zeros_like(told.guide) if noisy is None else noisy
    return score(noisy, jnp.asarray(sigma, jnp.float32), told.guide, told.geometry)


def expected(weights: Weights, steps: int = 16, trust: float = 0.1, corrections: int = 5) -> Solver:
    """E[v | y]: the network's answer to the Gaussian solution, averaged over the specimen's mirror images, and made
    consistent with the images.

    Every step looks at the specimen in another of its eight mirror images, each also moved by a voxel: what differs is
    the network's own error. At the end argmin over v of Σ (A v - y)²/σ_y² + Σ (v - mean)²/r², by a few CG steps, with
    r² = `trust` σ_d².
    """

    def init(problem, key):
        told = tell(problem, weights)
        return {"told": told, "sum": jnp.zeros(problem.shape), "count": jnp.asarray(0), "trust": jnp.asarray(trust)}

    settings = {"method": "expected", "planned_steps": steps, "trust": trust}
    return Solver(init, _stepper(corrections), functools.partial(_read, corrections=corrections), settings, steps)


@functools.lru_cache(16)
def _stepper(corrections: int):
    def step(problem, state, key):
        told, count = state["told"], state["count"]
        score = told.score()
        answer = seen_mirrored(score, told, count)
        total = state["sum"] + score.outward(answer, told.density)
        new = {**state, "sum": total, "count": count + 1}
        volume = total / (count + 1)
        residual = problem.explained(problem.project(volume)) - problem.images
        scale = jnp.maximum(jnp.sum(problem.weights * problem.images**2), 1e-30)
        misfit = jnp.sqrt(jnp.sum(problem.weights * residual**2) / scale)
        return new, {"misfit": misfit, "loss": chi_square(problem, told.images, volume)}

    return step


def seen_mirrored(score: Score, told: Told, number):
    """The network's answer to the guide as the `number`-th of eight mirror images of it, given back unmirrored."""
    flips = [(number >> bit) & 1 for bit in range(3)]

    def flipped(volume):
        for axis, flip in enumerate(flips):
            volume = jnp.where(flip, jnp.flip(volume, axis), volume)
        return volume

    shown = jnp.where(flips[0] != flips[1], mirrored(told.geometry), told.geometry)
    off = (number // 8) % 2
    guide = jnp.where(off, jnp.roll(_grown(told.guide), 1, (0, 1, 2)), _grown(told.guide))
    answer = denoised(score, None, SIGMA_MAX, told._replace(guide=flipped(guide), geometry=shown))
    answer = flipped(answer)
    answer = jnp.where(off, jnp.roll(answer, -1, (0, 1, 2)), answer)
    return answer[tuple(slice(0, n) for n in told.guide.shape)]


def _grown(volume):
    """With its last planes once more."""
    return jnp.pad(volume, ((0, 1),) * 3, mode="edge")


def _read(problem, state, *, corrections):
    told = state["told"]
    mean = state["sum"] / jnp.maximum(state["count"], 1)
    wrong = state["trust"] * (0.5 * told.density * told.score().scale[...]) ** 2
    return consistent(problem, told.images, mean, wrong, corrections), problem.pose
