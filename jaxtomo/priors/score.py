"""A score network: what a volume was before noise was added to it, learned from examples; told what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ..likelihood import noise_variance
from .dip import unfolded
from .nets import ConditionedUNet

SIGMA_DATA = 0.5  # standard deviation of volumes in the network's units
SIGMA_MAX = 80.0  # noise in which nothing is left of them
GEOMETRY = 5  # numbers that `geometry` tells


class Score(nnx.Module):
    """D(v + n; σ, guide): the expected volume behind noise n of standard deviation σ, and behind a guide.

        D = c_skip x + c_out F(c_in x; ln σ),  c_skip = σ_d² / (σ² + σ_d²),  c_out = σ σ_d / √(σ² + σ_d²),
        c_in = 1 / √(σ² + σ_d²),  score = (D - x) / σ²

    The guide is the Gaussian solution of measured images, in which all is that they say linearly, and the geometry says
    how they were taken: with them it is the score of the posterior, learned, and without (zeros) that of the prior. At
    σ_max, where `noisy` is nothing (zeros), D is the expected volume given the images alone.
    [Karras et al. 2022; Vincent 2011; Batzolis et al. 2021 for the condition as a further input]

    Volumes are in the network's units, in which those of the training set have mean 0 and standard deviation σ_d = 0.5:

        v = density (centre + scale x)

    - three dimensions: `patch=(2, 2, 2)`;
    - slices as channels: `deep=False, patch=(8, 1, 1)`;
    - slice by slice: `deep=False, patch=(1, 2, 2)`.
    """

    def __init__(
        self,
        *,
        deep: bool = True,
        patch: tuple[int, int, int] = (2, 2, 2),
        channels: Sequence[int] = (40, 80, 128),
        centre: float = 0.0,
        scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        """Args:
        deep: whether the network sees in three dimensions, or every slice (or group of them) by itself.
        patch: voxels (y, z, x) for which a pixel of the network stands.
        channels: of its levels, the finest first.
        centre, scale: of the network's units.
        """
        voxels = math.prod(patch)
        self.network = ConditionedUNet(2 * voxels, voxels, 16 + GEOMETRY, channels, deep, rngs)
        self.centre = nnx.Variable(jnp.asarray(centre, jnp.float32))
        self.scale = nnx.Variable(jnp.asarray(scale, jnp.float32))
        self.patch = tuple(patch)

    def __call__(self, noisy, sigma, guide, geometry):
        """The denoised volume `[z, x, y]` of `noisy`, for one `sigma`, a guide like it, and a geometry `[5]`."""
        total = sigma**2 + SIGMA_DATA**2
        features = jnp.stack([noisy / jnp.sqrt(total), guide / SIGMA_DATA / 2], -1)
        waves = jnp.log(sigma) / 4 * 2 * jnp.pi * 2.0 ** (jnp.arange(8) / 2 - 2)
        conditions = jnp.concatenate([jnp.sin(waves), jnp.cos(waves), geometry])
        made = unfolded(self.network(folded(features, self.patch), conditions), self.patch, noisy.shape)
        return SIGMA_DATA**2 / total * noisy + sigma * SIGMA_DATA / jnp.sqrt(total) * made

    def inward(self, volume, density):
        """A volume in the network's units."""
        return (volume / density - self.centre[...]) / self.scale[...]

    def outward(self, volume, density):
        """A volume of the network in those of the images."""
        return density * (self.centre[...] + self.scale[...] * volume)


def folded(features, patch: Sequence[int]):
    """`[z, x, y, channel]` as `[y, z, x, channel]` with a patch of voxels for a pixel, the edge repeated beyond it."""
    features = features.transpose(2, 0, 1, 3)
    beyond = [(0, -n % p) for n, p in zip(features.shape, patch, strict=False)]
    features = jnp.pad(features, [*beyond, (0, 0)], mode="edge")
    (ny, nz, nx, c), (py, pz, px) = features.shape, patch
    laid = features.reshape(ny // py, py, nz // pz, pz, nx // px, px, c)
    return laid.transpose(0, 2, 4, 1, 3, 5, 6).reshape(ny // py, nz // pz, nx // px, -1)


def geometry(problem):
    """What the network is told of how images were taken, `[5]`: 1, the first and the last tilt (rad), the logarithms
    of their number and of their noise over their mean, each about 1."""
    live = jnp.broadcast_to(problem.weights, problem.images.shape).sum((1, 2)) > 0
    first = jnp.min(jnp.where(live, problem.pose.tilt, jnp.inf))
    last = jnp.max(jnp.where(live, problem.pose.tilt, -jnp.inf))
    noise = jnp.sqrt(noise_variance(problem.images)) / jnp.mean(jnp.abs(problem.images))
    return jnp.stack([jnp.ones(()), first, last, jnp.log(live.sum()) / 4, jnp.log(jnp.clip(noise, 1e-3, 10)) / 4])


def mirrored(geometry):
    """The geometry of the same images as they see the specimen's mirror image, x or z turned round."""
    return geometry[jnp.array([0, 2, 1, 3, 4])] * jnp.array([1, -1, -1, 1, 1])
