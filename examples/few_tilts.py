"""Particles on a film from 61, 13 and 7 images: SIRT, total variation and Deep Image Prior with TV, side by side.

Run it with `python examples/few_tilts.py few_tilts.png`; about ten minutes on two CPU cores.
"""

import sys

import numpy as np

import jaxtomo as jt
from jaxtomo import metrics, phantoms, validate
from jaxtomo.simulate import Microscope, simulate

STEPS_DEG = (2, 10, 20)
WEIGHTS = (0.05, 0.1, 0.2, 0.5, 1.0)


def main(picture: str | None = None, size: int = 64, steps: int = 700, tilt_steps=STEPS_DEG) -> dict:
    # A film of intensity 0.15 with particles of 0.6 and 1, rendered twice as fine as it is reconstructed.
    fine = phantoms.supported_particles((2 * size,) * 3, seed=1)
    volumes, scores, truth = {}, {}, None
    for step in tilt_steps:
        series, truth, pose = simulate(fine, np.arange(-60, 61, step), Microscope(dose=60), seed=1)
        problem = jt.Problem(series, pose)
        # The strength of the penalty is the one with which left-out tilts are predicted best, by quick fits without the
        # network.
        weight, _ = validate.choose_weight(problem, jt.root_tv, WEIGHTS, jt.root_tv().steps)
        plain, _ = validate.choose_weight(problem, jt.tv, WEIGHTS, 100)
        methods = {"SIRT": jt.sirt(), "CS-TV": jt.tv(plain), "DIP-TV": jt.dip_tv(weight, steps)}
        for name, solver in methods.items():
            result = jt.reconstruct(problem, solver, assess=False)
            volumes[name, step] = result.volume
            scores[name, step] = metrics.psnr(result.volume, truth), metrics.ssim(result.volume, truth)
            print(f"{name:8}±60° in steps of {step:2}°: {scores[name, step][0]:.1f} dB, {scores[name, step][1]:.3f}")
            print(f"        {result.message}")
    if picture:
        draw(picture, volumes, scores, truth)
    return scores


def draw(picture, volumes, scores, truth) -> None:
    """Planes across the tilt axis, where the missing wedge shows: methods down, tilt steps across, and the truth."""
    from matplotlib.figure import Figure

    names, steps = list(dict.fromkeys(n for n, _ in volumes)), list(dict.fromkeys(s for _, s in volumes))
    plane = int(np.argmax(truth.var(axis=(0, 2))))
    figure = Figure(figsize=(2 * (len(steps) + 1), 2 * len(names)), layout="constrained")
    for row, name in enumerate(names):
        for column, step in enumerate([*steps, None]):
            axes = figure.add_subplot(len(names), len(steps) + 1, row * (len(steps) + 1) + column + 1)
            axes.set_axis_off()
            if step is None and row:
                continue
            image = truth if step is None else volumes[name, step]
            axes.imshow(image[:, plane], cmap="gray", vmin=0, vmax=truth.max(), origin="lower")
            axes.set_title("truth" if step is None else f"{name}, {step}°: {scores[name, step][0]:.1f} dB", fontsize=9)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
