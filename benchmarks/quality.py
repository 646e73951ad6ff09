"""How near every method comes to the truth on the simulator's phantoms, what it costs, and whether TV is converged.

    python benchmarks/quality.py                       # everything: hours on two cores
    python benchmarks/quality.py --minutes 30          # starts nothing new after half an hour; run again to go on
    python benchmarks/quality.py --report --markdown   # the tables of what is done so far
    python benchmarks/quality.py --quick               # one phantom of 32³, one scheme

Every finished run is a line of a file in benchmarks/.cache, by size, and is not repeated; --redo METHOD forgets the
runs of a method. Phantoms are projected on a grid twice as fine as the one they are reconstructed on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import machine
import numpy as np
from quality_runs import CLASSES, DEFAULT, LONGER, METHODS, SCHEMES, WEIGHTS, Case, posed, runs

import jaxtomo as jt

USUAL, LONG = (f"{name} {DEFAULT['tv']:g}" for name in ("tv", "tv-long"))
CONVERGED_DB, CONVERGED_SECONDS, BARS_AT = 0.1, 20.0, 64
# tvq over converged TV in the feasibility runs, dB: 48³ particles, mean of three seeds.
RECIPE = {"±60/10°": 1.3, "±60/20°": 1.1, "±30/2°": 1.7, "±30/10°": 2.0}


CACHE = Path(__file__).parent / ".cache"
NUMERICS = (
    "projector",
    "solvers",
    "priors",
    "solve.py",
    "stopping.py",
    "penalty.py",
    "likelihood.py",
    "phantoms.py",
    "simulate.py",
)


def code_version() -> str:
    """A hash of everything that the numbers depend on."""
    home, digest = Path(jt.__file__).parent, hashlib.sha256()
    for part in NUMERICS:
        for file in sorted((home / part).glob("*.py")) if (home / part).is_dir() else [home / part]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def done(file: Path) -> dict[tuple[Case, str], dict]:
    lines = file.read_text().splitlines() if file.exists() else []
    return {(Case(*(r := json.loads(line))["case"]), r["run"]): r for line in lines}


def cases(options) -> Iterator[Case]:
    """Seeds outermost: a run cut short has whole tables of fewer seeds."""
    for seed in options.seeds:
        for dose in options.doses:
            for phantom in options.phantoms:
                yield from (Case(phantom, seed, scheme, dose) for scheme in options.schemes)


def work(file: Path, wanted, options) -> None:
    """Runs what is lacking, a line of the file each, as long as there is time."""
    until, version = time.monotonic() + 60 * options.minutes, code_version()
    finished = done(file)
    for case in cases(options):
        for name, run in wanted.items():
            if (case, name) in finished:
                continue
            if time.monotonic() > until:
                return
            record = {"case": case, "run": name, "code": version} | run(posed(case, options.size))
            with file.open("a") as out:
                out.write(json.dumps(record) + "\n")
            print(
                *case,
                name,
                f"{record.get('psnr', np.nan):.2f} dB",
                f"{record.get('seconds', np.nan):.1f} s",
                flush=True,
            )


def by_row(found: dict[str, dict]) -> dict[str, dict]:
    """One case's runs as rows of the table: of a weighted method its default, the held-out choice, and the best."""
    rows = {name: r for name, r in found.items() if name.split()[0] not in (*WEIGHTS, "tv-long")}
    for name, weights in WEIGHTS.items():
        scan = {w: found[f"{name} {w:g}"] for w in weights if f"{name} {w:g}" in found}
        if len(scan) == len(weights):
            rows[f"{name} default"] = scan[DEFAULT[name]]
            rows[f"{name} best weight"] = max(scan.values(), key=lambda r: r["psnr"])
            if f"{name} held-out" in found:
                choice = found[f"{name} held-out"]
                rows[f"{name} held-out"] = scan[choice["weight"]] | {"seconds": choice["seconds"]}
    kinds = ("default", "held-out", "best weight", "best stop")

    def place(name):
        method, *kind = name.split(maxsplit=1)
        return METHODS.index(method), *(kinds.index(k) if k in kinds else -1 for k in kind)

    return {name: rows[name] for name in sorted(rows, key=place)}


