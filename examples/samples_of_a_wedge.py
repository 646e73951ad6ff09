"""Half of all directions were never seen: what can the specimen be? Samples by a network that has learned from others.

Run it with `python examples/samples_of_a_wedge.py wedge.png`; about three minutes on two CPU cores.
"""

import sys

import jax
import numpy as np

import jaxtomo as jt
from jaxtomo import metrics, phantoms, solvers
from jaxtomo.priors.score import load
from jaxtomo.simulate import Microscope, simulate

RANGES_DEG = (60, 30)


def main(picture: str | None = None, size: int = 64, steps: int = 8, ranges_deg=RANGES_DEG) -> dict:
    weights = load("nano")
    fine = phantoms.core_shell((2 * size,) * 3, seed=1)
    rows, scores, truth = {}, {}, None
    for most in ranges_deg:
        series, truth, pose = simulate(fine, np.arange(-most, most + 1, 2), Microscope(dose=60), seed=1)
        problem = jt.Problem(series, pose)
        tv = jt.reconstruct(problem, jt.tv(), assess=False)
        answer = jt.reconstruct(problem, solvers.sample(weights, steps, samples=4), assess=False)
        draws = [
            jt.reconstruct(problem, solvers.sample(weights, steps, samples=1), key=jax.random.key(i), assess=False)
            for i in (1, 2)
        ]
        for name, result in (("CS-TV", tv), ("mean of samples", answer)):
            scores[name, most] = metrics.psnr(result.volume, truth), metrics.ssim(result.volume, truth)
            print(f"±{most}°: {name:16}{scores[name, most][0]:.1f} dB, {scores[name, most][1]:.3f}")
        rows[most] = {
            "truth": truth,
            f"CS-TV, {scores['CS-TV', most][0]:.1f} dB": tv.volume,
            f"mean of 4, {scores['mean of samples', most][0]:.1f} dB": answer.volume,
            "a sample": draws[0].volume,
            "another": draws[1].volume,
            "spread of 4, × 5": 5 * answer.spread,
        }
    if picture:
        draw(picture, rows, truth)
    return scores


def draw(picture, rows, truth) -> None:
    """Planes across the tilt axis, where the missing wedge shows."""
    from matplotlib.figure import Figure

    plane, count = int(np.argmax(truth.var(axis=(0, 2)))), len(next(iter(rows.values())))
    figure = Figure(figsize=(2 * count, 2.2 * len(rows)), layout="constrained")
    for i, (most, volumes) in enumerate(rows.items()):
        for k, (name, volume) in enumerate(volumes.items()):
            axes = figure.add_subplot(len(rows), count, i * count + k + 1)
            axes.set_axis_off()
            axes.imshow(volume[:, plane], cmap="gray", vmin=0, vmax=truth.max(), origin="lower")
            axes.set_title(f"±{most}°: {name}" if k == 0 else name, fontsize=9)
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
