"""The weight of a method on counts, by counts that were held back. Counts dealt out at random to two heaps are Poisson
counts of either, and tell nothing of each other but what the specimen has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .data import Problem
from .elemental import shadowing
from .errors import InputError
from .solve import Solver
from .validate import solve

HELD = 0.2
START = 0.35
STRIDE = 2.0
FARTHEST = 6  # weights that are tried


class Choice(NamedTuple):
    """A weight, and the deviance of the counts held back, a pixel, of each weight that was tried."""

    weight: float
    tried: dict[float, float]


def thinned(problem: Problem, share: float = HELD, seed: int = 0) -> tuple[Problem, Problem]:
    """(kept, held) of a problem `[1 + element, tilt, x, y]`: every count goes to `held` with the probability `share`.
    The HAADF, channel 0, stays with both. Counts are rounded to whole ones.

    Raises InputError for a share that leaves nothing.
    """
    if not 0 < share < 1:
        raise InputError(f"share is {share}. Give one between 0 and 1.")
    counts = np.rint(np.maximum(np.asarray(problem.images[1:]), 0)).astype(np.int64)
    held = np.random.default_rng(seed).binomial(counts, share)
    parts = (jnp.asarray(part, problem.images.dtype) for part in (counts - held, held))
    kept, held = (problem.replace(images=jnp.concatenate([problem.images[:1], part])) for part in parts)
    return kept, held


def choose(
    problem: Problem, solver: Callable[[float], Solver], steps: int, start: float = START, seed: int = 0
) -> Choice:
    """The weight of `solver(weight)` whose volume predicts the counts held back best, between `start` and its doubles
    or halves, for as long as they are better. Where a detector saw less in some tilts is taken from the counts kept."""
    kept, held = thinned(problem, HELD, seed)
    tried: dict[float, float] = {}

    def worse(weight: float) -> float:
        volume = solve(kept, solver(weight), steps)
        tried[weight] = deviance(kept, held, volume)
        return tried[weight]

    least = worse(start)
    for stride in (STRIDE, 1 / STRIDE):
        weight = start
        while len(tried) < FARTHEST and worse(weight * stride) < least:
            weight *= stride
            least = tried[weight]
        if weight != start:
            break
    return Choice(_lowest(tried), tried)


def _lowest(tried: dict[float, float]) -> float:
    """Where the parabola through the best weight and its neighbours, against the logarithm, is lowest; the best
    itself, where it is at an end."""
    weights = sorted(tried)
    i = min(range(len(weights)), key=lambda i: tried[weights[i]])
    if i in (0, len(weights) - 1):
        return weights[i]
    before, here, after = (tried[weights[j]] for j in (i - 1, i, i + 1))
    bend = before + after - 2 * here
    return weights[i] * STRIDE ** ((before - after) / (2 * bend)) if bend > 0 else weights[i]


def deviance(kept: Problem, held: Problem, volume) -> float:
    """2 Σ (m - y + y log y / m) of the counts y held back, a pixel, m being what the volume and the shadows of the
    counts kept predict; about 1 where there are many counts, less where there are few."""
    weights = jnp.broadcast_to(kept.weights, kept.images.shape)[1:]
    predicted = jnp.maximum(kept.project(volume)[1:], 0)
    seen = shadowing(predicted, kept.images[1:], weights)
    pixels, counted = jnp.maximum(jnp.sum(weights), 1e-20), held.images[1:]
    stray = 1e-3 * jnp.sum(weights * kept.images[1:]) / pixels  # a single count beside the specimen says little
    mean = (seen * predicted + stray) * HELD / (1 - HELD)
    logs = counted * jnp.log(jnp.maximum(counted, 1e-9) / mean)
    return float(2 * jnp.sum(weights * (mean - counted + logs)) / pixels)