def report(file: Path, wanted, options) -> None:
    everything = done(file)
    per_case = {
        case: {name: everything[case, name] for name in wanted}
        for case in cases(options)
        if all((case, name) in everything for name in wanted)
    }
    versions = {r["code"] for found in per_case.values() for r in found.values()}
    print(
        f"{len(per_case)} of {len([*cases(options)])} cases are done, with code {', '.join(sorted(versions)) or '-'}."
    )
    rows = {case: by_row(found) for case, found in per_case.items()}
    for kind, members in CLASSES.items():
        chosen = {case: r for case, r in rows.items() if case.phantom in members}
        if chosen:
            show_scores(kind, chosen, options)
    if per_case and all("dip-tv" in r and "tv best weight" in r for r in rows.values()):
        show_dip(rows, options)
        show_particles(rows, options)
    if {USUAL, LONG} <= wanted.keys() and per_case:
        show_convergence(per_case, options)
    margins = {
        case: r for case, r in rows.items() if case.phantom in CLASSES["piecewise-constant"] and "tvq default" in r
    }
    if margins and all("tv default" in r for r in margins.values()):
        show_margins(margins, options)


def show_scores(kind: str, rows: dict[Case, dict], options) -> None:
    def cell(name, scheme):
        found = [r[name] for case, r in rows.items() if case.scheme == scheme]
        means = (statistics.fmean(r[key] for r in found) for key in ("psnr", "ssim")) if found else None
        return "{:.2f} / {:.3f}".format(*means) if means else "-"

    def over_cases(name, key, kind=statistics.median):
        values = [r[name][key] for r in rows.values() if key in r[name]]
        return f"{kind(values):.3g}" if values else ""

    names = [*next(iter(rows.values()))]
    count = ", ".join(f"{s} {sum(case.scheme == s for case in rows)}" for s in options.schemes)
    machine.show(
        f"{kind}, {options.size}³, dose {', '.join(f'{d:g}' for d in options.doses)}: PSNR dB / SSIM",
        ("", *options.schemes, "seconds", "first call s", "steps"),
        (
            (
                name,
                *(cell(name, scheme) for scheme in options.schemes),
                over_cases(name, "seconds"),
                over_cases(name, "first", max),
                over_cases(name, "steps"),
            )
            for name in names
        ),
        [
            f"Means over cases: {count}. Seconds and steps are medians; the first call, one step, is the slowest.",
            "'best' is chosen by the truth, 'held-out' without it; its seconds are those of the choice among "
            f"{' or '.join(f'{len(w)} weights ({n})' for n, w in WEIGHTS.items())}.",
        ],
        markdown=options.markdown,
    )


def show_convergence(per_case, options) -> None:
    """TV as it comes against TV with ten times the iterations."""

    def line(kind, scheme):
        found = [f for case, f in per_case.items() if case.phantom in CLASSES[kind] and case.scheme == scheme]
        if not found:
            return None
        usual, longer = ([f[name] for f in found] for name in (USUAL, LONG))
        change = max(abs(a["psnr"] - b["psnr"]) for a, b in zip(usual, longer, strict=True))
        slowest = max(r["seconds"] for r in usual)
        verdict = "met" if change <= CONVERGED_DB and slowest < CONVERGED_SECONDS else "MISSED"
        steps = statistics.median(r["steps"] for r in usual)
        return (
            f"{kind}, {scheme}",
            f"{change:.3f}",
            f"{slowest:.1f}",
            f"{steps:g}",
            verdict if options.size == BARS_AT else "",
        )

    lines = (line(kind, scheme) for kind in CLASSES for scheme in options.schemes)
    machine.show(
        f"TV as it comes against {LONGER} times its iterations, {options.size}³",
        ("", "largest change of PSNR, dB", "slowest s", "steps", f"bar {CONVERGED_DB} dB, {CONVERGED_SECONDS:g} s"),
        filter(None, lines),
        markdown=options.markdown,
    )


def show_margins(rows: dict[Case, dict], options) -> None:
    """What sparse gradients gain over converged TV."""
    kinds = [
        k
        for k in ("default", "held-out", "best weight")
        if all(f"{m} {k}" in r for r in rows.values() for m in WEIGHTS)
    ]

    def mean(scheme, kind, members):
        gains = [
            r[f"tvq {kind}"]["psnr"] - r[f"tv {kind}"]["psnr"]
            for case, r in rows.items()
            if case.scheme == scheme and case.phantom in members
        ]
        return f"{statistics.fmean(gains):+.2f}" if gains else "-"

    everyone = CLASSES["piecewise-constant"]
    machine.show(
        f"tvq over tv on piecewise-constant phantoms, {options.size}³: dB, mean over seeds",
        ("", *options.schemes),
        [
            *((f"{p}, {kinds[-1]}", *(mean(s, kinds[-1], [p]) for s in options.schemes)) for p in everyone),
            *((f"all, {kind}", *(mean(s, kind, everyone) for s in options.schemes)) for kind in kinds),
            ("bar: the recipe's margins", *(f"{RECIPE[s]:+.1f}" if s in RECIPE else "" for s in options.schemes)),
        ],
        markdown=options.markdown,
    )


