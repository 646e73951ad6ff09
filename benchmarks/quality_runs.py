"""What `quality.py` runs: phantoms, tilt schemes, methods and their settings, and the score of one run."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxtomo as jt
from jaxtomo import callbacks, methods, metrics, phantoms, validate
from jaxtomo.simulate import Microscope, simulate
from jaxtomo.solve import run_steps

CLASSES = {
    "piecewise-constant": ("supported_particles", "core_shell", "porous_support", "hollow_particles", "chiral"),
    "graded": ("graded_needle", "atoms"),
    "textured": ("tissue", "flyem"),
}
SCHEMES = ("±60/2°", "±60/10°", "±60/20°", "±30/2°", "±30/10°")
WEIGHTED = {"tv": jt.tv, "tvq": jt.tvq, "root-tv": jt.root_tv}
DEFAULT = {name: make().settings["weight"] for name, make in WEIGHTED.items()}
SCANNED = {
    "tv": (0.01, 0.03, 0.1, 0.3, 1.0),
    "tvq": (0.03, 0.1, 0.3, 0.7),
    "root-tv": methods.WEIGHTS["root-tv"],
}
WEIGHTS = {name: tuple(sorted({*weights, DEFAULT[name]})) for name, weights in SCANNED.items()}
SIRT_STOPS, CGLS_STOPS = (5, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300), (*range(1, 16), 20, 25, 30)
LONGER = 10  # times the usual iterations, for the convergence of TV
METHODS = ("wbp", "sirt", "cgls", "tv", "tvq", "root-tv", "dip-tv", "gaussian", "tv-long")


FLYEM = Path(os.environ.get("JAXTOMO_DATA", "../shared/data")) / "flyem_fib25_train2_250.npz"


class Case(NamedTuple):
    phantom: str
    seed: int
    scheme: str
    dose: float = 60.0


class Posed(NamedTuple):
    problem: jt.Problem
    truth: np.ndarray


def score(volume, truth) -> dict:
    return {"psnr": metrics.psnr(volume, truth), "ssim": metrics.ssim(volume, truth)} | particles(volume, truth)


def particles(volume, truth) -> dict:
    """What a user measures after segmentation, over the same of the truth: 1 is right. Empty if there are no particles.

    Both are cut at the upper of Otsu's two thresholds. `fraction` is that of their volumes; of the particles of the
    truth with 20 voxels or more, and what of the other volume lies in them or hangs on them, `size` is the median
    ratio of the diameters, and `elongation` that of the root mean square extents along the beam over those across it.
    """
    from scipy import ndimage
    from skimage.filters import threshold_multiotsu

    try:
        found, real = (np.asarray(v) > threshold_multiotsu(np.asarray(v), 3)[-1] for v in (volume, truth))
    except ValueError:
        return {}
    labels, count = ndimage.label(real)
    places, theirs = np.argwhere(real), labels[real]
    grown, _ = ndimage.label(found)
    sizes, elongations = [], []
    for index in range(1, count + 1):
        mine = places[theirs == index]
        if len(mine) < 20:
            continue
        touched = np.bincount(grown[tuple(mine.T)], minlength=2)
        other = np.argwhere(grown == 1 + np.argmax(touched[1:])) if touched[1:].any() else mine[:0]
        # Particles that have grown together are one body in the reconstruction: they are not comparable.
        if len(other) < 20 or len(np.unique(labels[tuple(other.T)])) > 2:
            continue
        sizes.append((len(other) / len(mine)) ** (1 / 3))
        (z, y, x), (tz, ty, tx) = other.std(0), mine.std(0)
        elongations.append(z / np.sqrt(y * x + 1e-9) / (tz / np.sqrt(ty * tx + 1e-9)))
    if count == 0 or not sizes:
        return {}
    return {
        "fraction": float(found.sum() / real.sum()),
        "size": float(np.median(sizes)),
        "elongation": float(np.median(elongations)),
        "particles": len(sizes),
    }


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


def dip_tv(posed: Posed) -> dict:
    """As a user gets it: the weight chosen by left-out tilts with voxels alone, and the volume where the rule puts it.
    The curve is the quality of the averages every fifty steps, for the truth's own choice of a stop."""
    began = time.perf_counter()
    asked = methods.Asked("dip-tv")
    trial, steps = methods.trial(asked), methods.trial_steps(asked)
    weight, _ = validate.choose_weight(posed.problem, trial, methods.WEIGHTS["dip-tv"], steps)
    chosen, solver, curve = time.perf_counter(), jt.dip_tv(weight), []

    def watch(now):
        if now.step % 50 == 0 and now.step:
            average = np.asarray(now.state["watch"].averages.volume).swapaxes(1, 2)
            curve.append((now.step, now.seconds, metrics.psnr(average, posed.truth)))

    stop = callbacks.stop_when_overfitting()
    result = jt.reconstruct(posed.problem, solver, callbacks=(watch, stop), assess=False)
    facts = {"weight": weight, "choosing": chosen - began, "seconds": time.perf_counter() - began, "curve": curve}
    facts |= {"steps": result.settings["steps"], "first": result.settings["seconds_to_first_step"]}
    return score(result.volume, posed.truth) | facts | {"message": result.message}


