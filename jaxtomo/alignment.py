"""Coarse alignment, from a raw tilt series to the pose of every tilt: cross-correlation, common mass, axis search.

`align` is `coarse`, which measures, followed by `apply`, which changes the series as little as it can: the shifts go
into the pose, and the images are resampled only if the tilt axis has to be turned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .background import Vacuum, unmeasured, vacuum
from .correlate import bandpass, binned, centred, straightened, taper
from .data import Pose
from .errors import InputError
from .mass import AXIS_FLOOR, CONSERVED, SMOOTHED, Mass, combined, common_mass
from .neighbours import axis_from_patches, compare, solve
from .series import TiltSeries

# Longest side of the binned images: displacements are first sought far and roughly, then near and finely.
ROUGH, FINE = 64, 128
# Smallest image side in pixels, and fewest tilts and smallest range in degrees that tell the axis.
SMALLEST, AXIS_TILTS, AXIS_SPAN_DEG = 16, 5, 20.0
# The axis is sought this far from where the file says it is.
AXIS_RANGE_DEG = 15.0
# Patches are followed too where the masses leave the axis more uncertain than this, rad.
PRECISE = np.deg2rad(0.3)
# Below this correlation of neighbours, their displacements alone are not to be trusted.
WEAK = 0.6
# A turned axis is corrected if it moves the ends of the image by more than this, pixels.
AXIS_TOLERANCE_PX = 0.5


@dataclass(frozen=True)
class Alignment:
    """What `coarse` measured. Pixels are those of the series.

    Attributes:
        shift: `[tilt, 2]` pixels (u, v): where the specimen's centre appears, once `apply` has turned the images.
        axis_deg: angle of the tilt axis in the images, degrees counter-clockwise from +y with y up.
        axis_error_deg: its standard error; infinite if it was not measured.
        turn: whether the angle is large enough that `apply` rotates the images.
        background: `[tilt]` (`[channel, tilt]` for spectral maps), the vacuum level.
        measured: `[tilt, y, x]` bool, False where a pixel was filled in; None if all were measured.
        confidence: `[tilt]`, correlation of an aligned image with its neighbours.
        suspect: `[tilt]` bool, images that agree much worse with their neighbours than the others do.
        curves: what else the report may draw, `[tilt]` arrays by name.
        notes: sentences for the provenance of the series.
    """

    shift: np.ndarray
    axis_deg: float
    axis_error_deg: float
    turn: bool
    background: np.ndarray
    measured: np.ndarray | None
    confidence: np.ndarray
    suspect: np.ndarray
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Everything but the mask as plain JSON values, for `Reconstruction.settings["alignment"]`."""
        return {
            "shift_u_px": self.shift[:, 0].tolist(),
            "shift_v_px": self.shift[:, 1].tolist(),
            "axis_deg": self.axis_deg,
            "axis_error_deg": self.axis_error_deg if np.isfinite(self.axis_error_deg) else None,
            "turned": self.turn,
            "background": self.background.tolist(),
            "confidence": self.confidence.tolist(),
            "suspect": np.flatnonzero(self.suspect).tolist(),
            **{name: np.asarray(curve).tolist() for name, curve in self.curves.items()},
            "notes": dict(self.notes),
        }


def align(series: TiltSeries, *, tilt_axis_deg: float | None = None, background=None) -> tuple[TiltSeries, Pose]:
    """The series without its background and with its tilt axis along y, and the pose of every tilt.

    Args:
        series: as read. Its images are resampled only if the axis has to be turned, and then once.
        tilt_axis_deg: the angle of the tilt axis, degrees counter-clockwise from +y with y up; None to search for
            it within 15° of `series.tilt_axis_deg`.
        background: the vacuum level, one number or one an image; None to estimate it.

    The pose holds the tilts and, for each, a shift in pixels. A specimen inside the field is placed with its centre of
    mass on the rotation axis, a larger one so that the shifts are smallest. Along the axis the mean shift is zero.

    Raises InputError for fewer than two tilts, an image without contrast or with non-finite pixels, and images or
    slabs too small to correlate.
    """
    return apply(series, coarse(series, tilt_axis_deg=tilt_axis_deg, background=background))


