"""Gradient descent on misfit plus penalty, for any prior and any Optax optimizer; poses can be learned with it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ..errors import InputError
from ..freedom import Freedom
from ..grid import Grid
from ..likelihood import gaussian
from ..poses import carried, independent_pixels, movable, moved, surprise
from ..solve import Solver
from ..stopping import Rule, relative_misfit, seen, signal, start
from .sirt import sirt


@jax.jit
def rough(problem):
    """(volume, density): twenty steps of SIRT, and their `typical` density. Of several channels one of each."""
    if problem.images.ndim == 4:
        weights = jnp.broadcast_to(problem.weights, problem.images.shape)
        return jax.lax.map(lambda one: rough(problem.replace(images=one[0], weights=one[1])), (problem.images, weights))
    problem, solver = problem.replace(likelihood=gaussian()), sirt()
    state = jax.lax.fori_loop(0, 20, lambda _, s: solver.step(problem, s, None)[0], solver.init(problem, None))
    volume, _ = solver.read(problem, state)
    return volume, typical(volume)


def typical(volume):
    """Σ v⁵ / Σ v⁴, which is near the density of the densest matter, whatever its amount; 1 of an empty volume."""
    largest = jnp.max(volume)
    relative = volume / jnp.where(largest > 0, largest, 1)
    return jnp.where(largest > 0, largest * jnp.sum(relative**5) / jnp.sum(relative**4), 1.0)


@functools.cache
def falling_adam(rate: float, steps: int, waiting: int = 0) -> optax.GradientTransformation:
    """Adam at `rate`, falling along a cosine to 2 % over `steps`, the first `waiting` of which it does nothing; one
    object for the same three."""
    falling = optax.cosine_decay_schedule(rate, max(1, steps - waiting), alpha=0.02)
    return optax.adam(optax.join_schedules([optax.constant_schedule(0.0), falling], [waiting]) if waiting else falling)


def fit(
    prior: Callable,
    optimizer: optax.GradientTransformation,
    pose_optimizer: optax.GradientTransformation | None = None,
    freedom: Freedom | None = None,
    *,
    pixel_weights: Callable | None = None,
    stopping: Rule | None = None,
    rows: int | None = None,
    jitter: float = 0.0,
    settings: dict | None = None,
    steps: int = 500,
) -> Solver:
    """min over a prior's parameters (and the poses) of relative misfit + penalty.

    loss = (L(A v) - L(y)) / (L(0) - L(y)) + penalty(v), for a Gaussian Σ w (A v - y)² / Σ w y² + penalty(v)

    Args:
        prior: `(problem, density, key) -> nnx.Module`; calling the module returns the volume `[z, x, y]`, and its
            method `penalty(volume)`, if it has one, is added to the loss. A method `perturbed(key)`, if it has one,
            gives the volume that a step sees. `density` is that of the specimen, roughly.
        optimizer: of the prior's `nnx.Param`s. Solvers made with one optimizer object share their compiled step.
        pose_optimizer: of the poses, in pixels by which they move what is at the rim of the field; None leaves them
            alone. See `falling_adam` for one that waits until there is a volume to compare with.
        freedom: what of the poses is learned, and how far they are expected to be wrong; by default shifts, of which
            nothing is known. What an alignment leaves open is `jaxtomo.freedom.ALL`.
        pixel_weights: `(problem) -> weights` to use in place of the problem's own.
        rows: every step asks the prior for a slab of so many rows only, at random, and compares them in all tilts; for
            volumes whose model does not fit into memory. None asks for the whole. Not with rules, nor with poses that
            mix rows.
        jitter: how far, in voxels, every step moves the points at which it asks the prior, against aliasing. For this
            and for `rows` the prior is called with a `Grid`.
        stopping: keeps the best of the averaged volumes, and the reconstruction is that; None takes the last volume.
        settings: for the record.
        steps: how many are usually enough.
    """

    learned = Freedom() if freedom is None else freedom
    if not 0 <= jitter < float("inf"):
        raise InputError(f"jitter={jitter}: give voxels, 0 for none.")
    if rows is not None and (rows < 1 or stopping is not None):
        raise InputError(f"rows={rows}: give 1 or more, and no stopping rule, which looks at the whole volume.")

    def init(problem, key):
        module = prior(problem, rough(problem)[1], key)
        if (rows is not None or jitter) and len(inspect.signature(module.__call__).parameters) == 0:
            raise InputError(
                f"rows and jitter ask for a volume on a Grid, which {type(module).__name__} does not give. Leave them "
                "out, or take a coordinate network (priors.inr.network)."
            )
        graph, parameters, rest = nnx.split(module, nnx.Param, ...)
        state = {"graph": graph, "parameters": parameters, "rest": rest}
        state["weights"] = problem.weights if pixel_weights is None else pixel_weights(problem)
        state["optimizer"] = optimizer.init(parameters)
        if pose_optimizer is not None:
            state["moves"] = movable(problem, learned)
            state["pose_optimizer"] = pose_optimizer.init(state["moves"])
        if stopping is not None:
            state["watch"] = start(stopping, problem, jax.random.fold_in(key, 1))
            state["weights"] = state["weights"] * (1 - state["watch"].mask)
        return state

    settings = settings or {"method": "fit"}
    free = learned if pose_optimizer is not None else None
    step = _stepper(optimizer, pose_optimizer, free, stopping, rows, jitter)
    return Solver(init, step, _read, settings, steps, channels=True)


def model_of(state) -> nnx.Module:
    """The prior's module as it is fitted so far, from the state of a run (`Progress.state` in a callback): a coordinate
    network can then be asked on any `Grid`."""
    return nnx.merge(state["graph"], state["parameters"], state["rest"])


def pose_of(problem, state):
    """The pose as it is learned so far."""
    return moved(problem, state["moves"]) if "moves" in state else problem.pose


def _part(problem, weights, key, rows, jitter):
    """What a step looks at: the points it asks for, the problem of these, weights, and how much of all it is.

    The specimen is not moved by jitter; the poses are carried along instead."""
    grid, share = Grid.of(problem.shape), 1.0
    if jitter:
        by = jitter * (jax.random.uniform(jax.random.fold_in(key, 1), (3,)) - 0.5)
        grid, problem = grid.moved(by), problem.replace(pose=carried(problem.pose, by))
    if rows is not None:
        height = problem.shape[2]
        count = min(rows, height)
        start = jax.random.randint(jax.random.fold_in(key, 2), (), 0, height - count + 1)

        # Each image is cut where it shows these rows; what is beyond an image or the slab says nothing here.
        along, pose = jnp.zeros_like(problem.pose.tilt), problem.pose
        if pose.shift is not None:
            along = jax.lax.stop_gradient(jnp.round(pose.shift[:, 1]))
            pose = pose.replace(shift=pose.shift.at[:, 1].add(-along))
        index = start + along[:, None].astype(jnp.int32) + jnp.arange(count)
        seen = (index >= 0) & (index < height)
        if pose.shift is not None:
            row = jnp.arange(count) - pose.shift[:, 1, None]
            seen = seen & (row >= 0) & (row <= count - 1)

        def cut(array):
            wide = jnp.broadcast_to(array, jnp.broadcast_shapes(array.shape, (1, 1, height)))
            return jnp.take_along_axis(wide, jnp.clip(index, 0, height - 1)[:, None, :], axis=-1)

        def believed(weights):
            return cut(weights) * seen[:, None, :]

        weights, shape = believed(weights), (*problem.shape[:2], count)
        problem = problem.replace(images=cut(problem.images), weights=believed(problem.weights), pose=pose, shape=shape)
        grid, share = grid.rows(start, count), count / height
    return grid, problem, weights, share


def _loss(parameters, moves, graph, rest, weights, problem, freedom, key, rows, jitter):
    module = nnx.merge(graph, parameters, rest)
    posed = problem if moves is None else problem.replace(pose=moved(problem, moves))
    if rows is None and not jitter:
        here, share = posed, 1.0
        volume = module.perturbed(key) if hasattr(module, "perturbed") else module()
        predicted = posed.project(volume)
        relative = relative_misfit(posed, predicted, weights)
    else:
        whole = signal(problem, weights)
        grid, here, weights, share = _part(posed, weights, key, rows, jitter)
        volume = module(grid)
        predicted = here.project(volume)
        relative = relative_misfit(here, predicted, weights, share * whole)
    total = relative + (module.penalty(volume) if hasattr(module, "penalty") else 0.0)
    if moves is not None and freedom.expects:
        # The noise that the prior is weighed against is what is not explained, over the pixels that are independent.
        pixels = independent_pixels(here.explained(predicted) - here.images, weights) / share
        total = total + jax.lax.stop_gradient(relative / pixels) * surprise(problem, freedom, moves)
    return total, (here.misfit(predicted)[0], relative, volume, posed.pose, predicted)


@functools.lru_cache(64)
def _stepper(optimizer, pose_optimizer, freedom, stopping, rows, jitter):
    """The step: one function for the same six, so that it is compiled once."""

    def step(problem, state, key):
        moves, mixed = state.get("moves"), (problem.pose.rotation, problem.pose.magnification, problem.pose.second_tilt)
        turning = {"rotation", "axis", "magnification", "second_tilt"} & (moves or {}).keys()
        if rows is not None and problem.images.ndim == 4:
            raise InputError("rows: several channels are fitted whole. Leave rows out, or choose one channel.")
        if rows is not None and (turning or any(value is not None for value in mixed)):
            raise InputError("rows: a rotation, a magnification or a second tilt mixes rows. Leave rows out.")
        (total, seen_so), slopes = jax.value_and_grad(_loss, 0 if moves is None else (0, 1), has_aux=True)(
            *(state["parameters"], moves, state["graph"], state["rest"], state["weights"]),
            *(problem, freedom, key, rows, jitter),
        )
        misfit, relative, volume, pose, predicted = seen_so
        new, info = dict(state), {"misfit": misfit, "loss": total, "penalty": total - relative}
        if stopping is not None:
            new["watch"], info[stopping.name] = seen(stopping, problem, state["watch"], volume, pose, predicted)
        if moves is not None:
            slopes, pose_slopes = slopes
            change, new["pose_optimizer"] = pose_optimizer.update(pose_slopes, state["pose_optimizer"], moves)
            new["moves"] = optax.apply_updates(moves, change)
        change, new["optimizer"] = optimizer.update(slopes, state["optimizer"], state["parameters"])
        new["parameters"] = optax.apply_updates(state["parameters"], change)
        return new, info

    return step


def _read(problem, state):
    """Under a rule the best average, or the average of now if it is too early to tell; otherwise the volume of now."""
    pose = pose_of(problem, state)
    if "watch" not in state:
        return model_of(state)(), pose
    watch, now = state["watch"], (state["watch"].averages.volume, pose)
    return jax.tree.map(lambda best, now: jnp.where(jnp.isfinite(watch.score), best, now), watch.best, now)
