"""Ray sums when a second tilt mixes the slices: four-tap interpolation on the planes of the main axis.

Volumes are `[z, x, y]`, images `[tilt, u, y]`. Plain JAX throughout, one tilt at a time, so every derivative is
JAX's own; slower than the slice-decoupled kernels, and only used where a second tilt asks for it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from .split import matched


def _crossings(plane, u, v, tilt, second, steep, shape):
    """Where the rays (u, v) cross a plane of the main axis: the two other coordinates, from the centre.

    Inverts u = x cos α + (y sin β + z cos β) sin α, v = y cos β - z sin β for fixed z (steep) or fixed x (shallow).
    """
    ca, sa, cb, sb = jnp.cos(tilt), jnp.sin(tilt), jnp.cos(second), jnp.sin(second)
    # Divisors of the branch not taken are replaced by 1: its values are unused, its derivatives must stay finite.
    z = plane
    x_steep = (u - sa * (v * sb / cb + z / cb)) / jnp.where(steep, ca, 1)
    y_steep = (v + z * sb) / cb
    depth = (u - plane * ca) / jnp.where(steep, 1, sa)
    return jnp.where(steep, x_steep, depth * cb - v * sb), jnp.where(steep, y_steep, depth * sb + v * cb)


def forward(volume, tilt, second, shift, width: int):
    """Ray sums of `volume` at `tilt`, `second [tilt]` rad; `shift [tilt]` moves the images along u. |second| < 45°."""
    nz, nx, ny = volume.shape
    flat = volume.reshape(-1)
    v = jnp.arange(ny) - (ny - 1) / 2

    def one(pose):
        tilt, second, shift = pose
        steep = jnp.abs(jnp.cos(tilt)) >= jnp.abs(jnp.sin(tilt))
        u = jnp.arange(width)[:, None] - (width - 1) / 2 - shift
        planes, others = jnp.where(steep, nz, nx), jnp.where(steep, nx, nz)
        length = 1 / jnp.abs(jnp.where(steep, jnp.cos(tilt) * jnp.cos(second), jnp.sin(tilt)))

        @jax.checkpoint
        def add_plane(total, k):
            across, y = _crossings(k - (planes - 1) / 2, u, v[None], tilt, second, steep, volume.shape)
            across, y = across + (others - 1) / 2, y + (ny - 1) / 2
            for i in (jnp.floor(across), jnp.floor(across) + 1):
                for j in (jnp.floor(y), jnp.floor(y) + 1):
                    inside = (i >= 0) & (i < others) & (j >= 0) & (j < ny) & (k < planes)
                    weight = jnp.where(inside, (1 - jnp.abs(across - i)) * (1 - jnp.abs(y - j)), 0)
                    other = jnp.clip(i, 0, others - 1).astype(jnp.int32)
                    row = jnp.where(steep, k * nx + other, other * nx + k)
                    index = jnp.where(inside, row * ny + jnp.clip(j, 0, ny - 1).astype(jnp.int32), 0)
                    total = total + weight * flat.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)
            return total, None

        total = matched(jnp.zeros((width, ny), volume.dtype), volume, tilt, second, shift)[0]
        return lax.scan(add_plane, total, jnp.arange(max(nz, nx)))[0] * length

    return lax.map(one, (tilt, second, shift))
