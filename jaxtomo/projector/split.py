"""Functions of volumes and images made to run on the devices of a mesh, each on its part.

Whatever has a tilt axis y, which is the last one here, is split along it. Slices are independent, so most of the
physics is local; what mixes slices, but not tilts, is given whole images of some tilts by an all-to-all and gives them
back by another. Rows and tilts that do not divide by the number of devices are padded inside.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def rows(mesh: Mesh) -> NamedSharding:
    """Arrays `[·, ·, y]` split along their last axis over all devices of the mesh."""
    return NamedSharding(mesh, PartitionSpec(None, None, mesh.axis_names))


def matched(*arrays):
    """The arrays, all said to differ between the devices of a user's own `shard_map` if one of them does.

    JAX wants that of the start of a loop whose end will differ, and sums over devices what it pulls back through here.
    The selection is never made; XLA removes it.
    """
    never = functools.reduce(operator.or_, (jnp.isnan(a).any() for a in arrays)) & False
    return [jnp.where(never, jnp.ones((), a.dtype), a) for a in arrays]


def padded(array, count: int, axis: int, mode: str = "constant"):
    """`array` with zeros behind it along `axis` (or repeats, `mode="edge"`), up to a multiple of `count`."""
    axis %= array.ndim
    lacking = -array.shape[axis] % count
    return array if not lacking else jnp.pad(array, [(0, lacking * (a == axis)) for a in range(array.ndim)], mode)


def by_rows(function: Callable, mesh: Mesh | None) -> Callable:
    """`function(array [·, ·, y], *rest)`, which treats every row alike, with the rows split over the devices.

    Its result is split likewise; `rest` is the same on all devices. Without a mesh, `function` itself.
    """
    if mesh is None:
        return function
    split, whole = rows(mesh).spec, PartitionSpec()

    def everywhere(array, *rest):
        local = jax.shard_map(
            function, mesh=mesh, in_specs=(split, *(whole for _ in rest)), out_specs=split, check_vma=False
        )
        result = local(padded(array, mesh.size, -1), *rest)
        return lax.with_sharding_constraint(result[..., : array.shape[-1]], rows(mesh))

    return everywhere


def across_rows(function: Callable, mesh: Mesh | None) -> Callable:
    """`function(array [i, ·, y], *rest [i, ...]) -> [i, ·, y]`, which mixes rows but treats every i alike, with the i
    split.

    Two all-to-alls: to whole images, and back. Of `rest`, arrays of three axes are split and turned like `array`,
    smaller ones are on every device. Without a mesh, `function` itself.
    """
    if mesh is None:
        return function

    def turned(array, height):
        return lax.all_to_all(array, mesh.axis_names, split_axis=0, concat_axis=2, tiled=True)[..., :height]

    return _on_images(function, turned, mesh, (0, 2))


def gathered(function: Callable, mesh: Mesh | None) -> Callable:
    """`function(volume [·, ·, y], *rest [i, ...]) -> [i, ·, y]`, which mixes rows of the volume, with the i split.

    Every device holds the whole volume while it runs: for the rare geometry in which a ray crosses slices. Without a
    mesh, `function` itself.
    """
    if mesh is None:
        return function

    def whole(volume, height):
        return lax.all_gather(volume, mesh.axis_names, axis=2, tiled=True)[..., :height]

    return _on_images(function, whole, mesh, (2,))


def _on_images(function, brought, mesh, axes):
    """`function` on some i by each device, after `brought(array, height)` has brought it arrays split by rows, padded
    along `axes`."""

    def everywhere(*arrays):
        shape = jax.eval_shape(function, *arrays).shape
        heights = [a.shape[2] if a.ndim == 3 else None for a in arrays]

        def local(*parts):
            here = [
                _own(a, mesh) if height is None else brought(a, height)
                for a, height in zip(parts, heights, strict=True)
            ]
            images = padded(function(*here), mesh.size, 2)
            return lax.all_to_all(images, mesh.axis_names, split_axis=2, concat_axis=0, tiled=True)

        given, specs = zip(*(_ready(a, mesh, axes) for a in arrays), strict=True)
        result = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows(mesh).spec, check_vma=False)(*given)
        return lax.with_sharding_constraint(result[: shape[0], :, : shape[2]], rows(mesh))

    return everywhere


def _ready(array, mesh, axes):
    """`array` padded, and how it is split: by rows if it has three axes, or the same on every device."""
    if array.ndim == 3:
        for axis in axes:
            array = padded(array, mesh.size, axis)
        return array, rows(mesh).spec
    # Repeats, not zeros: a magnification of zero would make numbers that are none.
    return padded(array, mesh.size, 0, "edge"), PartitionSpec()


def _own(array, mesh):
    """The part of an array `[i, ...]`, the same on every device, that belongs to this one."""
    each = array.shape[0] // mesh.size
    return lax.dynamic_slice_in_dim(array, lax.axis_index(mesh.axis_names) * each, each)