def coarse(series: TiltSeries, *, tilt_axis_deg: float | None = None, background=None) -> Alignment:
    """Measures the alignment of a series without changing it; the arguments and errors are those of `align`.

    1. The vacuum level of every image, and borders filled in by an earlier alignment.
    2. Shifts from the cross-correlation of every tilt with its next three, compressed by the ratio of their cosines or
       not, whichever agrees better; one robust solution over all pairs, so that one bad image harms no other.
    3. For a specimen inside the field, v from the mass of each row, u and the axis from the rows' centres of mass
       (`jaxtomo.mass`), starting from whichever of step 2 and the images' own centres of mass leads to the most
       constant masses; for a larger specimen the axis from how patches move between tilts.
    4. The cross-correlation of the straightened images once more, balanced against step 3 by their errors.
    """
    images = _checked(series)
    measured = _measured(series, images)
    level, found = _background(series, images, measured, background)
    tilt = np.deg2rad(series.tilt_deg)
    start = np.deg2rad(series.tilt_axis_deg if tilt_axis_deg is None else tilt_axis_deg)
    search = tilt_axis_deg is None and len(tilt) >= AXIS_TILTS and np.ptp(series.tilt_deg) >= AXIS_SPAN_DEG
    clean = images - (level if level.ndim == 1 else level.sum(0))[:, None, None]
    bright = float(np.std(clean if measured is None else clean[measured]))

    rough, fine = (_scaled(clean / bright, measured, found.noise / bright, longest) for longest in (ROUGH, FINE))
    chained = {flat: _from_scratch(rough, tilt, start, flat) for flat in (True, False)}
    flat = chained[True][1] >= chained[False][1]
    guess = _most_conserved(rough, tilt, start, [chained[flat][0], chained[not flat][0], _centroids(rough)])
    found_by_mass = _by_mass(fine, tilt, start, guess / fine.factor, search)
    if found_by_mass is not None:
        shift, axis, error, mass = found_by_mass
    else:  # of a specimen larger than the field only the stretched comparison is right
        flat, mass, shift = True, None, chained[True][0] / fine.factor
        axis, error = _by_patches(fine, tilt, start, shift) if search else (start, np.inf)
    shift, confidence, residual = _refine(fine, tilt, axis, shift, flat, None if mass is None else mass.error)
    shift, residual = shift * fine.factor, residual * fine.factor
    if mass is None:
        basis = np.stack([np.cos(tilt), np.sin(tilt)], 1)
        shift[:, 0] -= basis @ np.linalg.lstsq(basis, shift[:, 0], rcond=1e-6)[0]
    shift[:, 1] -= shift[:, 1].mean()

    suspect = _suspect(confidence, residual / fine.factor)
    axis_deg = float(np.rad2deg(axis))
    turn = bool(np.abs(np.sin(axis)) * max(images.shape[1:]) / 2 > AXIS_TOLERANCE_PX)
    if not turn:
        shift = _rotated(shift, axis)
    notes = {
        "background": _background_note(series, level, found, background),
        "tilt_axis": _axis_note(series, tilt_axis_deg, axis_deg, float(np.rad2deg(error)), turn),
        "alignment": _alignment_note(shift, flat, mass, confidence, suspect),
    }
    curves = {"neighbour_residual_px": residual} | ({} if mass is None else {"gain": mass.gain})
    return Alignment(
        shift, axis_deg, float(np.rad2deg(error)), turn, level, measured, confidence, suspect, curves, notes
    )


def apply(series: TiltSeries, alignment: Alignment) -> tuple[TiltSeries, Pose]:
    """The series and the pose that `alignment` describes: background subtracted (never clipped), axis along y.

    If the axis has to be turned, images are rotated about their centre by cubic splines. Where nothing was measured
    `mask` is False and the images are 0. `alignment` may come from another series of the same exposures, with the
    background of this one put in by `dataclasses.replace`.
    """
    if alignment.shift.shape[0] != series.tilt_deg.size:
        raise InputError(
            f"{series.source}: {series.tilt_deg.size} images but an alignment of {alignment.shift.shape[0]}. "
            "Align this series itself."
        )
    images = series.images - np.asarray(alignment.background, np.float32)[..., None, None]
    mask = alignment.measured
    if mask is not None:
        images = np.where(mask, images, np.float32(0))
    if alignment.turn:
        whole = np.ones(images.shape[-3:], np.float32) if mask is None else mask.astype(np.float32)
        mask = _turned(whole, alignment.axis_deg, order=1) > 0.999
        images = np.where(mask, _turned(images, alignment.axis_deg, order=3), np.float32(0))
    provenance = {**series.provenance, **alignment.notes}
    changed = series.replace(images=images, mask=mask, tilt_axis_deg=0.0, provenance=provenance)
    pose = Pose.nominal(series.tilt_deg)
    return changed, pose.replace(shift=jnp.asarray(alignment.shift, jnp.float32))


