"""One slice of 256² with sparse particles, 32 tilts over ±30°: dB over SIRT, seconds, and the curve of dB by seconds.

python benchmarks/one_slice.py                # two seeds, about six minutes on two cores
python benchmarks/one_slice.py --size 64 --steps 40 --seeds 1
"""

from __future__ import annotations

import argparse
import time

import machine
import numpy as np

import jaxtomo as jt
from jaxtomo import callbacks, metrics
from jaxtomo.simulate import Microscope, simulate

BAR_DB, BAR_SECONDS = 9.0, 90.0
TV_WEIGHTS = (0.03, 0.1, 0.3)
WEIGHT = 0.3  # of root-tv and dip-tv


def sparse_discs(size: int, seed: int, count: int = 25) -> np.ndarray:
    """`[size, 2, size]`: discs of two densities that do not touch, the same in both slices."""
    rng = np.random.default_rng(seed)
    z, x = np.ogrid[:size, :size]
    image, placed = np.zeros((size, size), np.float32), []
    while len(placed) < count:
        radius, centre = rng.uniform(0.012, 0.045), rng.uniform(-0.33, 0.33, 2)
        if np.hypot(*centre) + radius > 0.46 or any(np.hypot(*(centre - c)) < radius + r + 0.01 for c, r in placed):
            continue
        placed.append((centre, radius))
        distance = np.hypot((z + 0.5) / size - 0.5 - centre[0], (x + 0.5) / size - 0.5 - centre[1])
        image = np.maximum(image, rng.choice([1.0, 0.7]) * np.clip((radius - distance) * size + 0.5, 0, 1))
    return np.repeat(image[:, None].astype(np.float32), 2, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    print(*machine.described("jaxtomo", "jax", "numpy"), sep="\n")
    slicewise = {"deep": False, "patch": (1, 2, 2)}
    solvers = {
        "sirt": jt.sirt(),
        **{f"tv {w:g}": jt.tv(w) for w in TV_WEIGHTS},
        "root-tv": jt.root_tv(WEIGHT),
        "dip-tv, slice by slice": jt.dip_tv(WEIGHT, options.steps, **slicewise),
        "dip, slice by slice": jt.dip(options.steps, **slicewise),
    }
    rows = []
    for seed in options.seeds:
        tilts = np.linspace(-30, 30, 32)
        series, truth, pose = simulate(sparse_discs(2 * options.size, seed), tilts, Microscope(dose=60), seed)
        problem, before = jt.Problem(series, pose), None
        for name, solver in solvers.items():
            curve, began = [], time.perf_counter()

            def watch(now, curve=curve, truth=truth):
                if "watch" in now.state and now.step % 50 == 0 and now.step:
                    now_there = np.asarray(now.state["watch"].averages.volume).swapaxes(1, 2)
                    curve.append(f"{metrics.psnr(now_there, truth):.1f} at {now.seconds:.0f} s")

            watchers = (callbacks.stop_when_converged(), callbacks.stop_when_overfitting())
            if name.startswith("dip"):
                watchers = (watch, *watchers)
            result = jt.reconstruct(problem, solver, callbacks=watchers, assess=False)
            seconds = time.perf_counter() - began
            psnr = metrics.psnr(result.volume, truth)
            before = psnr if before is None else before
            similarity = metrics.ssim(result.volume[:, 0], truth[:, 0])
            rows.append((seed, name, f"{psnr:.2f}", f"{psnr - before:+.2f}", f"{similarity:.3f}", f"{seconds:.0f}"))
            print(*rows[-1], ", ".join(curve), flush=True)
    machine.show(
        f"Sparse discs, one slice of {options.size}², 32 tilts over ±30°, dose 60",
        ("seed", "", "dB", "over sirt", "SSIM", "seconds, compilation included"),
        rows,
        [
            f"Bars, at 256²: {BAR_DB:g} dB over sirt, less than {BAR_SECONDS:g} s.",
            f"root-tv and dip-tv: weight {WEIGHT:g}.",
        ],
        markdown=options.markdown,
    )


if __name__ == "__main__":
    main()
