"""Ray sums and their adjoint for tilts about one axis, in portable JAX.

Volumes are `[z, x, y]` and images `[tilt, u, y]` here: the tilt axis y is contiguous, and every weight and index
depends on (x, z, tilt) alone, so the inner loop is a plain vector operation over all slices (and channels) at once.

Both kernels evaluate one and the same footprint, the share of a voxel in a ray; they are therefore each other's
adjoint by construction, whatever the footprint, its derivatives in the pose included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Footprint(NamedTuple):
    """How a voxel spreads over the rays.

    Attributes:
        weight: `(c, s, shift, u, x, z) -> share` of voxel (x, z) in ray u at a tilt of cosine c and sine s. Zero where
            the voxel's centre is a pixel or more away from the ray.
        taps: voxels that a ray can touch in one plane of its main axis.
    """

    weight: Callable[..., jax.Array]
    taps: int


# Planes (tilts, in the adjoint) summed in one fused kernel: the accumulator is read and written once for all of them.
# More of them thrash the cache on a CPU: their rows lie a power of two apart.
PLANES, TILTS = 4, 4
# Planes whose weights are tabulated together. A loop boundary keeps XLA from recomputing them for every slice.
PLANES_TABULATED = 32
# z-planes accumulated together in the adjoint, so that the accumulator stays in cache.
SLAB = 8


def _trapezoid(c, s, shift, u, x, z):
    width = jnp.maximum(jnp.abs(c), jnp.abs(s))
    distance = jnp.abs(u - shift - x * c - z * s)
    return jnp.clip(((1 + width) / 2 - distance) / width, 0, 1)


def _joseph(c, s, shift, u, x, z):
    width = jnp.maximum(jnp.abs(c), jnp.abs(s))
    distance = jnp.abs(u - shift - x * c - z * s)
    return jnp.clip(1 - distance / width, 0, 1) / width


trapezoid = Footprint(_trapezoid, taps=3)
"""The voxel's projection taken as a box of width W = max(|c|, |s|), shared by area between unit-wide rays:
clip(((1 + W)/2 - |d|) / W, 0, 1) at a distance d. Conserves mass, and a uniform slab gives its thickness exactly.
[De Man & Basu 2004; Long, Fessler & Balter 2010]"""

joseph = Footprint(_joseph, taps=2)
"""Linear interpolation along the main axis: clip(1 - |d|/W, 0, 1) / W. Sharper, but mass is not conserved.
[Joseph 1982]"""


@functools.cache
def tilt_derivative(footprint: Footprint) -> Footprint:
    """∂weight/∂tilt, which is again a footprint: ∂c = -s, ∂s = c."""

    def weight(c, s, shift, u, x, z):
        return jax.jvp(lambda c, s: footprint.weight(c, s, shift, u, x, z), (c, s), (-s, c))[1]

    return footprint._replace(weight=weight)


@functools.cache
def shift_derivative(footprint: Footprint) -> Footprint:
    """∂weight/∂shift, which is again a footprint."""

    def weight(c, s, shift, u, x, z):
        return jax.jvp(lambda shift: footprint.weight(c, s, shift, u, x, z), (shift,), (jnp.ones_like(shift),))[1]

    return footprint._replace(weight=weight)


def _centred(index, size):
    return index - (size - 1) / 2


def _gather(rows, index):
    return rows.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _rays_through_plane(footprint, c, s, shift, plane, shape, width):
    """Rows of the volume met by every ray in one plane of its main axis, and their weights: each `[tilt, u]`."""
    nz, nx = shape
    c, s, shift = c[:, None], s[:, None], shift[:, None]
    steep = jnp.abs(c) >= jnp.abs(s)  # the main axis is z, and the rows met lie along x
    along, across = jnp.where(steep, c, s), jnp.where(steep, s, c)
    planes, others = jnp.where(steep, nz, nx), jnp.where(steep, nx, nz)
    u = _centred(jnp.arange(width, dtype=c.dtype), width)
    here = _centred(plane, planes)
    crossing = (u - shift - here * across) / along + (others - 1) / 2
    below = jnp.clip(jnp.floor(crossing - footprint.taps / 2 + 1), -footprint.taps, others)

    def tap(k):
        inside = (k >= 0) & (k < others) & (plane < planes)
        there = _centred(k, others)
        x, z = jnp.where(steep, there, here), jnp.where(steep, here, there)
        k = jnp.clip(k, 0, others - 1).astype(jnp.int32)
        row = jnp.where(steep, plane * nx + k, k * nx + plane)
        return jnp.where(inside, row, 0), jnp.where(inside, footprint.weight(c, s, shift, u, x, z), 0)

    return [tap(below + i) for i in range(footprint.taps)]


def _voxels_onto_detector(footprint, c, s, shift, z, shape, width):
    """Detector rows met by every voxel of the planes `z` at one tilt, and their weights: each `[z, x]`."""
    nz, nx = shape
    x, z = _centred(jnp.arange(nx, dtype=c.dtype), nx)[None], _centred(z, nz)[:, None]
    foot = x * c + z * s + shift + (width - 1) / 2
    below = jnp.clip(jnp.floor(foot), -1, width)

    def tap(k):
        inside = (k >= 0) & (k < width)
        w = footprint.weight(c, s, shift, _centred(k, width), x, z)
        return jnp.where(inside, k, 0).astype(jnp.int32), jnp.where(inside, w, 0)

    return [tap(below), tap(below + 1)]


def _sum_taps(total, rows, taps):
    """total + Σ_j Σ_(index, weight) weight_j rows[index_j], as one fused kernel."""
    for j in range(taps[0][0].shape[0]):
        for index, weight in taps:
            total = total + weight[j][..., None] * _gather(rows, index[j])
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def forward(volume, tilt, shift, width: int, footprint: Footprint = trapezoid) -> jax.Array:
    """Ray sums `[tilt, u, y]` of `volume [z, x, y]` at `tilt [tilt]` rad; `shift [tilt]` moves the image along u.

    p(u) = Σ_xz w(θ, s, u, x, z) f(x, z), a gather over the planes of each tilt's main axis.
    """
    nz, nx, ny = volume.shape
    rows = volume.reshape(nz * nx, ny)
    c, s = jnp.cos(tilt), jnp.sin(tilt)
    steep = jnp.abs(c) >= jnp.abs(s)
    planes = jnp.maximum(jnp.where(steep.any(), nz, 0), jnp.where(steep.all(), 0, nx))
    tabulated = min(PLANES_TABULATED, -(-max(nz, nx) // PLANES) * PLANES)

    def chunk(i, images):
        plane = (i * tabulated + jnp.arange(tabulated)).reshape(-1, PLANES)
        taps = jax.vmap(jax.vmap(lambda p: _rays_through_plane(footprint, c, s, shift, p, (nz, nx), width)))(plane)
        return lax.scan(lambda total, t: (_sum_taps(total, rows, t), None), images, taps)[0]

    images = jnp.zeros((tilt.shape[0], width, ny), volume.dtype)
    return lax.fori_loop(0, (planes + tabulated - 1) // tabulated, chunk, images)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def adjoint(images, tilt, shift, shape: tuple[int, int], footprint: Footprint = trapezoid) -> jax.Array:
    """The exact adjoint of `forward`: `[z, x, y]` from `images [tilt, u, y]`; `shape` is (nz, nx).

    f(x, z) = Σ_iu w(θ_i, s_i, u, x, z) p_i(u), a gather of two detector rows per voxel and tilt.
    """
    tilts, width, ny = images.shape
    nz, nx = shape
    c, s = jnp.cos(tilt), jnp.sin(tilt)
    rows = images.reshape(tilts * width, ny)
    group = min(TILTS, tilts)
    index = jnp.arange(-(-tilts // group) * group).reshape(-1, group)
    slab = min(SLAB, nz)

    def taps(i, z):
        real = i < tilts  # the last group is padded with tilts of no weight
        i = jnp.minimum(i, tilts - 1)
        met = _voxels_onto_detector(footprint, c[i], s[i], shift[i], z, shape, width)
        return [(i * width + k, jnp.where(real, w, 0)) for k, w in met]

    def planes(z):
        table = jax.vmap(jax.vmap(lambda i: taps(i, z)))(index)
        start = jnp.zeros((slab, nx, ny), images.dtype)
        return lax.scan(lambda total, t: (_sum_taps(total, rows, t), None), start, table)[0]

    z = jnp.arange(-(-nz // slab) * slab, dtype=tilt.dtype).reshape(-1, slab)
    return lax.map(planes, z).reshape(-1, nx, ny)[:nz]


def _pose_gradient(volume, images, tilt, shift, footprint):
    """∂⟨images, forward(volume)⟩ by tilt and by shift: each `[tilt]`."""
    for slope in (tilt_derivative(footprint), shift_derivative(footprint)):
        yield jnp.sum(images * forward(volume, tilt, shift, images.shape[1], slope), axis=(1, 2))


def _forward_saved(volume, tilt, shift, width, footprint):
    return forward(volume, tilt, shift, width, footprint), (volume, tilt, shift)


def _forward_pulled_back(width, footprint, saved, images):
    volume, tilt, shift = saved
    return adjoint(images, tilt, shift, volume.shape[:2], footprint), *_pose_gradient(
        volume, images, tilt, shift, footprint
    )


def _adjoint_saved(images, tilt, shift, shape, footprint):
    return adjoint(images, tilt, shift, shape, footprint), (images, tilt, shift)


def _adjoint_pulled_back(shape, footprint, saved, volume):
    images, tilt, shift = saved
    gradient = _pose_gradient(volume, images, tilt, shift, footprint)
    return forward(volume, tilt, shift, images.shape[1], footprint), *gradient


forward.defvjp(_forward_saved, _forward_pulled_back)
adjoint.defvjp(_adjoint_saved, _adjoint_pulled_back)
