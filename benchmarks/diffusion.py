"""The score network against the strongest methods without one: volumes never trained on, from ±60° down to ±4°.

    python benchmarks/diffusion.py                       # everything: many hours on two cores
    python benchmarks/diffusion.py --minutes 30          # starts nothing new after half an hour; run again to go on
    python benchmarks/diffusion.py --part 0/2            # every second case, for two processes side by side
    python benchmarks/diffusion.py --report --markdown   # the tables of what is done so far

`fibsem` is judged on the corners of the two FlyEM volumes that its training never saw, `nano` on phantoms whose seeds
it never saw; data range: of the truth. Weights of methods without a network are chosen by the truth. Finished runs are
lines of benchmarks/.cache/diffusion.jsonl and are not repeated; --redo RUN forgets those of a run.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import machine
import numpy as np
from quality_runs import angles
from scipy import ndimage, stats

import jaxtomo as jt
from jaxtomo import callbacks, metrics, phantoms, solvers
from jaxtomo.freedom import Freedom
from jaxtomo.priors.score import load
from jaxtomo.refinement import refine
from jaxtomo.simulate import Exposure, Microscope, expose

SIDE = 64
SCHEMES = ("±60/2°", "±30/2°", "±30/10°", "±10/1°", "±5/1°", "±4/2°")
SPECIMENS = {
    "fibsem": {"fly 1": (60.0, 3000.0), "fly 2": (60.0, 3000.0)},
    "nano": {name: (60.0, 600.0) for name in ("core_shell", "porous_support", "supported_particles")},
}
OTHER = {"fibsem": "nano", "nano": "fibsem"}
SLICES = {"fibsem": None, "nano": None}  # the folders of slice-wise networks, from --slices
SCANS: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "cs-tv": (jt.tv, (0.01, 0.03, 0.1, 0.3)),
    "tvq": (jt.tvq, (0.03, 0.1, 0.3, 0.7)),
    "root-tv": (jt.root_tv, (0.05, 0.2, 0.5, 1.0)),
}
OPPONENTS = ("wbp", "sart", "sirt", "cs-tv", "tvq", "root-tv", "dip-tv", "gaussian")
OURS = ("mean of samples", "point estimate", "weighed")
WIDE = SCHEMES[:3]
SERIES = ("low", "high", "misaligned")  # the first dose, the second, the first with images out of place
CACHE = Path(__file__).parent / ".cache" / "diffusion.jsonl"
FLYEM = Path(os.environ.get("JAXTOMO_DATA", "../shared/data"))


class Case(NamedTuple):
    specimen: str
    scheme: str
    dose: float
    moved_px: float = 0.0
    seed: int = 1


class Posed(NamedTuple):
    """A problem, the truth, and what only the simulator knows."""

    problem: jt.Problem
    truth: np.ndarray
    exposure: Exposure
    variance: np.ndarray  # of the noise of every pixel; NaN where less than a count is expected


@functools.lru_cache(1)
def fine(specimen: str, seed: int) -> np.ndarray:
    if specimen.startswith("fly"):
        volume = np.load(FLYEM / f"flyem_fib25_train{specimen[-1]}_250.npz")["volume"]
        return (255 - volume[-2 * SIDE :, -2 * SIDE :, -2 * SIDE :]).astype(np.float32) / 255
    return getattr(phantoms, specimen)((2 * SIDE,) * 3, seed)


@functools.lru_cache(1)
def posed(case: Case) -> Posed:
    microscope = Microscope(dose=case.dose, shift_jitter_px=case.moved_px)
    pixel_nm = 20.0 if case.specimen.startswith("fly") else None
    exposure = expose(fine(case.specimen, case.seed), angles(case.scheme), microscope, case.seed, pixel_nm)
    problem = jt.Problem(exposure.series)
    if case.moved_px:
        problem = jt.Problem(exposure.series, refine(problem, Freedom()).pose)
    count = exposure.clean.mean() / case.dose  # intensity of one electron
    variance = np.where(exposure.clean > count, exposure.clean * count, np.nan)
    return Posed(problem, exposure.truth, exposure, variance)


def chi_square(here: Posed, volume: np.ndarray, pose: jt.Pose) -> float:
    """Mean of (A v - y)² over the variance that the simulator's noise has, where there is some."""
    problem = here.problem.replace(pose=pose)
    predicted = np.asarray(problem.project(volume.swapaxes(1, 2))).swapaxes(1, 2)
    return float(np.nanmean((predicted - here.exposure.series.images) ** 2 / here.variance))


