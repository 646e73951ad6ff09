"""Particles and pores of a volume: found by a threshold, bounded at half height, counted and measured, with intervals.

NumPy in, NumPy out. Lengths are in nm where a voxel size is given, else in voxels; z is the direction of the beam at
zero tilt, along which a missing wedge makes bodies longer.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import InputError
from .io.atomic import replacing
from .resolution import wedge_elongation

SMALLEST = 27  # voxels: what is smaller may be noise, and has no shape
COVERED = 0.9  # of an interval
SURE = 3.0, 6.0  # times the noise: what may still be nothing, and what is certainly something
NEAR = 2.0  # voxels beyond a body in which its surface, or samples of it, may lie
RIM, AROUND = 1.5, 1.5  # voxels beside a body that are its edge; over which what is further away is averaged
HALF, UNSURE = 0.5, 0.096  # of the contrast: where a surface lies, and how far from there it may; see `unsure`
USUAL = np.arange(-60.0, 61.0, 2.0)  # degrees, of tilts that are not known

Table = dict[str, np.ndarray]


class Bodies(NamedTuple):
    """Bodies of one volume.

    Attributes:
        labels: `[z, y, x]` int32: 1, 2, … of every voxel in a body, largest first; 0 elsewhere.
        volume: `[z, y, x]`, in which they were found.
        level: `[z, y, x]`, the intensity at which they end, wherever that is.
        threshold: intensity beyond which they were found.
        sign: 1 of bodies that are brighter than that inside, -1 of darker ones.
        table: a value of every body, `[body]` by name, see `measured`.
        envelope: `[z, y, x]` bool, the specimen, in which porosity counts; of particles all voxels.
        voxel_nm: of a side, or None.
    """

    labels: np.ndarray
    volume: np.ndarray
    level: np.ndarray
    threshold: float
    sign: int
    table: Table
    envelope: np.ndarray
    voxel_nm: float | None

    @property
    def unit(self) -> str:
        """Of lengths."""
        return "nm" if self.voxel_nm else "voxels"

    @property
    def sizes(self) -> np.ndarray:
        """Diameters of those that the border does not cut."""
        return self.table["diameter"][self.table["whole"] > 0]

    @property
    def summary(self) -> dict[str, float]:
        """What is said of all bodies together: `count`, of these `cut` by the border, `fraction` of the envelope, and
        of those that are whole the mean, median and standard deviation of the diameters, the mean aspect ratio and the
        mean elongation along the beam."""
        whole = self.table["whole"] > 0
        found = {"count": float(whole.size), "cut": float(np.count_nonzero(~whole))}
        found |= {"fraction": float(np.count_nonzero(self.labels) / max(np.count_nonzero(self.envelope), 1))}
        if whole.any():
            diameter = self.sizes
            found |= {
                "diameter_mean": float(diameter.mean()),
                "diameter_median": float(np.median(diameter)),
                "diameter_std": float(diameter.std()),
                "aspect_mean": float(self.table["aspect"][whole].mean()),
                "elongation_mean": float(self.table["elongation"][whole].mean()),
            }
        return found


class Measured(NamedTuple):
    """Bodies with what they are, "particles" or "pores", and their `intervals`, of which there may be none: for a
    report."""

    kind: str
    bodies: Bodies
    ends: Mapping[str, Interval]


class Interval(NamedTuple):
    """The ends of intervals, one a body; NaN where there is none."""

    low: np.ndarray
    high: np.ndarray


def thresholds(volume, classes: int = 2) -> np.ndarray:
    """`[classes - 1]`: the intensities that part the voxels into classes of least variance. [Otsu 1979; Liao 2001]"""
    from skimage.filters import threshold_multiotsu

    volume = _checked(volume)
    if not 2 <= classes <= 5:
        raise InputError(f"{classes} classes. Give 2 to 5.")
    few = min(SMALLEST // 2, volume.size // 4)  # voxels that may be outliers, at either end
    low, high = np.partition(volume, (few, volume.size - 1 - few), axis=None)[[few, volume.size - 1 - few]]
    if not high > low:
        raise InputError("the volume is even: there is nothing to tell apart. Give a threshold.")
    clipped = np.clip(volume, low, high)
    if classes == 2 and ((clipped == low) | (clipped == high)).all():
        return np.array([(low + high) / 2])
    try:
        found = np.asarray(threshold_multiotsu(clipped, classes))
    except ValueError as error:
        raise InputError(f"the volume has fewer than {classes} different values. Give --classes 2.") from error
    # Where nearly all is nothing, least variance parts its noise.
    nothing = float(np.median(clipped))
    noise = 1.4826 * float(np.median(np.abs(clipped - nothing)))
    matter = clipped[clipped > nothing + SURE[1] * noise]
    if matter.size > few and found[-1] < nothing + SURE[0] * noise:
        found[-1] = (nothing + float(np.median(matter))) / 2
    return found


def particles(
    volume,
    voxel_nm: float | None = None,
    *,
    threshold: float | None = None,
    classes: int = 2,
    smallest: int = SMALLEST,
    split: float = 0.0,
) -> Bodies:
    """Bodies brighter than a threshold. It only finds them: they end at half height, see `bounded`.

    Args:
        volume: `[z, y, x]`.
        voxel_nm: side of a voxel.
        threshold: beyond which there is one; by default the upper one of `thresholds`.
        classes: of that: 3 for particles on a support that is visible too.
        smallest: voxels of the smallest one that counts.
        split: voxels by which the neck between two bodies must be narrower than both, in radius, for them to be two;
            0 for bodies as they are.

    Raises InputError for a volume that is none, or a threshold that nothing or everything is beyond.
    """
    volume = _checked(volume)
    threshold = float(thresholds(volume, classes)[-1]) if threshold is None else threshold
    labels = _labelled(_above(volume, threshold), smallest, split)
    return _bodies(labels, volume, threshold, 1, np.ones(volume.shape, bool), smallest, voxel_nm)


def pores(
    volume,
    voxel_nm: float | None = None,
    *,
    threshold: float | None = None,
    classes: int = 2,
    smallest: int = SMALLEST,
    split: float = 0.0,
    reach: float = 8.0,
) -> Bodies:
    """Voids: what is darker than a threshold, by default the lower one of `thresholds`, inside the envelope of the
    specimen, which bridges gaps of twice `reach` voxels, also those between bodies that are apart. Their `fraction` is
    the porosity. Other arguments as of `particles`."""
    volume = _checked(volume)
    threshold = float(thresholds(volume, classes)[0]) if threshold is None else threshold
    solid = _above(volume, threshold)
    envelope = closed(_labelled(solid, smallest, 0) > 0, reach)
    labels = _labelled(envelope & ~solid, smallest, split)
    return _bodies(labels, volume, threshold, -1, envelope, smallest, voxel_nm)


def bounded(labels, field, envelope, share: float = HALF) -> tuple[np.ndarray, np.ndarray]:
    """Bodies up to where the intensity is midway between what is inside them and what is around: half height, the
    surface that metrology by tomography takes (ISO 50 %), which hardly depends on how they were found.

    Args:
        labels: `[z, y, x]` of bodies that were found.
        field: `[z, y, x]`, brighter in them than around.
        envelope: `[z, y, x]` bool, in which they and what is around them lie.
        share: of the contrast, from 0, what is around, to 1, what is inside.

    Returns labels, and the level `[z, y, x]` at which they end, which varies with what is around.
    """
    from scipy import ndimage

    known = np.arange(1, labels.max() + 1)
    if not known.size:
        return labels, np.zeros(labels.shape, np.float32)
    depth = np.asarray(ndimage.distance_transform_edt(labels > 0))
    deepest = np.append(0.0, np.asarray(ndimage.maximum(depth, labels, known)))
    core = np.where(depth >= deepest[labels] / 2, labels, 0)
    inside = np.append(0.0, np.asarray(ndimage.median(field, core, known))).astype(np.float32)
    distances: Any = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    away, nearest = distances
    owner = labels[tuple(nearest)]
    beside = envelope & (away > RIM)
    usual = float(np.median(field[beside])) if beside.any() else float(field.min())
    weight = np.asarray(ndimage.gaussian_filter(beside.astype(np.float32), AROUND))
    total = np.asarray(ndimage.gaussian_filter(np.where(beside, field - usual, 0).astype(np.float32), AROUND))
    around = usual + total / np.maximum(weight, 1e-3)
    level = around + share * (inside[owner] - around)
    return _whole(np.where(envelope & (away <= NEAR) & (field > level), owner, 0)), level


def _whole(labels) -> np.ndarray:
    """Of each body the largest piece."""
    from scipy import ndimage

    kept = np.zeros_like(labels)
    for label, box in enumerate(ndimage.find_objects(labels), 1):
        if box is not None:
            found: Any = ndimage.label(labels[box] == label)
            largest = np.bincount(found[0].ravel())[1:].argmax() + 1
            kept[box][found[0] == largest] = label
    return kept


def _bodies(labels, volume, threshold: float, sign: int, envelope, smallest: int, voxel_nm: float | None) -> Bodies:
    level = np.zeros_like(volume)
    for _ in range(3):  # what is around a body is better known when its edge is
        labels, level = bounded(labels, sign * volume, envelope)
    labels = _largest_first(labels, smallest)
    table = measured(labels, volume, sign * level, sign, voxel_nm)
    return Bodies(labels, volume, sign * level, threshold, sign, table, envelope, voxel_nm)


def closed(solid, reach: float) -> np.ndarray:
    """A boolean volume grown by a ball of `reach` voxels and shrunk by it again, holes inside filled."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt

    margin = int(np.ceil(reach)) + 1
    wide = np.pad(solid, margin)
    grown = np.asarray(distance_transform_edt(~wide)) <= reach
    shrunk = np.asarray(distance_transform_edt(grown)) > reach
    inside = slice(margin, -margin)
    return np.asarray(binary_fill_holes(shrunk[inside, inside, inside] | solid))


