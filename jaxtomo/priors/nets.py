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
    return between(jnp.pad(features, [(1, 1)] + [(0, 0)] * (features.ndim - 1)))


def between(features):
    """`features` of the slices that have both neighbours, with those of these as further channels."""
    return jnp.concatenate([features[:-2], features[1:-1], features[2:]], axis=-1)


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
        self.norm = GroupNorm(outputs, (0, 1, 2) if deep else (1, 2))

    def __call__(self, features):
        features = self.convolution(beside(features) if self.deep else features)
        return nnx.leaky_relu(self.norm(features), 0.2)


class GroupNorm(nnx.Module):
    """Zero mean and unit variance over each group of channels and along `axes`, of a volume (0, 1, 2), of every slice
    (1, 2). [Wu & He 2018]"""

    def __init__(self, channels: int, axes: tuple[int, ...], groups: int = 4):
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.groups = groups if channels % groups == 0 else 1
        self.axes = (*axes, 4)

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


class Residual(nnx.Module):
    """features + two convolutions 3×3(×3) of them, each after group norm and SiLU; `conditions` scale
    and shift what is between the two. Starts as the identity. [He et al. 2016; Perez et al. 2018 for the conditions]"""

    def __init__(self, inputs: int, outputs: int, conditions: int, deep: bool, rngs: nnx.Rngs):
        zeros, self.deep = nnx.initializers.zeros, deep
        taps, axes = (3, (0, 1, 2)) if deep else (1, (1, 2))
        self.before, self.between = GroupNorm(inputs, axes, 8), GroupNorm(outputs, axes, 8)
        self.first = nnx.Conv(taps * inputs, outputs, (3, 3), rngs=rngs)
        self.second = nnx.Conv(taps * outputs, outputs, (3, 3), kernel_init=zeros, rngs=rngs)
        self.modulation = nnx.Linear(conditions, 2 * outputs, kernel_init=zeros, rngs=rngs)
        self.skip = None if inputs == outputs else nnx.Linear(inputs, outputs, rngs=rngs)

    def __call__(self, features, conditions):
        scale, shift = jnp.split(self.modulation(conditions), 2)
        inside = nnx.silu(self.before(features))
        inside = self.first(beside(inside) if self.deep else inside)
        inside = nnx.silu(self.between(inside) * (1 + scale) + shift)
        inside = self.second(beside(inside) if self.deep else inside)
        return inside + (features if self.skip is None else self.skip(features))


ASKING = 1024  # voxels that ask at a time


