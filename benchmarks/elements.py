"""Elements: HAADF and count maps of a two-element phantom reconstructed together at a tenth of the dose, next to
SIRT and TV of every map by itself at the full dose, their settings the best by the truth.

    python benchmarks/elements.py                                  # 64³, 15 tilts, two pairs of elements, two seeds
    python benchmarks/elements.py --data ../shared/data            # a real nanorod, and a figure of a quantum dot

Full dose: on average 2 counts a pixel of each map and 200 electrons a pixel of the HAADF.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax.numpy as jnp
import machine
import numpy as np
from scipy.ndimage import center_of_mass, gaussian_filter, minimum_filter, shift, uniform_filter

import jaxtomo as jt
from jaxtomo import metrics
from jaxtomo.correlate import binned
from jaxtomo.elemental import stacked
from jaxtomo.plot import pictures
from jaxtomo.shapes import Body, ball, render
from jaxtomo.solvers import elements
from jaxtomo.thinning import choose

TILTS = np.arange(-70, 71, 10.0)
PAIRS = {"Ni/Cu": (28, 29), "Ni/Pt": (28, 78)}
COUNTS, ELECTRONS, GAMMA = 2.0, 200.0, 1.7


def specimen(size: int, seed: int, particles: int = 9) -> np.ndarray:
    """`[element, z, y, x]`, atoms per voxel: balls with a core of the first element in a shell of the second, half of
    them graded from one to the other."""
    rng = np.random.default_rng(seed)
    matter, first, placed = [], [], []
    for radius in np.sort(rng.uniform(0.07, 0.15, particles))[::-1]:
        for _ in range(500):
            centre = rng.uniform(-0.45, 0.45, 3)
            inside = np.linalg.norm(centre[[0, 2]]) + radius < 0.48 and abs(centre[1]) + radius < 0.48
            if inside and all(np.linalg.norm(centre - c) > radius + r for c, r in placed):
                break
        else:
            continue
        placed.append((centre, radius))
        matter.append(Body(ball(radius), 1.0, centre, radius))
        core, off = rng.uniform(0.4, 0.7) * radius, rng.normal(size=3)
        if rng.random() < 0.5:
            first.append(Body(ball(radius), graded(radius), centre, radius))
        else:
            off *= 0.5 * (radius - core) / np.linalg.norm(off)
            first.append(Body(ball(core), 1.0, centre + off, core))
    whole, inner = render((size,) * 3, matter), render((size,) * 3, first)
    return np.stack([inner, np.maximum(whole - inner, 0)])


def graded(radius: float):
    return lambda x, y, z: np.clip(1.1 - 1.2 * np.sqrt(x * x + y * y + z * z) / radius, 0, 1)


def shadow(rng: np.random.Generator) -> np.ndarray:
    """How much the detector sees at every tilt: more when tilted towards it, less behind the holder."""
    side = 1 + 0.35 * np.sin(np.deg2rad(TILTS)) - 0.5 * np.exp(-(((TILTS + 45) / 12) ** 2))
    side = side * np.exp(0.05 * rng.normal(size=len(TILTS)))
    return side / side.mean()


def recorded(size: int, seed: int, numbers, dose: float = 1.0, shadowed: bool = True):
    """(series, truth `[element, z, y, x]` in counts per voxel, shadows) at a share of the full dose."""
    rng = np.random.default_rng(1000 + seed)
    fine = specimen(2 * size, seed)
    truth = fine.reshape(2, size, 2, size, 2, size, 2).mean((2, 4, 6))
    pose = jt.Pose.nominal(TILTS)
    clean = [np.maximum(binned(np.asarray(jt.project(jnp.asarray(f), pose)), 2) / 2, 0) for f in fine]
    seen = shadow(rng) if shadowed else np.ones(len(TILTS))
    images, volumes = [], []
    bright = sum(z**GAMMA * c for z, c in zip(numbers, clean, strict=True))
    bright = bright / bright.mean()
    images.append(rng.poisson(ELECTRONS * dose * bright) / (ELECTRONS * dose))
    for part, volume in zip(clean, truth, strict=True):
        scale = COUNTS * dose / np.mean([c.mean() for c in clean])
        images.append(rng.poisson(scale * seen[:, None, None] * part))
        volumes.append(scale * volume)
    return jt.TiltSeries(np.stack(images).astype(np.float32), TILTS), np.stack(volumes).astype(np.float32), seen


def scores(maps, truth) -> tuple[list[float], float]:
    """SSIM of every map, and the RMS error of the first element's share where there is matter."""
    ssim = [metrics.ssim(m, t) for m, t in zip(maps, truth, strict=True)]
    matter = truth.sum(0) > 0.5 * truth.sum(0).max()
    share = truth[0] / np.where(matter, truth.sum(0), 1)
    found = np.maximum(np.asarray(maps), 0)
    found = np.where(found.sum(0) > 0, found[0] / np.maximum(found.sum(0), 1e-30), 0.5)
    return ssim, float(np.sqrt(np.mean((found - share)[matter] ** 2)))


