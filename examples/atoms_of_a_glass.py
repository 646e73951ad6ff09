"""Atoms of a metallic glass: traced in a volume, refined against the images, told apart, and how far they are apart.

The atoms are real: 18,356 of a CoPdPt nanoparticle, measured by atomic electron tomography (Yang et al., Nature 592,
60, 2021; they ship with jaxtomo). Images of a ball of them are calculated here, at a dose as in experiments.
Run it with `python examples/atoms_of_a_glass.py atoms.png`; about two minutes on one CPU core.
"""

import sys

import numpy as np
from scipy.spatial import KDTree

import jaxtomo as jt
from jaxtomo import atoms, samples

NAMES, NUMBERS = ("Co", "Pd", "Pt"), (27, 46, 78)
COLOURS = ("#d1495b", "#edae49", "#3d8fc4")
PIXEL = 0.347  # Å
DOSE = 4e5  # electrons a Å², all images together
TILTS_DEG = np.linspace(-60, 60, 57)


def main(picture: str | None = None, radius: float = 20.0, tilt_deg=TILTS_DEG) -> dict:
    with np.load(samples.path("aet_CoPdPt.npz")) as file:
        true, kind = file["xyz_A"] - file["xyz_A"].mean(0), file["type"].astype(int) - 1
    inside = np.linalg.norm(true, axis=1) < radius
    true, kind = true[inside], kind[inside]
    problem = jt.Problem(recorded(true, kind, 8 * int(np.ceil((2 * radius / PIXEL + 12) / 8)), tilt_deg))

    volume = jt.reconstruct(problem, jt.sirt(), steps=40, assess=False).volume
    traced = atoms.find(volume, PIXEL / 10)
    refined = atoms.species(atoms.refine(problem, traced), len(NAMES), NUMBERS)

    scores = {"atoms": len(true)}
    for name, found in (("volume", traced), ("images", refined)):
        away, which = KDTree(found.positions).query(true)
        near = away < 1
        scores[name] = len(found.positions), near.mean(), 100 * np.sqrt(np.mean(away[near] ** 2))
        print(f"{name}: {scores[name][0]} atoms for {len(true)}, {scores[name][1]:.1%} found", end=", ")
        print(f"{scores[name][2]:.1f} pm off (root mean square)")
    right = refined.species[which[near]] == kind[near]
    scores["species"] = right.mean()
    print(f"species: {right.mean():.1%} right; {atoms.defects(refined).message}")
    if picture:
        draw(picture, volume, refined, true, radius)
    return scores


def recorded(positions, kind, size: int, tilt_deg) -> jt.TiltSeries:
    """Counts in `size`² pixels: atoms seen by an aberration-free probe (200 kV, 25 mrad) from a source of 0.35 Å, with
    their vibration and cross-sections; no scattering but once."""
    rng, (x, y, z) = np.random.default_rng(1), positions.T
    frequency = np.fft.fftfreq(size, PIXEL)
    k = np.hypot(frequency[:, None], frequency)
    edge = np.clip(k * 0.0251 / (2 * 0.025), 0, 1)  # of the aperture's autocorrelation
    transfer = 2 / np.pi * (np.arccos(edge) - edge * np.sqrt(1 - edge**2))
    transfer *= np.exp(-2 * np.pi**2 * k**2 * ((0.35 / 2.355) ** 2 + 0.09**2))
    strength = 0.04 * (np.array(NUMBERS)[kind] / 78) ** 1.7  # Å², cross-section into the detector

    def waves(places):
        return np.exp(-2j * np.pi * np.outer(frequency, places + PIXEL * (size - 1) / 2))

    electrons = []
    for tilt in np.deg2rad(tilt_deg):
        shown = strength * waves(y) @ waves(x * np.cos(tilt) + z * np.sin(tilt)).T
        fraction = np.fft.ifft2(shown * transfer).real / PIXEL**2
        electrons.append(rng.poisson(np.maximum(fraction, 0) * DOSE / len(tilt_deg) * PIXEL**2))
    return jt.TiltSeries(np.array(electrons, np.float32), tilt_deg, PIXEL / 10)


def radial(positions, radius: float, edges) -> np.ndarray:
    """g(r): pairs of a ball's atoms at a distance, over those of as many points strewn in it at random."""
    n, r, step = len(positions), (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    tree = KDTree(positions)
    pairs = np.diff(tree.count_neighbors(tree, edges)) / 2
    strewn = 3 * r**2 / radius**3 * (1 - 3 * r / (4 * radius) + r**3 / (16 * radius**3))
    return pairs / (n * (n - 1) / 2 * strewn * step)


def draw(picture, volume, found, true, radius: float) -> None:
    """A slab of the volume with the atoms in it, all atoms in space, and their radial distribution."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    slab, space, pairs = (figure.add_subplot(1, 3, i, projection="3d" if i == 2 else None) for i in (1, 2, 3))
    middle, half = volume.shape[1] // 2, PIXEL * volume.shape[0] / 2
    shown = np.sqrt(volume[:, middle - 2 : middle + 2].mean(1))  # for the faint ones to be seen beside the bright
    slab.imshow(shown, cmap="gray", origin="lower", extent=(-half, half, -half, half), vmax=np.percentile(shown, 99.8))
    slab.set(title="slab of 1.4 Å, the beam upwards", xlabel="x, Å", ylabel="z, Å")
    slab.set(xlim=(-radius, radius), ylim=(-radius, radius))
    for species, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True)):
        mine = found.positions[found.species == species]
        slab.scatter(*mine[np.abs(mine[:, 1]) < 0.7].T[[0, 2]], s=30, facecolors="none", edgecolors=colour)
        space.scatter(*mine.T, s=16, color=colour, edgecolors="white", linewidths=0.2, label=f"{name}, {len(mine)}")
    space.set(title="all atoms, refined")
    space.set_axis_off()
    space.set_box_aspect((1, 1, 1), zoom=1.4)
    space.legend(loc="lower center", ncols=3, frameon=False, handletextpad=0.1, columnspacing=1)
    edges = np.arange(1.5, min(radius, 12), 0.1)
    for positions, style, name in ((true, {"color": "0.75", "lw": 4}, "as measured"), (found.positions, {}, "found")):
        pairs.plot((edges[1:] + edges[:-1]) / 2, radial(positions, radius, edges), **style, label=name)
    pairs.set(title="radial distribution g(r)", xlabel="distance, Å", ylim=(0, None))
    pairs.spines[["top", "right"]].set_visible(False)
    pairs.legend(frameon=False)
    figure.savefig(picture, dpi=96)


if __name__ == "__main__":
    main(*sys.argv[1:])
