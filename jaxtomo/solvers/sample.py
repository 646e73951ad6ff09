"""Samples of the posterior by a score network: noise is taken away level by level, the images asked at each."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from ..errors import InputError
from ..freedom import Freedom
from ..poses import moved
from ..priors.score import SIGMA_DATA, SIGMA_MAX, Weights
from ..solve import Solver
from .consistent import chi_square, consistent
from .expected import explained
from .posing import Following, at_rest, followed, following
from .samplers import Sampler, ddim, levels
from .told import Told, denoised, first_answer, seen_mirrored, tell, told_again


def sample(
    weights: Weights,
    steps: int = 8,
    samples: int = 4,
    sampler: Sampler | None = None,
    *,
    start: float = 0.5,
    guided: bool = True,
    trust: float = 0.5,
    corrections: int = 10,
    freedom: Freedom | None = None,
) -> Solver:
    """Draws from the posterior; the volume is made of their mean.

    At every level the denoised estimate is made consistent with the images by a few CG steps before noise of the next
    level is added to it: argmin over v of Σ (A v - y)²/σ_y² + Σ (v - D)²/r², with r² = `trust` σ² σ_d²/(σ² + σ_d²), how
    far D can be wrong, and of several samples the variance among them where that is more.
    [Karras et al. 2022; Chung, Lee & Ye 2024 for the CG steps]

    A mean of few samples is uncertain itself. Beside each level the network is also asked what it expects of the images
    alone, in another mirror image each time, as in `expected`, and the volume is the mean of samples as far as it is
    further from that than chance would have it, in every neighbourhood. [James & Stein 1961]

    Args:
        weights: a trained network, `priors.score.load(...)`.
        steps: noise levels.
        samples: drawn at once, vmapped.
        sampler: from one level to the next: `ddim(η)`, the default, or `heun()`.
        start: the first noise level, in the network's units, added to what the network expects of the images, so that
            all levels go to what is left open by that. With the largest, `SIGMA_MAX`, samples start from nothing.
            [Chung, Sim & Ye 2022]
        guided: whether the network is told its guides, the solutions of the images; without, it is the prior alone, and
            only the correction knows the images. Samples then start from nothing, and the volume is their plain mean.
        trust: of the images over the network: the share of the noise level that counts as its error.
        corrections: CG steps.
        freedom: what of the poses is learned on the way, at every level from what the network expects; None for
            nothing. The guides follow them. Poses that `refine` found before were better on phantoms.
    """
    if steps < 2 or samples < 1:
        raise InputError(f"{steps} steps and {samples} samples: give 2 or more and 1 or more.")
    if not 0.02 < start <= SIGMA_MAX:
        raise InputError(f"start={start}: give a noise level from 0.02 to {SIGMA_MAX:g}.")
    start = start if guided else SIGMA_MAX
    chosen, sigmas = sampler or ddim(), levels(steps, most=start)
    poses = None if freedom is None else following(freedom, steps)

    def init(problem, key):
        told = tell(problem, weights, moving=poses is not None)
        if not guided:
            told = told._replace(guide=jnp.zeros_like(told.guide), geometry=jnp.zeros_like(told.geometry))
        first = first_answer(told)
        state = {
            "told": told,
            "noisy": first * (start < SIGMA_MAX) + start * jax.random.normal(key, (samples, *problem.shape)),
            "expected": first,
            "clean": jnp.broadcast_to(told.score().outward(told.guide[1], told.density), (samples, *problem.shape)),
            "level": jnp.asarray(0),
            "sigmas": jnp.asarray(sigmas),
            "trust": jnp.asarray(trust, jnp.float32),
        }
        return state if poses is None else {**state, "poses": at_rest(problem, poses)}

    settings = {
        "method": "sample",
        "weights": weights.name,
        "planned_steps": steps,
        "samples": samples,
        "guided": guided,
        "trust": trust,
    }
    read = _read if guided and samples > 1 else _plain
    return Solver(init, _stepper(chosen, corrections, guided, poses), read, settings, steps, _samples)


@functools.lru_cache(16)
def _stepper(sampler: Sampler, corrections: int, guided: bool, poses: Following | None):
    def step(problem, state, key):
        told: Told = state["told"]
        score = told.score()
        sigma, next = state["sigmas"][state["level"]], state["sigmas"][state["level"] + 1]
        unit = (told.density * score.scale[...]) ** 2
        posed = problem.replace(pose=_pose(problem, state))
        if guided and len(state["noisy"]) > 1:
            # Of poses that move only the last answers count.
            count = state["level"] + 2 if poses is None else 3
            look = seen_mirrored(score, told, state["level"] + 1)
            state = {**state, "expected": state["expected"] + (look - state["expected"]) / count}

        def answer(noisy, sigma):
            return score.outward(denoised(score, noisy, sigma, told), told.density)

        def explaining(clean, sigma):
            wrong = state["trust"] * sigma**2 * SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2) * unit
            wrong = jnp.maximum(wrong, clean.var(0)) if len(clean) > 1 else wrong
            return jax.vmap(lambda v: consistent(posed, told.images, v, wrong, corrections))(clean)

        def denoise(noisy, sigma):
            return score.inward(explaining(answer(noisy, sigma), sigma), told.density)

        expected = answer(state["noisy"], sigma)
        clean = explaining(expected, sigma)
        noisy = sampler(denoise, state["noisy"], score.inward(clean, told.density), sigma, next, key)
        new = {**state, "noisy": noisy, "clean": clean, "level": state["level"] + 1}
        over = state["level"] >= len(state["sigmas"]) - 1  # steps beyond the plan change nothing
        new = jax.tree.map(lambda old, new: jnp.where(over, old, new), state, new)
        mean = clean.mean(0)
        if poses is not None:
            new["poses"] = followed(problem, poses, state["poses"], told.images, expected.mean(0))
            posed = problem.replace(pose=_pose(problem, new))
            new["told"] = told_again(posed, told) if guided else told
        predicted = posed.project(mean)
        fit = chi_square(problem, told.images, predicted)
        return new, {"misfit": problem.misfit(predicted)[0], "loss": fit, "noise": next, "unlike": told.unlike}

    return step


def _pose(problem, state):
    return moved(problem, state["poses"]["moves"]) if "poses" in state else problem.pose


def _plain(problem, state):
    return state["clean"].mean(0), _pose(problem, state)


@jax.jit
def _read(problem, state):
    samples, told, pose = state["clean"], state["told"], _pose(problem, state)
    likely = told.score().outward(state["expected"], told.density)
    likely = explained(problem.replace(pose=pose), told, likely)
    return shrunk(samples, likely), pose


def shrunk(samples, volume):
    """The mean of `samples [sample, z, x, y]`, drawn towards `volume` where it differs by no more than its own chance
    deviation does: by the share Σ s²/N / Σ (mean - volume)² over 5³ voxels."""
    away = samples.mean(0) - volume
    chance = samples.var(0, ddof=1) / len(samples)
    found, expected = (
        jax.lax.reduce_window(a, 0.0, jax.lax.add, (5, 5, 5), (1, 1, 1), "SAME") for a in (away**2, chance)
    )
    return volume + away * jnp.clip(1 - expected / jnp.maximum(found, 1e-30), 0, 1)


def _samples(problem, state):
    return state["clean"]
