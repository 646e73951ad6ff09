"""The pair of networks that fill sinograms and clean tomograms: what each is worth, on shapes never trained on.

    python benchmarks/gan.py                              # everything: hours on two cores
    python benchmarks/gan.py --minutes 30                 # starts nothing new after half an hour; run again to go on
    python benchmarks/gan.py --weights FOLDER             # of weights that do not ship
    python benchmarks/gan.py --plain FOLDER               # also weights that were trained without critics
    python benchmarks/gan.py --needle ../shared/data/needle_haadf_raw.npz
    python benchmarks/gan.py --time                       # a slice of 256², a volume of 128³
    python benchmarks/gan.py --report --markdown          # the tables of what is done so far

Slabs of 128 × 8 × 128 voxels: two kinds of phantoms that training never saw, others of unseen seeds, and a corner of a
FlyEM volume that it never saw. CS-TV is converged and has the weight that the truth likes best. Signal-to-noise ratio,
20 log₁₀(|truth| / |error|). Finished runs are lines of benchmarks/.cache/gan.jsonl and are not repeated; --redo RUN
forgets those of a run.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import machine
import numpy as np

import jaxtomo as jt
from jaxtomo import callbacks, phantoms, solvers, validate
from jaxtomo.priors.gan import Weights, load
from jaxtomo.simulate import Microscope, expose
from jaxtomo.solvers.consistent import chi_square, measured
from jaxtomo.solvers.gan import cleaned, fill, show

SIDE, ROWS = 128, 8
EVEN, TEXTURED = ("hollow_particles", "chiral", "core_shell"), ("graded_needle", "tissue", "fly")
WEDGES, STEPS, DOSES = (30, 45, 60, 90), (1.4, 2.0, 5.0), (1000.0, 60.0)
FLYEM = Path(os.environ.get("JAXTOMO_DATA", "../shared/data")) / "flyem_fib25_train1_250.npz"
CACHE = Path(__file__).parent / ".cache" / "gan.jsonl"
TV_WEIGHTS = (0.003, 0.01, 0.03, 0.1, 0.3)
SIRT_STOPS = (30, 100, 300)
GAINS = {"wbp": 10.0, "sart": 2.2, "cs-tv": 1.8}  # published, of a filled sinogram at 45° and 1.4°


class Case(NamedTuple):
    specimen: str
    wedge: float
    step: float
    dose: float
    seed: int = 1


@functools.lru_cache(1)
def posed(case: Case) -> tuple[jt.Problem, np.ndarray]:
    shape = (2 * SIDE, 2 * ROWS, 2 * SIDE)
    if case.specimen == "fly":
        corner = 255 - np.load(FLYEM)["volume"][-128:, -2 * ROWS :, -128:].astype(np.float32)
        z, x = (line - 127.5 for line in np.ogrid[:256, :256])
        inside = np.clip(120 - np.hypot(z, x), 0, 1)[:, None]  # a pillar
        fine = corner.repeat(2, 0).repeat(2, 2) / 255 * inside
    else:
        fine = getattr(phantoms, case.specimen)(shape, case.seed)
    most = 90 - case.wedge / 2
    tilts = np.arange(-most, most + 1e-6, case.step)
    exposure = expose(fine.astype(np.float32), tilts, Microscope(dose=case.dose), case.seed)
    return jt.Problem(exposure.series), exposure.truth


def snr(volume, truth) -> float:
    return float(20 * np.log10(np.linalg.norm(truth) / np.linalg.norm(volume - truth)))


def run(problem: jt.Problem, solver: jt.Solver, steps: int | None = None) -> np.ndarray:
    watch = (callbacks.stop_when_converged(),)
    return jt.reconstruct(problem, solver, steps, callbacks=watch, assess=False).volume


def scanned(problem: jt.Problem, truth: np.ndarray, make: Callable, values) -> float:
    """The best of a scan by the truth."""
    return max(snr(run(problem, *make(value)), truth) for value in values)


METHODS: dict[str, Callable[[jt.Problem, np.ndarray], float]] = {
    "wbp": lambda problem, truth: snr(run(problem, jt.wbp()), truth),
    "sart": lambda problem, truth: scanned(problem, truth, lambda n: (jt.sart(), n), (3, 10, 30)),
    "sirt": lambda problem, truth: scanned(problem, truth, lambda n: (jt.sirt(), n), SIRT_STOPS),
    "cs-tv": lambda problem, truth: scanned(problem, truth, lambda w: (jt.tv(w),), TV_WEIGHTS),
}


def runs(case: Case, options) -> Iterator[tuple[str, Callable[[], dict]]]:
    """What is run on a case, by name."""

    def plain(name: str) -> dict:
        return {"snr": METHODS[name](*posed(case))}

    def filled(weights: str, name: str) -> dict:
        problem, truth = posed(case)
        return {"snr": METHODS[name](fill(problem, trained(weights)), truth)}

    def joint(weights: str) -> dict:
        problem, truth = posed(case)
        volume = run(problem, solvers.gan(trained(weights)))
        images = measured(problem)
        predicted = problem.project(jnp.asarray(volume.swapaxes(1, 2)))
        return {
            "snr": snr(volume, truth),
            "chi": float(chi_square(problem, images, predicted)),
            "between": float(np.diff(volume, axis=1).std() / np.diff(truth, axis=1).std()),
        }

    def parts(weights: str) -> dict:
        """Without the one or the other network, no agreement at the end."""
        problem, truth = posed(case)
        whole = fill(problem, trained(weights))
        of_filled, of_measured = (run(p, jt.sirt(), 20).swapaxes(1, 2) for p in (whole, problem))
        told = show(problem, trained(weights))
        both, one = (np.asarray(jax.jit(cleaned)(told, v)).swapaxes(1, 2) for v in (of_filled, of_measured))
        volumes = {"snr": both, "filled": of_filled.swapaxes(1, 2), "cleaned": one}
        volumes |= dict(zip(("gaussian", "root tv", "tvq"), np.asarray(told.guide).swapaxes(2, 3), strict=True))
        return {name: snr(volume, truth) for name, volume in volumes.items()}

    for name in METHODS:
        yield name, functools.partial(plain, name)
    for name in METHODS:
        yield f"filled, {name}", functools.partial(filled, options.weights, name)
    yield "gan", functools.partial(joint, options.weights)
    yield "its parts", functools.partial(parts, options.weights)
    if options.plain:
        for name in ("wbp", "cs-tv"):
            yield f"filled without a critic, {name}", functools.partial(filled, options.plain, name)
        yield "gan without critics", functools.partial(joint, options.plain)


@functools.cache
def trained(name: str) -> Weights:
    return load(name)


def cases(options) -> Iterator[Case]:
    """45° first, of which the published numbers are; the other steps of the other wedges last."""
    schemes = [(45, step) for step in STEPS] + [(wedge, 2.0) for wedge in WEDGES if wedge != 45]
    schemes += [(wedge, step) for wedge in WEDGES for step in STEPS if (wedge, step) not in schemes]
    for wedge, step in schemes:
        for dose in options.doses if wedge in options.wedges and step in options.every else ():
            for specimen in EVEN + TEXTURED:
                yield Case(specimen, float(wedge), step, dose)


def done() -> dict[tuple[Case, str], dict]:
    lines = CACHE.read_text().splitlines() if CACHE.exists() else []
    return {(Case(*(r := json.loads(line))["case"]), r["run"]): r for line in lines}


def work(options) -> None:
    until = time.monotonic() + 60 * options.minutes
    finished = done()
    for i, case in enumerate(cases(options)):
        for name, call in runs(case, options):
            if (case, name) in finished or (options.runs and name.split(",")[0] not in options.runs):
                continue
            if time.monotonic() > until:
                return
            record = {"case": case, "run": name} | call()
            with CACHE.open("a") as out:
                out.write(json.dumps(record) + "\n")
            print(*case, name, f"{record['snr']:.2f} dB", flush=True)
        if i % 6 == 5:
            jax.clear_caches()


def report(options) -> None:
    found = done()
    tables: dict[tuple[float, float, float], dict[str, dict[str, dict]]] = {}
    for (case, name), record in found.items():
        tables.setdefault((case.wedge, case.step, case.dose), {}).setdefault(name, {})[case.specimen] = record
    for (wedge, step, dose), rows in tables.items():
        specimens = [s for s in EVEN + TEXTURED if any(s in row for row in rows.values())]
        lines = []
        for name, row in rows.items():
            values = [row[s]["snr"] if s in row else float("nan") for s in specimens]
            lines.append((name, *(f"{v:.2f}" for v in values), f"{statistics.fmean(values):.2f}"))
        notes = []
        for name, bar in GAINS.items():
            if {name, f"filled, {name}"} <= rows.keys():
                gains = [rows[f"filled, {name}"][s]["snr"] - rows[name][s]["snr"] for s in rows[f"filled, {name}"]]
                said = f" (bar {bar:g})" if (wedge, step) == (45, 1.4) else ""
                notes.append(f"{name} of the filled sinogram: {statistics.fmean(gains):+.2f} dB{said}.")
        if {"gan", "cs-tv"} <= rows.keys():
            gains = {s: rows["gan"][s]["snr"] - rows["cs-tv"][s]["snr"] for s in rows["gan"]}
            notes.append("gan over cs-tv: " + ", ".join(f"{s} {g:+.2f}" for s, g in gains.items()) + " dB.")
            chi = [r["chi"] for r in rows["gan"].values()]
            between = [r["between"] for r in rows["gan"].values()]
            notes.append(
                f"χ² of gan {min(chi):.2f} to {max(chi):.2f}; differences between its slices "
                f"{min(between):.2f} to {max(between):.2f} of the truth's."
            )
        machine.show(
            f"Missing wedge {wedge:g}°, step {step:g}°, dose {dose:g}: SNR dB",
            ("", *specimens, "mean"),
            lines,
            notes,
            markdown=options.markdown,
        )


def needle(options) -> None:
    """The tilts beyond ±45° that were cut away, predicted."""
    from jaxtomo.prepare import read_binned

    series, pose = jt.align(read_binned(options.needle, options.bin, tilt_axis="x"))
    problem = validate.slab(jt.Problem(series, pose), options.rows)
    held = np.flatnonzero(np.abs(series.tilt_deg) > 45.5)
    kept, left = validate.hold_out(problem, held)

    def error(solver: jt.Solver, steps: int | None = None) -> float:
        volume = jnp.asarray(run(kept, solver, steps).swapaxes(1, 2))
        return float(np.sqrt(np.mean(np.asarray(validate.prediction_error(left, volume))[held] ** 2)))

    rows = [
        ("sirt", min((error(jt.sirt(), n), f"{n} steps") for n in (10, 20, *SIRT_STOPS))),
        ("cs-tv", min((error(jt.tv(w)), f"weight {w:g}") for w in (*TV_WEIGHTS, 1.0))),
        ("gan", (error(solvers.gan(trained(options.weights))), "")),
    ]
    ours = rows[-1][1][0]
    machine.show(
        f"{options.needle.name}, bin {options.bin}, {problem.shape[2]} rows: ±45° for the {held.size} tilts beyond",
        ("", "relative RMSE", "gan against it", "setting, the best for these tilts"),
        [(name, f"{100 * e:.2f} %", f"{ours / e - 1:+.1%}", said) for name, (e, said) in rows],
        ["Bar: 20 % below both."],
        markdown=options.markdown,
    )


def timing(options) -> None:
    rows = []
    for shape, bar in (((256, 1, 256), 2.0), ((128, 128, 128), 120.0)):
        fine = phantoms.core_shell(tuple(2 * n for n in shape), 1)
        series = expose(fine, np.arange(-67.5, 67.6, 2.0), Microscope(dose=100), 1).series
        problem, solver = jt.Problem(series), solvers.gan(trained(options.weights))

        def whole(problem=problem, solver=solver):
            return jt.reconstruct(problem, solver, callbacks=(), assess=False)

        first, again = machine.seconds(whole), machine.seconds(whole)
        rows.append((" × ".join(map(str, shape)), f"{again:.1f}", f"{first - again:.1f}", f"{bar:g}"))
    machine.show("gan, 68 tilts", ("", "seconds", "to compile, once", "bar"), rows, (), markdown=options.markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="slices", help="a folder of jaxtomo train gan")
    parser.add_argument("--plain", help="weights trained with --critical 0")
    parser.add_argument("--runs", nargs="+", default=[], help="first words of the runs that are wanted")
    parser.add_argument("--wedges", nargs="+", type=int, default=list(WEDGES), choices=WEDGES)
    parser.add_argument("--every", nargs="+", type=float, default=list(STEPS), choices=STEPS, help="degrees")
    parser.add_argument("--doses", nargs="+", type=float, default=list(DOSES), choices=DOSES)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--redo", nargs="+", default=[])
    parser.add_argument("--needle", type=Path)
    parser.add_argument("--bin", type=int, default=2)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    CACHE.parent.mkdir(exist_ok=True)
    if options.redo and CACHE.exists():
        kept = [line for line in CACHE.read_text().splitlines() if json.loads(line)["run"] not in options.redo]
        CACHE.write_text("".join(line + "\n" for line in kept))
    if not options.weights and not options.report:
        parser.error("--weights FOLDER is needed for all but --report")
    print(*machine.described("jaxtomo", "jax", "numpy"), sep="\n")
    if options.needle:
        needle(options)
    elif options.time:
        timing(options)
    else:
        if not options.report:
            work(options)
        report(options)


if __name__ == "__main__":
    main()
