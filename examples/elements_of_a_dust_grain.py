"""Elements of a dust grain: volumes of seven elements from X-ray counts, and whether the HAADF images help, judged by
tilts that were left out.

The series is real: HAADF and EDS maps of a lamella of an interplanetary dust particle, 16 tilts from -40° to 35°. It is
public under GPL-3 (openNCEM) and does not ship with jaxtomo. The file is an npz with `haadf [tilt, y, x]`, a map of
counts `Mg_Ka` and so on for every line, `tilts_deg` and `pixel_size_nm`.
Run it with `python examples/elements_of_a_dust_grain.py idp_eds_haadf_tiltseries.npz dust.png`; about two minutes on
one CPU core.
"""

import sys

import jax.numpy as jnp
import numpy as np

import jaxtomo as jt
from jaxtomo.elemental import atomic_number, stacked
from jaxtomo.solvers import elements

LINES = {"O": "O_Ka", "Mg": "Mg_Ka", "Si": "Si_Ka", "S": "S_Ka", "Fe": "Fe_Ka", "Cu": "Cu_Ka", "Pt": "Pt_La"}
COLOURS = {"Fe": (1.0, 0.25, 0.1), "Mg": (0.2, 0.9, 0.3), "Pt": (0.3, 0.45, 1.0)}
LEFT_OUT = (1, 5, 9, 13)


def main(data: str, picture: str | None = None, bin: int = 4, steps: int = 150, weight: float = 1.4) -> dict:
    problem = read(data, bin)
    numbers = [atomic_number(symbol) for symbol in LINES]
    live = np.ones((problem.images.shape[1], 1, 1), np.float32)
    live[list(LEFT_OUT)] = 0
    kept = problem.replace(weights=problem.weights * jnp.asarray(live))
    print("left-out counts, deviance a pixel (noise alone: about 1)", *LINES, "", sep="  ")
    scores = {}
    for name, believed in (("with HAADF", 1.0), ("counts alone", 0.0)):
        solver = elements(numbers, weight, haadf=believed)
        scores[name] = deviance(problem, jt.reconstruct(kept, solver, steps, callbacks=(), assess=False).volume)
        print(f"{name}:", *(f"{score:.2f}" for score in scores[name]), f"mean {scores[name].mean():.3f}", sep="  ")
    best = min(scores, key=lambda name: scores[name].mean())
    solver = elements(numbers, weight, haadf=float(best == "with HAADF"))
    result = jt.reconstruct(problem, solver, steps, callbacks=(), assess=False)
    if picture:
        draw(picture, np.asarray(result.volume[1:]), problem.voxel_nm, best)
    return scores


def read(data: str, bin: int) -> jt.Problem:
    """HAADF and maps together, binned, aligned by the HAADF; with room beside the field for what high tilts show."""
    with np.load(data) as file:
        tilt_deg, pixel_nm = file["tilts_deg"], bin * float(file["pixel_size_nm"])
        images = {name: file[name].astype(np.float32) for name in ("haadf", *LINES.values())}

    def series(name: str) -> jt.TiltSeries:
        n, ny, nx = images[name].shape
        blocks = images[name].reshape(n, ny // bin, bin, nx // bin, bin)
        return jt.TiltSeries(blocks.sum((2, 4)), tilt_deg, pixel_nm, source=name)

    haadf, pose = jt.align(series("haadf"))
    width = haadf.images.shape[2]
    together = stacked(haadf, {symbol: series(line) for symbol, line in LINES.items()})
    return jt.Problem(together, pose, thickness=3 * width // 8, width=5 * width // 4)


def deviance(problem: jt.Problem, volume) -> np.ndarray:
    """`[element]`: of the left-out counts, a pixel: 2 Σ (m - y + y log y / m), with m the prediction, scaled to as many
    counts a map, since nothing tells how much of an unseen tilt the detector saw."""
    tilts = list(LEFT_OUT)
    predicted = np.asarray(problem.project(jnp.asarray(volume).swapaxes(-1, -2)))[1:, tilts]
    counted = np.asarray(problem.images)[1:, tilts]
    scale = counted.sum((2, 3), keepdims=True) / np.maximum(predicted.sum((2, 3), keepdims=True), 1e-6)
    mean = np.maximum(scale * predicted, 0.05)
    logs = counted * np.log(np.maximum(counted, 1e-9) / mean)
    return 2 * np.mean(mean - counted + logs, (1, 2, 3))


def draw(picture, volume, voxel_nm: float, which: str) -> None:
    """Every element in the plane of the lamella and across it, and three of them in colour."""
    from matplotlib.figure import Figure

    nz, ny = volume.shape[1:3]
    row = ny // 2 + ny // 16
    scaled = np.clip(volume / np.percentile(volume, 99.7, (1, 2, 3))[:, None, None, None], 0, 1)
    gap = np.ones((len(LINES), 2, volume.shape[3]))
    panels = np.concatenate([scaled[:, :, row], gap, scaled[:, nz // 2]], 1)
    mixed = sum(panels[[*LINES].index(symbol), ..., None] * np.array(colour) for symbol, colour in COLOURS.items())
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    for k, (name, image) in enumerate(
        [*zip(LINES, panels, strict=True), ("Fe red, Mg green, Pt blue", np.clip(mixed, 0, 1))]
    ):
        axes = figure.add_subplot(2, 4, k + 1, title=name)
        axes.imshow(image, cmap="magma", origin="lower", interpolation="none", vmin=0, vmax=1)
        axes.axhspan(nz - 0.5, nz + 1.5, color="white")
        axes.axhline(nz + 2 + row, color="white", lw=0.5, ls=":")
        axes.set_axis_off()
        if k == 0:
            axes.plot([3, 3 + 500 / voxel_nm], [nz + 5, nz + 5], color="white", lw=2.5)
            axes.text(3, nz + 7, "500 nm", color="white", fontsize=8)
    figure.suptitle(f"Above xy, below xz along the dotted line, the beam upwards; {which}", fontsize=10)
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main(*sys.argv[1:])
