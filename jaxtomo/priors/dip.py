"""Deep Image Prior: an untrained network as the model of the volume, with free voxels beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ..penalty import total_variation
from .nets import UNet
from .voxels import per_channel


class DIP(nnx.Module):
    """volume = density (0.1 + network(noise) + voxels)², or without voxels density softplus(10 network(noise) - 3).

    The network is untrained. It sees uniform noise × 0.1, more on top in every step (`noise`), starts at zero, as
    do the free voxels. These carry the penalty, λ mean |∇voxels|, and the network does not: edges and flat parts are
    cheap to the one, texture to the other. Both are roots of densities, where a faint support counts beside bright
    particles and what is empty stays empty. A network alone is hampered by the square, hence the softplus. [Ulyanov,
    Vedaldi & Lempitsky 2018; Baguer, Leuschner & Schmidt 2020 for tomography and total variation]

    One output pixel of the network stands for a `patch` of voxels, which it has as channels:

    - three dimensions: `patch=(2, 2, 2)`, on the whole volume or a slab of it;
    - slice by slice: `deep=False, patch=(1, 1, 1)`, one network for all slices, each with noise of its own;
    - in between, slices as channels: `deep=False, patch=(8, 1, 1)`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        density=1.0,
        weight=0.0,
        *,
        deep: bool = True,
        patch: tuple[int, int, int] = (2, 2, 2),
        channels: Sequence[int] = (16, 32, 64),
        skips: Sequence[int] = (16, 32),
        inputs: int = 8,
        noise: float = 0.1,
        beside: bool = True,
        rngs: nnx.Rngs,
    ):
        """Args:
        shape: (z, x, y) of the volume, or (channel, z, x, y) of several that come out of one network.
        density: of the specimen, roughly.
        weight: λ of the penalty.
        deep: whether the network sees in three dimensions, or every slice (or group of them) by itself.
        patch: voxels (y, z, x) for which a pixel of its output stands.
        channels, skips: of its levels, the finest first, and handed across at all but the last; see `nets.UNet`.
        inputs: channels of noise.
        noise: of the input in every step, relative to the input.
        beside: whether there are free voxels beside the network.
        rngs: a stream for its parameters and its input.
        """
        *maps, nz, nx, ny = shape
        grid = [math.ceil(n / p) for n, p in zip((ny, nz, nx), patch, strict=True)]
        self.network = UNet(inputs, math.prod(patch) * math.prod(maps), channels, skips, deep, rngs)
        self.voxels = nnx.Param(jnp.zeros(shape)) if beside else None
        self.input = nnx.Variable(0.1 * jax.random.uniform(rngs.params(), (*grid, inputs)))
        self.density = nnx.Variable(jnp.asarray(density, jnp.float32))
        self.weight = nnx.Variable(jnp.asarray(weight, jnp.float32))
        self.shape, self.patch, self.noise = tuple(shape), patch, noise

    def __call__(self):
        return self._volume(self.input[...])

    def perturbed(self, key):
        """The volume, its input perturbed: what a step sees. [Cheng et al. 2019]"""
        input = self.input[...]
        return self._volume(input + 0.1 * self.noise * jax.random.normal(key, input.shape))

    def _volume(self, input):
        made = unfolded(self.network(input), self.patch, self.shape)
        relative = nnx.softplus(10 * made - 3) if self.voxels is None else (0.1 + made + self.voxels[...]) ** 2
        return per_channel(self.density[...]) * relative

    def penalty(self, volume):
        """λ mean |∇voxels|, whatever the volume."""
        return 0.0 if self.voxels is None else self.weight[...] * total_variation(self.voxels[...], 1.0, 3e-3)


def unfolded(features, patch: Sequence[int], shape: Sequence[int]):
    """Features `[y, z, x, channel]` as a volume of `shape`, the channels of each laid out as a patch (of each map)."""
    (ny, nz, nx, _), (py, pz, px) = features.shape, patch
    laid = features.reshape(ny, nz, nx, py, pz, px, -1).transpose(6, 1, 4, 2, 5, 0, 3)
    z, x, y = shape[-3:]
    return laid.reshape(-1, nz * pz, nx * px, ny * py)[:, :z, :x, :y].reshape(shape)


def network(weight: float = 0.0, **options):
    """A maker of `DIP` for `fit`: `(problem, density, key) -> module`. `options` are those of `DIP`."""
    return lambda problem, density, key: DIP(problem.volume_shape, density, weight, rngs=nnx.Rngs(key), **options)