def measured(labels, volume, level, sign: int, voxel_nm: float | None = None) -> Table:
    """Values of every body of `labels`, with `volume` above the level `[z, y, x]` inside (`sign` 1) or below it (-1),
    `[body]` by name:

    label; z, y, x of the centre in voxels; volume; diameter of the ball of that volume; surface, of the isosurface at
    the level; sphericity, that of a ball with as much inside over it [Wadell 1932]; length, breadth and thickness
    of the ellipsoid with the same second moments; aspect, length over thickness; tilted, the angle of the length from
    the beam in degrees; elongation, the extent along the beam over that across it; neighbour, the distance to the
    nearest other centre; intensity, its mean; whole, 0 of bodies that the border cuts.
    """
    from scipy.ndimage import find_objects
    from scipy.spatial import KDTree

    unit = voxel_nm or 1.0
    rows = []
    for label, box in enumerate(find_objects(labels), 1):
        if box is None:
            continue
        wide = tuple(slice(max(b.start - 1, 0), b.stop + 1) for b in box)
        mine = labels[wide] == label
        places = np.argwhere(mine).astype(float)
        count, centre = len(places), places.mean(0)
        # A voxel is a cube, not a point: its own second moment is 1/12 along each side.
        moments = np.cov(places.T, bias=True).reshape(3, 3) + np.eye(3) / 12
        sizes, axes = np.linalg.eigh(moments)
        thickness, breadth, length = 2 * np.sqrt(5 * sizes) * unit
        z, y, x = np.sqrt(np.diag(moments))
        diameter = (6 * count / np.pi) ** (1 / 3) * unit
        field = sign * (volume[wide].astype(float) - level[wide])
        surface, inside = _surface(mine, (labels[wide] > 0) & ~mine, field)
        cut = any(b.start == 0 or b.stop == n for b, n in zip(box, labels.shape, strict=True))
        rows.append(
            {
                "label": label,
                **dict(zip("zyx", centre + [w.start for w in wide], strict=True)),
                "volume": count * unit**3,
                "diameter": diameter,
                "surface": surface * unit**2,
                "sphericity": np.pi ** (1 / 3) * (6 * inside) ** (2 / 3) / surface,
                "length": length,
                "breadth": breadth,
                "thickness": thickness,
                "aspect": length / thickness,
                "tilted": np.degrees(np.arccos(min(1.0, abs(axes[0, 2])))),
                "elongation": z / np.sqrt(y * x),
                "neighbour": np.nan,
                "intensity": volume[wide][mine].mean(dtype=float),
                "whole": float(not cut),
            }
        )
    table = {name: np.array([row[name] for row in rows], float) for name in (rows[0] if rows else NAMES)}
    if len(rows) > 1:
        centres = np.stack([table[axis] for axis in "zyx"], 1)
        table["neighbour"] = np.asarray(KDTree(centres).query(centres, 2)[0])[:, 1] * unit
    return table


