"""Ray sums and their adjoint by Triton kernels on CUDA GPUs: `forward` and `adjoint` with the arguments of `xla`.

Sums are taken in float32 whatever the arrays are stored as (float32, bfloat16, float16), each in a fixed order: the
same call gives the same bits. What the kernels do not know (float64, a footprint of your own) is left to `xla`.

Nothing here imports Triton before a kernel is called.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import NamedTuple

import jax
import jax.extend
import jax.numpy as jnp

from . import xla
from .xla import Footprint, joseph, shift_derivative, tilt_derivative, trapezoid


class Tile(NamedTuple):
    """What one program of a kernel sums in registers, in float32.

    Attributes:
        rows: (tilts, rays) of a forward tile, (z, x) of a tile of the adjoint; powers of two.
        warps: warps of 32 threads that share it.
        pieces: pieces of `SLICES` slices of each row, 1 or 2; the second shares the arithmetic of the first.
    """

    rows: tuple[int, int]
    warps: int
    pieces: int = 1


class Tiles(NamedTuple):
    """The tiles of the three kernels on one kind of device."""

    forward: Tile
    adjoint: Tile
    gradient: Tile


# Worked out, not measured: as many rows as fit the registers without a spill, so that most of the volume is read from
# the first level of the cache (see the GPU section of benchmarks/RESULTS.md).
TILES = {
    "default": Tiles(forward=Tile((8, 64), 16), adjoint=Tile((8, 16), 4), gradient=Tile((4, 16), 8)),
}
"""By a part of the device's kind as JAX names it. `benchmarks/tune_triton.py` measures them and prints a new line."""

SLICES = 32  # of a row: a line of the cache in float32, half of one in half precision, with as many registers

KNOWN: dict[Footprint, tuple[str, str]] = {
    shape: (name, slope)
    for name, footprint in (("trapezoid", trapezoid), ("joseph", joseph))
    for slope, shape in (
        ("value", footprint),
        ("tilt", tilt_derivative(footprint)),
        ("shift", shift_derivative(footprint)),
    )
}


def missing() -> str:
    """Why these kernels cannot run here; empty where they can."""
    absent = [name for name in ("triton", "jax_triton") if importlib.util.find_spec(name) is None]
    if absent:
        return f"Python finds no {' and no '.join(absent)} here; jaxtomo[cuda] installs them"
    if "cuda" not in jax.extend.backend.get_backend().platform_version.lower():
        return f"JAX computes on {jax.default_backend()} here, and the kernels need a CUDA GPU"
    return ""


def available() -> bool:
    """Whether these kernels can run here: jax-triton is installed and JAX computes on a CUDA GPU."""
    return not missing()


def tiles() -> Tiles:
    """The tiles for the device that JAX computes on by default."""
    kind = jax.devices()[0].device_kind
    return next((found for part, found in TILES.items() if part in kind), TILES["default"])


def geometry(tilt, shift):
    """What the kernels need of each tilt, `[8, tilt]`.

    Its rows: c, s, shift, L = 1/W, ∂L/∂tilt, 1/along, -across/along, and whether the tilt is steep, where W and along
    are the larger of (c, s), without and with its sign, and across is the other.
    """

    def length(tilt):
        return 1 / jnp.maximum(jnp.abs(jnp.cos(tilt)), jnp.abs(jnp.sin(tilt)))

    tilt, shift = tilt.astype(jnp.float32), shift.astype(jnp.float32)
    c, s = jnp.cos(tilt), jnp.sin(tilt)
    steep = jnp.abs(c) >= jnp.abs(s)
    along, across = jnp.where(steep, c, s), jnp.where(steep, s, c)
    stretch, growth = jax.jvp(length, (tilt,), (jnp.ones_like(tilt),))
    return jnp.stack([c, s, shift, stretch, growth, 1 / along, -across / along, steep.astype(jnp.float32)])


def _call(kernel: str, arrays, out, grid, tile: Tile, **constants):
    """One of the kernels on flat `arrays`; `out` is the shape and dtype of what it writes."""
    import jax_triton  # pyright: ignore[reportMissingImports]

    from . import triton_kernels

    largest = max(a.size for a in (*arrays, out))
    return jax_triton.triton_call(
        *arrays,
        kernel=getattr(triton_kernels, kernel),
        out_shape=out,
        grid=grid,
        num_warps=tile.warps,
        num_stages=1,
        index=triton_kernels.tl.int32 if largest < 2**31 else triton_kernels.tl.int64,
        **constants,
    )


def _height(slices: int) -> int:
    """Slices of a row: a power of two."""
    return min(SLICES, 1 << (slices - 1).bit_length())


def ray_sums(volume, tilt, shift, width: int, shape: tuple[str, str], tile: Tile):
    """`forward` by one kernel; `shape` is (footprint, slope) as the kernels name them."""
    (nz, nx, ny), count, height = volume.shape, tilt.shape[0], _height(volume.shape[2])
    pieces = tile.pieces if ny > height else 1
    return _call(
        "ray_sums",
        (volume, geometry(tilt, shift)),
        jax.ShapeDtypeStruct((count, width, ny), jnp.result_type(volume, tilt)),
        _tiles_of((width, count, ny), (tile.rows[1], tile.rows[0], pieces * height)),
        tile,
        **dict(tilts=count, width=width, nz=nz, nx=nx, ny=ny, footprint=shape[0], slope=shape[1]),
        **dict(tilts_tile=tile.rows[0], rays=tile.rows[1], height=height, pieces=pieces),
    )


