"""A denoiser in the place of a penalty: plug-and-play ADMM, started from what the network expects."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from ..errors import InputError
from ..priors.score import Weights
from ..solve import Solver
from .consistent import chi_square, consistent
from .told import denoised, first_answer, tell


def plug_and_play(
    weights: Weights,
    sigmas: Sequence[float] = tuple(np.geomspace(1.0, 0.25, 12)),
    coupling: float = 0.7,
    *,
    guided: bool = True,
    corrections: int = 8,
) -> Solver:
    """Alternates x = argmin Σ (A x - y)²/σ_y² + λ/σ² Σ (x - v + u)² and v = D(x + u; σ), with u += x - v.

    A step for each of `sigmas`, in the network's units; λ is `coupling`. Starts from what the network expects of the
    images. Few steps are enough, and at a wide missing wedge many drift away from the truth. `guided` as for `sample`.
    [Venkatakrishnan, Bouman & Wohlberg 2013]
    """
    plan = np.asarray(sigmas, np.float32).reshape(-1)
    if not plan.size or not (np.isfinite(plan).all() and plan.min() > 0 and coupling > 0):
        raise InputError(f"plug_and_play: sigmas {sigmas} and coupling {coupling}. Give positive numbers.")

    def init(problem, key):
        told = tell(problem, weights)
        start = first_answer(told)
        if not guided:
            told = told._replace(guide=jnp.zeros_like(told.guide), geometry=jnp.zeros_like(told.geometry))
        return {
            "told": told,
            "volume": start,
            "dual": jnp.zeros_like(start),
            "sigmas": jnp.asarray(plan),
            "level": jnp.asarray(0),
            "coupling": jnp.asarray(coupling, jnp.float32),
        }

    settings = {
        "method": "plug-and-play",
        "weights": weights.name,
        "planned_steps": len(plan),
        "coupling": coupling,
        "guided": guided,
    }
    return Solver(init, _stepper(corrections), _read, settings, len(plan))


@functools.lru_cache(16)
def _stepper(corrections: int):
    def step(problem, state, key):
        told, score = state["told"], state["told"].score()
        sigma = state["sigmas"][jnp.minimum(state["level"], len(state["sigmas"]) - 1)]
        start = score.outward(state["volume"] - state["dual"], told.density)
        wrong = sigma**2 / state["coupling"] * (told.density * score.scale[...]) ** 2
        right = score.inward(consistent(problem, told.images, start, wrong, corrections), told.density)
        (volume,) = denoised(score, (right + state["dual"])[None], sigma, told)
        new = {**state, "volume": volume, "dual": state["dual"] + right - volume, "level": state["level"] + 1}
        shown = score.outward(volume, told.density)
        predicted = problem.project(shown)
        return new, {
            "misfit": problem.misfit(predicted)[0],
            "loss": chi_square(problem, told.images, predicted),
            "noise": sigma,
        }

    return step


def _read(problem, state):
    return state["told"].score().outward(state["volume"], state["told"].density), problem.pose
