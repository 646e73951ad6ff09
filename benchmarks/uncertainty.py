"""Whether the spread of an ensemble tells where the error is: rank correlation and calibration on phantoms.

python benchmarks/uncertainty.py                       # root-tv and dip-tv, 48³: about half an hour on two cores
python benchmarks/uncertainty.py --methods root-tv --size 32
"""

from __future__ import annotations

import argparse
import time

import machine
import numpy as np
from quality_runs import SCHEMES, Case, posed
from scipy.stats import spearmanr

import jaxtomo as jt
from jaxtomo.ensembles import in_turn

WEIGHT = 0.2
MAKERS = {"root-tv": jt.root_tv, "dip-tv": jt.dip_tv}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--members", type=int, default=6)
    parser.add_argument("--methods", nargs="+", default=list(MAKERS), choices=MAKERS)
    parser.add_argument("--phantoms", nargs="+", default=["supported_particles", "graded_needle"])
    parser.add_argument("--schemes", nargs="+", default=["±60/10°", "±30/2°"], choices=list(SCHEMES))
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    print(*machine.described("jaxtomo", "jax", "numpy"), sep="\n")
    lines = []
    for method in options.methods:
        for phantom in options.phantoms:
            for scheme in options.schemes:
                case = posed(Case(phantom, 1, scheme), options.size)
                began = time.perf_counter()
                solver = in_turn(MAKERS[method](WEIGHT), options.members)
                result = jt.reconstruct(case.problem, solver, callbacks=(), assess=False)
                seconds = time.perf_counter() - began
                error, spread = np.abs(result.volume - case.truth).ravel(), np.asarray(result.spread).ravel()
                # In ten groups of equal size, by spread: the error a user should expect, over what the spread says.
                groups = np.array_split(np.argsort(spread), 10)
                low, high = (np.sqrt(np.mean(error[g] ** 2) / np.mean(spread[g] ** 2)) for g in (groups[5], groups[-1]))
                lines.append(
                    (
                        f"{method}, {phantom}, {scheme}",
                        f"{spearmanr(error, spread)[0]:.2f}",
                        f"{low:.1f}",
                        f"{high:.1f}",
                        f"{np.mean(error < 2 * spread):.2f}",
                        f"{seconds:.0f}",
                    )
                )
                print(*lines[-1], flush=True)
    machine.show(
        f"Spread of {options.members} members against the true error, {options.size}³, dose 60, weight {WEIGHT:g}",
        ("", "rank correlation", "RMS error / spread, middle tenth", "widest tenth", "within 2 spreads", "seconds"),
        lines,
        [
            "Tenths of the voxels, ordered by spread. A spread that were a standard deviation of the error would"
            " give 1, 1 and 0.95; what the missing wedge hides from all members alike, none of them can show.",
        ],
        markdown=options.markdown,
    )


if __name__ == "__main__":
    main()
