"""Images that saturate with thickness, as those of annular detectors do: how far, and the images they would be if they
did not."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .data import Problem
from .errors import InputError
from .likelihood import noise_variance, response
from .refinement import coarser
from .series import TiltSeries
from .solvers.tv import tv
from .validate import hold_out, live_tilts, slab, solve, spread

FULL = 0.98  # of the ceiling: what is brighter says nothing of thickness
LARGEST, SMALLEST, ROWS = 96, 24, 32  # binned pixels of the images that saturation is found by
NOISE = 0.05  # of their intensity: more would hide it
SHARES, WEIGHTS = (0.0, 0.35, 0.6, 0.8, 0.92), (0.03, 0.1, 0.3)
STEPS = 100
BETTER = 0.9  # of the error without: on linear tissue, which total variation suits badly, it is 0.93 to 0.96


class Saturation(NamedTuple):
    """How images saturate.

    Attributes:
        kappa: of `likelihood.response`, per intensity; 0 if they do not.
        share: brightest intensity over the ceiling 1/kappa.
        error: relative, of left-out tilts, in the intensities as measured.
        error_without: the same of a linear model.
    """

    kappa: float
    share: float
    error: float
    error_without: float


def linear(intensity, kappa):
    """Inverse of `likelihood.response`: p = -log(1 - κ y) / κ, of y up to 98 % of the ceiling; y for κ = 0."""
    x = jnp.minimum(kappa * intensity, FULL)
    small = jnp.abs(x) < 1e-3
    safe = jnp.where(small, 1, x)
    return jnp.where(small, 1 + x / 2 + x**2 / 3, -jnp.log1p(-safe) / safe) * jnp.where(
        kappa * intensity > FULL, FULL / jnp.maximum(kappa, 1e-30), intensity
    )


def linearised(series: TiltSeries, kappa: float) -> TiltSeries:
    """The series with `linear` images, their background subtracted before. Their noise is larger where they were
    bright: see `trusted`.

    Raises InputError for a negative or infinite `kappa`.
    """
    if not 0 <= kappa < float("inf"):
        raise InputError(f"kappa is {kappa}. Give one over the brightest that an image can be, or 0.")
    images = np.stack([np.asarray(linear(jnp.asarray(image), kappa)) for image in series.images])
    note = f"taken out: intensities are (1 - exp(-κ p)) / κ of ray sums p, κ = {kappa:.4g}"
    return series.replace(images=images, provenance={**series.provenance, "saturation": note})


def trusted(problem: Problem, kappa: float) -> Problem:
    """The problem of a `linearised` series with pixels weighted by exp(-2 κ p), the inverse of what taking out the
    saturation has done to their variance."""
    return problem.replace(weights=problem.weights * jnp.exp(-2 * kappa * jnp.maximum(problem.images, 0)))


def find(problem: Problem, key=None) -> Saturation:
    """How far the images of a linear problem saturate: the κ with which a reconstruction predicts left-out tilts best.

    Too small a κ leaves images that no volume explains, since thickness changes with the angle; too large a one as
    well. For each κ the volume is reconstructed anew, by total variation from binned images of the middle slices, with
    the weight that predicts best: fitted while the volume is, κ would stop half-way, for a volume explains most of
    what saturation did by pores. The intensities must be comparable between tilts, their background subtracted.

    None is found where it explains less than a tenth of the error: little saturation, much noise, and texture hide it.
    A slab that goes on beyond the field can pass for saturation.

    Raises InputError for several channels or fewer than six tilts. [Van den Broek et al. 2012 and Zhong et al. 2018
    for linearising HAADF images]
    """
    if problem.images.ndim == 4:
        raise InputError("saturation is found in one channel. Choose the HAADF.")
    live = live_tilts(problem)
    if live.size < 6:
        raise InputError(f"{live.size} tilts are too few to find saturation by. Give it, or leave it out.")
    factor = _binning(problem)
    coarse = coarser(slab(problem, ROWS * factor), factor)
    bright = float(jnp.quantile(coarse.images[live], 0.999))
    if not bright > 0:
        raise InputError("the images show nothing above their background. Give another --background.")
    kept, left = hold_out(coarse, live[spread(live.size, max(1, live.size // 5))])

    def error(share: float, weight: float) -> float:
        kappa = share / bright
        straight = trusted(kept.replace(images=linear(kept.images, kappa)), kappa)
        return float(_error(left, solve(straight, tv(weight), STEPS, key), kappa))

    tried = {(share, weight): error(share, weight) for share, weight in product(SHARES, WEIGHTS)}
    without = min(tried[0.0, weight] for weight in WEIGHTS)
    share, weight = min(tried, key=tried.__getitem__)
    share, least = _refined(lambda share: error(share, weight), share)
    if least > BETTER * without:
        return Saturation(0.0, 0.0, without, without)
    return Saturation(share / (factor * bright), share, least, without)


def _binning(problem: Problem) -> int:
    """So many-fold that noise hides nothing, and that trials are quick."""
    part = slab(problem, ROWS)
    weights = jnp.broadcast_to(part.weights, part.images.shape)
    power = jnp.sum(weights * part.images**2) / jnp.maximum(jnp.sum(weights), 1e-20)
    noise = float(jnp.sqrt(noise_variance(part.images, weights > 0) / jnp.maximum(power, 1e-30)))
    width = max(problem.images.shape[1:])
    return max(1, -(-width // LARGEST), min(round(noise / NOISE), min(problem.images.shape[1:]) // SMALLEST))


def _refined(error, share: float) -> tuple[float, float]:
    """The share of least error between the neighbours of one that was tried, and that error."""
    from scipy.optimize import minimize_scalar

    i = SHARES.index(share)
    ends = SHARES[max(0, i - 1)], (*SHARES, FULL)[i + 1]
    found = minimize_scalar(error, bounds=ends, method="bounded", options={"xatol": 0.01})
    return float(found.x), float(found.fun)


@jax.jit
def _error(problem, volume, kappa):
    residual = problem.weights * (response(problem.project(volume), kappa) - problem.images) ** 2
    return jnp.sqrt(jnp.sum(residual) / jnp.sum(problem.weights * problem.images**2))
