"""The loop: `Solver`, the contract every method fulfils, and `reconstruct`, which runs any of them."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import __version__, hosts
from . import callbacks as default_callbacks
from .data import Problem, Reconstruction
from .errors import InputError

CHUNK = 10  # steps between two looks at the run, at most; every multiple of it is looked at, however fast the machine
SECONDS = 0.5  # and about this long


class Solver(NamedTuple):
    """A method, as three pure functions. State is what the next step needs, info is what a person wants to see.

    Attributes:
        init: `(problem, key) -> state`.
        step: `(problem, state, key) -> (state, info)`; `info` is a dict of scalars and holds `misfit`, the relative
            residual norm before the step.
        read: `(problem, state) -> (volume [z, x, y], pose)`.
        settings: the method's name and parameters, for the record.
        steps: how many are usually enough.
        samples: `(problem, state) -> [sample, z, x, y]`, volumes that explain the images, of a solver that has several.
        channels: whether it reconstructs several channels together.

    Parameters belong into the state, not into a closure: then one compiled `step` serves all their values.
    """

    init: Callable[..., Any]
    step: Callable[..., Any]
    read: Callable[..., Any]
    settings: Mapping[str, Any]
    steps: int = 100
    samples: Callable[..., Any] | None = None
    channels: bool = False


class Progress(NamedTuple):
    """What a callback is shown after each chunk of steps.

    Attributes:
        step, steps: done so far, and asked for.
        state: the solver's state: what a checkpoint keeps.
        history: per step so far, `[step]` arrays by name.
        seconds: since the run started, compilation included.
        message: why the run ends here, or None while it goes on.
        volume: a function that returns the volume `[z, y, x]` of now.
    """

    step: int
    steps: int
    state: Any
    history: Mapping[str, np.ndarray]
    seconds: float
    message: str | None
    volume: Callable[[], np.ndarray]


def run_steps(problem, state, key, start, count, *, step):
    """`count <= CHUNK` steps of a solver from `start`: (state, info), the first `count` of each info array filled.

    Step i sees `fold_in(key, i)`, so neither the chunks nor an interruption can change the answer. The memory of
    `state` is used up.
    """
    if not _slow_in_a_loop(step, problem, state, key):
        return scanned(problem, state, key, start, count, step=step)
    seen = []
    for i in range(start, start + int(count)):
        state, info = stepped(problem, state, key, i, step=step)
        seen.append(info)
    return state, jax.tree.map(lambda *all: jnp.stack(all), *seen)


LOOPED: weakref.WeakKeyDictionary[Callable, dict[Any, bool]] = weakref.WeakKeyDictionary()
"""By step and structure of its state, for one step may serve several models: whether it has convolutions."""


def _slow_in_a_loop(step, problem, state, key) -> bool:
    """Whether XLA would run this step tens of times slower in a loop of its own: convolutions on a CPU."""
    if jax.default_backend() != "cpu":
        return False
    known, structure = LOOPED.setdefault(step, {}), jax.tree.structure(state)
    if structure not in known:
        known[structure] = "conv_general_dilated" in str(jax.make_jaxpr(step)(problem, state, key))
    return known[structure]


@functools.partial(jax.jit, static_argnames="step", donate_argnames="state")
def stepped(problem, state, key, i, *, step):
    """Step i by itself."""
    return step(problem, state, jax.random.fold_in(key, i))


@functools.partial(jax.jit, static_argnames=("step", "size"), donate_argnames="state")
def scanned(problem, state, key, start, count, *, step, size: int = CHUNK):
    """`count <= size` steps in one compiled loop."""
    shapes = jax.eval_shape(step, problem, state, key)[1]
    info = jax.tree.map(lambda s: jnp.zeros((size, *s.shape), s.dtype), shapes)

    def body(i, carry):
        state, info = carry
        state, seen = step(problem, state, jax.random.fold_in(key, start + i))
        return state, jax.tree.map(lambda all, one: all.at[i].set(one), info, seen)

    return jax.lax.fori_loop(0, count, body, (state, info))


@functools.partial(jax.jit, static_argnames="step")
def after(problem, state, count, *, step):
    """The state after so many steps that draw nothing, for what is solved on the way to something else."""
    return jax.lax.fori_loop(0, count, lambda _, state: step(problem, state, None)[0], state)


@contextlib.contextmanager
def whole_chunk() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, where state, history and step number agree."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = []
    before = signal.signal(signal.SIGINT, lambda *what: caught.append(what))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught and callable(before):
        before(*caught[0])


def reconstruct(
    problem: Problem,
    solver: Solver,
    steps: int | None = None,
    *,
    key: jax.Array | None = None,
    callbacks: Sequence[Callable[[Progress], str | None]] | None = None,
    resume: tuple[int, Any, Mapping[str, np.ndarray]] | None = None,
    assess: bool = True,
) -> Reconstruction:
    """Run a solver on a problem. Every method runs through this one loop.

    By hand, the same is `state = solver.init(problem, key)`, then
    `state, info = solver.step(problem, state, jax.random.fold_in(key, i))` for each i, then
    `volume, pose = solver.read(problem, state)`.

    Args:
        problem: what is asked.
        solver: how; `jt.sirt()`, `jt.tv()`, ... or your own `Solver`.
        steps: how many, unless a callback stops earlier; by default what the solver finds usual.
        key: seed of the run, `jax.random.key(0)` by default.
        callbacks: each is called after every chunk of steps and once more at the end, and may return a sentence
            to stop the run. By default a progress bar, `callbacks.stop_when_converged()` and
            `callbacks.stop_when_overfitting()`.
        resume: (step, state, history) as `callbacks.restore` reads them from a checkpoint.
        assess: also compute the quality numbers that need no truth, `jaxtomo.validate.cross_check`, two more
            reconstructions, each from half the tilts of a slab, `jaxtomo.audit.audited`, what the images determine, and
            `jaxtomo.resolution.assessed`, elongation and edges.

    Raises:
        KeyboardInterrupt: passed on, after the callbacks have seen the last state (a checkpoint is then written).
    """
    steps = solver.steps if steps is None else steps
    if steps < 1:
        raise InputError(f"steps is {steps}. Give at least 1.")
    if problem.images.ndim == 4 and not solver.channels:
        raise InputError(
            f"{solver.settings.get('method', 'this solver')} reconstructs one channel; the series has "
            f"{problem.images.shape[0]}. Choose one, or take dip_tv, root_tv, tvq, dip or fit."
        )
    if assess and hosts.count() > 1:
        raise InputError("assess=True looks at rows that other hosts hold. Give assess=False.")
    key = jax.random.key(0) if key is None else key
    if callbacks is None:
        callbacks = (
            default_callbacks.progress(),
            default_callbacks.stop_when_converged(),
            default_callbacks.stop_when_overfitting(),
        )
    began = time.perf_counter()
    if resume is None:
        done, state, history = 0, solver.init(problem, key), {}
    else:
        done, state, history = resume
    # The steps reuse the state's memory, so it must not share any with the problem or the caller.
    state = jax.tree.map(jnp.copy, state)
    message = None if done < steps else f"all {steps} steps were done before"
    chunk, compiled = 1, 0.0

    def show(message):
        progress = Progress(done, steps, state, history, time.perf_counter() - began, message, read_volume)
        return [said for said in (call(progress) for call in callbacks) if said]

    def read_volume():
        return np.ascontiguousarray(np.asarray(solver.read(problem, state)[0]).swapaxes(-2, -1))

    try:
        while message is None:
            started = time.perf_counter()
            count = hosts.same(min(chunk, steps - done, CHUNK - done % CHUNK))
            with whole_chunk():
                state, info = run_steps(problem, state, key, done, count, step=solver.step)
                info = {name: np.asarray(values)[:count] for name, values in info.items()}
                history = {name: np.concatenate([history.get(name, new[:0]), new]) for name, new in info.items()}
                done += count
            taken = time.perf_counter() - started
            if done == count:
                compiled = taken
            else:
                chunk = max(1, min(CHUNK, int(count * SECONDS / max(taken, 1e-6))))
            if not all(np.isfinite(values).all() for values in info.values()):
                first = int(np.argmax(~np.isfinite(np.stack([*info.values()])).all(0))) + done - count
                message = f"misfit became non-finite at step {first + 1}: lower the step size or the learning rate"
            elif done >= steps:
                message = "; ".join(filter(None, [f"all {steps} steps done", default_callbacks.best(history)]))
            if message is None:
                message = next(iter(show(None)), None)
                if hosts.agreed(message is not None):
                    message = message or "stopped by another process of this run"
    except KeyboardInterrupt:
        show(f"interrupted after step {done}")
        raise
    show(message)
    volume, pose = solver.read(problem, state)
    seconds = time.perf_counter() - began
    volume = np.ascontiguousarray(np.asarray(volume, np.float32).swapaxes(-2, -1))
    samples = None
    if solver.samples is not None:
        samples = np.ascontiguousarray(np.asarray(solver.samples(problem, state), np.float32).swapaxes(-2, -1))
        samples = samples if len(samples) > 1 else None
    metrics = {}
    if assess:
        from .audit import audited
        from .resolution import assessed
        from .validate import cross_check

        metrics = cross_check(problem, solver, done, key=key) | audited(problem, volume)
        metrics |= assessed(volume, np.rad2deg(np.asarray(pose.tilt)), samples)
    settings = {
        "solver": dict(solver.settings),
        "steps": done,
        "likelihood": problem.likelihood.__qualname__.split(".")[0],
        "seconds": round(seconds, 3),
        "seconds_to_first_step": round(compiled, 3),
        "device": str(next(iter(problem.images.devices()))),
        "devices": len(problem.images.devices()),
        "backend": jax.default_backend(),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "jaxtomo": __version__,
        "jax": jax.__version__,
    }
    return Reconstruction(volume, pose, problem.series, history, metrics, settings, message, samples)
