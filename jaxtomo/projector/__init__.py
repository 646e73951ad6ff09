"""The physics: ray sums of a volume at given poses, and their exact adjoint. Functions of arrays, nothing kept.

`project` and `back_project` take the public axes, volumes `[z, y, x]` and images `[tilt, y, x]`. Solvers work in the
axes of the kernels, volumes `[z, x, y]` and images `[tilt, x, y]`, with `forward` and `adjoint`: transposed once at
the door instead of in every call.
"""

from __future__ import annotations

import functools
import math
import os
from types import ModuleType

import jax
import jax.numpy as jnp

from ..data import Pose
from ..errors import InputError
from . import general, warp, xla
from .split import across_rows, by_rows, gathered, matched
from .xla import joseph, trapezoid

__all__ = ["adjoint", "back_project", "forward", "joseph", "project", "trapezoid"]


@functools.cache
def kernels() -> ModuleType:
    """The kernels in use, chosen once: those of `xla`, which run everywhere, or of `triton` where the environment has
    JAXTOMO_PROJECTOR=triton.

    Raises InputError if they are asked for and cannot run.
    """
    asked = os.environ.get("JAXTOMO_PROJECTOR", "xla")
    if asked == "xla":
        return xla
    if asked != "triton":
        raise InputError(f"JAXTOMO_PROJECTOR={asked}: there are xla and triton. Set one of them, or nothing.")
    from . import triton

    if missing := triton.missing():
        raise InputError(f"JAXTOMO_PROJECTOR=triton: {missing}. Unset it to compute with xla.")
    return triton


@functools.partial(jax.jit, static_argnames=("detector", "footprint"))
def project(volume, pose: Pose, detector: tuple[int, int] | None = None, footprint=trapezoid) -> jax.Array:
    """Ray sums of a volume: the images a perfect detector would record.

    p_i(u, v) = Σ_t f(R_i (u, v, t) + s_i) dt in voxel lengths: density 1 of thickness L gives L.

    Args:
        volume: `[z, y, x]`, or `[channel, z, y, x]`.
        pose: how each tilt saw it; see `Pose` for the geometry.
        detector: (height along y, width along x) in pixels; by default (ny, nx) of the volume.
        footprint: `trapezoid` (area-exact) or `joseph`; a second tilt always interpolates linearly.

    Compiled once per shape; may be used inside your own `jit`, `grad`, `vmap`, in the volume and in the pose.

    Returns:
        `[tilt, y, x]`, or `[channel, tilt, y, x]`.
    """
    if volume.ndim not in (3, 4):
        raise InputError(f"volume has shape {volume.shape}. Give [z, y, x] or [channel, z, y, x].")
    if volume.ndim == 4:
        return jax.vmap(lambda v: project(v, pose, detector, footprint))(volume)
    height, width = detector or volume.shape[1:]
    # Rows are added to the volume and cut off the images, so that a shift moves nothing past an edge that is not one.
    volume = _centre_rows(volume, max(height, volume.shape[1]))
    images = forward(jnp.swapaxes(volume, 1, 2), pose, width, footprint)
    return _centre_rows(jnp.swapaxes(images, 1, 2), height)


@functools.partial(jax.jit, static_argnames=("shape", "footprint"))
def back_project(images, pose: Pose, shape: tuple[int, int, int], footprint=trapezoid) -> jax.Array:
    """The exact adjoint of `project`: ⟨project(f), p⟩ = ⟨f, back_project(p)⟩.

    Args:
        images: `[tilt, y, x]`, or `[channel, tilt, y, x]`.
        pose: how each tilt saw the specimen.
        shape: (nz, ny, nx) of the volume.

    Returns:
        `[z, y, x]`, or `[channel, z, y, x]`.

    Raises:
        InputError (a ValueError) if `images` and `pose` disagree on the number of tilts.
    """
    if images.ndim == 4:
        return jax.vmap(lambda p: back_project(p, pose, shape, footprint))(images)
    nz, ny, nx = shape
    images = jnp.swapaxes(_centre_rows(images, max(ny, images.shape[1])), 1, 2)
    return _centre_rows(jnp.swapaxes(adjoint(images, pose, (nz, nx), footprint), 1, 2), ny)


