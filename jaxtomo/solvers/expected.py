"""The expected volume behind the images, by a score network that is told them: the point estimate of least error."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from ..priors.score import SIGMA_DATA, Weights
from ..solve import Solver
from .consistent import agreeing, chi_square
from .told import Told, seen_mirrored, tell

TRUST = 1e-3  # of the images over the network, to begin with


def expected(weights: Weights, steps: int = 16, trust: float = TRUST, corrections: int = 5) -> Solver:
    """E[v | y]: the network's answer to its guides, averaged over the specimen's mirror images, and made
    consistent with the images.

    Every step looks at the specimen in another of its eight mirror images, each also moved by a voxel: what differs is
    the network's own error. At the end argmin over v of Σ (A v - y)²/σ_y² + Σ (v - mean)²/r², by a few CG steps, with
    r² = `trust` σ_d², and three times as much again until what is left of the images is no more than their noise.
    """

    def init(problem, key):
        told = tell(problem, weights)
        return {"told": told, "sum": jnp.zeros(problem.shape), "count": jnp.asarray(0), "trust": jnp.asarray(trust)}

    settings = {"method": "expected", "weights": weights.name, "planned_steps": steps, "trust": trust}
    return Solver(init, _stepper(corrections), functools.partial(_read, corrections=corrections), settings, steps)


@functools.lru_cache(16)
def _stepper(corrections: int):
    def step(problem, state, key):
        told, count = state["told"], state["count"]
        score = told.score()
        answer = seen_mirrored(score, told, count)
        total = state["sum"] + score.outward(answer, told.density)
        new = {**state, "sum": total, "count": count + 1}
        volume = total / (count + 1)
        predicted = problem.project(volume)
        return new, {"misfit": problem.misfit(predicted)[0], "loss": chi_square(problem, told.images, predicted)}

    return step


@functools.partial(jax.jit, static_argnames="corrections")
def _read(problem, state, *, corrections):
    mean = state["sum"] / jnp.maximum(state["count"], 1)
    return explained(problem, state["told"], mean, state["trust"], corrections), problem.pose


def explained(problem, told: Told, volume, trust=TRUST, corrections: int = 5):
    """What the network expects, made to agree with the images; it is wrong by `trust` σ_d² (a variance) or more."""
    wrong = trust * (SIGMA_DATA * told.density * told.score().scale[...]) ** 2
    return agreeing(problem, told.images, volume, wrong, corrections)
