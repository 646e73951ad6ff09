"""What `quality.py` runs: phantoms, tilt schemes, methods and their settings, and the score of one run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxtomo as jt
from jaxtomo import callbacks, metrics, phantoms, validate
from jaxtomo.simulate import Microscope, simulate
from jaxtomo.solve import run_steps

CLASSES = {
    "piecewise-constant": ("supported_particles", "core_shell", "porous_support", "hollow_particles", "chiral"),
    "graded": ("graded_needle", "atoms"),
    "textured": ("tissue",),
}
SCHEMES = {"±60/10°": (60, 10), "±60/20°": (60, 20), "±30/2°": (30, 2), "±30/10°": (30, 10)}
DOSE = 60.0
WEIGHTED = {"tv": jt.tv, "tvq": jt.tvq}
DEFAULT = {name: make().settings["weight"] for name, make in WEIGHTED.items()}
SCANNED = {"tv": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "tvq": (0.03, 0.1, 0.3, 0.7, 2.0)}
WEIGHTS = {name: tuple(sorted({*weights, DEFAULT[name]})) for name, weights in SCANNED.items()}
SIRT_STOPS, CGLS_STOPS = (5, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300), (*range(1, 16), 20, 25, 30)
LONGER = 10  # times the usual iterations, for the convergence of TV
METHODS = ("wbp", "sirt", "cgls", "tv", "tvq", "gaussian", "tv-long")


class Case(NamedTuple):
    phantom: str
    seed: int
    scheme: str


class Posed(NamedTuple):
    problem: jt.Problem
    truth: np.ndarray


def score(volume, truth) -> dict:
    return {"psnr": metrics.psnr(volume, truth), "ssim": metrics.ssim(volume, truth)}


def solved(solver: jt.Solver, posed: Posed, *, times: int = 1, stop: bool = True) -> dict:
    """A run as a user gets it, `times` its usual steps; compilation apart."""
    watch = (callbacks.stop_when_converged(),) if stop else ()
    run = functools.partial(jt.reconstruct, posed.problem, solver, callbacks=watch, assess=False)
    began = time.perf_counter()
    run(steps=1)
    middle = time.perf_counter()
    result = run(steps=times * solver.steps)
    ended = time.perf_counter()
    facts = {"steps": result.settings["steps"], "seconds": ended - middle, "first": middle - began}
    return score(result.volume, posed.truth) | facts | {"message": result.message}


def stopped_best(solver: jt.Solver, stops, posed: Posed) -> dict:
    """The best of the volumes at `stops`, chosen by the truth: what early stopping could give at most."""
    key, done, best = jax.random.key(0), 0, {"psnr": -np.inf}
    state = jax.tree.map(jnp.copy, solver.init(posed.problem, key))
    for stop in stops:
        while done < stop:
            count = min(50, stop - done)
            state, _ = run_steps(posed.problem, state, key, done, count, step=solver.step)
            done += count
        volume = np.asarray(solver.read(posed.problem, state)[0]).swapaxes(1, 2)
        if metrics.psnr(volume, posed.truth) > best["psnr"]:
            best = score(volume, posed.truth) | {"steps": stop}
    return best


def held_out(make: Callable[[float], jt.Solver], weights, posed: Posed) -> dict:
    """The weight that predicts held-out tilts best."""
    began = time.perf_counter()
    weight, errors = validate.choose_weight(posed.problem, make, weights, make(weights[0]).steps)
    return {"weight": weight, "errors": errors.tolist(), "seconds": time.perf_counter() - began}


def runs(methods) -> dict[str, Callable[[Posed], dict]]:
    """What is run on every case, by name; the first word is the method."""
    found = {f"wbp {window}": functools.partial(solved, jt.wbp(window)) for window in ("ramp", "hann")}
    for name, solver, stops in (("sirt", jt.sirt(), SIRT_STOPS), ("cgls", jt.cgls(), CGLS_STOPS)):
        found[name] = functools.partial(solved, solver)
        found[f"{name} best stop"] = functools.partial(stopped_best, solver, stops)
    for name in WEIGHTS:
        for weight in sorted(WEIGHTS[name], key=lambda w, name=name: w != DEFAULT[name]):  # the default compiles
            found[f"{name} {weight:g}"] = functools.partial(solved, WEIGHTED[name](weight))
        found[f"{name} held-out"] = functools.partial(held_out, WEIGHTED[name], WEIGHTS[name])
    for spectrum in ("fib_sem", "porous_silicon"):
        found[f"gaussian {spectrum}"] = functools.partial(solved, jt.solvers.gaussian(spectrum))
    found[f"tv-long {DEFAULT['tv']:g}"] = functools.partial(solved, jt.tv(DEFAULT["tv"]), times=LONGER, stop=False)
    return {name: run for name, run in found.items() if name.split()[0] in methods}


@functools.lru_cache(1)
def _rendered(phantom: str, size: int, seed: int):
    return getattr(phantoms, phantom)((2 * size,) * 3, seed)


@functools.lru_cache(1)
def posed(case: Case, size: int) -> Posed:
    most, step = SCHEMES[case.scheme]
    fine = _rendered(case.phantom, size, case.seed)
    series, truth, pose = simulate(fine, np.arange(-most, most + 1, step), Microscope(dose=DOSE), case.seed)
    return Posed(jt.Problem(series, pose), truth)
