"""What images say of a volume, for methods that alternate between a network and the images."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..likelihood import gaussian, noise_variance
from .tvq import count_weights


class Images(NamedTuple):
    """Images with what is known of their noise.

    Attributes:
        precision: `[tilt, x, y]`, one over the variance of every pixel, 0 where it says nothing.
        pixels: how many say anything.
    """

    precision: jax.Array
    pixels: jax.Array


def measured(problem) -> Images:
    """Pixels weighed as counts are (`tvq.count_weights`), on the scale of the noise that the images show."""
    weights = count_weights(problem)
    weights = jnp.broadcast_to(weights, problem.images.shape)
    noise = noise_variance(jnp.sqrt(weights) * problem.images)
    least = 1e-6 * jnp.sum(weights * problem.images**2) / jnp.maximum(jnp.sum(weights > 0), 1)
    return Images(weights / jnp.maximum(noise, least), jnp.sum(weights > 0))


def chi_square(problem, images: Images, predicted):
    """Mean of (A v - y)² / σ²: about 1 of a volume that explains the images and not their noise."""
    residual = problem.explained(predicted) - problem.images
    return jnp.sum(images.precision * residual**2) / images.pixels


def consistent(problem, images: Images, volume, variance, steps: int = 5):
    """argmin over v of Σ (A v - y)² / σ² + Σ (v - volume)² / variance, as far as a few CG steps from `volume` get.

    `variance` is a number or `[z, x, y]`: what is not measured is left as it is, what is certain nearly so. Under
    another likelihood than the Gaussian, pixels weigh as its slope at the start says (iteratively reweighted least
    squares), so that outliers do not pull. [Chung, Lee & Ye 2024 for the few steps; Huber 1964]
    """
    predicted = problem.project(volume)
    residual = problem.images - problem.explained(predicted)
    precision = images.precision
    if problem.likelihood is not gaussian():
        slope = jax.grad(lambda p: problem.likelihood(p, problem.images, problem.weights))(predicted)
        usual = problem.weights * jnp.abs(residual)
        bend = jnp.where(usual > 0, jnp.abs(slope) / jnp.where(usual > 0, usual, 1), 1)
        precision = precision * jnp.clip(bend / jnp.maximum(jnp.median(bend), 1e-20), 0, 1)
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
