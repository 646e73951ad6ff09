"""Where a model of the volume is asked for its density: points of a box, evenly spaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grid:
    """Points of a box about the rotation centre, of a reconstruction or anything finer or smaller.

    Attributes:
        spacing: between neighbours, in voxels of the reconstruction.
        centre: `[3]` of the box (z, x, y), in voxels from the rotation centre.
        shape: how many points along (z, x, y).
    """

    spacing: jax.Array
    centre: jax.Array
    shape: tuple[int, int, int] = field(metadata={"static": True})

    @staticmethod
    def of(shape: Sequence[int]) -> Grid:
        """The voxels (z, x, y) of a reconstruction."""
        nz, nx, ny = shape
        return Grid(jnp.ones(()), jnp.zeros(3), (nz, nx, ny))

    def finer(self, factor: int) -> Grid:
        """The same box with `factor` times as many points a side; what they hold is still density, whatever spacing."""
        nz, nx, ny = self.shape
        return Grid(self.spacing / factor, self.centre, (factor * nz, factor * nx, factor * ny))

    def rows(self, start, count: int) -> Grid:
        """The slab of `count` points along y from number `start` on, which may be traced."""
        nz, nx, ny = self.shape
        along = self.spacing * (start + (count - 1) / 2 - (ny - 1) / 2)
        return Grid(self.spacing, self.centre.at[2].add(along), (nz, nx, count))

    def moved(self, by) -> Grid:
        """The points moved by (z, x, y) voxels, as jitter does."""
        return Grid(self.spacing, self.centre + jnp.asarray(by), self.shape)

    def axes(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The coordinates along z, x and y, in voxels from the rotation centre."""
        z, x, y = (
            c + self.spacing * (jnp.arange(n) - (n - 1) / 2) for c, n in zip(self.centre, self.shape, strict=True)
        )
        return z, x, y
