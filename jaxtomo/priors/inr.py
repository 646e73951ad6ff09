"""Implicit neural representation: the volume as a network of coordinates, asked once for every voxel.

`INR` is an encoding of the coordinates followed by a body, any of one with any of the other. An encoding gets the three
axes of a grid, not its points: sines, interpolated tables and planes are then outer products of what is computed along
each axis, N instead of N³ times.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..grid import Grid
from ..penalty import power_variation
from .voxels import per_channel

Axes = tuple[jax.Array, jax.Array, jax.Array]
POINTS = 1 << 17  # that are evaluated at once; more are taken one block of planes after the other, and again for slopes


class INR(nnx.Module):
    """volume = density · softplus(10 network(z, x, y) - 3), of any `Grid`. Its penalty is λ mean √(|∇v^q|² + ε²).

    The parts, each a maker `(…, rngs) -> module`: an `encoding`, from the axes of a grid in units of half its longest
    side to features `[z, x, y, feature]`, and a `body`, from those to as many outputs as there are channels.
    """

    def __init__(
        self,
        shape: Sequence[int],
        density=1.0,
        weight=0.0,
        *,
        power: float = 1.0,
        encoding: Callable[..., Any] | None = None,
        body: Callable[..., Any] | None = None,
        rngs: nnx.Rngs,
    ):
        """Args:
        shape: (z, x, y) of the volume, or (channel, z, x, y) of several that come out of one network.
        density: of the specimen, roughly.
        weight: λ of the penalty.
        power: q of the penalty: 1 for total variation, 0.5 for that of the root, see `penalty.power_variation`.
        encoding: `(shape, rngs) -> module` with `features`, their number; by default `tables()`.
        body: `(inputs, outputs, rngs) -> module`; by default `perceptron()`.
        rngs: a stream for the parameters.
        """
        *maps, nz, nx, ny = shape
        self.maps, self.shape, self.longest = tuple(maps), (nz, nx, ny), max(nz, nx, ny)
        self.encoding = (encoding or tables())((nz, nx, ny), rngs)
        self.body = (body or perceptron())(self.encoding.features, math.prod(maps), rngs)
        self.density = nnx.Variable(jnp.asarray(density, jnp.float32))
        self.weight, self.power = nnx.Variable(jnp.asarray(weight, jnp.float32)), power

    def __call__(self, grid: Grid | None = None):
        """The density at the points of `grid`, by default the voxels of the reconstruction."""
        grid = Grid.of(self.shape) if grid is None else grid
        z, x, y = (2 * axis / self.longest for axis in grid.axes())
        return per_channel(self.density[...]) * self._relative(z, x, y).reshape(*self.maps, *grid.shape)

    def _relative(self, z, x, y):
        """`[channel, z, x, y]` in units of the density."""
        planes = max(1, POINTS // (x.size * y.size))
        if z.size <= planes:
            return self._block(z, x, y)
        # Blocks of equal size, of which no more than one is held at a time, for the slopes neither.
        blocks = -(-z.size // planes)
        each = -(-z.size // blocks)
        padded = jnp.pad(z, (0, blocks * each - z.size), mode="edge").reshape(blocks, each)
        graph, state = nnx.split(self)
        made = jax.lax.map(jax.checkpoint(lambda z: nnx.merge(graph, state)._block(z, x, y)), padded)
        return jnp.moveaxis(made, 0, 1).reshape(made.shape[1], -1, x.size, y.size)[:, : z.size]

    def _block(self, z, x, y):
        return nnx.softplus(10 * jnp.moveaxis(self.body(self.encoding((z, x, y))), -1, 0) - 3)

    def penalty(self, volume):
        return self.weight[...] * power_variation(volume / per_channel(self.density[...]), self.power)


def network(weight: float = 0.0, **options):
    """A maker of `INR` for `fit`: `(problem, density, key) -> module`. `options` are those of `INR`."""
    return lambda problem, density, key: INR(problem.volume_shape, density, weight, rngs=nnx.Rngs(key), **options)


class Coordinates(nnx.Module):
    """The coordinates themselves."""

    features = 3

    def __call__(self, axes: Axes):
        return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)


def coordinates():
    """A maker of `Coordinates`."""
    return lambda shape, rngs: Coordinates()


class Fourier(nnx.Module):
    """Sines and cosines of random waves, cos(k·r) and sin(k·r). [Tancik et al. 2020]"""

    def __init__(self, count: int, scale: float, rngs: nnx.Rngs):
        self.waves = nnx.Variable(scale * jax.random.normal(rngs.params(), (3, count)))
        self.features = 2 * count

    def __call__(self, axes: Axes):
        along = [jnp.exp(1j * axis[:, None] * wave) for axis, wave in zip(axes, self.waves[...], strict=True)]
        waves = jnp.einsum("zf,xf,yf->zxyf", *along)
        return jnp.concatenate([waves.real, waves.imag], -1)


def fourier(count: int = 32, scale: float = 20.0):
    """A maker of `Fourier`: `count` waves, whose components have standard deviation `scale` over half the field."""
    return lambda shape, rngs: Fourier(count, scale, rngs)


def hats(axis, size: int, half=1.0):
    """`[point, node]`: how much each of `size` nodes from -half to half counts at the points, linearly interpolated."""
    place = (jnp.clip(axis / half, -1, 1) + 1) / 2 * (size - 1)
    return jnp.maximum(1 - jnp.abs(place[:, None] - jnp.arange(size)), 0)


class Tables(nnx.Module):
    """Features at the nodes of several grids from coarse to fine, interpolated; where a grid has more nodes than its
    table has rows, nodes share rows by a hash. [Müller et al. 2022]

    A hash is asked once for every node instead of eight times for every point, and interpolation is three products of
    matrices.
    """

    def __init__(self, shape: Sequence[int], sizes: Sequence[int], channels: int, rows: int, rngs: nnx.Rngs):
        """`sizes` are nodes along the longest side of `shape`; along the others they are as far apart."""
        self.halves = tuple(n / max(shape) for n in shape)
        self.sizes = tuple(tuple(max(2, round(size * half)) for half in self.halves) for size in sizes)
        self.features = channels * len(self.sizes)
        start = [(min(rows, math.prod(size)), channels) for size in self.sizes]
        self.tables = nnx.List(
            [nnx.Param(jax.random.uniform(rngs.params(), s, minval=-0.1, maxval=0.1)) for s in start]
        )

    def __call__(self, axes: Axes):
        levels = zip(self.tables, self.sizes, strict=True)
        return jnp.concatenate([self._level(table, size, axes) for table, size in levels], -1)

    def _level(self, table, size, axes):
        nodes = table[...]
        if nodes.shape[0] < math.prod(size):
            nodes = nodes[_hashed(size, nodes.shape[0])]
        nodes = nodes.reshape(*size, -1)
        letters = ("zi,ijkf->zjkf", "xj,zjkf->zxkf", "yk,zxkf->zxyf")
        for axis, count, half, product in zip(axes, size, self.halves, letters, strict=True):
            nodes = jnp.einsum(product, hats(axis, count, half), nodes)
        return nodes


def _hashed(size: tuple[int, int, int], rows: int):
    """The row of every node of a grid, in their order; the primes are those of Müller et al."""
    z, x, y = (
        jnp.arange(n, dtype=jnp.uint32) * jnp.uint32(prime)
        for n, prime in zip(size, (1, 2654435761, 805459861), strict=True)
    )
    return ((z[:, None, None] ^ x[:, None] ^ y) % jnp.uint32(rows)).reshape(-1).astype(jnp.int32)


def tables(channels: int = 4, coarsest: int = 12, rows: int = 1 << 21):
    """A maker of `Tables`: grids from `coarsest` nodes a side, doubled until there is one a voxel."""

    def make(shape, rngs):
        sizes, finest = [coarsest], max(shape)
        while 2 * sizes[-1] < 1.5 * finest:
            sizes.append(2 * sizes[-1])
        return Tables(shape, [*sizes[:-1], finest], channels, rows, rngs)

    return make


class Planes(nnx.Module):
    """Features on the planes (z, x), (x, y) and (y, z) of several sizes, interpolated and multiplied.
    [Fridovich-Keil et al. 2023]"""

    def __init__(self, sizes: Sequence[int], channels: int, rngs: nnx.Rngs):
        self.sizes, self.features = tuple(sizes), channels * len(sizes)
        shapes = [(3, size, size, channels) for size in sizes]
        self.planes = nnx.List(
            [nnx.Param(jax.random.uniform(rngs.params(), s, minval=0.1, maxval=0.5)) for s in shapes]
        )

    def __call__(self, axes: Axes):
        return jnp.concatenate(
            [self._level(p[...], size, axes) for p, size in zip(self.planes, self.sizes, strict=True)], -1
        )

    def _level(self, planes, size, axes):
        z, x, y = (hats(axis, size) for axis in axes)
        zx, xy, yz = (
            jnp.einsum("ai,bj,ijf->abf", a, b, p) for a, b, p in zip((z, x, y), (x, y, z), planes, strict=True)
        )
        return zx[:, :, None] * xy[None] * jnp.swapaxes(yz, 0, 1)[:, None]


def planes(channels: int = 16, sizes: Sequence[int] | None = None):
    """A maker of `Planes`; by default of a quarter, half and all of the voxels a side."""
    return lambda shape, rngs: Planes(sizes or [max(2, max(shape) // n) for n in (4, 2, 1)], channels, rngs)


def sine(x):
    """sin x by reduction to [-π/2, π/2] and a polynomial, to 1e-6: XLA's own is several times slower on a CPU."""
    turns = jnp.round(x / jnp.pi)
    r = x - turns * 3.140625 - turns * 9.67653589793e-4
    square = r * r
    odd = r * (
        1 + square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040 + square * (1 / 362880 - square / 39916800))))
    )
    return odd * (1 - 2 * jnp.abs(jnp.mod(turns, 2)))


