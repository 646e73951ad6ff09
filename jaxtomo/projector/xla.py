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

from .split import matched


class Footprint(NamedTuple):
    """How a voxel spreads over the rays.

    Attributes:
        weight: `(c, s, shift, u, x, z) -> share` of voxel (x, z) in ray u at a tilt of cosine c and sine s. Zero where
            the voxel's centre is a pixel or more away from the ray.
        taps: voxels that a ray can touch in one plane of its main axis.
    """

    weight: Callable[..., jax.Array]
    taps: int


class Blocks(NamedTuple):
    """How much is worked on at once; what is best differs between devices.

    Attributes:
        planes: planes (tilts, in the adjoint) summed in one fused kernel: the accumulator is read and written once for
            all of them. A CPU core cannot overlap longer chains of additions.
        rays: rays times planes that are tabulated, and whose planes are copied, together.
        pixels: in the accumulator of `forward`, which should stay in cache.
        voxels: in the accumulator of `adjoint`, likewise.
    """

    planes: int
    rays: int
    pixels: int
    voxels: int


# Measured on a CPU with 1 MiB of cache a core and 32 MiB for all; for others, large enough to fill a device.
CPU = Blocks(planes=4, rays=2**17, pixels=2**21, voxels=2**21)
ACCELERATOR = Blocks(planes=16, rays=2**21, pixels=2**31, voxels=2**25)


def _blocks() -> Blocks:
    return CPU if jax.default_backend() == "cpu" else ACCELERATOR


def _trapezoid(c, s, shift, u, x, z):
    width = jnp.maximum(jnp.abs(c), jnp.abs(s))
    distance = jnp.abs(u - shift - x * c - z * s)
    return jnp.clip(((1 + width) / 2 - distance) * (1 / width), 0, 1)


def _joseph(c, s, shift, u, x, z):
    width = jnp.maximum(jnp.abs(c), jnp.abs(s))
    distance = jnp.abs(u - shift - x * c - z * s)
    return jnp.clip(1 - distance * (1 / width), 0, 1) * (1 / width)


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


def _sum_taps(total, rows, index, weights):
    """total + Σ_ij weights[i][j] rows[index[j] + i] as one fused kernel, one short chain of additions for each i."""
    for i, weight in enumerate(weights):
        met = rows[i : len(rows) - len(weights) + 1 + i]
        total = total + sum(weight[j][..., None] * _gather(met, index[j]) for j in range(len(index)))
    return total


def _at_least(size, rows, axes):
    """Zeros added at the end of the axes, so that neighbouring voxels or pixels are there to be met."""
    lacking = [max(size - n, 0) if axis in axes else 0 for axis, n in enumerate(rows.shape)]
    return jnp.pad(rows, [(0, n) for n in lacking]) if any(lacking) else rows


