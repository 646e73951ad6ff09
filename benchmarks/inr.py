"""Coordinate networks: `jt.inr` beside SIRT, converged TV with its best weight, and quantEM's INR on the same files.

    python benchmarks/inr.py                                   # everything but quantEM: half an hour on one core
    python benchmarks/inr.py --quantem PYTHON --minutes 30     # quantEM, by a Python that has it
    python benchmarks/inr.py --parts                           # encodings and bodies; losses at low dose
    python benchmarks/inr.py --report --markdown               # the tables of what is done so far

Wedge, tilt step and fluence are each varied alone. Every finished run is a line of benchmarks/.cache/inr.jsonl and is
not repeated. Weights: of `inr` chosen by left-out tilts, as a user gets it; of TV by the truth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from functools import partial
from pathlib import Path

import machine
import numpy as np
from quality_runs import SIRT_STOPS, WEIGHTS, Case, Posed, posed, score, solved, stopped_best

import jaxtomo as jt
from jaxtomo import methods, validate
from jaxtomo.priors import inr

CACHE = Path(__file__).parent / ".cache"
PHANTOMS = ("supported_particles", "graded_needle", "flyem")
WEDGE = [Case(p, 1, s) for p in PHANTOMS for s in ("±70/2°", "±60/2°", "±45/2°", "±30/2°")]
STEP = [Case(p, 1, s) for p in PHANTOMS for s in ("±60/2°", "±60/5°", "±60/10°", "±60/20°", "±45/5°")]
FLUENCE = [Case(p, 1, s, d) for p in PHANTOMS for s in ("±60/2°", "±45/5°") for d in (15.0, 60.0, 240.0)]
PEER = [
    (Case("supported_particles", 1, "±60/10°"), 48),
    (Case("graded_needle", 1, "±45/5°", 15.0), 48),
    (Case("supported_particles", 1, "±60/2°"), 64),
]
PARTS = {
    "tables, perceptron": {},
    "tables, SIREN": {"body": inr.sines(32, 1, omega=3.0), "rate": 0.01},
    "planes, perceptron": {"encoding": inr.planes(), "rate": 0.01},
    "Fourier, perceptron": {"encoding": inr.fourier(64), "body": inr.perceptron(64, 2), "rate": 0.01},
    "coordinates, SIREN": {"encoding": inr.coordinates(), "body": inr.sines(), "rate": 3e-3},
    "coordinates, H-SIREN": {"encoding": inr.coordinates(), "body": inr.sines(warp=inr.sinh), "rate": 3e-3},
    "coordinates, FINER": {"encoding": inr.coordinates(), "body": inr.sines(warp=inr.finer), "rate": 3e-3},
    "tables, perceptron, jitter of a voxel": {"jitter": 1.0},
    "tables, perceptron, slabs of 16 rows": {"rows": 16},
}
LOSSES = {"mean square, count weights": None, "smooth L1": jt.robust(), "Poisson": jt.poisson()}


def as_a_user(case: Posed, **options) -> dict:
    """The weight chosen by left-out tilts, then the network; seconds with everything, compilation too."""
    began = time.perf_counter()
    trial, steps = methods.trial(methods.Asked("inr")), methods.trial_steps(methods.Asked("inr"))
    weight, _ = validate.choose_weight(case.problem, trial, methods.WEIGHTS["inr"], steps)
    chosen, curve = time.perf_counter(), []

    def watch(now):
        if now.step % 70 == 0 and now.step:
            curve.append((now.seconds, score(now.volume(), case.truth)["psnr"]))

    result = jt.reconstruct(case.problem, jt.inr(weight, **options), callbacks=(watch,), assess=False)
    seconds = time.perf_counter() - began
    return score(result.volume, case.truth) | {
        "weight": weight,
        "choosing": chosen - began,
        "seconds": seconds,
        "curve": curve,
    }


def best_tv(case: Posed) -> dict:
    """Converged TV with the weight that is best by the truth."""
    runs = [solved(jt.tv(weight), case) | {"weight": weight} for weight in WEIGHTS["tv"]]
    return max(runs, key=lambda run: run["psnr"])


def unpenalised(case: Posed) -> dict:
    """A plain SIREN by mean squares alone, which is the published recipe."""
    solver = jt.inr(0.0, encoding=inr.coordinates(), body=inr.sines(), rate=1e-3)
    began = time.perf_counter()
    result = jt.reconstruct(case.problem, solver, callbacks=(), assess=False)
    return score(result.volume, case.truth) | {"seconds": time.perf_counter() - began}


METHODS = {
    "sirt": lambda case: stopped_best(jt.sirt(), SIRT_STOPS, case),
    "tv": best_tv,
    "inr": as_a_user,
}


def quantem(python: str, minutes: float, size: int, case: Case) -> dict:
    """quantEM's SIRT and INR: the scores and times of its volumes as it goes."""
    here, made = posed(case, size), {}
    given, taken = CACHE / "quantem-in.npz", CACHE / "quantem-out.npz"
    series = here.problem.series
    np.savez(given, images=series.images, tilt_deg=series.tilt_deg, truth=here.truth)
    worker = Path(__file__).parent / "quantem_worker.py"
    for name, more in (("sirt", ["--sirt"]), ("inr", ["--minutes", f"{minutes:g}"])):
        subprocess.run([python, str(worker), str(given), str(taken), *more], check=True)
        out = np.load(taken)
        made[name] = [
            (float(s), *(score(v, here.truth)[k] for k in ("psnr", "ssim")))
            for s, v in zip(out["seconds"], out["volumes"], strict=True)
        ]
    best = max(made["inr"], key=lambda point: point[1])
    facts = json.loads(str(out["facts"]))
    sirt = max(made["sirt"], key=lambda point: point[1])
    return {
        "psnr": best[1],
        "ssim": max(p[2] for p in made["inr"]),
        "seconds": made["inr"][-1][0],
        "best_at": best[0],
        "curve": made["inr"],
        "sirt": sirt,
        "facts": facts,
    }


