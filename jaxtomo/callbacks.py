"""What may watch a run and stop it: progress, stop rules, checkpoints. Each is a function of `solve.Progress` that may
return a sentence, which stops the run and tells why."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .stopping import AS_GOOD, SETTLED


def progress(every: float = 5.0) -> Callable:
    """A progress bar with misfit and remaining time on a terminal; elsewhere one plain line every few seconds."""
    bar: Any = None
    last = time.monotonic()
    first: tuple[int, float] | None = None  # step and seconds once compiled: the rate counts from there

    def show(now) -> None:
        nonlocal bar, last, first
        if first is None:
            first = now.step, now.seconds
        if sys.stderr.isatty():
            from tqdm import tqdm

            if bar is None:
                bar = tqdm(total=now.steps, file=sys.stderr, leave=False, unit="step", initial=now.step)
            bar.set_postfix(misfit=f"{now.history['misfit'][-1]:.4g}" if now.step else "")
            bar.update(now.step - bar.n)
            if now.message:
                bar.close()
        elif time.monotonic() - last > every and now.step > first[0]:
            last = time.monotonic()
            left = (now.seconds - first[1]) / (now.step - first[0]) * (now.steps - now.step)
            misfit = now.history["misfit"][-1]
            print(f"step {now.step}/{now.steps}  misfit {misfit:.4g}  {left:.0f} s left", file=sys.stderr, flush=True)

    return show


def stop_when_converged(gap: float = 1e-2, still: float = 1e-5, window: int = 20) -> Callable:
    """Stop when there is nothing left to gain. Looks at every tenth step, so the answer does not hang on the clock.

    A solver that reports a relative duality `gap` stops when that falls below `gap`; one that reports a `loss`, whose
    optimizer follows a schedule of its own, never; another one when its misfit has changed by less than `still` of
    itself over `window` steps.
    """

    def check(now) -> str | None:
        if "loss" in now.history or (now.step % 10 and now.history["misfit"].size > 1):
            return None
        if "gap" in now.history:
            measured = now.history["gap"][-1]
            return f"converged: relative duality gap {measured:.1e} at step {now.step}" if measured < gap else None
        misfit = now.history["misfit"]
        if len(misfit) > window and abs(misfit[-1 - window] - misfit[-1]) < still * abs(misfit[-1]):
            return f"converged: the misfit changed by less than {still:g} of itself in {window} steps"
        return None

    return check


def stop_when_overfitting(patience: int = 150) -> Callable:
    """Stop a fit under a `stopping.Rule` when its score has not been as good as it was for `patience` steps. Looks at
    every tenth step."""

    def check(now) -> str | None:
        found = best(now.history)
        if found is None or now.step % 10 or now.step - best_step(now.history) < patience:
            return None
        return f"no better volume in {patience} steps, at step {now.step}; {found}"

    return check


SCORES = {"held_out": "predicts held-out pixels as well as any", "wander": "has settled as much as any"}
"""The scores of `stopping`, and what their least value means."""


def best_step(history) -> int:
    """The last step whose score was as good as any before it."""
    (score,) = (history[name][SETTLED:] for name in SCORES if name in history)
    good = np.flatnonzero(score <= AS_GOOD * np.minimum.accumulate(np.append(np.inf, score))[:-1])
    return SETTLED + int(good[-1]) + 1 if good.size else 0


def best(history) -> str | None:
    """Which volume a fit under a rule returns, and why; None for other histories."""
    names = [name for name in SCORES if name in history]
    if not names:
        return None
    step = best_step(history)
    if not step:
        return None
    value = f" ({100 * history['held_out'][step - 1]:.3g} % off)" if "held_out" in names else ""
    return f"the volume is the average up to step {step}, which {SCORES[names[0]]}{value}"


def stop_after(seconds: float) -> Callable:
    """Stop when the run has taken this long."""
    return lambda now: f"stopped after {now.seconds:.0f} s, as asked" if now.seconds > seconds else None


def checkpoint(folder: str | Path, every: float = 30.0) -> Callable:
    """Keep the newest state in `folder`, at most every `every` seconds, and at the end or on an interruption.

    Written by Orbax beside the last one and renamed, so that a stop at any moment leaves a whole checkpoint. Of a state
    that is split over hosts each writes its part.
    """
    import jax
    import orbax.checkpoint as ocp

    from .hosts import agreed
    from .parallel import true_shapes

    folder = Path(folder).absolute()
    manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=1, create=True))
    last = time.monotonic()

    def save(now) -> None:
        nonlocal last
        due = agreed(bool(now.message) or time.monotonic() - last > every)
        if now.step and due and now.step != manager.latest_step():
            kept = {
                "state": {f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(now.state))},
                "rows": np.array([shape[-1] if shape else 0 for shape in true_shapes(now.state)]),
                "history": dict(now.history),
            }
            manager.save(now.step, args=ocp.args.StandardSave(kept), force=True)
            manager.wait_until_finished()
            last = time.monotonic()

    return save


def restore(folder: str | Path, problem, solver, key=None):
    """The newest checkpoint in `folder`, as `reconstruct(..., resume=...)` takes it.

    It may have been written on another number of devices or hosts. Raises InputError where there is none, or where its
    arrays have other shapes than this problem and solver need.
    """
    import jax
    import orbax.checkpoint as ocp

    from .parallel import at_rest, true_shapes

    folder = Path(folder).absolute()
    step = None
    if folder.is_dir():
        manager = ocp.CheckpointManager(folder, item_handlers=ocp.StandardCheckpointHandler())
        step = manager.latest_step()
    if step is None:
        raise InputError(f"{folder}: no checkpoint there. Start without resume.")
    like = jax.eval_shape(solver.init, problem, jax.random.key(0) if key is None else key)
    there = manager.item_metadata(step)
    saved = [tuple(there["state"][name].shape) for name in sorted(there["state"])]
    names, wanted = [f"{i:04d}" for i in range(len(saved))], true_shapes(like)
    # A problem on another mesh has other padding behind its rows: only the rows themselves are compared.
    asked = {
        "state": dict(zip(names, jax.tree.leaves(at_rest(like, problem)), strict=False)),
        "rows": np.zeros(there["rows"].shape, there["rows"].dtype),
        "history": {name: np.zeros(a.shape, a.dtype) for name, a in there["history"].items()},
    }
    same = len(saved) == len(wanted) and [s[:-1] for s in saved] == [w[:-1] for w in wanted]
    kept = manager.restore(step, args=ocp.args.StandardRestore(asked, strict=False)) if same else None
    if kept is None or kept["rows"].tolist() != [shape[-1] if shape else 0 for shape in wanted]:
        raise InputError(
            f"{folder}: the checkpoint holds {saved}, this run needs {wanted}. "
            "Resume with the same input, method and settings, or start afresh."
        )
    state = jax.tree.unflatten(jax.tree.structure(like), [kept["state"][name] for name in names])
    return step, state, {name: np.asarray(values) for name, values in kept["history"].items()}
