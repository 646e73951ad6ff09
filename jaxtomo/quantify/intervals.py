"""What is open of the values of bodies."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..io.atomic import replacing
from ..resolution import wedge_elongation
from .bodies import Bodies, particles, pores
from .edges import HALF, NEAR, bounded
from .measures import NAMES, Table, measured

COVERED = 0.9  # of an interval
UNSURE = 0.08  # of the contrast: how far from half height a surface may lie, see `unsure`
USUAL = np.arange(-60.0, 61.0, 2.0)  # degrees, of tilts that are not known
MOST = {"tilted": 90.0, "sphericity": 1.0, "fraction": 1.0}
"""What some values can be at most; all are 0 or more."""


class Interval(NamedTuple):
    """The ends of intervals, one a body; NaN where there is none."""

    low: np.ndarray
    high: np.ndarray


class Measured(NamedTuple):
    """Bodies with what they are, "particles" or "pores", and their `intervals`, of which there may be none: for a
    report."""

    kind: str
    bodies: Bodies
    ends: Mapping[str, Interval]


def intervals(
    bodies: Bodies,
    samples: Sequence[np.ndarray] | np.ndarray = (),
    tilt_deg=USUAL,
    covered: float = COVERED,
) -> dict[str, Interval]:
    """What is open of the values of `bodies.table` and, as single numbers, of `bodies.summary`: where in a blurred edge
    the surface is, and what samples of the volume leave open.

    The first is what a value is if the surface lies further out or in, by the share of the contrast that `unsure` has
    for the tilts. The second is t s √(1 + 1/n), where one more sample would be if all were about the value: what a
    sample has within `NEAR` voxels of a body, and nearer to it than to any other, is measured as that body was. Both
    add in squares. Bodies that are taken for one, or missed, are not in it.

    Args:
        bodies: of the volume.
        samples: other volumes that explain the images, 2 or more if there are any.
        tilt_deg: `[tilt]`, of the images.
        covered: how often one more sample should lie inside.
    """
    from scipy.ndimage import distance_transform_edt

    if len(samples) == 1:
        raise InputError("1 sample: give 2 or more, or none.")
    find, search = particles if bodies.sign > 0 else pores, bodies.search._replace(threshold=bodies.threshold)
    tables, summaries = [], []
    off = unsure(tilt_deg, sampled=len(samples) > 0)
    for share in (HALF - off, HALF + off):
        labels, level = bounded(bodies.labels, bodies.sign * bodies.volume, bodies.envelope, share)
        table = measured(labels, bodies.volume, bodies.sign * level, bodies.sign, bodies.voxel_nm)
        tables.append(_of_each(bodies, table))
        summaries.append(bodies._replace(labels=labels, table=table).summary)
    distances: Any = distance_transform_edt(bodies.labels == 0, return_indices=True)
    away, nearest = distances
    territory = np.where(away <= NEAR, bodies.labels[tuple(nearest)], 0)
    del distances, away, nearest
    for k, sample in enumerate(samples):
        if not np.any(bodies.sign * (np.asarray(sample) - bodies.threshold) > 0):
            found = bodies._replace(labels=0 * bodies.labels, table={n: v[:0] for n, v in bodies.table.items()})
        else:
            try:
                found = find(sample, bodies.voxel_nm, search)
            except InputError as error:
                raise InputError(f"sample {k + 1}: {error}") from error
        theirs = np.where(found.labels > 0, territory, 0)
        tables.append(_of_each(bodies, measured(theirs, found.volume, found.level, found.sign, bodies.voxel_nm)))
        summaries.append(found.summary)
    names = [name for name in NAMES if name not in ("label", "whole", "intensity")]
    known = {name: (bodies.table[name], np.stack([t[name] for t in tables])) for name in names}
    for name, value in bodies.summary.items():
        known[name] = np.array([value]), np.array([[summary.get(name, np.nan)] for summary in summaries])
    return {name: _interval(v, t[:2], t[2:], covered, MOST.get(name, np.inf)) for name, (v, t) in known.items()}


def unsure(tilt_deg, sampled: bool = False) -> float:
    """Share of the contrast by which a surface may be off half height: `UNSURE` e, with the elongation e that the tilts
    make of a point, see `resolution.wedge_elongation`. Where samples tell a part of what the wedge leaves open, if
    `sampled`, `UNSURE` √e beside them.

    The forms and their constant are a choice, made on phantoms. Of the particles of others nine of ten volumes lay
    inside from ±70° to ±30°; see benchmarks/RESULTS.md.
    """
    elongation = wedge_elongation(tilt_deg)
    return float(min(UNSURE * (np.sqrt(elongation) if sampled else elongation), 0.4))


def write_table(path: str | Path, bodies: Bodies, ends: Mapping[str, Interval] | None = None) -> None:
    """A CSV file, a body a line; columns `name_low` and `name_high` where there are intervals."""
    columns = {}
    for name, values in bodies.table.items():
        columns[name] = values
        if ends and name in ends:
            columns |= {f"{name}_low": ends[name].low, f"{name}_high": ends[name].high}
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([f"{value:.6g}" for value in row] for row in zip(*columns.values(), strict=True))


def _of_each(bodies: Bodies, table: Table) -> Table:
    """What another table says of each of `bodies`, NaN or a size of 0 of those that it lacks."""
    index = table["label"].astype(int) - 1
    each = {name: np.full(bodies.table["label"].shape, np.nan) for name in table}
    for name, values in table.items():
        each[name][index] = values
    return each | {name: np.nan_to_num(each[name]) for name in ("volume", "diameter", "surface")}


def _interval(values, sides, samples, covered: float, most: float) -> Interval:
    """About `values [body]`, by those at other heights `sides [side, body]` and `samples [sample, body]`, but those
    that are NaN; from 0 to `most`."""
    from scipy.stats import t

    ends = np.full((2, values.size), np.nan)
    for i in np.flatnonzero(np.isfinite(values)):
        known = samples[np.isfinite(samples[:, i]), i]
        if len(samples) and known.size < 2:
            continue
        half = 0.0
        if known.size:
            half = t.ppf(0.5 + covered / 2, known.size - 1) * known.std(ddof=1) * np.sqrt(1 + 1 / known.size)
        heights = np.append(sides[np.isfinite(sides[:, i]), i], values[i])
        low, high = np.hypot(values[i] - heights.min(), half), np.hypot(heights.max() - values[i], half)
        ends[:, i] = max(values[i] - low, 0), min(values[i] + high, most)
    return Interval(*ends)