def independent(series, truth) -> dict[str, tuple[list[float], float, str]]:
    """(SSIM of each map, composition RMSE, settings) of SIRT and TV of every map by itself, with the best settings by
    the truth: for SSIM map by map, for the composition of all pairs."""
    problems = [jt.Problem(series.replace(images=images)) for images in series.images[1:]]
    tried = {"sirt": [(n, jt.sirt(), n) for n in (5, 10, 20, 40, 80)]}
    tried["tv"] = [(w, jt.tv(w), 200) for w in (1.0, 2.0, 3.0, 5.0, 8.0)]
    results = {}
    for name, settings in tried.items():
        volumes = [
            [jt.reconstruct(p, solver, steps, callbacks=(), assess=False).volume for p in problems]
            for _, solver, steps in settings
        ]
        ssim = np.array([scores(maps, truth)[0] for maps in volumes])
        best = ssim.argmax(0)
        shares = [scores(np.stack([a[0], b[1]]), truth)[1] for a in volumes for b in volumes]
        there = scores(np.stack([volumes[i][e] for e, i in enumerate(best)]), truth)[1]
        said = f"{'/'.join(f'{settings[i][0]:g}' for i in best)}, composition there {there:.3f}"
        results[name] = [float(ssim[i, e]) for e, i in enumerate(best)], float(min(shares)), said
    return results


def joint(series, truth, numbers, weight: float | None = None, **given) -> tuple[list[float], float, str]:
    problem = jt.Problem(series)
    if weight is None:
        weight = choose(problem, lambda weight: elements(numbers, weight, **given)).weight
    result = jt.reconstruct(problem, elements(numbers, weight, **given), callbacks=(), assess=False)
    gamma = f"γ {result.history['gamma'][-1]:.2f} ± {result.history['gamma_error'][-1]:.2f}"
    return *scores(result.volume[1:], truth), f"weight {weight:.2f}, {gamma}"