def runs(names) -> dict[str, Callable[[Posed], dict]]:
    """What is run on every case, by name; the first word is the method."""
    found = {f"wbp {window}": functools.partial(solved, jt.wbp(window)) for window in ("ramp", "hann")}
    for name, solver, stops in (("sirt", jt.sirt(), SIRT_STOPS), ("cgls", jt.cgls(), CGLS_STOPS)):
        found[name] = functools.partial(solved, solver)
        found[f"{name} best stop"] = functools.partial(stopped_best, solver, stops)
    for name in WEIGHTS:
        for weight in sorted(WEIGHTS[name], key=lambda w, name=name: w != DEFAULT[name]):  # the default compiles
            found[f"{name} {weight:g}"] = functools.partial(solved, WEIGHTED[name](weight))
        found[f"{name} held-out"] = functools.partial(held_out, WEIGHTED[name], WEIGHTS[name])
    found["dip-tv"] = dip_tv
    for spectrum in ("fib_sem", "porous_silicon"):
        found[f"gaussian {spectrum}"] = functools.partial(solved, jt.solvers.gaussian(spectrum))
    found[f"tv-long {DEFAULT['tv']:g}"] = functools.partial(solved, jt.tv(DEFAULT["tv"]), times=LONGER, stop=False)
    return {name: run for name, run in found.items() if name.split()[0] in names}


@functools.lru_cache(1)
def _rendered(phantom: str, size: int, seed: int):
    if phantom == "flyem":
        return tissue_of_a_fly(2 * size, seed)
    return getattr(phantoms, phantom)((2 * size,) * 3, seed)


def tissue_of_a_fly(side: int, seed: int) -> np.ndarray:
    """A pillar, cut at random from a FIB-SEM volume of a fly's brain, stain bright; `FLYEM` must be there."""
    volume = np.load(FLYEM)["volume"].astype(np.float32)
    rng = np.random.default_rng(seed)
    corner = [int(rng.integers(0, n - side + 1)) for n in volume.shape]
    cut = 255 - volume[tuple(slice(c, c + side) for c in corner)]
    z, x = (line - (side - 1) / 2 for line in np.ogrid[:side, :side])
    inside = np.clip((0.94 - np.hypot(z, x) / (side / 2)) * side / 4 + 0.5, 0, 1)
    return (cut / np.percentile(cut, 99.5) * inside[:, None, :]).astype(np.float32)


def angles(scheme: str) -> np.ndarray:
    """Degrees of a scheme such as ±60/2°."""
    most, step = (float(number) for number in scheme.strip("±°").split("/"))
    return np.arange(-most, most + 1e-6, step)


@functools.lru_cache(1)
def posed(case: Case, size: int) -> Posed:
    fine = _rendered(case.phantom, size, case.seed)
    series, truth, pose = simulate(fine, angles(case.scheme), Microscope(dose=case.dose), case.seed)
    return Posed(jt.Problem(series, pose), truth)