class Attention(nnx.Module):
    """features + what every voxel takes from all others, of its slice or of the volume, so many asking at a time that
    memory grows with the volume. [Vaswani et al. 2017; Rabe & Staats 2021]"""

    def __init__(self, channels: int, deep: bool, rngs: nnx.Rngs, heads: int = 4):
        self.norm, self.heads, self.deep = GroupNorm(channels, (0, 1, 2) if deep else (1, 2), 8), heads, deep
        self.asked = nnx.Linear(channels, 3 * channels, rngs=rngs)
        self.out = nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, features):
        slices = 1 if self.deep else features.shape[0]
        tokens = self.asked(self.norm(features)).reshape(slices, -1, 3, self.heads, features.shape[-1] // self.heads)
        query, key, value = (tokens[:, :, i] for i in range(3))
        count = query.shape[1]
        asking = jnp.pad(query, [(0, 0), (0, -count % min(ASKING, count)), (0, 0), (0, 0)])
        asking = asking.reshape(slices, -1, min(ASKING, count), *query.shape[2:]).swapaxes(0, 1)
        seen = lax.map(lambda some: jax.nn.dot_product_attention(some, key, value), asking)
        seen = seen.swapaxes(0, 1).reshape(slices, -1, *query.shape[2:])[:, :count]
        return features + self.out(seen.reshape(features.shape))


class Fine(nnx.Module):
    """Convolutions 3×3(×3) of few channels, for what is to be done at full resolution: features `[y, z, x, inputs]` to
    `[y, z, x, 1]`, which starts at zero; `conditions` scale and shift what is between the first and the second."""

    def __init__(self, inputs: int, conditions: int, deep: bool, rngs: nnx.Rngs, width: int = 16):
        taps, zeros, self.deep = 3 if deep else 1, nnx.initializers.zeros, deep
        self.first = nnx.Conv(taps * inputs, width, (3, 3), rngs=rngs)
        self.second = nnx.Conv(taps * width, width, (3, 3), rngs=rngs)
        self.modulation = nnx.Linear(conditions, 2 * width, kernel_init=zeros, rngs=rngs)
        self.out = nnx.Linear(width, 1, kernel_init=zeros, rngs=rngs)

    def __call__(self, features, conditions):
        scale, shift = jnp.split(self.modulation(conditions), 2)
        features = self.first(beside(features) if self.deep else features)
        features = nnx.silu(features * (1 + scale) + shift)
        features = self.second(beside(features) if self.deep else features)
        return self.out(nnx.silu(features))


class ConditionedUNet(nnx.Module):
    """A U-Net of residual blocks, told `conditions [condition]`: features `[y, z, x, inputs]` to `[y, z, x, outputs]`.

    A block on the way down and one on the way up at every level; attention and one more at the coarsest. What leaves
    is read from the features both normed, for shape, and as they are, for height. Starts at zero. [Ho, Jain & Abbeel
    2020]
    """

    def __init__(self, inputs: int, outputs: int, conditions: int, channels: Sequence[int], deep: bool, rngs: nnx.Rngs):
        width = 64
        self.axes = (0, 1, 2) if deep else (1, 2)
        self.told = nnx.List([nnx.Linear(conditions, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)])
        self.enter = nnx.Linear(inputs, channels[0], rngs=rngs)
        pairs = [*zip((channels[0], *channels), channels, strict=False)]
        self.down = nnx.List([Residual(a, b, width, deep, rngs) for a, b in pairs])
        self.attention = Attention(channels[-1], deep, rngs)
        self.bottom = Residual(channels[-1], channels[-1], width, deep, rngs)
        self.up = nnx.List([Residual(a + b, a, width, deep, rngs) for a, b in pairs[1:]])
        self.norm = GroupNorm(channels[0], self.axes, 8)
        self.out = nnx.Linear(2 * channels[0], outputs, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, features, conditions) -> jax.Array:
        for layer in self.told:
            conditions = nnx.silu(layer(conditions))
        features, levels = self.enter(features), []
        for block in self.down:
            features = halved(features, self.axes) if levels else features
            features = block(features, conditions)
            levels.append(features)
        features = self.bottom(self.attention(features), conditions)
        for level, block in zip(levels[-2::-1], [*self.up][::-1], strict=True):
            wide = doubled(features, level.shape, self.axes)
            features = block(jnp.concatenate([wide, level], axis=-1), conditions)
        return self.out(jnp.concatenate([nnx.silu(self.norm(features)), features], axis=-1))


def half_turn(features, count: int):
    """Sinograms `[y, angle, u, channel]` over half a turn, with `count` more angles at both ends: what is seen from
    behind is what is seen from before, turned round, p(θ + 180°, u) = p(θ, -u)."""
    before, behind = features[:, -count:, ::-1], features[:, :count, ::-1]
    return jnp.concatenate([before, features, behind], axis=1)


class Around(nnx.Module):
    """A convolution 3×3 of sinograms over half a turn, `dilation` angles apart."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, dilation: int = 1, scale: float = 1.0):
        start = nnx.initializers.variance_scaling(2.0 * scale**2, "fan_in", "normal") if scale else None
        self.convolution = nnx.Conv(
            inputs,
            outputs,
            (3, 3),
            kernel_dilation=(dilation, 1),
            padding=((0, 0), (1, 1)),
            kernel_init=start or nnx.initializers.zeros,
            rngs=rngs,
        )
        self.dilation = dilation

    def __call__(self, features):
        return self.convolution(half_turn(features, self.dilation))


class DenseBlock(nnx.Module):
    """features + 0.2 of four convolutions of them, each of which sees what all before it made. [Huang et al. 2017;
    Wang et al. 2018 for the residual scale and no norm]"""

    def __init__(self, channels: int, growth: int, dilation: int, rngs: nnx.Rngs):
        self.grow = nnx.List([Around(channels + i * growth, growth, rngs, dilation, 0.3) for i in range(3)])
        self.join = Around(channels + 3 * growth, channels, rngs, dilation, 0.3)

    def __call__(self, features):
        seen = features
        for convolution in self.grow:
            seen = jnp.concatenate([seen, nnx.leaky_relu(convolution(seen), 0.2)], axis=-1)
        return features + 0.2 * self.join(seen)


class ResidualDense(nnx.Module):
    """A residual-in-residual dense block: features + 0.2 of three dense blocks, which look 1, 2 and 4 angles far.
    [Wang et al. 2018]"""

    def __init__(self, channels: int, growth: int, rngs: nnx.Rngs):
        self.blocks = nnx.List([DenseBlock(channels, growth, dilation, rngs) for dilation in (1, 2, 4)])

    def __call__(self, features):
        inside = features
        for block in self.blocks:
            inside = block(inside)
        return features + 0.2 * (inside - features)


class SpectralConv(nnx.Module):
    """A convolution 4×4 whose kernel, as a matrix, is divided by its largest singular value, so that what it amplifies
    is bounded. [Miyato et al. 2018; ten power iterations from an even start instead of one from a remembered one]"""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (4, 4, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.stride = stride

    def __call__(self, features):
        flat = self.kernel[...].reshape(-1, self.kernel.shape[-1])
        fixed, side = lax.stop_gradient(flat), jnp.ones(flat.shape[-1])
        for _ in range(10):
            side = fixed.T @ (fixed @ side)
            side = side / jnp.maximum(jnp.linalg.norm(side), 1e-12)
        norm = jnp.linalg.norm(flat @ side)
        made = lax.conv_general_dilated(
            features,
            self.kernel[...] / jnp.maximum(norm, 1e-12),
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return made + self.bias[...]


class PatchCritic(nnx.Module):
    """How real every patch of images `[image, row, column, channel]` looks, `[image, row / 8, column / 8, 1]`.
    [Isola et al. 2017]"""

    def __init__(self, inputs: int, rngs: nnx.Rngs, channels: Sequence[int] = (32, 64, 96)):
        ends = [inputs, *channels]
        self.layers = nnx.List([SpectralConv(a, b, 2, rngs) for a, b in zip(ends, channels, strict=False)])
        self.out = SpectralConv(channels[-1], 1, 1, rngs)

    def __call__(self, images):
        for layer in self.layers:
            images = nnx.leaky_relu(layer(images), 0.2)
        return self.out(images)
