"""Samples of the posterior by a score network: noise is taken away level by level, the images asked at each."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from ..errors import InputError
from ..priors.score import SIGMA_DATA, SIGMA_MAX, Weights
from ..solve import Solver
from .consistent import chi_square, consistent
from .samplers import Sampler, ddim, levels
from .told import Told, denoised, tell


def sample(
    weights: Weights,
    steps: int = 40,
    samples: int = 1,
    sampler: Sampler | None = None,
    *,
    guided: bool = True,
    trust: float = 0.5,
    corrections: int = 5,
) -> Solver:
    """Draws from the posterior; the volume is their mean, `spread` their standard deviation.

    At every level the denoised estimate is made consistent with the images by a few CG steps before noise of the next
    level is added to it: argmin over v of Σ (A v - y)²/σ_y² + Σ (v - D)²/r², with r² = `trust` σ² σ_d²/(σ² + σ_d²), how
    far D can be wrong, and of several samples the variance among them where that is more.
    [Karras et al. 2022; Chung, Lee & Ye 2024 for the CG steps]

    Args:
        weights: a trained network, `priors.score.load(...)`.
        steps: noise levels.
        samples: drawn at once, vmapped.
        sampler: from one level to the next: `ddim(η)`, the default, or `heun()`.
        guided: whether the network is told the Gaussian solution of the images; without, it is the prior alone, and
            only the correction knows the images.
        trust: of the images over the network: the share of the noise level that counts as its error.
        corrections: CG steps.
    """
    if steps < 2 or samples < 1:
        raise InputError(f"{steps} steps and {samples} samples: give 2 or more and 1 or more.")
    chosen, sigmas = sampler or ddim(), levels(steps)

    def init(problem, key):
        told = tell(problem, weights)
        if not guided:
            told = told._replace(guide=jnp.zeros_like(told.guide), geometry=jnp.zeros_like(told.geometry))
        noisy = SIGMA_MAX * jax.random.normal(key, (samples, *problem.shape))
        return {
            "told": told,
            "noisy": noisy,
            "level": jnp.asarray(0),
            "sigmas": jnp.asarray(sigmas),
            "trust": jnp.asarray(trust, jnp.float32),
        }

    settings = {"method": "sample", "planned_steps": steps, "samples": samples, "guided": guided, "trust": trust}
    return Solver(init, _stepper(chosen, corrections), _read, settings, steps, _spread if samples > 1 else None)


@functools.lru_cache(16)
def _stepper(sampler: Sampler, corrections: int):
    def step(problem, state, key):
        told: Told = state["told"]
        score = told.score()
        sigma, next = state["sigmas"][state["level"]], state["sigmas"][state["level"] + 1]
        unit = (told.density * score.scale[...]) ** 2

        def denoise(noisy, sigma):
            clean = jax.vmap(lambda x: score.outward(denoised(score, x, sigma, told), told.density))(noisy)
            wrong = state["trust"] * sigma**2 * SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2) * unit
            wrong = jnp.maximum(wrong, clean.var(0)) if len(clean) > 1 else wrong
            right = jax.vmap(lambda v: consistent(problem, told.images, v, wrong, corrections))(clean)
            return jax.vmap(lambda v: score.inward(v, told.density))(right)

        noisy = sampler(denoise, state["noisy"], sigma, next, key)
        predicted = problem.project(score.outward(noisy[0], told.density))
        fit = chi_square(problem, told.images, predicted)
        info = {"misfit": problem.misfit(predicted)[0], "loss": fit, "noise": next}
        return {**state, "noisy": noisy, "level": state["level"] + 1}, info

    return step


def volumes(state) -> jax.Array:
    """`[sample, z, x, y]`: every sample of a state."""
    told: Told = state["told"]
    return told.score().outward(state["noisy"], told.density)


def _read(problem, state):
    return volumes(state).mean(0), problem.pose


def _spread(problem, state):
    return volumes(state).std(0, ddof=1)
