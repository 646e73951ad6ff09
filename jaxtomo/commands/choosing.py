"""The method of a run, chosen by how well tilts that were left out are predicted."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from .. import methods
from ..errors import InputError
from ..validate import choose_weight, hold_out, live_tilts, prediction_error, solve, spread
from .contest import contest, tied
from .planning import Rivals
from .solving import Task, middle


class Choice(NamedTuple):
    """The method chosen, its weight (None for the usual one), and what `run.json` says of the choice."""

    method: str
    weight: float | None
    facts: dict[str, Any]


def choose_method(task: Task, rivals: Rivals) -> Choice:
    """That of the `rivals` which predicts left-out tilts best, tried on slices in the middle within `--minutes`.

    A tenth of the tilts, spread over the range, is kept from all. Each chooses its weight on the others and
    reconstructs from them. Of those that are as good within the noise the simplest is taken, the first of
    `methods.QUICK`.
    """
    if len(rivals.plans) == 1:
        (only,) = rivals.plans
        task.console.say(f"method {rivals.because}")
        return Choice(only, None, {"because": rivals.because, "left_out": rivals.left})
    series, pose = middle(task, rivals.largest.tried_rows)
    problem = task.problem(series, pose, task.weights)
    live = live_tilts(problem)
    held = live[spread(live.size, max(1, live.size // 10))]
    kept, unseen = hold_out(problem, held)

    def attempt(name: str) -> dict[str, Any]:
        began = time.perf_counter()
        asked = task.settings.solving.asked._replace(method=name, members=None)
        weight = None
        if methods.tries_weights(name, None, live.size - held.size):
            trial, steps = methods.trial(asked), methods.trial_steps(asked)
            weight, _ = choose_weight(kept, trial, methods.WEIGHTS[name], steps, key=task.key)
        solver = methods.maker(asked)(weight)
        error = np.asarray(prediction_error(unseen, solve(kept, solver, solver.steps, task.key)))[held]
        if not np.isfinite(error).all():
            raise InputError("diverged")
        metrics = {"held_out_error": float(np.sqrt(np.mean(error**2)))}
        seconds = round(time.perf_counter() - began, 1)
        return {"metrics": metrics, "errors": error, "weight": weight, "seconds": seconds}

    expected = {name: plan.trial_seconds for name, plan in rivals.plans.items()}
    found, out = contest(expected, attempt, task.settings.solving.minutes, task.console)
    if not found:
        raise InputError(f"--method auto: no method could be tried ({out}). Name one.")
    equal = tied({name: facts["errors"] for name, facts in found.items()})
    best = next(name for name in rivals.plans if name in equal)
    others = ", ".join(name for name in found if name in equal - {best})
    because = f"least error on {held.size} left-out tilts"
    if others:
        because = (
            f"simplest of those with the least error on {held.size} left-out tilts; within its noise so has {others}"
        )
    tried = {
        name: {
            "weight": facts["weight"],
            "seconds": facts["seconds"],
            "held_out_error": facts["metrics"]["held_out_error"],
        }
        for name, facts in found.items()
    }
    said = ", ".join(f"{name} {100 * facts['held_out_error']:.3g} %" for name, facts in tried.items())
    task.console.say(f"method {best}: {because} ({said})")
    angles = series.tilt_deg[held].tolist()
    facts = {"because": because, "held_out_tilts_deg": angles, "tried": tried, "left_out": rivals.left | out}
    return Choice(best, found[best]["weight"], facts)
