"""How sure a reconstruction is: members that start differently and believe the pixels differently, mean and spread."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp

from .callbacks import SCORES
from .errors import InputError
from .solve import Solver


def ensemble(solver: Solver, members: int = 8) -> Solver:
    """`solver` as many times at once, vmapped: the volume is the mean of the `samples`.

    Every member has its own random numbers (initial network, input noise, pixels held out) and its own weights of the
    pixels, which are those of the problem times independent draws from Exp(1): the weighted likelihood bootstrap, which
    needs no noise level. [Newton & Raftery 1994] Costs the memory of as many states.

    The spread ranks voxels by their error well and is too small: about half of it where it is largest, less where all
    members agree, for what the missing wedge hides it hides from all of them.
    """
    settings = {**solver.settings, "members": _checked(solver, members)}

    def step(problem, state, key):
        def one(weights, state, key):
            return solver.step(problem.replace(weights=weights), state, key)

        new, info = jax.vmap(one)(state["weights"], state["members"], jax.random.split(key, members))
        return {**state, "members": new}, jax.tree.map(jnp.mean, _comparable(info))

    init, read, samples = _common(solver, members)
    return Solver(init, step, read, settings, solver.steps, samples, solver.channels)


def in_turn(solver: Solver, members: int = 8) -> Solver:
    """The same, one member a step: for a device that one member keeps busy, and for convolutions on a CPU, which XLA
    does not run well for several networks at once. Takes `members` times as many steps."""
    settings = {**solver.settings, "members": _checked(solver, members)}

    def step(problem, state, key):
        now = state["turn"] % members
        mine, weights = jax.tree.map(lambda a: a[now], (state["members"], state["weights"]))
        new, info = solver.step(problem.replace(weights=weights), mine, key)
        changed = jax.tree.map(lambda all, one: all.at[now].set(one), state["members"], new)
        return {**state, "members": changed, "turn": state["turn"] + 1}, _comparable(info)

    init, read, samples = _common(solver, members)
    return Solver(init, step, read, settings, members * solver.steps, samples, solver.channels)


def _checked(solver: Solver, members: int) -> int:
    if members < 2:
        raise InputError(f"an ensemble of {members}. Give 2 members or more.")
    if solver.settings.get("method") == "wbp":
        raise InputError("wbp does not weigh pixels, so its members would all be the same. Take sirt, tv or another.")
    return members


def _comparable(info: dict) -> dict:
    """Without the scores of stop rules: each member keeps its own best volume, and they must not be compared."""
    return {name: value for name, value in info.items() if name not in SCORES}


def _common(solver: Solver, members: int):
    def init(problem, key):
        keys = jax.random.split(key, 2 * members)
        weights = jax.vmap(functools.partial(jax.random.exponential, shape=problem.images.shape))(keys[members:])
        weights = problem.weights * weights
        states = [solver.init(problem.replace(weights=w), k) for w, k in zip(weights, keys[:members], strict=True)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return {"members": stacked, "weights": weights, "turn": jnp.asarray(0)}

    def volumes(problem, state):
        # No loop of XLA's: a solver may ask a network for its volume, see `solve.run_steps`.
        each = [jax.tree.map(operator.itemgetter(i), state["members"]) for i in range(members)]
        return jax.tree.map(lambda *all: jnp.stack(all), *(solver.read(problem, one) for one in each))

    def read(problem, state):
        volume, pose = volumes(problem, state)
        return volume.mean(0), jax.tree.map(lambda a: a.mean(0), pose)

    def samples(problem, state):
        return volumes(problem, state)[0]

    return init, read, samples
