"""On what geometries networks have learned, and whether a series is one of those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

SLACK = 1.15  # how far beyond what was learned is as good as within
NAMES = {
    "tilt_deg": "tilts to {:.0f}°",
    "step_deg": "steps of {:.1f}°",
    "noise": "noise of {:.2g} of the mean",
}


def facts(geometry) -> dict[str, float]:
    """The largest tilt, the mean step (degrees), and noise over mean, of what `priors.score.geometry` says."""
    _, first, last, count, noise = (float(value) for value in geometry)
    step = np.rad2deg(last - first) / max(np.exp(4 * count) - 1, 1)
    return {
        "tilt_deg": float(np.rad2deg(max(abs(first), abs(last)))),
        "step_deg": float(step),
        "noise": float(np.exp(4 * noise)),
    }


def reach(geometries: Sequence) -> dict[str, list[float]]:
    """The least and the most of these facts, for the card of what has learned from such geometries."""
    known = [facts(geometry) for geometry in geometries]
    return {name: [round(f(k[name] for k in known), 4) for f in (min, max)] for name in NAMES}


def beyond(learned: Mapping[str, Sequence[float]], geometry) -> list[str]:
    """In words, what of a geometry is beyond what was learned; less noise is not, nor is what is not known."""
    found = facts(geometry)
    return [
        f"{NAMES[name].format(found[name])} (it learned from {low:.3g} to {high:.3g})"
        for name, (low, high) in learned.items()
        if found[name] > high * SLACK or (found[name] < low / SLACK and name != "noise")
    ]
