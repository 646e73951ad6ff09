"""Convolutional networks on volumes, in two and three dimensions, by two-dimensional convolutions only.

Features are `[y, z, x, channel]`: the slices across the tilt axis are the batch of every convolution. A network that is
to see in three dimensions gets each slice's neighbours as further channels, which is the same 3×3×3 kernel and on a CPU
many times faster than a three-dimensional convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


def beside(features):
    """`features` with those of the slices before and behind as further channels; zeros beyond the ends."""
    edge = jnp.zeros_like(features[:1])
    return jnp.concatenate(
        [jnp.concatenate([edge, features[:-1]]), features, jnp.concatenate([features[1:], edge])], axis=-1
    )


def halved(features, axes: Sequence[int]):
    """Means over pairs along `axes`; the last of an odd number is its own pair."""
    for axis in axes:
        n = features.shape[axis]
        if n % 2:
            features = jnp.concatenate([features, lax.slice_in_dim(features, n - 1, n, axis=axis)], axis)
        shape = (*features.shape[:axis], (n + 1) // 2, 2, *features.shape[axis + 1 :])
        features = features.reshape(shape).mean(axis + 1)
    return features


def doubled(features, shape: Sequence[int], axes: Sequence[int]):
    """`features` interpolated linearly to twice as many along `axes`, cut to `shape`: the way back from `halved`."""
    for axis in axes:
        n = features.shape[axis]
        before = jnp.concatenate(
            [lax.slice_in_dim(features, 0, 1, axis=axis), lax.slice_in_dim(features, 0, n - 1, axis=axis)], axis
        )
        behind = jnp.concatenate(
            [lax.slice_in_dim(features, 1, n, axis=axis), lax.slice_in_dim(features, n - 1, n, axis=axis)], axis
        )
        pairs = jnp.stack([0.75 * features + 0.25 * before, 0.75 * features + 0.25 * behind], axis + 1)
        features = pairs.reshape(*features.shape[:axis], 2 * n, *features.shape[axis + 1 :])
        features = lax.slice_in_dim(features, 0, shape[axis], axis=axis)
    return features


class Block(nnx.Module):
    """Convolution 3×3(×3) or 1×1, group norm, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, deep: bool, rngs: nnx.Rngs, width: int = 3):
        start, self.deep = nnx.initializers.he_normal(), deep and width > 1
        taps = 3 * inputs if self.deep else inputs
        self.convolution = nnx.Conv(taps, outputs, (width, width), kernel_init=start, rngs=rngs)
        self.norm = GroupNorm(outputs, deep)

    def __call__(self, features):
        features = self.convolution(beside(features) if self.deep else features)
        return nnx.leaky_relu(self.norm(features), 0.2)


class GroupNorm(nnx.Module):
    """Zero mean and unit variance over four groups of channels: of a whole volume, or of every slice. [Wu & He 2018]"""

    def __init__(self, channels: int, deep: bool):
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.groups = 4 if channels % 4 == 0 else 1
        self.axes = (0, 1, 2, 4) if deep else (1, 2, 4)

    def __call__(self, features):
        split = features.reshape(*features.shape[:-1], self.groups, -1)
        centred = split - split.mean(self.axes, keepdims=True)
        normal = centred * lax.rsqrt(jnp.mean(centred**2, self.axes, keepdims=True) + 1e-5)
        return normal.reshape(features.shape) * self.scale[...] + self.bias[...]


class UNet(nnx.Module):
    """A U-Net: features `[y, z, x, inputs]` to `[y, z, x, outputs]`, which start at zero.

    Every level has two blocks on the way down and one and a 1×1 convolution on the way up; levels are joined by means
    over pairs and by linear interpolation. [Ronneberger et al. 2015; Ulyanov et al. 2018 for the skips]

    Args:
        inputs, outputs: channels.
        channels: of every level, the finest first.
        skips: of every level but the last, as many as are handed across.
        deep: in three dimensions; otherwise every slice is an image of its own.
    """

    def __init__(
        self, inputs: int, outputs: int, channels: Sequence[int], skips: Sequence[int], deep: bool, rngs: nnx.Rngs
    ):
        self.axes = (0, 1, 2) if deep else (1, 2)
        ends = [inputs, *channels[:-1]]
        self.down = nnx.List(
            [nnx.List([Block(a, b, deep, rngs), Block(b, b, deep, rngs)]) for a, b in zip(ends, channels, strict=True)]
        )
        self.skips = nnx.List([nnx.Linear(c, s, rngs=rngs) for c, s in zip(channels[:-1], skips, strict=True)])
        self.up = nnx.List(
            [
                nnx.List([Block(below + s, c, deep, rngs), Block(c, c, deep, rngs, width=1)])
                for c, s, below in zip(channels[:-1], skips, channels[1:], strict=True)
            ]
        )
        self.out = nnx.Linear(channels[0], outputs, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, features) -> jax.Array:
        levels = []
        for blocks in self.down:
            features = halved(features, self.axes) if levels else features
            for block in blocks:
                features = block(features)
            levels.append(features)
        for level, skip, (block, mix) in zip(levels[-2::-1], [*self.skips][::-1], [*self.up][::-1], strict=True):
            wide = doubled(features, level.shape, self.axes)
            features = block(jnp.concatenate([wide, nnx.leaky_relu(skip(level), 0.2)], axis=-1))
            features = mix(features)
        return self.out(features)