def placed(volume: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """A volume of poses that were learned, moved to where the truth is: no series tells where a specimen is."""
    from skimage.registration import phase_cross_correlation

    by, *_ = phase_cross_correlation(truth, volume, upsample_factor=20)
    return ndimage.shift(volume, by, order=3, mode="nearest")


def scored(here: Posed, result: jt.Reconstruction, moved: bool) -> dict:
    volume = placed(result.volume, here.truth) if moved else result.volume
    return {
        "psnr": metrics.psnr(volume, here.truth),
        "ssim": metrics.ssim(volume, here.truth),
        "rmse": metrics.rmse(volume, here.truth),
        "chi": chi_square(here, result.volume, result.pose),
        "truth": chi_square(here, here.truth, here.exposure.pose if moved else here.problem.pose),
        "unseen": unseen_power(volume, here.truth, here.exposure.series.tilt_deg),
        "seconds": result.settings["seconds"],
    }


def unseen_power(volume: np.ndarray, truth: np.ndarray, tilt_deg: np.ndarray) -> list[float]:
    """Power of the volume over that of the truth where no image says anything, dB, in four shells of frequency up to
    0.4 cycles a voxel."""
    window = functools.reduce(np.multiply.outer, [np.hanning(n + 2)[1:-1] for n in truth.shape])
    fz, fy, fx = (np.fft.fftfreq(n) for n in truth.shape)
    across = np.hypot(fz[:, None, None], fx[None, None, :])
    length = np.sqrt(across**2 + fy[None, :, None] ** 2)
    tilt = np.rad2deg(np.arctan2(fz[:, None, None], fx[None, None, :]) + 0 * fy[None, :, None])
    tilt = (tilt + 90) % 180 - 90  # of the image that would show it
    low, high = float(np.min(tilt_deg)), float(np.max(tilt_deg))
    hidden = (tilt < low - 3) | (tilt > high + 3)
    hidden &= np.minimum(np.abs(tilt - low), np.abs(tilt - high)) / 57.3 * across > 1.5 / truth.shape[0]
    found, there = (np.abs(np.fft.fftn((v - v.mean()) * window)) ** 2 for v in (volume, truth))
    edges = (0.03, 0.1, 0.2, 0.3, 0.4)
    shells = [hidden & (length >= a) & (length < b) for a, b in itertools.pairwise(edges)]
    return [float(10 * np.log10(found[s].sum() / there[s].sum())) if s.any() else float("nan") for s in shells]


def calibration(here: Posed, result: jt.Reconstruction, count: int) -> dict:
    """How the spread of samples tells the error of the volume: rank correlation, and how many voxels lie within 50, 80,
    90 and 95 % intervals of a t distribution, of all voxels and of those where the truth is not empty. For aligned
    series: volumes are compared where they lie."""
    error, spread = np.abs(result.volume - here.truth).ravel(), np.asarray(result.spread).ravel()
    wide = spread * np.sqrt(1 + 1 / count)
    levels = (0.5, 0.8, 0.9, 0.95)
    reach = [stats.t.ppf(0.5 + level / 2, count - 1) for level in levels]
    inside = ndimage.binary_dilation(here.truth > 0.05 * here.truth.max(), iterations=2).ravel()
    return {
        "rank": float(stats.spearmanr(error, spread)[0]),
        "covered": [float(np.mean(error <= r * wide)) for r in reach],
        "covered inside": [float(np.mean((error <= r * wide)[inside])) for r in reach],
    }


def run(case: Case, solver: jt.Solver, samples: int = 0) -> dict:
    here = posed(case)
    watch = (callbacks.stop_when_converged(), callbacks.stop_when_overfitting())
    result = jt.reconstruct(here.problem, solver, callbacks=watch, assess=False)
    facts = scored(here, result, case.moved_px > 0)
    return facts | (calibration(here, result, samples) if samples > 1 and not case.moved_px else {})


@functools.cache
def trained(name: str):
    return load(name)


def runs(prior: str, case: Case) -> dict[str, Callable[[], dict]]:
    """What is run on a case, by name; scans end in their weight."""
    weights = functools.partial(trained, prior)

    def made(make: Callable[[], jt.Solver], samples: int = 0) -> Callable[[], dict]:
        return lambda: run(case, make(), samples)

    found = {name: made(getattr(solvers, name)) for name in ("wbp", "sart", "sirt")}
    for name, (make, tried) in SCANS.items():
        found |= {f"{name} {w:g}": made(functools.partial(make, w)) for w in tried}
    found["gaussian"] = made(lambda: solvers.gaussian(weights().spectrum)._replace(steps=400))
    found["point estimate"] = made(lambda: solvers.expected(weights()))
    found["mean of samples"] = made(lambda: solvers.sample(weights()), 4)
    found["one sample"] = made(lambda: solvers.sample(weights(), samples=1))
    found["weighed"] = made(lambda: solvers.stacked(weights()))
    if case.moved_px:
        freedom = Freedom()
        found["samples that learn poses"] = made(lambda: solvers.sample(weights(), freedom=freedom), 4)
    elif case.dose == 60:
        found["twelve samples"] = made(lambda: solvers.sample(weights(), samples=12), 12)
        found["dip-tv"] = made(jt.dip_tv)
        found["the other prior"] = made(lambda: solvers.sample(trained(OTHER[prior])))
        found["the other prior, adapted"] = made(lambda: solvers.adapt(trained(OTHER[prior])))
        found["stacked with the other prior"] = made(lambda: solvers.stacked(trained(OTHER[prior])))
        if SLICES[prior]:
            found["slices"] = made(lambda: solvers.expected(trained(SLICES[prior])))
    return found


def cases(options) -> Iterator[tuple[str, Case]]:
    """The first dose of aligned series first: a run cut short has whole tables of fewer cases."""
    for kind in options.series:
        for scheme in options.schemes:
            for prior in options.priors:
                for specimen, doses in SPECIMENS[prior].items():
                    yield prior, Case(specimen, scheme, doses[kind == "high"], float(kind == "misaligned"))


def done() -> dict[tuple[Case, str], dict]:
    lines = CACHE.read_text().splitlines() if CACHE.exists() else []
    return {(Case(*(r := json.loads(line))["case"]), r["run"]): r for line in lines}


def work(options) -> None:
    until = time.monotonic() + 60 * options.minutes
    part, parts = (int(n) for n in options.part.split("/"))
    finished = done()
    for i, (prior, case) in enumerate(cases(options)):
        if i % parts != part:
            continue
        for name, call in runs(prior, case).items():
            if (case, name) in finished or (options.runs and name.split(" ")[0] not in options.runs):
                continue
            if time.monotonic() > until:
                return
            record = {"case": case, "run": name} | call()
            with CACHE.open("a") as out:
                out.write(json.dumps(record) + "\n")
            print(*case, name, f"{record['psnr']:.2f} dB  {record['ssim']:.3f}  {record['seconds']:.1f} s", flush=True)
        if i % 6 == part:
            jax.clear_caches()


def best_of(found: dict[str, dict]) -> dict[str, dict]:
    """A case's runs as rows: of a scan the weight that the truth likes best."""
    rows = {name: r for name, r in found.items() if not name.startswith(tuple(SCANS))}
    for name in SCANS:
        scan = [r for run, r in found.items() if run.startswith(name)]
        if scan:
            rows[name] = max(scan, key=lambda r: r["psnr"])
    return rows


def report(options) -> None:
    everything: dict[Case, dict[str, dict]] = {}
    for (case, name), record in done().items():
        everything.setdefault(case, {})[name] = record
    rows = {case: best_of(found) for case, found in everything.items() if "mean of samples" in found}
    for prior in options.priors:
        for dose in sorted({c.dose for c in rows if c.specimen in SPECIMENS[prior]}):
            for moved in (0.0, 1.0):
                mine = {
                    c: r
                    for c, r in rows.items()
                    if c.specimen in SPECIMENS[prior] and c.dose == dose and c.moved_px == moved
                }
                if mine:
                    show(prior, dose, moved, mine, options)
    show_samples(rows, options)


def show(prior: str, dose: float, moved: float, rows: dict[Case, dict], options) -> None:
    def mean(name, scheme, key):
        found = [r[name][key] for c, r in rows.items() if c.scheme == scheme and name in r]
        return statistics.fmean(found) if found else float("nan")

    names = list(dict.fromkeys(name for r in rows.values() for name in r if name != "twelve samples"))
    names.sort(key=lambda n: (OPPONENTS.index(n) if n in OPPONENTS else 99, n in OURS))
    lines = [
        (name, *(f"{mean(name, s, 'psnr'):.2f} / {mean(name, s, 'ssim'):.3f}" for s in options.schemes))
        for name in names
    ]
    margins = []
    for scheme in options.schemes:
        gains = []
        for case, r in rows.items():
            others = [r[n] for n in OPPONENTS if n in r]
            ours = [r[n] for n in OURS if n in r]
            if case.scheme == scheme and others and ours:
                gains.append([max(o[k] for o in ours) - max(o[k] for o in others) for k in ("psnr", "ssim")])
        margins.append("{:+.2f} / {:+.3f}".format(*np.mean(gains, 0)) if gains else "-")
    bars = ("+1.5 / +0.030" if s in WIDE else "+0.5" for s in options.schemes)
    chi = (f"{mean('mean of samples', s, 'chi'):.2f}" for s in options.schemes)
    lines += [("best of ours over the best opponent", *margins), ("bar", *bars)]
    least = (f"{mean('mean of samples', s, 'truth'):.2f}" for s in options.schemes)
    lines += [("χ² of the mean of samples", *chi), ("χ² of the truth on these voxels", *least)]
    title = f"{prior}, {SIDE}³, dose {dose:g}" + (f", shifts wrong by {moved:g} px and refined" if moved else "")
    count = len({c.specimen for c in rows})
    machine.show(
        f"{title}: PSNR dB / SSIM",
        ("", *options.schemes),
        lines,
        [f"Means over {count} specimens; of tv, tvq and root-tv the best weight by the truth."],
        markdown=options.markdown,
    )


def show_samples(rows: dict[Case, dict], options) -> None:
    """Power where nothing is measured, and what the spread says."""
    lines = []
    for case, r in rows.items():
        one, many = r.get("one sample"), r.get("twelve samples")
        if not one or not many:
            continue
        lines.append(
            (
                f"{case.specimen}, {case.scheme}",
                *(" ".join(f"{x:+.1f}" for x in r[n]["unseen"]) for n in ("one sample", "mean of samples", "gaussian")),
                f"{one['chi']:.2f}",
                f"{many['rank']:.2f}",
                " ".join(f"{x:.2f}" for x in many["covered"]),
                " ".join(f"{x:.2f}" for x in many["covered inside"]),
            )
        )
    machine.show(
        "Samples: power where no image says anything, over the truth's, dB in four shells; twelve samples' spread",
        ("", "one sample", "mean of 4", "gaussian", "χ²", "rank", "within 50 80 90 95 %", "the same, inside"),
        lines,
        [],
        markdown=options.markdown,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--priors", nargs="+", default=list(SPECIMENS), choices=list(SPECIMENS))
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--series", nargs="+", default=list(SERIES), choices=SERIES)
    parser.add_argument("--runs", nargs="+", default=[], help="first words of the runs that are wanted")
    parser.add_argument("--slices", nargs="+", default=[], help="PRIOR=FOLDER of slice-wise networks")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--redo", nargs="+", default=[])
    parser.add_argument("--report", action="store_true", help="only print the tables")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    SLICES.update(text.split("=", 1) for text in options.slices)
    CACHE.parent.mkdir(exist_ok=True)
    if options.redo and CACHE.exists():
        kept = [line for line in CACHE.read_text().splitlines() if json.loads(line)["run"] not in options.redo]
        CACHE.write_text("".join(line + "\n" for line in kept))
    print(*machine.described("jaxtomo", "jax", "numpy"), sep="\n")
    if not options.report:
        work(options)
    report(options)


if __name__ == "__main__":
    main()
