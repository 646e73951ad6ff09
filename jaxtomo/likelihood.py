"""How measured images differ from predicted ones: `(predicted, measured, weights) -> misfit`, minus a log-likelihood.

A likelihood is a plain function of arrays `[tilt, x, y]`; weights broadcast against them and 0 removes a pixel. Each
maker below returns the same function object for the same arguments, so that nothing is compiled twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from .errors import InputError

Likelihood = Callable[..., jnp.ndarray]


@functools.cache
def gaussian() -> Likelihood:
    """½ Σ w (p - y)²: read-out noise, or counts weighted by their inverse variance."""

    def misfit(predicted, measured, weights):
        return 0.5 * jnp.sum(weights * (predicted - measured) ** 2)

    return misfit


def _mean(images, weights):
    weights = jnp.broadcast_to(weights, images.shape)
    return jnp.sum(weights * images) / jnp.maximum(jnp.sum(weights), 1e-20)


@functools.cache
def poisson(floor: float = 1e-3) -> Likelihood:
    """Σ w (p - y log p): counts.

    Below a quarter of the measured count (or `floor` times the mean one) the logarithm goes on as the parabola that
    fits it there, so that a prediction of nothing has a finite slope, out of which a solver can climb.
    """

    def misfit(predicted, measured, weights):
        counted = jnp.maximum(measured, 0)
        knee = jnp.maximum(counted / 4, floor * _mean(counted, weights) + 1e-20)
        relative = predicted / knee - 1
        parabola = jnp.log(knee) + relative - relative**2 / 2
        log = jnp.where(relative > 0, jnp.log(jnp.maximum(predicted, knee)), parabola)
        return jnp.sum(weights * (predicted - counted * log))

    misfit.counts = True
    return misfit


@functools.cache
def robust(delta: float = 0.1) -> Likelihood:
    """Huber's misfit: quadratic up to `delta` times the root mean square of the images, linear beyond.

    For outliers such as diffraction contrast. [Huber 1964]
    """

    def misfit(predicted, measured, weights):
        knee = delta * jnp.sqrt(_mean(measured**2, weights))
        distance = jnp.abs(predicted - measured)
        return jnp.sum(weights * jnp.where(distance < knee, 0.5 * distance**2, knee * (distance - 0.5 * knee)))

    return misfit


@functools.cache
def fitted_intensity(likelihood: Likelihood, offset: bool = True) -> Likelihood:
    """`likelihood` with a gain (and an offset) per tilt fitted as nuisances: p becomes a_i p + b_i.

    Detectors are auto-scaled per tilt in real files. The least-squares (a_i, b_i) have a closed form and are held
    fixed in the derivative: alternating minimisation, near variable projection [Golub & Pereyra 2003]. Gains average
    to 1, since a common one belongs to the volume. The function's attribute `explained` gives a_i p + b_i.
    """

    if hasattr(likelihood, "explained"):
        raise InputError("a gain is fitted to images that are linear: not over saturated(...), nor twice.")

    def explained(predicted, measured, weights):
        gain, base = intensity(predicted, measured, weights, offset)
        return gain * predicted + base

    def misfit(predicted, measured, weights):
        return likelihood(explained(predicted, measured, weights), measured, weights)

    misfit.explained = explained
    misfit.counts = getattr(likelihood, "counts", False)
    return misfit


def response(thickness, kappa):
    """y = (1 - exp(-κ p)) / κ of ray sums p: the intensity of a detector that electrons miss which are scattered more
    than once. Of slope 1 where p is small, 1/κ at most; κ = 0 is linear. For HAADF images of specimens up to some
    hundred nm. [Van den Broek et al. 2012; Zhong et al. 2018]"""
    x = kappa * thickness
    small = jnp.abs(x) < 1e-3
    safe = jnp.where(small, 1, x)
    return thickness * jnp.where(small, 1 - x / 2 + x**2 / 6, -jnp.expm1(-safe) / safe)


@functools.cache
def saturated(likelihood: Likelihood, kappa: float) -> Likelihood:
    """`likelihood` of images that saturate: p becomes its `response`. `saturation.find` tells `kappa`.

    The function's attribute `explained` gives the response, with the gains of a `fitted_intensity`.

    Raises InputError for a negative or infinite `kappa`.
    """
    if not 0 <= kappa < float("inf"):
        raise InputError(f"kappa is {kappa}. Give one over the brightest that an image can be, or 0.")
    inner = getattr(likelihood, "explained", None)

    def explained(predicted, measured, weights):
        straight = response(predicted, kappa)
        return straight if inner is None else inner(straight, measured, weights)

    def misfit(predicted, measured, weights):
        return likelihood(response(predicted, kappa), measured, weights)

    misfit.explained = explained
    misfit.counts = getattr(likelihood, "counts", False)
    return misfit


def intensity(predicted, measured, weights, offset: bool = True):
    """Least-squares gain and offset of each tilt, each `[tilt, 1, 1]`; the gains average to 1."""
    weights = jnp.broadcast_to(weights, measured.shape)

    def mean(a):
        return jnp.sum(weights * a, (1, 2), keepdims=True) / jnp.maximum(jnp.sum(weights, (1, 2), keepdims=True), 1e-20)

    p0, y0 = (mean(predicted), mean(measured)) if offset else (0.0, 0.0)
    p, y = predicted - p0, measured - y0
    variance = mean(p * p)
    known = variance > 1e-12 * jnp.mean(measured**2)
    gain = jnp.where(known, mean(p * y) / jnp.where(known, variance, 1), 1)
    live = jnp.sum(weights, (1, 2), keepdims=True) > 0
    gain = jnp.where(live, gain, 1)
    gain = gain / (jnp.sum(jnp.where(live, gain, 0)) / jnp.maximum(jnp.sum(live), 1))
    return lax.stop_gradient(gain), lax.stop_gradient(jnp.broadcast_to(y0 - gain * p0, gain.shape))


def noise_variance(images, chosen=None):
    """σ² from the median size of details, second differences along both image axes, but where all is 0: a background
    without a count says nothing of the noise. `chosen` pixels are asked, or all. [Immerkær 1996; Donoho & Johnstone
    1994 for the median]"""
    detail, asked, filled = images, jnp.ones(images.shape, bool) if chosen is None else chosen, images != 0
    for axis in (1, 2):
        times = min(2, detail.shape[axis] - 1)
        for _ in range(times):
            low, high = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
            asked, filled = asked[low] & asked[high], filled[low] | filled[high]
            detail = jnp.diff(detail, axis=axis)
        detail = detail / jnp.sqrt((1.0, 2.0, 6.0)[times])
    size = jnp.nanmedian(jnp.where(filled & asked, jnp.abs(detail), jnp.nan))
    return (jnp.where(jnp.isnan(size), 0, size) / 0.6745) ** 2
