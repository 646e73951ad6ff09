"""Many devices: a mesh, and a problem with its solver split over it so that each device holds some rows of everything.

    problem, solver = jt.parallel.split(problem, jt.tv(), jt.parallel.mesh())
    result = jt.reconstruct(problem, solver)

Volume and images are both split along the tilt axis. Projections then need no communication at all, a shift or turn in
the image plane two all-to-alls of the images, which are N/T times smaller than the volume, and a total variation one
row from each neighbour. Answers are those of one device, to float32 rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .data import Problem
from .errors import InputError
from .projector.split import padded, rows
from .solve import Solver


def mesh(devices: int | Sequence[Any] | None = None) -> Mesh:
    """A row of devices: these, or the first so many of all; by default all, those of other hosts included.

    Raises InputError if there are not so many.
    """
    there = jax.devices()
    if isinstance(devices, int):
        if not 1 <= devices <= len(there):
            raise InputError(
                f"{devices} devices asked for; there are {len(there)} ({there[0].device_kind}). Give 1 to {len(there)}."
            )
        devices = there[:devices]
    chosen = list(there if devices is None else devices)
    # Not `jax.make_mesh`, which may reorder them: every host is to hold rows that lie side by side.
    return Mesh(np.array(chosen), ("rows",), axis_types=(AxisType.Auto,))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Split:
    """A solver's state at rest on a mesh.

    Attributes:
        state: as the solver made it, but for rows padded behind and split.
        heights: how many rows each of its leaves has in truth; None for one that is whole on every device.
    """

    state: Any
    heights: tuple[int | None, ...] = field(metadata={"static": True})


def split(problem: Problem, solver: Solver, mesh: Mesh, height: int | None = None) -> tuple[Problem, Solver]:
    """The same problem and solver on many devices, for `reconstruct` and for steps by hand.

    Within its steps the solver sees the problem in its true shape. Between them, arrays of three axes with at least as
    many rows as the volume (volumes, images, and what is made of them) are split along their last axis, padded to a
    multiple of the devices; everything else is the same on every device. `read` gives NumPy arrays.

    Args:
        problem: what is asked; on several hosts the part that this one holds, `held_rows` of the whole.
        solver: of any kind. Its `init` and `step` must be traceable by `jax.jit`.
        mesh: the devices.
        height: rows of the whole problem, if `problem` is a part.

    Raises InputError if the problem is split already, or has several channels.
    """
    if problem.mesh is not None:
        raise InputError("this problem is split over devices already. Split it once.")
    if problem.images.ndim == 4:
        raise InputError("several channels on several devices are not supported. Choose one channel, or one device.")
    height = problem.shape[2] if height is None else height
    weights = problem.weights
    if jax.process_count() > 1:  # a mask that only one host has must not make its program another one
        weights = jnp.broadcast_to(weights, problem.images.shape)
    placed = problem.replace(
        images=_placed(problem.images, height, mesh),
        weights=_placed(weights, height, mesh) if weights.shape[2] > 1 else jax.device_put(weights, _whole(mesh)),
        pose=jax.tree.map(lambda a: jax.device_put(np.asarray(a), _whole(mesh)), problem.pose),
        shape=(*problem.shape[:2], height),
        mesh=mesh,
    )
    init = jax.jit(lambda problem, key: _packed(solver.init(unpadded(problem), key), problem))
    read = jax.jit(lambda problem, state: _read(solver, problem, state))
    split_solver = solver._replace(
        init=init, step=_split_step(solver.step), read=lambda problem, state: _fetched(problem, *read(problem, state))
    )
    if solver.samples is not None:
        drawn = jax.jit(lambda problem, state: _read(solver._replace(read=_samples_of(solver)), problem, state))
        split_solver = split_solver._replace(
            samples=lambda problem, state: _fetched(problem, *drawn(problem, state))[0]
        )
    return placed, split_solver


def held_rows(height: int, mesh: Mesh) -> slice:
    """Which of `height` rows this host holds. Raises InputError if there are none left for it."""
    local = set(mesh.local_mesh.devices.flat)
    here = [i for i, device in enumerate(mesh.devices.flat) if device in local]
    each = -(-height // mesh.size)
    if not here or here[0] * each >= height:
        raise InputError(
            f"{height} rows over {mesh.size} devices leave none for process {jax.process_index()}. Start fewer."
        )
    return slice(here[0] * each, min(height, (here[-1] + 1) * each))


def fetched(array) -> np.ndarray:
    """The rows of a split array `[·, ·, y]` that this host holds, padding included; any other array as it is."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[-1].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards], axis=-1)


