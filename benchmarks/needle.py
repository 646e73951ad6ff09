"""The real needle, full size: read, align, and a hundred steps of SIRT on the whole volume.

python benchmarks/needle.py needle_haadf_raw.npz          # or the microscope's own file, needle_fei2003.mrc
python benchmarks/needle.py needle_fei2003.mrc --slices 32 --steps 10      # a quick look
"""

from __future__ import annotations

import argparse
from pathlib import Path

import machine
import numpy as np

import jaxtomo as jt

BAR_SECONDS = 40.0
BAR_AT = (77, 256, 256), 100  # images and steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--slices", type=int, help="only this many rows in the middle, along the tilt axis")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    print(*machine.described("jaxtomo", "jax", "numpy"), sep="\n")

    made = {}  # each call leaves its result here, so that nothing but the call is timed

    def read():
        made["series"] = jt.read(options.series, tilt_axis="x")

    def align():
        made["series"], made["pose"] = jt.align(made["series"])

    def solve():
        problem = jt.Problem(made["series"], made["pose"])
        made["result"] = jt.reconstruct(problem, jt.sirt(), options.steps, callbacks=(), assess=False)

    seconds = {"read": machine.seconds(read), "align": machine.seconds(align)}
    series = made["series"]
    if options.slices:
        start = (series.images.shape[1] - options.slices) // 2
        rows = slice(start, start + options.slices)
        mask = None if series.mask is None else series.mask[:, rows]
        made["series"] = series = series.replace(images=series.images[:, rows], mask=mask)
    seconds |= {"SIRT, from compilation to volume": machine.seconds(solve)}
    peak = machine.peak_memory()
    seconds |= {"SIRT, once compiled": machine.seconds(solve)}

    result = made["result"]
    whole = (series.images.shape, options.steps) == BAR_AT
    met = "met" if seconds["SIRT, from compilation to volume"] < BAR_SECONDS else "MISSED"
    shape, misfit = "x".join(map(str, result.volume.shape)), result.history["misfit"]
    finite = np.isfinite(result.volume).all() and len(misfit) == options.steps
    machine.show(
        f"{options.series.name}: {series.images.shape[0]} tilts, volume {shape}, SIRT {options.steps} steps",
        ("", "seconds", f"bar {BAR_SECONDS:g} s"),
        ((name, f"{s:.2f}", met if whole and "compilation" in name else "") for name, s in seconds.items()),
        [
            f"Relative misfit {misfit[0]:.3f} at the first step, {misfit[-1]:.4f} at the last; volume "
            f"{'finite, all steps done' if finite else 'NOT FINITE OR NOT DONE'}.",
            f"Peak memory of the process until the first volume: {peak / machine.MIB:.0f} MiB.",
            "The poses are the aligned ones, so every projection is also shifted; nothing is stopped early.",
        ],
        markdown=options.markdown,
    )


if __name__ == "__main__":
    main()