def done(file: Path) -> dict[tuple[Case, int, str], dict]:
    lines = file.read_text().splitlines() if file.exists() else []
    return {(Case(*(r := json.loads(line))["case"]), r["side"], r["run"]): r for line in lines}


def work(file: Path, options) -> None:
    def todo():
        if options.quantem:
            for case, size in PEER:
                yield (
                    case,
                    size,
                    "quantem",
                    lambda case=case, size=size: quantem(options.quantem, options.minutes, size, case),
                )
        else:
            cases = [(case, 48) for case in dict.fromkeys([*WEDGE, *STEP, *FLUENCE])] + PEER
            for case, size in dict.fromkeys([*PEER, *cases]):
                for name, run in METHODS.items():
                    yield case, size, name, lambda run=run, case=case, size=size: run(posed(case, size))
            if options.parts:
                for case in (Case("graded_needle", 1, "±45/5°", 15.0), Case("supported_particles", 1, "±60/10°")):
                    for name, parts in PARTS.items():
                        yield case, 48, name, lambda parts=parts, case=case: as_a_user(posed(case, 48), **parts)
                    yield case, 48, "coordinates, SIREN, no penalty", partial(lambda c: unpenalised(posed(c, 48)), case)
                for case in (Case(p, 1, "±60/2°", 5.0) for p in PHANTOMS):
                    for name, model in LOSSES.items():
                        yield case, 48, name, lambda model=model, case=case: as_a_user(modelled(posed(case, 48), model))

    finished = done(file)
    for case, size, name, run in todo():
        if (case, size, name) in finished:
            continue
        record = run() | {"case": case, "side": size, "run": name}
        with file.open("a") as out:
            out.write(json.dumps(record) + "\n")
        print(*case, size, name, f"{record['psnr']:.2f} dB", f"{record.get('seconds', np.nan):.0f} s", flush=True)


def modelled(here: Posed, likelihood) -> Posed:
    return here if likelihood is None else Posed(here.problem.replace(likelihood=likelihood), here.truth)


def show_alone(title: str, cases, found, options) -> None:
    rows = []
    for case in cases:
        runs = {name: found.get((case, 48, name)) for name in METHODS}
        if all(runs.values()):
            gain = runs["inr"]["psnr"] - runs["tv"]["psnr"]
            rows.append(
                (
                    f"{case.phantom}, {case.scheme}, dose {case.dose:g}",
                    *("{psnr:.2f} / {ssim:.3f}".format(**runs[name]) for name in METHODS),
                    f"{gain:+.2f} / {runs['inr']['ssim'] - runs['tv']['ssim']:+.3f}",
                    f"{runs['inr']['seconds']:.0f}",
                )
            )
    if rows:
        head = ("48³: PSNR dB / SSIM", "SIRT, best stop", "TV, best weight", "inr", "inr over TV", "inr, s")
        machine.show(title, head, rows, markdown=options.markdown)


def show_peer(found, options) -> None:
    rows = []
    for case, size in PEER:
        theirs, ours = found.get((case, size, "quantem")), found.get((case, size, "inr"))
        if not theirs or not ours:
            continue
        reached = next((s for s, p in ours["curve"] if p >= theirs["psnr"]), np.inf) + ours["choosing"]
        gain = ours["psnr"] - theirs["psnr"]
        met = "met" if gain >= 3 and reached <= 90 and ours["ssim"] >= theirs["ssim"] else "MISSED"
        rows.append(
            (
                f"{case.phantom} {size}³, {case.scheme}, dose {case.dose:g}",
                "{1:.2f} / {2:.3f}".format(*theirs["sirt"]),
                "{psnr:.2f} / {ssim:.3f} in {seconds:.0f} s".format(**theirs),
                "{psnr:.2f} / {ssim:.3f} in {seconds:.0f} s".format(**ours),
                f"{reached:.0f} s",
                f"{gain:+.2f} dB, {met}",
            )
        )
    if rows:
        head = ("", "quantEM SIRT", "quantEM INR, its best", "inr", "inr reaches that in", "over it; bar 3 dB, 90 s")
        machine.show("Beside quantEM", head, rows, markdown=options.markdown)


def show_parts(found, options) -> None:
    for title, names in (
        ("Parts", [*PARTS, "coordinates, SIREN, no penalty"]),
        ("Losses", [*LOSSES]),
    ):
        cases = sorted({case for case, size, name in found if name in names and size == 48})
        rows = [
            (name, *("{psnr:.2f} / {ssim:.3f}".format(**r) if (r := found.get((c, 48, name))) else "-" for c in cases))
            for name in names
        ]
        if cases:
            head = ("48³: PSNR dB / SSIM", *(f"{c.phantom}, {c.scheme}, dose {c.dose:g}" for c in cases))
            machine.show(title, head, rows, markdown=options.markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantem", metavar="PYTHON", help="run quantEM, by this Python")
    parser.add_argument("--minutes", type=float, default=30.0, help="that quantEM gets for each case")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    CACHE.mkdir(exist_ok=True)
    file = CACHE / "inr.jsonl"
    print(*machine.described("jaxtomo", "jax", "flax", "optax"), sep="\n")
    if not options.report:
        work(file, options)
    found = done(file)
    show_peer(found, options)
    show_alone("Wedge alone", WEDGE, found, options)
    show_alone("Tilt step alone", STEP, found, options)
    show_alone("Fluence alone", FLUENCE, found, options)
    show_parts(found, options)


if __name__ == "__main__":
    main()
