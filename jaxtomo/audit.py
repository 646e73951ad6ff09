"""What of a volume was measured, and what its method supplied: in Fourier space and voxel by voxel."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import parallel
from .data import Problem
from .errors import InputError
from .likelihood import gaussian
from .metrics import shells
from .priors.density import typical
from .solvers.consistent import consistent, measured
from .validate import SLAB, slab

STEPS = 30  # of conjugate gradients: more change nothing that is seen
DETAIL = 2.0  # voxels: what varies over more is no detail
AROUND = 3.0  # voxels over which shares are averaged
FAINT = 0.05  # of the density: detail below that is none


class Audit(NamedTuple):
    """What was measured of a volume.

    Attributes:
        determined: `[z, y, x]`, the part of it that its images and their noise determine.
        supplied: `[z, y, x]`, from 0 to 1: of the power of the detail around every voxel the share that they do not.
        share: the same of all detail together.
        frequency: `[shell]` cycles per voxel.
        outside: `[shell]`, share of the power where no image says anything, farther from the plane of every tilt than
            a specimen as thick as the volume lets it reach.
        empty: `[shell]`, share of the Fourier voxels there: what `outside` is of a volume that is alike in all
            directions.
    """

    determined: np.ndarray
    supplied: np.ndarray
    share: float
    frequency: np.ndarray
    outside: np.ndarray
    empty: np.ndarray


def audit(problem: Problem, volume) -> Audit:
    """What of a volume `[z, y, x]` its images determine.

    The part determined is what linear algebra makes of the volume's own perfect projections, at the noise of the
    images: R v = (AᵀΣ⁻¹A + 1/ρ²)⁻¹ AᵀΣ⁻¹A v, R the resolution operator of a prior that knows nothing but a density ρ.
    [Backus & Gilbert 1968] What is not in it, v - R v, the method has supplied, or it is noise of the images that the
    method let through: it can be right, but no image says so. Volumes of other programs may be in other units of
    intensity.

    Raises InputError for a volume of another shape, or of several channels.
    """
    volume = np.asarray(volume, np.float32)
    if volume.ndim != 3 or volume.swapaxes(1, 2).shape != problem.shape or problem.images.ndim != 3:
        raise InputError(f"a volume of shape {volume.shape} for a problem of {problem.shape} (z, x, y).")
    found = np.asarray(_determined(problem, jnp.asarray(volume.swapaxes(1, 2)))).swapaxes(1, 2)
    detail, missing = (_detail(part) for part in (volume, volume - found))
    floor = (FAINT * float(typical(jnp.asarray(volume)))) ** 2 + 1e-30
    supplied = np.clip(_mean(missing**2) / (_mean(detail**2) + floor), 0, 1)
    share = float(np.sum(missing**2) / max(np.sum(detail**2), 1e-30))
    return Audit(found, supplied, share, *_by_shell(volume, problem.pose.select(_live(problem))))


@jax.jit
def _determined(problem, volume):
    problem = parallel.unpadded(problem)
    seen = problem.project(volume)
    unit = jnp.sum(problem.weights * seen * problem.images) / jnp.maximum(jnp.sum(problem.weights * seen**2), 1e-30)
    unit = jnp.where(unit > 0, unit, 1.0)
    perfect = problem.replace(images=unit * seen, likelihood=gaussian())
    variance = typical(unit * volume) ** 2
    return consistent(perfect, measured(problem), jnp.zeros_like(volume), variance, STEPS) / unit


def audited(problem: Problem, volume) -> dict:
    """What a run records of an `audit` of its middle slices; nothing of several channels or of no finite volume.

    Returns a dict of
        supplied_share: `Audit.share`;
        audit: frequency, outside and empty, and plane: `[3, z, x]` of the middle slice, the volume, what is determined
            of it, and `supplied`.
    """
    volume = np.asarray(volume)
    if volume.ndim != 3 or not np.isfinite(volume).all():
        return {}
    part = slab(problem, SLAB)
    rows = part.shape[2]
    start = (volume.shape[1] - rows) // 2
    volume = volume[:, start : start + rows]
    found = audit(part, volume)
    plane = np.stack([a[:, rows // 2] for a in (volume, found.determined, found.supplied)]).astype(np.float32)
    shells = {name: getattr(found, name) for name in ("frequency", "outside", "empty")}
    return {"supplied_share": found.share, "audit": {**shells, "plane": plane}}


def _live(problem):
    return np.asarray(jnp.broadcast_to(problem.weights, problem.images.shape).any((1, 2)))


def _mean(volume):
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(volume, AROUND)


def _detail(volume):
    from scipy.ndimage import gaussian_filter

    return volume - gaussian_filter(volume, DETAIL)


def _by_shell(volume, pose):
    """(frequency, outside, empty) of `Audit`."""
    n, shell, count = shells(volume.shape)
    kz, ky = np.ix_(*(np.fft.fftfreq(side) for side in volume.shape[:2]))
    kz, ky, kx = kz[..., None], ky[..., None], np.fft.rfftfreq(volume.shape[2])
    # An image measures the plane across its beam, as thick as one over the specimen.
    distance: Any = np.inf
    second = np.zeros_like(pose.tilt) if pose.second_tilt is None else np.asarray(pose.second_tilt)
    for tilt, other in zip(np.asarray(pose.tilt), second, strict=True):
        along = kz * np.cos(other) + (ky * np.sin(other) if other else 0)
        distance = np.minimum(distance, np.abs(along * np.cos(tilt) - kx * np.sin(tilt)))
    unseen = distance > 0.5 / min(volume.shape[0], volume.shape[2])
    power = count * np.abs(np.fft.rfftn(volume)) ** 2
    found = []
    for weight in (power, count):
        inside, whole = (
            np.bincount(shell.ravel(), part.ravel(), n // 2 + 1)[1 : n // 2 + 1] for part in (weight * unseen, weight)
        )
        found.append(np.divide(inside, whole, out=np.zeros_like(whole), where=whole > 0))
    return np.arange(1, n // 2 + 1) / n, *found