NAMES = (
    *("label", "z", "y", "x", "volume", "diameter", "surface", "sphericity", "length", "breadth", "thickness"),
    *("aspect", "tilted", "elongation", "neighbour", "intensity", "whole"),
)


def intervals(
    bodies: Bodies,
    find: Callable[..., Bodies],
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
        find: `particles` or `pores`, with the settings that found `bodies`.
        samples: other volumes that explain the images, 2 or more if there are any.
        tilt_deg: `[tilt]`, of the images.
        covered: how often one more sample should lie inside.
    """
    from scipy.ndimage import distance_transform_edt

    if len(samples) == 1:
        raise InputError("1 sample: give 2 or more, or none.")
    tables, summaries = [], []
    for share in (HALF - unsure(tilt_deg), HALF + unsure(tilt_deg)):
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
                found = find(sample, threshold=bodies.threshold)
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


def unsure(tilt_deg) -> float:
    """Share of the contrast by which a surface may be off half height: `UNSURE` √e, with the elongation e that the
    tilts make of a point, see `resolution.wedge_elongation`.

    The form and its constant are a choice, made on phantoms. Of the particles of others about nine of ten volumes lay
    inside at ±70° and ±60°, and seven to nine at ±30°, by method; see benchmarks/RESULTS.md.
    """
    return float(min(UNSURE * np.sqrt(wedge_elongation(tilt_deg)), 0.4))


def _of_each(bodies: Bodies, table: Table) -> Table:
    """What another table says of each of `bodies`, NaN or a size of 0 of those that it lacks."""
    index = table["label"].astype(int) - 1
    each = {name: np.full(bodies.table["label"].shape, np.nan) for name in table}
    for name, values in table.items():
        each[name][index] = values
    return each | {name: np.nan_to_num(each[name]) for name in ("volume", "diameter", "surface")}


MOST = {"tilted": 90.0, "sphericity": 1.0, "fraction": 1.0}
"""What some values can be at most; all are 0 or more."""


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


def _checked(volume) -> np.ndarray:
    volume = np.asarray(volume, np.float32)
    if volume.ndim != 3 or volume.size == 0:
        raise InputError(f"a volume of shape {volume.shape}. Give [z, y, x].")
    if not np.isfinite(volume).all():
        raise InputError(f"{np.count_nonzero(~np.isfinite(volume))} voxels are not finite. Repair them first.")
    return volume


def _above(volume, threshold: float) -> np.ndarray:
    above = volume > threshold
    if above.all() or not above.any():
        raise InputError(
            f"{'no' if not above.any() else 'every'} voxel is above the threshold {threshold:g}: intensities are "
            f"{volume.min():.4g} to {volume.max():.4g}."
        )
    return above


def _labelled(mask, smallest: int, split: float) -> np.ndarray:
    """Connected voxels, by their faces, largest first."""
    from scipy.ndimage import distance_transform_edt, label

    found: Any = label(mask)
    labels = found[0]
    if split > 0:
        from skimage.morphology import h_maxima
        from skimage.segmentation import watershed

        depth = np.asarray(distance_transform_edt(mask))
        deepest: Any = label(h_maxima(depth, split), np.ones((3, 3, 3)))
        markers = deepest[0]
        thin = np.setdiff1d(np.arange(1, found[1] + 1), labels[markers > 0])  # bodies without one
        markers = np.where(np.isin(labels, thin), labels + markers.max(), markers)
        labels = watershed(-depth, markers, mask=mask)
    return _largest_first(labels, smallest)


def _largest_first(labels, smallest: int) -> np.ndarray:
    count = np.bincount(labels.ravel())
    count[0] = 0
    kept = np.argsort(-count, kind="stable")[: np.count_nonzero(count >= max(smallest, 1))]
    new = np.zeros(len(count), np.int32)
    new[kept] = np.arange(1, len(kept) + 1)
    return new[labels]


def _surface(mine, others, field) -> tuple[float, float]:
    """Area of the isosurface at 0 around the voxels `mine` where no other body is, and the volume inside, in voxels."""
    from scipy.ndimage import binary_dilation
    from skimage.measure import marching_cubes, mesh_surface_area

    # As far below as the body is above: the surface is midway to what is left out.
    low = -field[mine].mean()
    if not low < 0:
        field, low = mine - 0.5, -0.5
    seen = np.pad(np.where(binary_dilation(mine) & ~others, field, low), 1, constant_values=low)
    points, faces = marching_cubes(seen, 0)[:2]
    a, b, c = (points[faces[:, i]].astype(float) for i in range(3))
    inside = abs(np.einsum("ij,ij->", a, np.cross(b, c))) / 6
    return float(mesh_surface_area(points, faces)), float(inside)


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