def show_dip(rows: dict[Case, dict], options) -> None:
    """What root-tv and dip-tv gain over converged TV with its best weight, and how well dip-tv stops."""
    lines = []
    for kind, members in CLASSES.items():
        for scheme in options.schemes:
            found = [r for case, r in rows.items() if case.phantom in members and case.scheme == scheme]
            if not found:
                continue

            def gains(name, over, key, found=found):
                return [r[name][key] - r[over][key] for r in found]

            over_tv = gains("dip-tv", "tv best weight", "psnr")
            lines.append(
                (
                    f"{kind}, {scheme}",
                    *(f"{statistics.fmean(gains('root-tv held-out', 'tv best weight', k)):+.{d}f}" for k, d in KEYS),
                    *(f"{statistics.fmean(gains('dip-tv', 'tv best weight', k)):+.{d}f}" for k, d in KEYS),
                    f"{min(over_tv):+.2f}",
                    f"{statistics.fmean(gains('dip-tv', 'tvq best weight', 'psnr')):+.2f}",
                    f"{statistics.median(r['dip-tv']['seconds'] for r in found):.0f}",
                )
            )
    lost = [max(p for *_, p in r["dip-tv"]["curve"]) - r["dip-tv"]["psnr"] for r in rows.values()]
    machine.show(
        "Gains over converged TV with the best weight (chosen by the truth): dB and SSIM",
        ("", "root-tv dB", "SSIM", "dip-tv dB", "SSIM", "least dB", "over best tvq dB", "seconds"),
        lines,
        [
            "root-tv and dip-tv choose their weight by held-out tilts; the seconds of dip-tv include that.",
            f"Stopping: {sum(x <= 0.5 for x in lost)} of {len(lost)} runs within 0.5 dB of their best average, "
            f"the worst {max(lost):.2f} dB below it (bar: 9 of 10, 1.5 dB).",
        ],
        markdown=options.markdown,
    )


KEYS = (("psnr", 2), ("ssim", 3))


def show_particles(rows: dict[Case, dict], options) -> None:
    """Elongation, size and volume fraction after segmentation, over those of the truth."""
    names = ("sirt", "tv best weight", "tvq best weight", "root-tv held-out", "dip-tv")

    def cell(name, scheme):
        found = [r[name] for case, r in rows.items() if case.scheme == scheme and case.phantom in PARTICLES]
        found = [r for r in found if "size" in r]
        means = (statistics.fmean(r[key] for r in found) for key in ("elongation", "size", "fraction"))
        return "{:.2f} / {:.2f} / {:.2f}".format(*means) if found else "-"

    machine.show(
        "After segmentation, over the truth: elongation along the beam / diameter / volume fraction",
        ("", *options.schemes),
        [(name, *(cell(name, scheme) for scheme in options.schemes)) for name in names],
        ["Means over supported_particles, core_shell and porous_support; medians over the particles of each."],
        markdown=options.markdown,
    )


PARTICLES = ("supported_particles", "core_shell", "porous_support")


def main() -> None:
    every = [name for members in CLASSES.values() for name in members]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--doses", type=float, nargs="+", default=[60.0])
    parser.add_argument("--phantoms", nargs="+", default=every, choices=every)
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--redo", nargs="+", default=[], choices=METHODS)
    parser.add_argument("--report", action="store_true", help="only print the tables")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.size, options.seeds, options.phantoms, options.schemes = 32, [1], ["core_shell"], ["±60/20°"]
    CACHE.mkdir(exist_ok=True)
    file = CACHE / f"quality-{options.size}.jsonl"
    if options.redo and file.exists():
        kept = [
            line for line in file.read_text().splitlines() if json.loads(line)["run"].split()[0] not in options.redo
        ]
        file.write_text("".join(line + "\n" for line in kept))
    wanted = runs(options.methods)
    print(*machine.described("jaxtomo", "jax", "numpy", "scikit-image"), sep="\n")
    if not options.report:
        work(file, wanted, options)
    report(file, wanted, options)


if __name__ == "__main__":
    main()