def _parts(ny, size, fits):
    """Into how many equal parts to cut ny slices so that `size` numbers become `fits`, 64 slices or more in each."""
    choices = [n for n in range(1, max(ny // 64, 1) + 1) if ny % n == 0]
    return next((n for n in choices if size // n <= fits), choices[-1])


def _rays_through_plane(footprint, c, s, shift, plane, shape, held, width):
    """First of the voxels met by every ray in one plane of its main axis, `[tilt, u]`, and the weight of each of them.

    Voxels that lie outside are replaced by others that lie inside, which the footprint gives no weight.
    """
    nz, nx = shape
    c, s, shift = c[:, None], s[:, None], shift[:, None]
    steep = jnp.abs(c) >= jnp.abs(s)  # the main axis is z, and the voxels met lie along x
    along, across = jnp.where(steep, c, s), jnp.where(steep, s, c)
    planes, others = jnp.where(steep, nz, nx), jnp.where(steep, nx, nz)
    u = _centred(jnp.arange(width, dtype=c.dtype), width)
    here = _centred(plane, planes)
    crossing = (u - shift - here * across) * (1 / along) + (others - 1) / 2
    last = jnp.where(steep, held[1], held[0]) - footprint.taps
    first = jnp.clip(jnp.floor(crossing - footprint.taps / 2 + 1), 0, last)

    def weight(k):
        there = _centred(k, others)
        x, z = jnp.where(steep, there, here), jnp.where(steep, here, there)
        return jnp.where(plane < planes, footprint.weight(c, s, shift, u, x, z), 0)

    return first.astype(jnp.int32), [weight(first + i) for i in range(footprint.taps)]


def _voxels_onto_detector(footprint, c, s, shift, z, shape, held, width):
    """First of the two detector pixels met by every voxel of the planes `z`, `[z, x]`, and their weights."""
    nz, nx = shape
    x, z = _centred(jnp.arange(nx, dtype=c.dtype), nx), _centred(z, nz)[:, None]
    foot = x * c + z * s + shift + (width - 1) / 2
    first = jnp.clip(jnp.floor(foot), 0, held - 2)
    return first.astype(jnp.int32), [footprint.weight(c, s, shift, _centred(first + i, width), x, z) for i in range(2)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def forward(volume, tilt, shift, width: int, footprint: Footprint = trapezoid) -> jax.Array:
    """Ray sums `[tilt, u, y]` of `volume [z, x, y]` at `tilt [tilt]` rad; `shift [tilt]` moves the image along u.

    p(u) = Σ_xz w(θ, s, u, x, z) f(x, z), a gather over the planes of each tilt's main axis. A volume of half precision
    is only stored so: sums are of the precision of `tilt`.
    """
    nz, nx, ny = volume.shape
    tilts, dtype, blocks = tilt.shape[0], jnp.result_type(volume, tilt), _blocks()
    volume = _at_least(footprint.taps, volume, (0, 1))
    pz, px = volume.shape[:2]
    parts = _parts(ny, tilts * width * ny, blocks.pixels)
    rows = volume.reshape(pz * px * parts, ny // parts)
    c, s = jnp.cos(tilt), jnp.sin(tilt)
    steep = jnp.abs(c) >= jnp.abs(s)
    planes = jnp.maximum(jnp.where(steep.any(), nz, 0), jnp.where(steep.all(), 0, nx))
    # Two groups at least: a loop that runs once would be none, and loops alone keep XLA from tabulating every slice.
    groups = max(min(blocks.rays // (tilts * width), max(nz, nx)) // blocks.planes, 2)
    together = groups * blocks.planes
    chunks = -(-max(nz, nx) // together)

    # Planes are copied, those across z and those across x, so that the voxels of either lie side by side.
    plane = jnp.arange(chunks * together).reshape(chunks, together, 1)
    across_z = jnp.minimum(plane, pz - 1) * px + jnp.arange(px)
    across_x = jnp.minimum(plane, px - 1) + jnp.arange(pz) * px
    source = jnp.concatenate([across_z.reshape(chunks, -1), across_x.reshape(chunks, -1)], axis=1) * parts

    def sums(part):
        def chunk(i, total):
            def tabulate(j):
                plane = i * together + j
                first, weights = _rays_through_plane(footprint, c, s, shift, plane, (nz, nx), (pz, px), width)
                return first + jnp.where(steep, j * px, together * px + j * pz)[:, None], weights

            table = jax.vmap(jax.vmap(tabulate))(jnp.arange(together).reshape(groups, -1))
            copied = _gather(rows, source[i] + part).astype(dtype)
            return lax.scan(lambda total, t: (_sum_taps(total, copied, *t), None), total, table)[0]

        start, *_ = matched(jnp.zeros((tilts, width, ny // parts), dtype), volume, tilt, shift)
        return lax.fori_loop(0, (planes + together - 1) // together, chunk, start)

    images = lax.map(sums, jnp.arange(parts))
    return jnp.moveaxis(images, 0, 2).reshape(tilts, width, ny)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def adjoint(images, tilt, shift, shape: tuple[int, int], footprint: Footprint = trapezoid) -> jax.Array:
    """The exact adjoint of `forward`: `[z, x, y]` from `images [tilt, u, y]`; `shape` is (nz, nx).

    f(x, z) = Σ_iu w(θ_i, s_i, u, x, z) p_i(u), a gather of two detector rows per voxel and tilt.
    """
    tilts, width, ny = images.shape
    nz, nx = shape
    dtype = jnp.result_type(images, tilt)
    images = _at_least(2, images, (1,)).astype(dtype)
    held = images.shape[1]
    rows = images.reshape(tilts * held, ny)
    blocks = _blocks()
    groups = max(-(-tilts // blocks.planes), 2)  # as in `forward`
    group = -(-tilts // groups)
    slab = min(max(blocks.voxels // (nx * max(ny, 32)), 1), nz)

    def grouped(a):
        return jnp.pad(a, (0, groups * group - tilts), mode="edge").reshape(groups, group)

    c, s, shift, number = (grouped(a) for a in (jnp.cos(tilt), jnp.sin(tilt), shift, jnp.arange(tilts)))
    real = jnp.arange(groups * group).reshape(groups, group) < tilts  # the last group is padded

    def planes(z):
        def tabulate(c, s, shift, number, real):
            first, weights = _voxels_onto_detector(footprint, c, s, shift, z, shape, held, width)
            return first + number * held, [jnp.where(real, w, 0) for w in weights]

        table = jax.vmap(jax.vmap(tabulate))(c, s, shift, number, real)
        start, *_ = matched(jnp.zeros((slab, nx, ny), dtype), images, c, s, shift)
        return lax.scan(lambda total, t: (_sum_taps(total, rows, *t), None), start, table)[0]

    z = jnp.arange(-(-nz // slab) * slab, dtype=tilt.dtype).reshape(-1, slab)
    return lax.map(planes, z).reshape(-1, nx, ny)[:nz]


def _pose_gradient(volume, images, tilt, shift, footprint):
    """∂⟨images, forward(volume)⟩ by tilt and by shift: each `[tilt]`."""
    for slope in (tilt_derivative(footprint), shift_derivative(footprint)):
        slopes = jnp.sum(images * forward(volume, tilt, shift, images.shape[1], slope), axis=(1, 2))
        yield slopes.astype(tilt.dtype)


def _forward_saved(volume, tilt, shift, width, footprint):
    return forward(volume, tilt, shift, width, footprint), (volume, tilt, shift)


def _forward_pulled_back(width, footprint, saved, images):
    volume, tilt, shift = saved
    back = jnp.asarray(adjoint(images, tilt, shift, volume.shape[:2], footprint), volume.dtype)
    return back, *_pose_gradient(volume, images, tilt, shift, footprint)


def _adjoint_saved(images, tilt, shift, shape, footprint):
    return adjoint(images, tilt, shift, shape, footprint), (images, tilt, shift)


def _adjoint_pulled_back(shape, footprint, saved, volume):
    images, tilt, shift = saved
    projected = jnp.asarray(forward(volume, tilt, shift, images.shape[1], footprint), images.dtype)
    return projected, *_pose_gradient(volume, images, tilt, shift, footprint)


forward.defvjp(_forward_saved, _forward_pulled_back)
adjoint.defvjp(_adjoint_saved, _adjoint_pulled_back)