CASES = {
    "elements": (True, {}),
    "weight 0.35": (True, {"weight": 0.35}),
    "no shadows": (False, {}),
    "shadows not fitted": (True, {"shadows": False}),
    "γ 2, wrong": (True, {"gamma": 2.0}),
    "without HAADF": (True, {"haadf": 0.0}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--data", type=Path, help="folder with real data: only the specimens there")
    parser.add_argument("--markdown", action="store_true")
    asked = parser.parse_args()
    if asked.data is not None:
        nanorod(asked.data, asked.markdown)
        quantum_dot(asked.data)
        return
    rows = []
    for seed in range(asked.seeds):
        # Counts do not know of Z, and the rivals get them without shadows.
        series, truth, _ = recorded(asked.size, seed, PAIRS["Ni/Pt"], 1.0, False)
        for name, found in independent(series, truth).items():
            rows.append(line(f"{name}, full dose, seed {seed}", *found))
        for pair, numbers in PAIRS.items():
            for name, (shadowed, given) in CASES.items():
                series, truth, _ = recorded(asked.size, seed, numbers, 0.1, shadowed)
                rows.append(line(f"{pair}, {name}, 1/10, seed {seed}", *joint(series, truth, numbers, **given)))
    header = ["", "SSIM first", "second", "mean", "composition RMSE", "settings"]
    notes = [
        "Bar: elements at 1/10 of the dose at least as good as sirt and tv at full dose, which are given counts "
        "without shadows and the best settings by the truth: for SSIM map by map (as listed), for the "
        "composition of all pairs.",
        f"Full dose: {COUNTS:g} counts a pixel of the two maps on average, {ELECTRONS:g} electrons of the HAADF.",
        *machine.described("jax"),
    ]
    title = f"Elements, {asked.size}³, {len(TILTS)} tilts to ±{TILTS[-1]:g}°"
    machine.show(title, header, rows, notes, markdown=asked.markdown)


def line(name: str, ssim, share: float, said: str) -> list[str]:
    row = [name, *(f"{s:.3f}" for s in ssim), f"{np.mean(ssim):.3f}", f"{share:.4f}", said]
    print("  ".join(row), flush=True)
    return row


def nanorod(data: Path, markdown: bool) -> None:
    """A gold nanorod: 13 views, about 10° apart, of counts that were interpolated and scaled; next to a volume that its
    authors made of many more HAADF images. Counts are divided by their variance over their mean."""
    with np.load(data / "kaist_stem_edx.npz") as file:
        views = file["nanorod_edx"].reshape(13, 64, 4, 64, 4).sum((2, 4))
        theirs = np.pad(file["nanorod_haadf_volume"].astype(np.float32), ((0, 1), (0, 0), (0, 0)))
    around = uniform_filter(views, (0, 5, 5))
    inside = minimum_filter(around, (1, 5, 5)) > 0.6 * around.max((1, 2), keepdims=True)
    count = np.var((views - around)[inside]) * 25 / 24 / around[inside].mean()
    counts = np.rint(views / count).astype(np.float32)
    centre = np.array([center_of_mass(image) for image in counts])[:, ::-1] - 31.5
    tilts = 10.0 * (np.arange(13) - 6)
    pose = jt.Pose.nominal(tilts).replace(shift=jnp.asarray(centre, jnp.float32))
    theirs = theirs.reshape(64, 4, 64, 4, 64, 4).mean((1, 3, 5)).swapaxes(1, 2)  # the rod along y
    theirs = shift(theirs, 31.5 - np.array(center_of_mass(theirs)), order=1)

    def judged(name: str, volume) -> list[str]:
        section = volume[:, 20:44].sum(1)
        section = np.where(section > 0.3 * section.max(), section, 0)
        z, x = np.indices(section.shape)
        long, wide = (np.sqrt(np.average((a - np.average(a, weights=section)) ** 2, weights=section)) for a in (z, x))
        return [name, f"{np.corrcoef(np.ravel(volume), np.ravel(theirs))[0, 1]:.3f}", f"{long / wide:.3f}"]

    gold = jt.TiltSeries(counts, tilts)
    together = jt.Problem(stacked(None, {"Au": gold}), pose)
    weight = choose(together, lambda weight: elements((79,), weight)).weight
    result = jt.reconstruct(together, elements((79,), weight), callbacks=(), assess=False)
    rows = [judged("HAADF, of the authors", theirs), judged(f"elements, weight {weight:.2f}", result.volume[1])]
    solvers = {f"sirt, {n} steps": (jt.sirt(), n) for n in (10, 20, 40)}
    solvers |= {f"tv {weight:g}": (jt.tv(weight), 200) for weight in (1.0, 3.0, 10.0)}
    for name, (solver, steps) in solvers.items():
        volume = jt.reconstruct(jt.Problem(gold, pose), solver, steps, callbacks=(), assess=False).volume
        rows.append(judged(name, volume))
    notes = [f"{counts[inside].mean():.0f} counts a pixel of the rod.", *machine.described("jax")]
    header = ["", "correlation with the HAADF", "section, z over x"]
    machine.show("A gold nanorod by its counts, 13 views", header, rows, notes, markdown=markdown)


def quantum_dot(data: Path) -> None:
    """Quantum dots: 13 views, about 10° apart, of 0.03 counts of Se, S and Zn a pixel, without a HAADF; centred by the
    counts of all, which is rough where several are in view."""
    stored = np.load(data / "kaist_stem_edx.npz")["QD2_counts_view_y_x_SeSZn"].astype(np.float32)
    views = stored.transpose(3, 0, 1, 2)
    together = gaussian_filter(views.sum(0), (0, 4, 4))
    maps = np.zeros((3, len(together), 48, 48), np.float32)
    for i, image in enumerate(together):
        y, x = (round(c) for c in center_of_mass(image * (image > 0.3 * image.max())))
        moved = np.roll(views[:, i], (128 - y, 128 - x), (-2, -1))[:, 32:224, 32:224]
        maps[:, i] = moved.reshape(3, 48, 4, 48, 4).sum((2, 4))
    tilts = 10.0 * (np.arange(len(together)) - len(together) // 2)
    series = stacked(None, {s: jt.TiltSeries(m, tilts) for s, m in zip(("Se", "S", "Zn"), maps, strict=True)})
    result = jt.reconstruct(jt.Problem(series), elements((34, 16, 30)), callbacks=(), assess=False)
    middle = result.volume[1:].shape[1] // 2
    shown = {
        "counts at 0°, Se, S, Zn": list(maps[:, len(together) // 2]),
        "xy": [v[middle] for v in result.volume[1:]],
        "xz": [v[:, middle] for v in result.volume[1:]],
    }
    shown = {name: [plane / plane.max() for plane in planes] for name, planes in shown.items()}
    pictures(shown).savefig("quantum_dot.png", dpi=110)
    print(f"{maps.mean():.3f} counts a pixel of {maps.shape}; quantum_dot.png")


if __name__ == "__main__":
    main()