def _centre_rows(images, height):
    """`[tilt, y, x]` (or `[z, y, x]`) with rows cut or zeros added on both sides, the centre kept."""
    lacking = height - images.shape[1]
    if lacking % 2:
        raise InputError(
            f"detector and volume differ by {abs(lacking)} rows, so their centres fall between rows. "
            "Give heights that differ by an even number."
        )
    if lacking >= 0:
        return jnp.pad(images, ((0, 0), (lacking // 2, lacking // 2), (0, 0)))
    return images[:, -lacking // 2 : lacking // 2]


def forward(volume, pose: Pose, width: int, footprint=trapezoid, mesh=None) -> jax.Array:
    """`project` in the axes of the kernels: `[tilt, x, y]` from `volume [z, x, y]`, on `width` detector columns.

    With a `mesh`, each of its devices computes the rows it holds; see `jaxtomo.parallel`.

    A rotated or magnified image is warped from one wide enough for all of the volume. Without rotation and
    magnification, a shift across the axis moves the rays themselves and one along it slides the image, so nothing is
    interpolated twice.
    """
    volume = jnp.asarray(volume)
    tilts = pose.tilt.shape[0]
    planar = pose.rotation is not None or pose.magnification is not None
    across = jnp.zeros(tilts, pose.tilt.dtype) if planar or pose.shift is None else pose.shift[:, 0]
    seen = _extent((volume.shape[0], volume.shape[1]), width) if planar else width
    if pose.second_tilt is None:
        ray_sums = by_rows(lambda *given: kernels().forward(*matched(*given), seen, footprint), mesh)
        images = ray_sums(volume, pose.tilt, across)
    else:
        images = _oblique(seen, mesh)(volume, pose.tilt, pose.second_tilt, across)
    if planar:
        frame = (width, volume.shape[2])
        images = across_rows(lambda *given: warp.warp(*matched(*given), frame), mesh)(images, *_planar(pose))
    elif pose.shift is not None:
        images = across_rows(lambda *given: warp.slide(*matched(*given)), mesh)(images, pose.shift[:, 1])
    return jnp.asarray(images)


def _oblique(width, mesh):
    """Ray sums through a second tilt: `(volume, tilt, second_tilt, shift) -> images`."""
    return gathered(lambda volume, *pose: general.forward(volume, *pose, width=width), mesh)


def adjoint(images, pose: Pose, shape: tuple[int, int], footprint=trapezoid, mesh=None) -> jax.Array:
    """The exact adjoint of `forward`: `[z, x, y]` from `images [tilt, x, y]`; `shape` is (nz, nx)."""
    images = jnp.asarray(images)
    tilts, width, ny = images.shape
    if pose.tilt.shape[0] != tilts:
        raise InputError(f"{tilts} images but {pose.tilt.shape[0]} poses. Give one pose an image.")
    across = jnp.zeros(tilts, pose.tilt.dtype)
    if pose.rotation is not None or pose.magnification is not None:
        frame = (_extent(shape, width), ny)
        images = across_rows(lambda *given: warp.unwarp(*matched(*given), frame), mesh)(images, *_planar(pose))
    elif pose.shift is not None:
        across = pose.shift[:, 0]
        images = across_rows(lambda *given: warp.slide(*matched(*given)), mesh)(images, -pose.shift[:, 1])
    if pose.second_tilt is None:
        smeared = by_rows(lambda *given: kernels().adjoint(*matched(*given), shape, footprint), mesh)
        return smeared(images, pose.tilt, across)
    ray_sums, nothing = _oblique(images.shape[1], mesh), jnp.zeros((*shape, ny), images.dtype)
    return jax.vjp(lambda v: ray_sums(v, pose.tilt, pose.second_tilt, across), nothing)[1](images)[0]


def _extent(shape: tuple[int, int], width: int) -> int:
    """Detector columns that hold (nz, nx) voxels at any tilt; odd if `width` is, so that their centres agree."""
    columns = math.ceil(math.hypot(*shape)) + 2
    return columns + (columns - width) % 2


def _planar(pose: Pose):
    """Rotation, magnification and shift with the nominal ones filled in."""
    tilts, dtype = pose.tilt.shape[0], pose.tilt.dtype
    rotation = jnp.zeros(tilts, dtype) if pose.rotation is None else pose.rotation
    magnification = jnp.ones(tilts, dtype) if pose.magnification is None else pose.magnification
    shift = jnp.zeros((tilts, 2), dtype) if pose.shift is None else pose.shift
    return rotation, magnification, shift
