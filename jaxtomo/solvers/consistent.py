"""What images say of a volume, for methods that alternate between a network and the images."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..likelihood import gaussian, noise_variance
from .tvq import around

AGREED, SURPRISE = 1.05, 9.0  # χ² at which volume and images agree, and the most of one pixel's in it
TRIES, GROWTH = 6, 3.0  # how often, and how much more each time, images are trusted to get there
FLOOR = 0.1  # of the mean intensity: what a pixel is taken to have at least, for its noise


class Images(NamedTuple):
    """Images with what is known of their noise.

    Attributes:
        precision: `[tilt, x, y]`, one over the variance of every pixel, 0 where it says nothing.
        pixels: how many pixels' noise there is in them; a background without a count has none.
    """

    precision: jax.Array
    pixels: jax.Array


@jax.jit
def measured(problem) -> Images:
    """The images and their noise, of variance a (y + `FLOOR` mean) + b, as they show it themselves.

    b, of the detector, is the noise seen in pixels with next to nothing in them, if there are any; a, the intensity of
    one count, is such that bright pixels have the noise that is seen in those. y is averaged over 3×3 pixels.
    [Janesick 2007, photon transfer]
    """
    live = jnp.broadcast_to(problem.weights, problem.images.shape)
    seen = around(jnp.maximum(problem.images, 0))
    mean = jnp.sum(live * seen) / jnp.maximum(jnp.sum(live), 1e-20)
    bright = (seen >= mean / 2) & (live > 0)
    constant = noise_variance(problem.images, (seen < FLOOR * mean) & (live > 0)) + 1e-6 * mean**2
    level = jnp.sum(bright * seen) / jnp.maximum(jnp.sum(bright), 1)
    count = jnp.maximum(noise_variance(problem.images, bright) - constant, 0) / jnp.maximum(level, 1e-20)
    variance = count * seen + constant
    taken = variance + count * FLOOR * mean
    known = taken > 0  # not where there is no signal at all
    share = jnp.where(known, variance / jnp.where(known, taken, 1), 0)
    precision = jnp.where(known, live / jnp.where(known, taken, 1), 0)
    return Images(precision, jnp.maximum(jnp.sum((live > 0) * share), 1))


def chi_square(problem, images: Images, predicted):
    """Mean of (A v - y)² / σ²: about 1 of a volume that explains the images and not their noise."""
    residual = problem.explained(predicted) - problem.images
    return jnp.sum(images.precision * residual**2) / images.pixels


def consistent(problem, images: Images, volume, variance, steps: int = 5):
    """argmin over v of Σ (A v - y)² / σ² + Σ (v - volume)² / variance, as far as a few CG steps from `volume` get.

    `variance` is a number or `[z, x, y]`: what is not measured is left as it is, what is certain nearly so. Under a
    robust likelihood pixels weigh as its slope at the start says (iteratively reweighted least squares), so that
    outliers do not pull; that counts are as uncertain as they are large is in σ already. [Chung, Lee & Ye 2024 for the
    few steps; Huber 1964]
    """
    predicted = problem.project(volume)
    residual = problem.images - problem.explained(predicted)
    precision = images.precision
    if problem.likelihood is not gaussian() and not getattr(problem.likelihood, "counts", False):
        slope = jax.grad(lambda p: problem.likelihood(p, problem.images, problem.weights))(predicted)
        usual = problem.weights * jnp.abs(residual)
        nothing = jnp.where(problem.weights > 0, 1, jnp.nan)  # left to explain, or asked
        bend = jnp.where(usual > 0, jnp.abs(slope) / jnp.where(usual > 0, usual, 1), nothing)
        bend = jnp.nan_to_num(bend / jnp.maximum(jnp.nanmedian(bend), 1e-20), nan=1.0)
        precision = precision * jnp.clip(bend, 0, 1)
    root = jnp.broadcast_to(jnp.sqrt(variance), volume.shape)

    def normal(white):
        return root * problem.back_project(precision * problem.project(root * white)) + white

    slope = root * problem.back_project(precision * residual)
    white, energy = jnp.zeros_like(slope), jnp.sum(slope**2)

    def step(_, carry):
        white, slope, direction, energy = carry
        turned = normal(direction)
        curvature = jnp.sum(direction * turned)
        length = jnp.where(curvature > 0, energy / jnp.where(curvature > 0, curvature, 1), 0)
        white, slope = white + length * direction, slope - length * turned
        left = jnp.sum(slope**2)
        turn = jnp.where(energy > 0, left / jnp.where(energy > 0, energy, 1), 0)
        return white, slope, slope + turn * direction, left

    white, *_ = lax.fori_loop(0, steps, step, (white, slope, slope, energy))
    return volume + root * white


def agreeing(problem, images: Images, volume, variance, steps: int = 5):
    """The volume made consistent with the images, and trusted less and less, from `variance`, until what is left of the
    images is no more than their noise; of a pixel no more counts than `SURPRISE` of that, so that what no volume can
    explain is not explained. [Morozov 1966]"""

    def left(volume):
        residual = problem.explained(problem.project(volume)) - problem.images
        return jnp.sum(jnp.minimum(images.precision * residual**2, SURPRISE)) / images.pixels

    def closer(carry):
        volume, variance, count, _ = carry
        volume = consistent(problem, images, volume, variance, steps)
        return volume, GROWTH * variance, count + 1, left(volume)

    def wanting(carry):
        return (carry[3] > AGREED) & (carry[2] < TRIES)

    return lax.while_loop(wanting, closer, closer((volume, jnp.asarray(variance), 0, jnp.inf)))[0]
