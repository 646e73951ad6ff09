"""Layers of a semiconductor needle: reconstructed from all its tilts and from a third of them, measured, and what of it
the images have seen.

The series is real and ships with jaxtomo: 77 raw, misaligned HAADF-STEM images (NIST, from ETSpy). With few tilts in a
narrow range the volumes of the layers should still be right within their intervals, which are wider then.
Run it with `python examples/layers_of_a_needle.py needle.png`; about three minutes on one CPU core.
"""

import sys

import numpy as np

import jaxtomo as jt
from jaxtomo import audit, prepare, quantify, samples

BRIGHT = 1650.0  # between the two kinds of layers, of about 1400 and 1950
TIP = 30  # rows of the base that are not drawn
SCHEMES = {"77 tilts to ±76°": (76, 1), "25 tilts to ±48°": (48, 2)}  # largest tilt, and every which one


def main(picture: str | None = None, steps: int = 60, bin: int = 1) -> dict:
    series, pose = jt.align(prepare.read_binned(samples.path("needle.mrc"), bin, tilt_axis="x"))
    found = {}
    for name, (most, every) in SCHEMES.items():
        tilts = np.flatnonzero(np.abs(series.tilt_deg) <= most)[::every]
        problem = jt.Problem(series.select(tilts), pose.select(tilts), thickness=56 // bin, width=56 // bin)
        result = jt.reconstruct(problem, jt.tv(0.03), steps)

        def layers(volume, threshold=BRIGHT):
            return quantify.particles(volume, series.pixel_nm, threshold=threshold)

        bodies = layers(result.volume)
        ends = quantify.intervals(bodies, layers, tilt_deg=series.tilt_deg[tilts])
        found[name] = result, bodies, ends, audit.audit(problem, result.volume)
        told(name, result, bodies, ends)
    if picture:
        draw(picture, found)
    return found


def told(name: str, result, bodies, ends) -> None:
    metrics, unit = result.metrics, 1e6  # nm³
    print(f"{name}: left-out tilts predicted to {metrics['prediction_error']:.1%}", end="; ")
    print(f"{metrics['supplied_share']:.0%} of the detail is not determined by the images")
    for axis, length in resolved(result).items():
        print(f"  even and odd tilts agree along {axis} down to {length:.0f} nm")
    for volume, low, high in zip(bodies.table["volume"], *ends["volume"], strict=True):
        print(f"  a layer of {volume / unit:.2f} million nm³ ({low / unit:.2f} to {high / unit:.2f})")


def resolved(result) -> dict[str, float]:
    """nm, by direction, at FSC 0.5."""
    cones = result.metrics["fsc_cones"]
    return {axis: cones[axis]["resolution_voxels_at_0.5"] * result.voxel_nm for axis in "xyz"}


def draw(picture, found) -> None:
    """The plane of beam and needle with its bright layers, what of it was not measured, and the numbers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    grid = figure.add_gridspec(2, 4, width_ratios=(2, 2, 1.3, 1.3))
    volumes, lengths = (figure.add_subplot(grid[:, column]) for column in (2, 3))
    maps = []
    for row, (name, (result, bodies, ends, audited)) in enumerate(found.items()):
        colour, middle = ("#30638e", "#d1495b")[row], result.volume.shape[2] // 2
        axes = figure.add_subplot(grid[row, 0])
        axes.set_title(f"{name}: beam upwards", fontsize=9)
        axes.imshow(result.volume[:, TIP:, middle], cmap="gray", vmax=2100, origin="lower")
        axes.contour(bodies.labels[:, TIP:, middle] > 0, [0.5], colors="#edae49", linewidths=1.2)
        axes.set_axis_off()
        axes = figure.add_subplot(grid[row, 1])
        axes.set_title("detail that no image determines", fontsize=9)
        maps.append(axes)
        axes.imshow(audited.supplied[:, TIP:, middle], cmap="inferno", vmin=0, vmax=1, origin="lower")
        axes.set_axis_off()
        value, order = bodies.table["volume"] / 1e6, np.argsort(bodies.table["y"])
        bars = np.abs(np.stack(ends["volume"]) / 1e6 - value)[:, order]
        where = np.arange(len(order)) + 0.15 * (2 * row - 1)
        volumes.errorbar(where, value[order], bars, fmt="o", color=colour, capsize=3, label=name)
        lengths.plot([*"xyz"], [*resolved(result).values()], "o-", color=colour, zorder=3 - row)
    figure.colorbar(maps[0].images[0], ax=maps, shrink=0.8, label="share of it")
    lengths.axhline(2 * result.voxel_nm, color="0.6", lw=0.8, ls=":")
    lengths.text(0, 2 * result.voxel_nm - 0.4, "two voxels", color="0.4", fontsize=8, va="top")
    volumes.set_title("volume of a layer, 10⁶ nm³", fontsize=9)
    volumes.set(xlabel="layer, from the base", ylim=(0, 3.4), xticks=range(3), xticklabels="123", xlim=(-0.5, 2.5))
    volumes.legend(frameon=False, fontsize=8, loc="upper right")
    lengths.set_title("even and odd tilts agree, nm", fontsize=9)
    lengths.set(xlabel="direction (z: the beam)", ylim=(0, None))
    for axes in (volumes, lengths):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
