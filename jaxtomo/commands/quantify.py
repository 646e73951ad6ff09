"""`jaxtomo quantify`: count and measure the particles or the pores of a volume."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..console import Console, as_json, table
from ..errors import InputError
from .measuring import Measuring, find
from .options import NONE, Outcome, Showing, UsageError, required

FILES = ("bodies.csv", "summary.json", "labels.mrc", "bodies.png", "report.html")


@dataclass(frozen=True)
class Quantify:
    """Count and measure the particles or the pores of a volume: sizes, shapes, distances, porosity.

    Writes a table with a line for each, the volume of their labels, a figure and a summary; of a run also its report
    with a section about them. Every value has an interval: where in its blurred edge the surface of a body can lie,
    and, where the run has samples (--members 8, or --method diffusion), what these leave open. Particles that are
    taken for one, or missed, are not in it.
    """

    volume: Annotated[str | None, Positional, arg(metavar="RUN|FILE", help_behavior_hint=NONE)] = None
    """The folder of a run, or a volume."""
    pores: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Measure what is empty inside the specimen, not what is bright. Gaps between bodies that are apart count too."""
    threshold: Annotated[float | None, arg(metavar="NUMBER", help_behavior_hint="(default: Otsu's)")] = None
    """Intensity beyond which there is one. Its surface is then where the intensity is midway between what is inside and
    what is around."""
    classes: Annotated[int, arg(metavar="N")] = 2
    """Kinds of matter, the empty one included, for Otsu's threshold: 3 for particles on a visible support. Particles
    are the brightest (of some with a brighter core, the core), pores the darkest."""
    smallest: Annotated[int, arg(metavar="N")] = 27
    """Voxels of the smallest that counts."""
    split: Annotated[float, arg(metavar="VOXELS")] = 0.0
    """Part those that touch where the neck is so much thinner, in radius, than both; 1 is usual. 0 parts none."""
    reach: Annotated[float, arg(metavar="VOXELS")] = 8.0
    """Radius of the largest opening in the specimen that --pores still takes for a pore."""
    measuring: Measuring = field(default_factory=Measuring)
    showing: Showing = field(default_factory=Showing)


def run(settings: Quantify, console: Console) -> Outcome:
    place = Path(required(settings.volume, "RUN or FILE"))
    for name in ("smallest", "split", "reach"):
        value = getattr(settings, name)
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"--{name} {value:g}: give 0 or more.")
    if settings.threshold is not None and not math.isfinite(settings.threshold):
        raise UsageError(f"--threshold {settings.threshold:g}: give a number.")
    if not 2 <= settings.classes <= 5:
        raise UsageError(f"--classes {settings.classes}: give 2 to 5.")
    kind = "pores" if settings.pores else "particles"
    out = settings.measuring.folder(place, kind, FILES)
    source, volume, voxel_nm, result = find(place, settings.measuring.voxel_nm)
    import numpy as np

    from .. import plot, quantify
    from ..io import write
    from ..io.atomic import replacing_all

    search = quantify.Search(settings.threshold, settings.classes, settings.smallest, settings.split, settings.reach)
    console.say(f"{source}: measuring {kind} in {' × '.join(map(str, volume.shape))} voxels")
    try:
        bodies = (quantify.pores if settings.pores else quantify.particles)(volume, voxel_nm, search)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    samples = None if result is None else result.samples
    tilts = quantify.USUAL if result is None or result.series is None else result.series.tilt_deg
    ends = quantify.intervals(bodies, () if samples is None else samples, tilts)
    summary = bodies.summary
    document = {
        "source": str(source),
        "kind": kind,
        **search._asdict(),
        "threshold": bodies.threshold,
        "unit": bodies.unit,
        "samples": 0 if samples is None else len(samples),
        "tilt_deg": [float(np.min(tilts)), float(np.max(tilts))],
        "summary": summary,
        "intervals": {name: [float(ends[name].low[0]), float(ends[name].high[0])] for name in summary if name in ends},
    }
    figure = plot.bodies(volume, bodies.labels, bodies.sizes, bodies.unit, kind)
    with replacing_all(out, FILES) as partial:
        quantify.write_table(partial / "bodies.csv", bodies, ends)
        write(partial / "labels.mrc", bodies.labels.astype("float32"), voxel_nm=voxel_nm)
        figure.savefig(partial / "bodies.png", dpi=150, facecolor="white")
        (partial / "summary.json").write_text(as_json(document) + "\n")
        if result is not None:
            from ..reporting import report

            report(partial / "report.html", result, quantify.Measured(kind, bodies, ends))
    rows = [(_words(name, kind), _value(name, value, bodies, ends)) for name, value in summary.items()]
    if tilts is quantify.USUAL:
        rows.append(("in brackets", "90 % intervals for tilts of ±60°, as the file does not say which"))
    rows += [("threshold", f"{bodies.threshold:.4g}"), ("written to", out)]
    return Outcome(f"{kind} of {source}\n{table(rows)}", {**document, "folder": str(out)})


def _words(name: str, kind: str) -> str:
    share = "porosity" if kind == "pores" else "share of the volume"
    words = {"fraction": share, "count": "how many", "cut": "cut by the border, not in the means"}
    return words.get(name, name.replace("_", " "))


def _value(name: str, value: float, bodies, ends) -> str:
    unit = f" {bodies.unit}" if name.startswith("diameter") else ""
    text = f"{value:.4g}{unit}"
    if name in ends and math.isfinite(ends[name].low[0]):
        text += f"  ({ends[name].low[0]:.4g} to {ends[name].high[0]:.4g})"
    return text