def voxel_sums(images, tilt, shift, size: tuple[int, int], shape: tuple[str, str], tile: Tile):
    """`adjoint` by one kernel; `size` is (nz, nx)."""
    (count, width, ny), height = images.shape, _height(images.shape[2])
    return _call(
        "voxel_sums",
        (images, geometry(tilt, shift)),
        jax.ShapeDtypeStruct((*size, ny), jnp.result_type(images, tilt)),
        _tiles_of((size[1], size[0], ny), (tile.rows[1], tile.rows[0], height)),
        tile,
        **dict(tilts=count, width=width, nz=size[0], nx=size[1], ny=ny, footprint=shape[0], slope=shape[1]),
        **dict(depth=tile.rows[0], breadth=tile.rows[1], height=height),
    )


def pose_sums(volume, images, tilt, shift, footprint: str, tile: Tile):
    """∂⟨images, forward(volume)⟩ by tilt and by shift, `[2, tilt]`, by one kernel and a sum."""
    (nz, nx, ny), (count, width, _), height = volume.shape, images.shape, _height(volume.shape[2])
    grid = _tiles_of((width, count, ny), (tile.rows[1], tile.rows[0], height))
    partial = _call(
        "pose_gradient",
        (volume, images, geometry(tilt, shift)),
        jax.ShapeDtypeStruct((2, count, width, grid[2]), jnp.float32),
        grid,
        tile,
        **dict(tilts=count, width=width, nz=nz, nx=nx, ny=ny, footprint=footprint),
        **dict(tilts_tile=tile.rows[0], rays=tile.rows[1], height=height),
    )
    return jnp.sum(partial, axis=(2, 3))


def _tiles_of(size, tile):
    return tuple(math.ceil(n / t) for n, t in zip(size, tile, strict=True))


def _one_by_one(function, *arrays):
    """`function`, called in a loop under `vmap`: each call fills the GPU by itself."""
    return jax.custom_batching.sequential_vmap(function)(*arrays)


def _known(footprint: Footprint, *arrays) -> tuple[str, str] | None:
    """How the kernels name a footprint, if they know it and what the arrays are stored as."""
    stored = all(a.dtype in (jnp.float32, jnp.bfloat16, jnp.float16) for a in arrays)
    return KNOWN.get(footprint) if stored else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def forward(volume, tilt, shift, width: int, footprint: Footprint = trapezoid) -> jax.Array:
    """Ray sums `[tilt, u, y]` of `volume [z, x, y]`, as `xla.forward`."""
    shape = _known(footprint, volume, tilt)
    if shape is None:
        return xla.forward(volume, tilt, shift, width, footprint)
    call = functools.partial(ray_sums, width=width, shape=shape, tile=tiles().forward)
    return _one_by_one(call, volume, tilt, shift)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def adjoint(images, tilt, shift, shape: tuple[int, int], footprint: Footprint = trapezoid) -> jax.Array:
    """The adjoint of `forward`, `[z, x, y]`, as `xla.adjoint`; `shape` is (nz, nx)."""
    known = _known(footprint, images, tilt)
    if known is None:
        return xla.adjoint(images, tilt, shift, shape, footprint)
    call = functools.partial(voxel_sums, size=shape, shape=known, tile=tiles().adjoint)
    return _one_by_one(call, images, tilt, shift)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _pose_gradient(volume, images, tilt, shift, footprint) -> jax.Array:
    """∂⟨images, forward(volume)⟩ by tilt and by shift, `[2, tilt]`."""
    known = _known(footprint, volume, images, tilt)
    if known is None or known[1] != "value":
        return _pose_gradient_in_parts(volume, images, tilt, shift, footprint)
    call = functools.partial(pose_sums, footprint=known[0], tile=tiles().gradient)
    return _one_by_one(call, volume, images, tilt, shift).astype(tilt.dtype)


def _pose_gradient_in_parts(volume, images, tilt, shift, footprint) -> jax.Array:
    """The same through a stack of images for each, which can be differentiated further."""
    slopes = tilt_derivative(footprint), shift_derivative(footprint)
    stacks = (images * forward(volume, tilt, shift, images.shape[1], slope) for slope in slopes)
    return jnp.stack([jnp.sum(stack, axis=(1, 2)) for stack in stacks]).astype(tilt.dtype)


def _forward_saved(volume, tilt, shift, width, footprint):
    return forward(volume, tilt, shift, width, footprint), (volume, tilt, shift)


def _forward_pulled_back(width, footprint, saved, images):
    volume, tilt, shift = saved
    by_pose = jnp.asarray(_pose_gradient(volume, images, tilt, shift, footprint))
    back = jnp.asarray(adjoint(images, tilt, shift, volume.shape[:2], footprint)).astype(volume.dtype)
    return back, by_pose[0], by_pose[1].astype(shift.dtype)


def _adjoint_saved(images, tilt, shift, shape, footprint):
    return adjoint(images, tilt, shift, shape, footprint), (images, tilt, shift)


def _adjoint_pulled_back(shape, footprint, saved, volume):
    images, tilt, shift = saved
    by_pose = jnp.asarray(_pose_gradient(volume, images, tilt, shift, footprint))
    projected = jnp.asarray(forward(volume, tilt, shift, images.shape[1], footprint)).astype(images.dtype)
    return projected, by_pose[0], by_pose[1].astype(shift.dtype)


def _pose_gradient_saved(volume, images, tilt, shift, footprint):
    return _pose_gradient(volume, images, tilt, shift, footprint), (volume, images, tilt, shift)


def _pose_gradient_pulled_back(footprint, saved, cotangent):
    in_parts = functools.partial(_pose_gradient_in_parts, footprint=footprint)
    return jax.vjp(in_parts, *saved)[1](cotangent)


forward.defvjp(_forward_saved, _forward_pulled_back)
adjoint.defvjp(_adjoint_saved, _adjoint_pulled_back)
_pose_gradient.defvjp(_pose_gradient_saved, _pose_gradient_pulled_back)