def _turned(images, axis_deg, order):
    """`images [..., y, x]` rotated about their centre so that an axis `axis_deg` off y comes to lie along y."""
    flat = images.reshape(-1, *images.shape[-2:])
    return straightened(flat, np.deg2rad(axis_deg), np.zeros((len(flat), 2)), order).reshape(images.shape)


class _Scaled(NamedTuple):
    """Binned images, vacuum 0, with what was measured, the noise of a pixel, and the binning factor."""

    images: np.ndarray
    weight: np.ndarray
    noise: float
    factor: int


def _scaled(images, measured, noise, longest) -> _Scaled:
    factor = max(1, min(-(-max(images.shape[1:]) // longest), min(images.shape[1:]) // SMALLEST))
    if measured is None:
        small = binned(images, factor)
        return _Scaled(small, np.ones_like(small), float(np.median(noise)) / factor, factor)
    weight = binned(measured.astype(np.float32), factor)
    small = binned(images * measured, factor) / np.maximum(weight, 1e-3)
    return _Scaled(small, (weight > 0.99).astype(np.float32), float(np.median(noise)) / factor, factor)


def _checked(series: TiltSeries) -> np.ndarray:
    """Images `[tilt, y, x]` (channels summed), or InputError for those that cannot be aligned."""
    images = series.images if series.images.ndim == 3 else series.images.sum(0)
    n, ny, nx = images.shape
    if n < 2:
        raise InputError(f"{series.source}: {n} image. Alignment compares tilts: give a series of at least two.")
    if min(ny, nx) < SMALLEST:
        raise InputError(
            f"{series.source}: images of {ny} × {nx} pixels are too small to align. "
            f"Align the whole images (at least {SMALLEST} pixels a side) and cut slabs from the result."
        )
    wild = np.flatnonzero(~np.isfinite(images).all((1, 2)))
    if wild.size:
        raise InputError(f"{series.source}: non-finite pixels in {_named(wild)}. Repair them with --fill-nan.")
    blank = np.flatnonzero(np.ptp(images, axis=(1, 2)) == 0)
    if blank.size:
        raise InputError(f"{series.source}: no contrast at all in {_named(blank)}. Drop it with --skip {blank[0]}.")
    return np.asarray(images, np.float32)


def _named(which) -> str:
    listed = ", ".join(str(i) for i in which[:8]) + (", …" if len(which) > 8 else "")
    return f"image {listed}" if len(which) == 1 else f"{len(which)} images ({listed})"


def _measured(series, images):
    """`[tilt, y, x]` bool, or None if everything was measured; InputError for images without a measured contrast."""
    filled = unmeasured(images)
    if series.mask is None and filled is None:
        return None
    measured = np.ones(images.shape, bool) if filled is None else ~filled
    if series.mask is not None:
        measured &= series.mask
    low, high = np.where(measured, images, np.inf).min((1, 2)), np.where(measured, images, -np.inf).max((1, 2))
    blank = np.flatnonzero(high <= low)
    if blank.size:
        raise InputError(f"{series.source}: nothing was measured in {_named(blank)}. Drop it with --skip {blank[0]}.")
    return measured


def _background(series, images, measured, given) -> tuple[np.ndarray, Vacuum]:
    """The level to subtract, `[tilt]` or `[channel, tilt]`, and what was found in the images."""
    found = vacuum(images, measured)
    shape = series.images.shape[:-2]
    if given is not None:
        try:
            return np.broadcast_to(np.asarray(given, float), shape).copy(), found
        except ValueError:
            raise InputError(
                f"{series.source}: background of shape {np.shape(given)} for images {shape}. "
                "Give one number, or one an image."
            ) from None
    if series.images.ndim == 3:
        return found.level, found
    return np.stack([vacuum(channel, measured).level for channel in series.images]), found


def _rotated(shift, axis):
    """`shift [n, 2]` turned by `axis`: from the frame whose axis is v to the images."""
    c, s = np.cos(axis), np.sin(axis)
    return shift @ np.array([[c, s], [-s, c]])


def _from_scratch(rough: _Scaled, tilt, axis, flat):
    """Shifts `[tilt, 2]` in pixels of the series, in the images' own frame, and the mean correlation."""
    shape = rough.images.shape[1:]
    smooth = bandpass(rough.images, rough.weight, 0.7, 5.0)
    window = rough.weight * taper(shape[0], 0.1)[:, None] * taper(shape[1], 0.1)
    shift, score = np.zeros((len(tilt), 2)), 0.0
    for reach in ((shape[0] // 3, shape[1] // 3), (4, 4)):
        frames, seen = straightened(smooth, axis, shift), straightened(window, axis, shift)
        pairs = compare(frames, seen, tilt, reach, flat)
        shift = shift + _rotated(solve(pairs, tilt)[0], axis)
        score = float(pairs.score.mean())
    return shift * rough.factor, score


def _centroids(rough: _Scaled):
    """Shifts `[tilt, 2]` in pixels of the series that would put every image's centre of mass in the middle of u."""
    light = np.where(rough.images > 4 * rough.noise, rough.images, 0) * rough.weight
    total = np.maximum(light.sum((1, 2)), 1e-30)
    u, v = (light.sum(axis) @ centred(light.shape[3 - axis]) / total for axis in (1, 2))
    return np.stack([u, v - v.mean()], 1) * rough.factor


def _most_conserved(rough: _Scaled, tilt, axis, guesses):
    """The one of `guesses` (shifts in pixels of the series) that conserves mass best; the first if none does.

    What agrees best with its neighbours can be wrong: a helix that turns looks like one that moves along its axis.
    """
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(rough.images, (0, SMOOTHED, SMOOTHED))

    def cost(guess):
        shift, change = guess / rough.factor, np.inf
        for _ in range(3):
            frames, seen = straightened(smooth, axis, shift), straightened(rough.weight, axis, shift)
            mass = common_mass(frames, seen, rough.noise, tilt, first=True)
            if mass is None:
                return np.inf
            shift = shift + _rotated(mass.shift, axis)
            change = mass.change + float(np.isinf(mass.error[:, 0]).mean())  # and a tilt moved out of the field costs
        return change

    return guesses[int(np.argmin([cost(guess) for guess in guesses]))]


def _by_mass(fine: _Scaled, tilt, start, shift, search) -> tuple[np.ndarray, float, float, Mass] | None:
    """Shifts `[tilt, 2]` in binned pixels of the images' own frame, the axis and its error (rad), and the masses; None
    if the specimen does not lie inside the field."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(fine.images, (0, SMOOTHED, SMOOTHED))
    axis, error = start, np.inf
    for step in range(12):
        frames, seen = straightened(smooth, axis, shift), straightened(fine.weight, axis, shift)
        mass = common_mass(frames, seen, fine.noise, tilt, first=step < 2)
        if mass is None or (step >= 2 and mass.change > 2 * CONSERVED):
            return None
        shift, turn = shift + _rotated(mass.shift, axis), 0.0
        if step < 2:
            continue
        if search:
            estimates = [(mass.axis, mass.axis_error)]
            if mass.axis_error > PRECISE:
                estimates.append(_patches_at(fine, tilt, axis, shift))
            turn, error = combined(estimates)
            axis = _within_range(axis + turn, axis, start)
        if np.abs(mass.shift).max() < 0.1 and abs(turn) < max(0.2 * error, AXIS_FLOOR):
            break
    kept = _believed(axis, error, start)
    if kept != axis:
        axis = kept
        frames, seen = straightened(smooth, axis, shift), straightened(fine.weight, axis, shift)
        mass = common_mass(frames, seen, fine.noise, tilt) or mass
        shift = shift + _rotated(mass.shift, axis)
    return None if mass.change > CONSERVED else (shift, axis, error, mass)


def _by_patches(fine: _Scaled, tilt, start, shift) -> tuple[float, float]:
    """The axis and its error (rad) of a specimen larger than the field, whose `shift` in binned pixels is known."""
    axis, error = start, np.inf
    for _ in range(6):
        turn, error = _patches_at(fine, tilt, axis, shift)
        axis = _within_range(axis + turn, axis, start)
        if abs(turn) < max(0.2 * error, AXIS_FLOOR):
            break
    return _believed(axis, error, start), error


def _patches_at(fine: _Scaled, tilt, axis, shift):
    details = bandpass(fine.images, fine.weight, 1.0, 5.0)
    return axis_from_patches(straightened(details, axis, shift), straightened(fine.weight, axis, shift), tilt)


def _within_range(axis, before, start) -> float:
    """`axis` at most 5° from where it was `before` and within the search range about `start`, rad."""
    limit = np.deg2rad(AXIS_RANGE_DEG)
    return float(np.clip(np.clip(axis, before - 0.09, before + 0.09), start - limit, start + limit))


def _believed(axis, error, start) -> float:
    """`axis`, or `start` if the images could as well have that one, or if the search ran into its end."""
    at_the_end = abs(axis - start) > 0.99 * np.deg2rad(AXIS_RANGE_DEG)
    return axis if abs(axis - start) > 3 * error and not at_the_end else start


def _refine(fine: _Scaled, tilt, axis, shift, flat, error):
    """Shifts in binned pixels of the straightened frame, and per tilt the correlation and the displacement left."""
    shape = fine.images.shape[1:]
    smooth = bandpass(fine.images, fine.weight, 1.0, 8.0)
    window = fine.weight * taper(shape[0], 0.1)[:, None] * taper(shape[1], 0.1)
    frames, seen = straightened(smooth, axis, shift), straightened(window, axis, shift)
    pairs = compare(frames, seen, tilt, (4, 4), flat)
    more, left = solve(pairs, tilt, error)
    distance = np.hypot(*left.T)
    members = [(pairs.low == i) | (pairs.high == i) for i in range(len(tilt))]
    confidence = np.array([np.median(pairs.score[m]) for m in members])
    residual = np.array([np.median(distance[m]) for m in members])
    return _rotated(shift, -axis) + more, confidence, residual


def _suspect(confidence, residual):
    """Images whose agreement with their neighbours is far below the others', or whose neighbours disagree on where, by
    binned pixels."""

    def far(values, least):
        middle = np.median(values)
        return values - middle > max(6 * 1.4826 * np.median(np.abs(values - middle)), least)

    return far(-confidence, 0.5 * max(float(np.median(confidence)), 0)) | far(residual, 1.5)


def _background_note(series, level, found: Vacuum, given) -> str:
    if given is not None:
        return f"given: {level.min():.6g} to {level.max():.6g}, subtracted"
    spread = f"{level.min():.6g} to {level.max():.6g}" if np.ptp(level) > 0 else f"{level.min():.6g}"
    if not found.seen.any():
        return (
            f"no vacuum visible; the lowest level of all images, {spread}, was subtracted. Set it with background=..."
        )
    share = found.share[found.seen].mean()
    note = f"vacuum level {spread}, the darkest that {share:.0%} of each image agrees on, subtracted"
    if not found.seen.all():
        note += f"; not visible in {_named(np.flatnonzero(~found.seen))}, which got that of their neighbours"
    path = 1 / np.maximum(np.cos(np.deg2rad(series.tilt_deg)), 0.05)
    varies = level.ndim == 1 and len(level) > 4 and np.ptp(level) > np.median(found.noise) and np.ptp(path) > 0.1
    if varies and np.corrcoef(path, level)[0, 1] > 0.9:
        note += "; it grows as 1/cos(tilt) like a support film, which was then subtracted too"
    return note


def _axis_note(series, given, axis_deg, error_deg, turn) -> str:
    before = series.provenance.get("tilt_axis", "")
    if given is not None:
        note = f"tilt axis given at {axis_deg:.2f}° off y"
    elif not np.isfinite(error_deg):
        note = f"tilt axis not measured (too few tilts, range or structure), kept at {axis_deg:.2f}° off y"
    else:
        note = f"tilt axis found at {axis_deg:.2f} ± {error_deg:.2f}° off y, started from {series.tilt_axis_deg:.2f}°"
    note += "; images rotated once by cubic splines" if turn else "; images not rotated"
    return f"{before.rstrip('.')}; {note}" if before else note


def _alignment_note(shift, flat, mass: Mass | None, confidence, suspect) -> str:
    how = "compressed by the cosine" if flat else "as they are"
    note = f"cross-correlation of tilts with their next three ({how})"
    if mass is not None:
        note += f", then mass by row and centres of mass over {mass.rows.sum()} of {mass.rows.size} rows"
    else:
        note += "; the specimen is larger than the field, so masses were not used"
        if np.median(confidence) < WEAK:
            note += ", and neighbouring tilts agree only weakly: shifts may be off by several pixels"
    u, v = shift.T
    note += f"; shifts u {u.min():.1f} to {u.max():.1f} px, v {v.min():.1f} to {v.max():.1f} px"
    note += f"; correlation with neighbours {np.median(confidence):.3f}"
    if suspect.any():
        which = np.flatnonzero(suspect)
        note += f"; {_named(which)} disagree: look at them, or drop them with --skip {','.join(map(str, which))}"
    return note
