"""What a score network is told of a problem, and how it is asked."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from ..priors.density import density
from ..priors.score import SIGMA_MAX, Score, Weights, geometry, mirrored
from .consistent import Images, measured
from .gaussian import gaussian


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


def guided(problem, spectrum, steps: int = 250):
    """(guide, geometry): the Gaussian solution `[z, x, y]` of a problem and what a network is told of its images."""
    solver = gaussian(spectrum)
    return _solved(problem, solver.init(problem, None), step=solver.step, read=solver.read, steps=steps)


@functools.partial(jax.jit, static_argnames=("step", "read", "steps"))
def _solved(problem, state, *, step, read, steps):
    return read(problem, jax.lax.fori_loop(0, steps, lambda _, s: step(problem, s, None)[0], state))[0], geometry(
        problem
    )


def tell(problem, weights: Weights) -> Told:
    """What the network is told: the Gaussian solution, and how dense such a specimen is likely to be."""
    guide, shown = guided(problem, weights.spectrum)
    known = density(guide, shown, jnp.asarray(weights.density))
    network = nnx.split(weights.score, nnx.Param, ...)
    return Told(weights.score.inward(guide, known), shown, known, measured(problem), network)


def denoised(score: Score, noisy, sigma, told: Told):
    """D(noisy; σ, guide), or the expected volume given the guide alone if `noisy` is None."""
    noisy = jnp.zeros_like(told.guide) if noisy is None else noisy
    return score(noisy, jnp.asarray(sigma, jnp.float32), told.guide, told.geometry)


def seen_mirrored(score: Score, told: Told, number):
    """The network's answer to the guide as the `number`-th of eight mirror images of it, given back unmirrored; the
    next eight times it lies a voxel further, where other voxels make a patch."""
    flips, beside = [(number >> bit) & 1 for bit in range(3)], (number >> 3) & 1
    shape = [n + 1 for n in told.guide.shape]

    def flipped(volume):
        for axis, flip in enumerate(flips):
            volume = jnp.where(flip, jnp.flip(volume, axis), volume)
        return volume

    guide = lax.dynamic_slice(jnp.pad(told.guide, 1, mode="edge"), [1 - beside] * 3, shape)
    shown = jnp.where(flips[0] != flips[1], mirrored(told.geometry), told.geometry)
    answer = flipped(denoised(score, None, SIGMA_MAX, told._replace(guide=flipped(guide), geometry=shown)))
    return lax.dynamic_slice(answer, [beside] * 3, told.guide.shape)
