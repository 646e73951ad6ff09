"""A microscope for known specimens: from a fine volume to the tilt series it would have recorded, and the truth.

Everything is projected on a grid twice as fine as the one a reconstruction gets, so no method is flattered by sharing
the simulator's discretisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from .data import Pose
from .errors import InputError
from .likelihood import response
from .projector import project
from .series import TiltSeries

_project = jax.jit(project)  # one compilation for all outliers: each is a projection at one tilt


@dataclass(frozen=True)
class Microscope:
    """How far the microscope is from perfect; the defaults are perfect but for the dose.

    The *mean* below is the mean ray sum over all pixels of all images of the perfect series.

    Attributes:
        dose: mean number of electrons counted per pixel and image, by a linear detector: a ray sum p is counted as a
            Poisson number of mean dose * p / mean. `inf` counts without noise.
        readout: standard deviation of the Gaussian noise added to every pixel, as a fraction of the mean.
        tilt_jitter_deg: standard deviation of the true tilts about the nominal ones.
        shift_jitter_px: standard deviation of the shift along u and along v each, in pixels of the recorded images.
        rotation_jitter_deg: standard deviation of the rotation in the image plane.
        magnification_jitter: standard deviation of the magnification about 1.
        second_tilt_jitter_deg: standard deviation of the tilt about x.
        gain: standard deviation of log(gain), one gain per tilt.
        offset: standard deviation of the offset added to each image, as a fraction of the mean.
        outliers: mean number of grains per image that diffraction makes brighter, by a half to three times.
        blur: standard deviation of the Gaussian probe, in pixels of the recorded images.
        saturation: how far the thickest ray of the perfect series is into the saturation of an annular detector: its
            ray sum over the ceiling that no intensity exceeds, so that 2 is recorded as 86 % of it. 0 is linear.
    """

    dose: float = 60.0
    readout: float = 0.0
    tilt_jitter_deg: float = 0.0
    shift_jitter_px: float = 0.0
    rotation_jitter_deg: float = 0.0
    magnification_jitter: float = 0.0
    second_tilt_jitter_deg: float = 0.0
    gain: float = 0.0
    offset: float = 0.0
    outliers: float = 0.0
    blur: float = 0.0
    saturation: float = 0.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if name == "dose" and not value > 0:
                raise InputError(
                    f"Microscope: dose is {value}. Give a mean count above 0, or inf for none of its noise."
                )
            if name != "dose" and not 0 <= value < math.inf:
                raise InputError(f"Microscope: {name} is {value}. Give a finite number above 0, or 0 for none of it.")


@dataclass(frozen=True)
class Exposure:
    """A simulated series and everything true about it.

    Attributes:
        series: what the microscope recorded: images `[tilt, y, x]` in ray sums (voxel lengths x intensity) times gain
            plus offset, and the *nominal* tilt angles.
        truth: `[z, y, x]` float32, the specimen on the grid of the reconstruction.
        pose: the true pose of every tilt.
        clean: `[tilt, y, x]` float32, the perfect ray sums at the true poses.
        outliers: `[tilt, y, x]` float32, the ray sums that diffraction added to `clean`.
        gain: `[tilt]`.
        offset: `[tilt]`, in ray sums.
    """

    series: TiltSeries
    truth: np.ndarray
    pose: Pose
    clean: np.ndarray
    outliers: np.ndarray
    gain: np.ndarray
    offset: np.ndarray


def simulate(
    fine, tilt_deg, microscope: Microscope | None = None, seed: int = 0, pixel_nm: float | None = None
) -> tuple[TiltSeries, np.ndarray, Pose]:
    """The tilt series of a specimen, the truth to compare a reconstruction with, and the true pose: see `expose`.

    `fine` is the specimen `[2z, 2y, 2x]` rendered at twice the size of the truth `[z, y, x]`.

        fine = phantoms.core_shell((128, 128, 128), seed=1)
        series, truth, pose = simulate(fine, np.arange(-60, 61, 10), Microscope(dose=60, shift_jitter_px=1), seed=1)
    """
    exposure = expose(fine, tilt_deg, microscope, seed, pixel_nm)
    return exposure.series, exposure.truth, exposure.pose


def expose(
    fine, tilt_deg, microscope: Microscope | None = None, seed: int = 0, pixel_nm: float | None = None
) -> Exposure:
    """Records `fine` at the angles `tilt_deg` (degrees):

        images = gain (Poisson(dose B g(A f + outliers) / mean) mean / dose + readout noise) + offset

    with A f the ray sums on the fine grid, in voxel lengths of the truth, g the detector's saturation
    (`likelihood.response`), and B the average over 2x2 detector pixels and the probe's blur. The truth is `fine`
    averaged over 2x2x2. Deterministic by `seed`: each effect draws from its own stream of it (NumPy's Generator), so
    turning one on leaves the draws of the others as they were. `pixel_nm` is passed on to the series.

    Raises InputError for a volume of an odd or empty side, with negative or non-finite voxels, or without any mass, and
    for tilts that are not finite or none at all.
    """
    fine = np.asarray(fine, np.float32)
    if fine.ndim != 3 or any(n < 2 or n % 2 for n in fine.shape):
        raise InputError(f"simulate: a volume of shape {fine.shape}. Give [2z, 2y, 2x], twice the truth on every side.")
    if not np.isfinite(fine).all() or fine.min() < 0 or not fine.any():
        raise InputError("simulate: the volume has negative or non-finite voxels, or none above 0. Clip or repair it.")
    microscope = microscope or Microscope()
    tilt_deg = np.asarray(tilt_deg, float).reshape(-1)
    if tilt_deg.size == 0 or not np.isfinite(tilt_deg).all():
        raise InputError("simulate: tilt_deg is empty or not finite. Give at least one angle in degrees.")
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)]
    pose = jittered_pose(tilt_deg, microscope, streams[0])
    fine_pose = pose if pose.shift is None else pose.replace(shift=2 * pose.shift)
    rays = _ray_sums(fine, fine_pose)
    clean = _pixels(rays)
    mean = float(clean.mean(dtype=float))
    if mean <= 0:
        raise InputError(
            "simulate: nothing of the volume is in the field of view. Centre it, or lower the shift jitter."
        )
    extra = _diffraction(fine, fine_pose, microscope.outliers, streams[1])
    images = _pixels(np.asarray(response(rays + extra, microscope.saturation / clean.max())))
    if microscope.blur:
        from scipy.ndimage import gaussian_filter

        images = gaussian_filter(images, (0, microscope.blur, microscope.blur))
    if math.isfinite(microscope.dose):
        scale = microscope.dose / mean
        images = streams[2].poisson(scale * images.astype(float)) / scale
    images = images + microscope.readout * mean * streams[3].normal(size=images.shape)
    gain = np.exp(microscope.gain * streams[4].normal(size=len(tilt_deg)))
    offset = microscope.offset * mean * streams[4].normal(size=len(tilt_deg))
    images = gain[:, None, None] * images + offset[:, None, None]
    how = f"simulated with seed {seed}"
    settings = ", ".join(f"{name} {value:g}" for name, value in vars(microscope).items() if value)
    series = TiltSeries(
        images.astype(np.float32),
        tilt_deg,
        pixel_nm,
        provenance={
            "images": f"{how}: {settings}",
            "tilt_deg": "simulated: the nominal angles",
            "pixel_nm": "given to the simulation" if pixel_nm else "simulated: unknown",
            "tilt_axis": "simulated: y by construction",
        },
        source="simulation",
    )
    return Exposure(series, average(fine), pose, clean, _pixels(extra), gain, offset)


def jittered_pose(tilt_deg, microscope: Microscope, rng: np.random.Generator) -> Pose:
    """A true pose drawn about the nominal one; a parameter without jitter stays None."""
    m, n = microscope, len(tilt_deg)
    draws = rng.normal(size=(6, n))  # all of them always, so that one jitter does not change another's

    def jitter(spread, draw, about=0.0):
        return None if spread == 0 else jnp.asarray(about + spread * draw, jnp.float32)

    return Pose.nominal(tilt_deg + m.tilt_jitter_deg * draws[0]).replace(
        shift=jitter(m.shift_jitter_px, draws[1:3].T),
        rotation=jitter(np.deg2rad(m.rotation_jitter_deg), draws[3]),
        magnification=jitter(m.magnification_jitter, draws[4], about=1.0),
        second_tilt=jitter(np.deg2rad(m.second_tilt_jitter_deg), draws[5]),
    )


def average(fine) -> np.ndarray:
    """Means over pairs along the last three axes of a volume: `[z, y, x]` float32 from `[2z, 2y, 2x]`."""
    nz, ny, nx = fine.shape
    return fine.reshape(nz // 2, 2, ny // 2, 2, nx // 2, 2).mean((1, 3, 5), dtype=float).astype(np.float32)


def _ray_sums(fine, fine_pose: Pose) -> np.ndarray:
    """`[tilt, 2y, 2x]` ray sums of fine voxels in voxel lengths of the truth, of which two make one."""
    return 0.5 * np.asarray(_project(fine, fine_pose))


def _pixels(images) -> np.ndarray:
    """Means over 2x2 pixels, those of the truth's detector."""
    t, ny, nx = images.shape
    return images.reshape(t, ny // 2, 2, nx // 2, 2).mean((2, 4))


def _diffraction(fine, fine_pose: Pose, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Extra fine ray sums of grains in Bragg condition: on each tilt Poisson(`rate`) grains shine 0.5 to 3 times more.

    A grain is the connected stretch, around a voxel drawn in proportion to its squared intensity (a crystal rather
    than its amorphous support), of voxels at least 0.7 times as bright, within a tenth of the specimen's width.
    """
    from skimage.measure import label

    tilts = len(fine_pose.tilt)
    counts = rng.poisson(rate, tilts)
    extra = np.zeros((tilts, fine.shape[1], fine.shape[2]), np.float32)
    if not counts.any():
        return extra
    running = np.cumsum(np.square(fine), dtype=float)
    reach = max(2, round(0.1 * min(fine.shape[0], fine.shape[2])))
    for tilt in np.flatnonzero(counts):
        bright = np.zeros_like(fine)
        for draw, strength in zip(rng.random(counts[tilt]), rng.uniform(0.5, 3, counts[tilt]), strict=True):
            drawn = np.searchsorted(running, draw * running[-1], side="right")
            seed = np.unravel_index(min(drawn, fine.size - 1), fine.shape)
            box = tuple(slice(max(0, s - reach), min(n, s + reach + 1)) for s, n in zip(seed, fine.shape, strict=True))
            z, y, x = np.ogrid[box]
            part = fine[box]
            near = (z - seed[0]) ** 2 + (y - seed[1]) ** 2 + (x - seed[2]) ** 2 <= reach**2
            grains = np.asarray(label(near & (part > 0.7 * fine[seed]), connectivity=1))
            own = tuple(s - b.start for s, b in zip(seed, box, strict=True))
            bright[box] = np.maximum(bright[box], strength * part * (grains == grains[own]))
        extra[tilt] = _ray_sums(bright, fine_pose.select(np.array([tilt])))[0]
    return extra
