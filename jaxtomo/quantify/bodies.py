"""Which bodies there are: found by a threshold, parted where they touch, bounded at half height."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from .edges import bounded, closed
from .measures import Table, measured

SMALLEST = 27  # voxels: what is smaller may be noise, and has no shape
SURE = 3.0, 6.0  # times the noise: what may still be nothing, and what is certainly something


class Search(NamedTuple):
    """What counts as a body.

    Attributes:
        threshold: intensity beyond which there is one. It only finds them: they end at half height, see `bounded`. By
            default the upper one of `thresholds` for particles, the lower one for pores.
        classes: of `thresholds`: 3 for particles on a support that is visible too.
        smallest: voxels of the smallest one that counts.
        split: voxels by which the neck between two bodies must be narrower than both, in radius, for them to be two;
            0 for bodies as they are.
        reach: voxels; of pores, half of the widest gap that the envelope of the specimen bridges.
    """

    threshold: float | None = None
    classes: int = 2
    smallest: int = SMALLEST
    split: float = 0.0
    reach: float = 8.0


PLAIN = Search()


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
        search: how they were found.
    """

    labels: np.ndarray
    volume: np.ndarray
    level: np.ndarray
    threshold: float
    sign: int
    table: Table
    envelope: np.ndarray
    voxel_nm: float | None
    search: Search

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


def particles(volume, voxel_nm: float | None = None, search: Search = PLAIN) -> Bodies:
    """Bodies of `volume [z, y, x]`, of voxels with sides of `voxel_nm`, that are brighter than a threshold.

    Raises InputError for a volume that is none, or a threshold that nothing or everything is beyond.
    """
    volume = _checked(volume)
    threshold = float(thresholds(volume, search.classes)[-1]) if search.threshold is None else search.threshold
    labels = _labelled(_above(volume, threshold), search.smallest, search.split)
    envelope = np.ones(volume.shape, bool)
    return _bodies(labels, volume, threshold, 1, envelope, voxel_nm, search)


def pores(volume, voxel_nm: float | None = None, search: Search = PLAIN) -> Bodies:
    """Voids: what is darker than a threshold inside the envelope of the specimen, which bridges gaps of twice `reach`
    voxels, also those between bodies that are apart. Their `fraction` is the porosity. Errors as of `particles`."""
    volume = _checked(volume)
    threshold = float(thresholds(volume, search.classes)[0]) if search.threshold is None else search.threshold
    solid = _above(volume, threshold)
    envelope = closed(_labelled(solid, search.smallest, 0) > 0, search.reach)
    labels = _labelled(envelope & ~solid, search.smallest, search.split)
    return _bodies(labels, volume, threshold, -1, envelope, voxel_nm, search)


def _bodies(labels, volume, threshold: float, sign: int, envelope, voxel_nm: float | None, search: Search) -> Bodies:
    level = np.zeros_like(volume)
    for _ in range(3):  # what is around a body is better known when its edge is
        labels, level = bounded(labels, sign * volume, envelope)
    labels = _largest_first(labels, search.smallest)
    table = measured(labels, volume, sign * level, sign, voxel_nm)
    return Bodies(labels, volume, sign * level, threshold, sign, table, envelope, voxel_nm, search)


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
