"""From one noise level to the next: how a sampler goes, given a denoiser."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ..priors.score import SIGMA_MAX

Sampler = Callable[..., jax.Array]
"""`(denoise, noisy, clean, sigma, next, key) -> noisy at the next level`; `denoise(noisy, sigma)` is what is expected,
`clean` what it is now."""


def levels(steps: int, least: float = 0.02, most: float = SIGMA_MAX, rho: float = 7.0) -> np.ndarray:
    """`[steps + 1]` noise levels, the last 0: (most^(1/ρ) + i/(n-1) (least^(1/ρ) - most^(1/ρ)))^ρ.
    [Karras et al. 2022, eq. 5]"""
    ramp = np.linspace(most ** (1 / rho), least ** (1 / rho), steps) ** rho
    return np.append(ramp, 0.0).astype(np.float32)


@functools.cache
def ddim(eta: float = 0.85) -> Sampler:
    """x' = D + √(σ'² - s²) (x - D)/σ + s z, s = η σ' √(1 - σ'²/σ²), z white: one evaluation a level.

    η = 0 is deterministic, η = 1 ancestral sampling. [Song, Meng & Ermon 2021, eq. 12 and 16, as σ of EDM]
    """

    def step(denoise, noisy, clean, sigma, next, key):
        fresh = eta * next * jnp.sqrt(jnp.maximum(1 - (next / sigma) ** 2, 0))
        kept = jnp.sqrt(jnp.maximum(next**2 - fresh**2, 0)) * (noisy - clean) / sigma
        return clean + kept + fresh * jax.random.normal(key, noisy.shape)

    return step


@functools.cache
def heun() -> Sampler:
    """x' = x + (σ' - σ) (d + d')/2, d = (x - D)/σ, d' the same at the end of Euler's step: two evaluations a level, and
    one at the last. [Karras et al. 2022, algorithm 1]"""

    def step(denoise, noisy, clean, sigma, next, key):
        slope = (noisy - clean) / sigma
        euler = noisy + (next - sigma) * slope
        end = jnp.maximum(next, 1e-6)
        there = jnp.where(next > 0, (euler - denoise(euler, end)) / end, slope)
        return noisy + (next - sigma) * (slope + there) / 2

    return step
