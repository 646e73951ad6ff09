"""Sections of a report on what a volume was asked: particles or pores, and elements."""

from __future__ import annotations

import numpy as np

from . import plot, viewer
from .data import Reconstruction
from .elemental import composition
from .markup import PICTURE, Section, as_table, figure, look_at
from .quantify import Measured

LISTED = 12  # bodies, of all that were measured


def bodies(measured: Measured) -> Section:
    """What was counted and measured."""
    kind, found, ends = measured
    volume, table = found.volume, found.table
    drawn = figure(
        plot.bodies(volume, found.labels, found.sizes, found.unit, kind),
        f"The {kind} that were found, and their sizes",
        f"Left: a plane with the {kind} outlined, found where it is {'brighter' if found.sign > 0 else 'darker'} than "
        f"{found.threshold:.4g}, each up to midway between what is inside and around. Right: diameters of balls of "
        "the same volume. In brackets: where the surface can lie in its blurred edge, and what samples leave open, "
        "where the run has some (90 % on phantoms, less at ±30°). A missing wedge makes bodies longer along the "
        "beam: an elongation above 1 where none is expected is that.",
    )

    def said(name: str, index: int, value: float) -> str:
        low, high = (end[index] for end in ends[name]) if name in ends else (np.nan, np.nan)
        return f"{value:.4g}" + (f" ({low:.4g} to {high:.4g})" if np.isfinite(low) else "")

    rows = [(name.replace("_", " "), said(name, 0, value)) for name, value in found.summary.items()]
    left = as_table(rows)
    names = ("volume", "diameter", "aspect", "elongation", "neighbour")
    largest = range(min(LISTED, table["label"].size))
    lines = [(f"{i + 1}", *(said(name, i, table[name][i]) for name in names)) for i in largest]
    return kind, kind.capitalize(), f"{drawn}{left}{as_table(lines, ('largest', *names))}"


def elements(result: Reconstruction) -> Section:
    """Of a result of `jaxtomo elements`, whose settings say in `composition` what was found."""
    found = result.settings["composition"]
    numbers, counts, shadows = found["elements"], found["counts_per_pixel"], found.get("shadows", {})
    sensitivity = np.asarray(result.settings["solver"]["sensitivity"], np.float32)
    counted = "of counts" if (sensitivity == 1).all() else "of counts times sensitivity"
    shares = composition(result.volume, sensitivity)
    matter = shares.sum(0)
    whole = [float(k * v.sum(dtype=float)) for k, v in zip(sensitivity, result.volume[1:], strict=True)]
    at = look_at(result.volume[0])
    factor = -(-max(matter.shape) // PICTURE)
    drawn = figure(
        plot.pictures(
            {
                name: [viewer.shrink(v, factor).take(at[axis] // factor, axis) for v in (*result.volume, *shares)]
                for name, axis in (("xy", 0), ("xz", 1))
            }
        ),
        "HAADF, elements and their shares",
        f"Slices through z {at[0]} and y {at[1]}. From the left: what the HAADF shows; {', '.join(numbers)}, in counts "
        f"a voxel length; the share of {', '.join(numbers)}, {counted}, where there is matter.",
    )
    rows = [
        (
            f"{symbol} (Z {number})",
            f"{counts[symbol]:.3g}",
            f"{amount / max(sum(whole), 1e-30):.1%}",
            f"{min(shadows[symbol]):.2f} to {max(shadows[symbol]):.2f}" if symbol in shadows else "not fitted",
        )
        for (symbol, number), amount in zip(numbers.items(), whole, strict=True)
    ]
    table = as_table(rows, ("", "counts a pixel", f"share {counted}", "detector sees, of its average"))
    if "gamma" in found:
        error = f" ± {found['gamma_error']:.2g}" if found["gamma_error"] else ", as given"
        table += (
            f"<p>HAADF intensity grows with Z to the power of {found['gamma']:.3g}{error}. An error near 0.1 is "
            "what is expected of any microscope: then the images themselves say nothing of it.</p>"
        )
    if found.get("unexplained"):
        table += (
            f"<p>{found['unexplained']:.0%} of the HAADF (root mean square), at least, is not in proportion to the sum "
            "of the maps by these factors and powers of Z; the less they explain, the less it counts beside the maps. "
            "An element without a map, wrong factors from counts to matter (--sensitivity) and another power of Z "
            "(--gamma) do that.</p>"
        )
    if found.get("weights_tried"):
        listed = ", ".join(f"{weight:.3g}: {deviance:.4f}" for weight, deviance in found["weights_tried"])
        table += (
            f"<p>Weight {found['weight']:.3g}, the one that predicts counts which were held back best (deviance a "
            f"pixel by weight: {listed}).</p>"
        )
    elif "weight" in found:
        usual = found.get("weight_from") == "usual"
        table += f"<p>Weight {found['weight']:.3g}, {'as the maps are no counts' if usual else 'as given'}.</p>"
    if shadows:
        tilt = np.rad2deg(np.asarray(result.pose.tilt, np.float64))
        order = np.argsort(tilt, kind="stable")
        curves = {symbol: np.asarray(seen)[order] for symbol, seen in shadows.items()}
        table += figure(
            plot.lines([("detector sees", tilt[order], curves)], "tilt, °", width=plot.WIDE, height=1.6),
            "Detector shadowing of each tilt",
            "Counts of each map over what its volume predicts, on average 1: less where a holder is in the way.",
        )
    return "elements", "Elements", drawn + table
