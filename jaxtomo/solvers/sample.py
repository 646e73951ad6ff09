"""Samples of the posterior by a score network: noise is taken away level by level, the images asked at each."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..priors.score import SIGMA_DATA, SIGMA_MAX, Weights
from ..solve import Solver
from .consistent import chi_square, consistent
from .told import Told, denoised, tell

Sampler = Callable[..., jax.Array]
"""`(denoise, noisy, sigma, next, key) -> noisy at the next level`; `denoise(noisy, sigma)` is what is expected."""


def levels(steps: int, least: float = 0.02, most: float = SIGMA_MAX, rho: float = 7.0) -> np.ndarray:
    """`[steps + 1]` noise levels, the last 0: (most^(1/ρ) + i/(n-1) (least^(1/ρ) - most^(1/ρ)))^ρ.
    [Karras et al. 2022, eq. 5]"""
    ramp = np.linspace(most ** (1 / rho), least ** (1 / rho), steps) ** rho
    return np.append(ramp, 0.0).astype(np.float32)


@functools.cache
def ddim(eta: float = 0.85) -> Sampler:
    """x' = D + σ' (√(1 - η²) (x - D)/σ + η z), z white: one evaluation a level; η = 0 is deterministic.
    [Song, Meng & Ermon 2021]"""

    def step(denoise, noisy, sigma, next, key):
        clean = denoise(noisy, sigma)
        kept = np.sqrt(1 - eta**2) * (noisy - clean) / sigma
        return clean + next * (kept + eta * jax.random.normal(key, noisy.shape))

    return step


@functools.cache
def heun() -> Sampler:
    """x' = x + (σ' - σ) (d + d')/2, d = (x - D)/σ, d' the same at the end of Euler's step: two evaluations a level, and
    one at the last. [Karras et al. 2022, algorithm 1]"""

    def step(denoise, noisy, sigma, next, key):
        slope = (noisy - denoise(noisy, sigma)) / sigma
        euler = noisy + (next - sigma) * slope
        end = jnp.maximum(next, 1e-6)
        there = jnp.where(next > 0, (euler - denoise(euler, end)) / end, slope)
        return noisy + (next - sigma) * (slope + there) / 2

    return step


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