def true_shapes(state) -> list[tuple[int, ...]]:
    """The shape of every array in a solver's state, without the padding of one that is split."""
    leaves = jax.tree.leaves(state)
    heights = state.heights if isinstance(state, Split) else [None] * len(leaves)
    return [tuple(np.shape(a)) if n is None else (*np.shape(a)[:-1], n) for a, n in zip(leaves, heights, strict=True)]


def at_rest(state, problem: Problem):
    """What `state`, as `jax.eval_shape` describes it, will be: shapes, types, and on which devices."""
    if not isinstance(state, Split):
        (device,) = problem.images.devices()
        single = jax.sharding.SingleDeviceSharding(device)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=single), state)
    mesh = _mesh_of(problem)
    leaves, structure = jax.tree.flatten(state)
    placed = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=_whole(mesh) if n is None else rows(mesh))
        for a, n in zip(leaves, state.heights, strict=True)
    ]
    return jax.tree.unflatten(structure, placed)


def _mesh_of(problem: Problem) -> Mesh:
    if problem.mesh is None:
        raise InputError("this solver was split over devices and the problem was not. Take both from parallel.split.")
    return problem.mesh


def _whole(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def _placed(array, height: int, mesh: Mesh) -> jax.Array:
    """A split array of `height` rows from the rows of it that this host holds."""
    each = -(-height // mesh.size)
    local = padded(np.asarray(array), each * len(mesh.local_mesh.devices.flat), -1)
    return jax.make_array_from_process_local_data(rows(mesh), local, (*array.shape[:2], each * mesh.size))


def at_rest_again(problem: Problem) -> Problem:
    """A split problem that was cut, padded and split as `split` leaves it."""
    mesh = _mesh_of(problem)

    def placed(array):
        return jax.device_put(padded(array, mesh.size, -1), rows(mesh)) if array.shape[2] > 1 else array

    return problem.replace(images=placed(problem.images), weights=placed(problem.weights))


def unpadded(problem: Problem) -> Problem:
    """The problem in its true shape, inside a compiled function; one that is not split is that already."""
    if problem.mesh is None:
        return problem
    height, mesh, weights = problem.shape[2], problem.mesh, problem.weights
    return problem.replace(
        images=_cut(problem.images, height, mesh),
        weights=weights if weights.shape[2] == 1 else _cut(weights, height, mesh),
    )


def _cut(array, height: int, mesh: Mesh):
    return lax.with_sharding_constraint(array[..., :height], rows(mesh))


def _packed(state, problem: Problem) -> Split:
    """The state as it rests on the mesh."""
    mesh = _mesh_of(problem)
    leaves, structure = jax.tree.flatten(state)
    heights = tuple(a.shape[2] if a.ndim == 3 and a.shape[2] >= problem.shape[2] else None for a in leaves)
    arrays = [
        lax.with_sharding_constraint(*((a, _whole(mesh)) if n is None else (padded(a, mesh.size, 2), rows(mesh))))
        for a, n in zip(leaves, heights, strict=True)
    ]
    return Split(jax.tree.unflatten(structure, arrays), heights)


def _unpacked(split: Split, mesh: Mesh):
    """The state as the solver made it."""
    leaves, structure = jax.tree.flatten(split.state)
    cut = [a if n is None else _cut(a, n, mesh) for a, n in zip(leaves, split.heights, strict=True)]
    return jax.tree.unflatten(structure, cut)


@functools.cache
def _split_step(step):
    """`step` between packed states; one function for one, so that it is compiled once."""

    def split_step(problem, split, key):
        state, info = step(unpadded(problem), _unpacked(split, _mesh_of(problem)), key)
        return _packed(state, problem), info

    return split_step


def _samples_of(solver):
    return lambda problem, state: (solver.samples(problem, state), problem.pose)


def _read(solver, problem, split):
    volume, pose = solver.read(unpadded(problem), _unpacked(split, _mesh_of(problem)))
    return _laid(volume, _mesh_of(problem)), pose


def _laid(volume, mesh: Mesh):
    """A volume, or several, as `rows` has it."""
    if volume.ndim > 3:
        return jax.vmap(lambda one: _laid(one, mesh))(volume)
    return lax.with_sharding_constraint(padded(volume, mesh.size, 2), rows(mesh))


def _fetched(problem, volume, pose):
    volume = fetched(volume)
    held = held_rows(problem.shape[2], _mesh_of(problem))
    return volume[..., : held.stop - held.start], jax.tree.map(np.asarray, pose)
