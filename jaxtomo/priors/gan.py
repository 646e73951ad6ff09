"""Two networks that were taught by critics: one fills the sinogram, the other cleans the tomogram.

Both see what images make of a volume without a network, the Gaussian solution and two of sparse edges, and learn what
is wrong with these: the first in their projections over half a turn, the second in their slices. Neighbouring slices
are further channels: both answer for the rows that have them on both sides. [Ding et al. 2019 for the pair]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..spectrum import Spectrum
from .nets import Around, ResidualDense, UNet, between
from .score import GEOMETRY
from .stored import known_as, read, write

ANGLES = 128  # of a filled sinogram, over half a turn: 1.4° apart
GUIDES = 3  # solutions that are shown
TOLD = GEOMETRY + 5  # numbers told of every angle


def grid():
    """`[angle]` rad, the angles of a filled sinogram: half a turn, 0 among them."""
    return (jnp.arange(ANGLES) - ANGLES // 2) * (jnp.pi / ANGLES)


def unmeasured(tilt, live):
    """`[angle]`: how far every angle of the grid is from the nearest measured tilt, in steps of the grid."""
    apart = jnp.mod(grid()[:, None] - tilt + jnp.pi / 2, jnp.pi) - jnp.pi / 2
    return jnp.min(jnp.where(live, jnp.abs(apart), jnp.pi), axis=1) * (ANGLES / jnp.pi)


def told(far, geometry):
    """`[angle, 10]`: what the network is told of every angle, how far it is from what was measured, where it is, and
    how the images were taken."""
    turn = 2 * grid()
    near = jnp.exp(-far[:, None] / jnp.array([1.0, 4.0, 16.0]))
    every = jnp.broadcast_to(geometry, (ANGLES, GEOMETRY))
    return jnp.concatenate([near, jnp.stack([jnp.sin(turn), jnp.cos(turn)], 1), every], 1)


class SinogramFill(nnx.Module):
    """The sinogram over half a turn, from the projections of solutions of some of it.

    Residual-in-residual dense blocks, no norm, dilated along the angle; what lies beyond the ends is what is seen from
    behind. It says at every pixel how much of each is right and by how much they are wrong. An untrained one gives
    their mean.

    Args:
        channels, growth: of the dense blocks.
        blocks: how many of three.
    """

    def __init__(self, *, channels: int = 16, growth: int = 8, blocks: int = 2, rngs: nnx.Rngs):
        self.enter = Around(3 * GUIDES, channels, rngs)
        self.told = nnx.Linear(TOLD, channels, rngs=rngs)
        self.blocks = nnx.List([ResidualDense(channels, growth, rngs) for _ in range(blocks)])
        self.last = Around(channels, channels, rngs)
        self.out = Around(channels, GUIDES, rngs, scale=0)
        self.shape = {"channels": channels, "growth": growth, "blocks": blocks}

    def __call__(self, seen, told):
        """`[angle, x, y - 2]` from `seen [guide, angle, x, y]` and `told [angle, 10]`."""
        features = self.enter(between(seen.transpose(3, 1, 2, 0)))
        features = nnx.leaky_relu(features + self.told(told)[:, None], 0.2)
        inside = features
        for block in self.blocks:
            inside = block(inside)
        made = self.out(nnx.leaky_relu(self.last(inside + features), 0.2)).transpose(3, 1, 2, 0)
        seen = seen[..., 1:-1]
        return seen[0] + jnp.sum((1 / GUIDES + made[1:]) * (seen[1:] - seen[0]), 0) + made[0]


class TomogramClean(nnx.Module):
    """The volume, from that of the filled sinogram and the solutions: a U-Net of slices and their neighbours.

    It says at every voxel how much of each is right and by how much they are wrong. An untrained one gives the volume
    of the filled sinogram.

    Args:
        channels: of its levels, the finest first.
    """

    def __init__(self, *, channels: Sequence[int] = (32, 64, 96, 128), rngs: nnx.Rngs):
        skips = [c // 2 for c in channels[:-1]]
        self.network = UNet(3 * (1 + GUIDES) + GEOMETRY, 1 + GUIDES, channels, skips, False, rngs)
        self.shape = {"channels": tuple(channels)}

    def __call__(self, seen, geometry):
        """`[z, x, y - 2]` from `seen [1 + guide, z, x, y]` and a geometry `[5]`."""
        slices = between(seen.transpose(3, 1, 2, 0))
        every = jnp.broadcast_to(geometry, (*slices.shape[:3], GEOMETRY))
        made = self.network(jnp.concatenate([slices, every], -1)).transpose(3, 1, 2, 0)
        seen = seen[..., 1:-1]
        return seen[0] + jnp.sum(made[:GUIDES] * (seen[1:] - seen[0]), 0) + made[GUIDES]


class Pair(nnx.Module):
    """Both networks."""

    def __init__(self, fill: Mapping[str, Any], clean: Mapping[str, Any], rngs: nnx.Rngs):
        self.fill, self.clean = SinogramFill(**fill, rngs=rngs), TomogramClean(**clean, rngs=rngs)


class Weights(NamedTuple):
    """Two trained networks.

    Attributes:
        pair: the networks.
        spectrum: of what they were trained on: that of the Gaussian solution.
        density: `[3, 13]`, how dense a specimen is behind that; see `priors.density`.
        card: where they come from, what they can do, and, as `reach`, on what geometries they were trained.
    """

    pair: Pair
    spectrum: Spectrum
    density: np.ndarray
    card: Mapping[str, Any]

    @property
    def name(self) -> str:
        return known_as(self.card)


def save(folder: str | Path, weights: Weights) -> None:
    """Write weights and their card to a new folder, see `stored.write`."""
    shapes = {"fill": weights.pair.fill.shape, "clean": weights.pair.clean.shape}
    card = {**weights.card, "method": "gan", "network": shapes}
    write(folder, weights.pair, weights.spectrum, weights.density, card)


def load(name: str | Path) -> Weights:
    """The weights in a folder, as `jaxtomo train gan` makes them, or those that ship: `slices`. Raises InputError where
    there are none."""
    return Weights(*read(name, "gan", lambda card: Pair(**card["network"], rngs=nnx.Rngs(0))))
