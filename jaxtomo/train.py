"""Training of whatever learns from examples: one loop, checkpointed, that goes on where it was stopped."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from .errors import InputError
from .solve import whole_chunk

MEMORY = 0.999  # of the running average of the weights
EVERY = 100  # steps between two lines of the log
LOG = "log.jsonl"


class State(NamedTuple):
    parameters: Any
    average: Any  # of the parameters: what is used
    optimizer: Any


@functools.cache
def optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam at `rate` after a warm-up of 100 steps, falling along a cosine to 1 % over `steps`; gradients clipped."""
    warming = min(100, max(1, steps // 10))
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warming, max(steps, warming + 1), 0.01 * rate)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))


@functools.partial(jax.jit, static_argnames=("loss", "transform"), donate_argnames="state")
def step(state: State, graph, rest, batch, key, i, *, loss, transform):
    """(state, loss): one step of training."""

    def of(parameters):
        return loss(nnx.merge(graph, parameters, rest), batch, jax.random.fold_in(key, i))

    value, slope = jax.value_and_grad(of)(state.parameters)
    change, inner = transform.update(slope, state.optimizer, state.parameters)
    parameters = optax.apply_updates(state.parameters, change)
    memory = jnp.minimum(MEMORY, (1 + i) / (10 + i))
    average = jax.tree.map(lambda a, p: memory * a + (1 - memory) * p, state.average, parameters)
    return State(parameters, average, inner), value


@functools.partial(jax.jit, static_argnames="check")
def _checked(parameters, graph, rest, data, *, check):
    return check(nnx.merge(graph, parameters, rest), data)


def train(
    module: nnx.Module,
    batches: Callable[[int], Any],
    folder: str | Path,
    *,
    loss: Callable,
    steps: int,
    rate: float = 1.5e-3,
    checks: Mapping[str, tuple[Callable, Any]] | None = None,
    optimizer: Callable[[float, int], optax.GradientTransformation] = optimizer,
    seed: int = 0,
    resume: bool = False,
    every: float = 120.0,
    say: Callable[[str], None] = print,
) -> nnx.Module:
    """Minimise `loss(module, batch, key)`; returns the module with the running average of its weights.

    Every 100 steps a line goes to `folder/log.jsonl`, and a checkpoint to `folder/checkpoint` at most every `every`
    seconds, at the end and on Ctrl-C: with `resume` the training goes on from there, to the same weights as without the
    interruption.

    Args:
        module: with the parameters to begin with.
        batches: batch i, a tree of arrays whose leading axis all devices share if their number divides it.
        folder: of the training. Raises InputError if there is one in it, without `resume`.
        optimizer: of a rate and a number of steps; the same one for the same two.
        checks: what else is logged, of the averaged weights: by name `(function, data)`, `function(module, data)`.
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)
    transform = optimizer(rate, steps)
    state = State(parameters, jax.tree.map(jnp.copy, parameters), transform.init(parameters))
    manager = ocp.CheckpointManager(
        folder / "checkpoint", options=ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
    )
    done, log = 0, folder / LOG
    if resume:
        done = manager.latest_step() or 0
        if done:
            kept = manager.restore(done, args=ocp.args.StandardRestore(_numbered(state)))
            # As NumPy: the devices of now may not be those of then.
            leaves = [np.asarray(kept[name]) for name in sorted(kept)]
            state = jax.tree.unflatten(jax.tree.structure(state), leaves)
    elif manager.latest_step() is not None:
        raise InputError(f"{folder}: holds a training already. Go on with it (--resume), or give another folder.")
    devices = jax.devices()
    sharding = NamedSharding(jax.sharding.Mesh(np.array(devices), ("example",)), PartitionSpec("example"))
    key, began, saved, losses = jax.random.key(seed), time.monotonic(), time.monotonic(), []

    worth = True  # what a checkpoint would keep

    def save():
        nonlocal saved
        if done != manager.latest_step():
            manager.save(done, args=ocp.args.StandardSave(_numbered(state)), force=True)
            manager.wait_until_finished()
        saved = time.monotonic()

    try:
        while done < steps:
            batch = batches(done)
            if all(leaf.shape[0] % len(devices) == 0 for leaf in jax.tree.leaves(batch)):
                batch = jax.device_put(batch, sharding)
            with whole_chunk():
                state, value = step(state, graph, rest, batch, key, done, loss=loss, transform=transform)
                losses.append(value)
                done += 1
            if done % EVERY == 0 or done == steps:
                line = {"step": done, "loss": float(np.mean(jax.device_get(losses)))}
                for name, (check, data) in (checks or {}).items():
                    line[name] = float(_checked(state.average, graph, rest, data, check=check))
                line["seconds"] = round(time.monotonic() - began, 1)
                losses = []
                with log.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                say("  ".join(f"{name} {value:.4g}" for name, value in line.items()))
                if not np.isfinite(line["loss"]):
                    worth = False
                    raise InputError(f"the loss is no number. Start again, in a new folder, at a rate below {rate:g}.")
            if time.monotonic() - saved > every:
                save()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted after step {done}; go on with --resume") from None
    finally:
        if worth:
            save()
    return nnx.merge(graph, state.average, rest)


def _numbered(tree):
    return {f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