def plain(x, first: bool):
    """The phase of a SIREN. [Sitzmann et al. 2020]"""
    return x


def sinh(x, first: bool):
    """The phase of H-SIREN: sinh 2x in the first layer. [Gao & Jaiman 2024]"""
    return jnp.sinh(jnp.clip(2 * x, -6, 6)) if first else x


def finer(x, first: bool):
    """The phase of FINER: (|x| + 1) x. [Liu et al. 2024]"""
    return (jnp.abs(x) + 1) * x


class Sines(nnx.Module):
    """A network of sines, sin(ω warp(W x + b)), the last layer linear. [Sitzmann et al. 2020]"""

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, omega: float, warp, rngs: nnx.Rngs):
        ends, self.omega, self.warp = [inputs, *[width] * depth], omega, warp
        bounds = [1 / inputs, *[math.sqrt(6 / width) / omega] * depth]
        layers = [
            nnx.Linear(a, b, kernel_init=_within(bound), bias_init=_within(bound), rngs=rngs)
            for a, b, bound in zip(ends, [*ends[1:], outputs], bounds, strict=True)
        ]
        self.layers = nnx.List(layers)

    def __call__(self, features):
        for i, layer in enumerate(self.layers):
            features = layer(features)
            if i + 1 < len(self.layers):
                features = sine(self.omega * self.warp(features, i == 0))
        return features


def _within(bound: float):
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def sines(width: int = 64, depth: int = 3, omega: float = 30.0, warp=plain):
    """A maker of `Sines`: SIREN, or with `warp=sinh` H-SIREN, with `warp=finer` FINER."""
    return lambda inputs, outputs, rngs: Sines(inputs, outputs, width, depth, omega, warp, rngs)


class Perceptron(nnx.Module):
    """Linear layers with leaky ReLU between them."""

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, rngs: nnx.Rngs):
        ends = [inputs, *[width] * depth]
        hidden = [
            nnx.Linear(a, b, kernel_init=nnx.initializers.he_normal(), rngs=rngs) for a, b in itertools.pairwise(ends)
        ]
        self.layers = nnx.List([*hidden, nnx.Linear(ends[-1], outputs, kernel_init=nnx.initializers.zeros, rngs=rngs)])

    def __call__(self, features):
        for layer in self.layers[:-1]:
            features = nnx.leaky_relu(layer(features), 0.1)
        return self.layers[-1](features)


def perceptron(width: int = 16, depth: int = 1):
    """A maker of `Perceptron`."""
    return lambda inputs, outputs, rngs: Perceptron(inputs, outputs, width, depth, rngs)
