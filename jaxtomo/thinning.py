"""The weight of a method on counts, by counts that were held back. Counts dealt out at random to two heaps are Poisson
counts of either, and tell nothing of each other but what the specimen has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
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
STEPS = 150  # of each trial


class Choice(NamedTuple):
    """A weight, and the deviance of the counts held back, a pixel, of each weight that was tried."""

    weight: float
    tried: dict[float, float]

    @property
    def ended(self) -> bool:
        """Whether it is the least or the greatest that was tried, so that the best may lie beyond."""
        return self.weight in (min(self.tried), max(self.tried))


def whole(counts) -> bool:
    """Whether these can be numbers of counts: whole, none below 0."""
    counts = np.asarray(counts)
    return bool(np.all((counts >= 0) & (np.abs(counts - np.rint(counts)) <= 1e-3 + 1e-6 * counts)))


def thinned(problem: Problem, share: float = HELD, seed: int = 0) -> tuple[Problem, Problem]:
    """(kept, held) of a problem `[1 + element, tilt, x, y]`: every count goes to `held` with the probability `share`.
    The HAADF, channel 0, stays with both.

    Raises InputError for a share that leaves nothing, and for images that are no counts.
    """
    if not 0 < share < 1:
        raise InputError(f"share is {share}. Give one between 0 and 1.")
    images = np.asarray(problem.images)
    if not whole(images[1:]) or images[1:].max() > np.iinfo(np.int32).max:
        raise InputError(
            "maps that are no whole numbers of counts, or above 2³¹: none can be held back. Give counts as they were "
            "detected, or a weight."
        )
    rng = np.random.default_rng(seed)
    held = np.stack([rng.binomial(np.rint(a).astype(np.int32), share).astype(images.dtype) for a in images[1:]])
    parts = (np.concatenate([images[:1], part]) for part in (images[1:] - held, held))
    kept, held = (problem.replace(images=jnp.asarray(part)) for part in parts)
    return kept, held


def choose(
    problem: Problem,
    solver: Callable[[float], Solver],
    steps: int = STEPS,
    start: float = START,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Choice:
    """The weight of `solver(weight)` whose volume predicts the counts held back best, between `start` and its doubles
    or halves, for as long as they are better. Where a detector saw less in some tilts is taken from the counts kept.
    `say` is told of every trial.

    Raises InputError for images that are no counts, and for volumes that predict nothing finite.
    """
    kept, held = thinned(problem, HELD, seed)
    tried: dict[float, float] = {}

    def worse(weight: float) -> float:
        volume = solve(kept, solver(weight), steps)
        tried[weight] = float(deviance(kept, held, volume))
        if not np.isfinite(tried[weight]):
            raise InputError(f"with weight {weight:g} the volume predicts no finite counts. Look at the images.")
        say(f"weight {weight:.3g}: deviance {tried[weight]:.5f} a pixel of the counts held back")
        return tried[weight]

    least = worse(start)
    for stride in (STRIDE, 1 / STRIDE):
        weight = start
        while len(tried) < FARTHEST and worse(weight * stride) < least:
            weight *= stride
            least = tried[weight]
        if weight != start:
            break
    return Choice(_lowest(tried, weight), tried)


def _lowest(tried: dict[float, float], best: float) -> float:
    """Where the parabola through the best weight and its neighbours, against the logarithm, is lowest; the best
    itself, where it is at an end."""
    weights = sorted(tried)
    i = weights.index(best)
    if i in (0, len(weights) - 1):
        return best
    before, here, after = (tried[weights[j]] for j in (i - 1, i, i + 1))
    bend = before + after - 2 * here
    return best * STRIDE ** ((before - after) / (2 * bend)) if bend > 0 else best


@jax.jit
def deviance(kept: Problem, held: Problem, volume) -> jax.Array:
    """2 Σ (m - y + y log y / m) of the counts y held back, a pixel, m being what the volume and the shadows of the
    counts kept predict; about 1 where there are many counts, less where there are few."""
    weights = jnp.broadcast_to(kept.weights, kept.images.shape)[1:]
    predicted = jnp.maximum(kept.project(volume)[1:], 0)
    seen = shadowing(predicted, kept.images[1:], weights)
    pixels, counted = jnp.maximum(jnp.sum(weights, (1, 2, 3), keepdims=True), 1e-20), held.images[1:]
    # A single count beside the specimen says little.
    stray = 1e-3 * (1 + jnp.sum(weights * kept.images[1:], (1, 2, 3), keepdims=True)) / pixels
    mean = (seen * predicted + stray) * HELD / (1 - HELD)
    logs = counted * jnp.log(jnp.maximum(counted, 1e-9) / mean)
    return 2 * jnp.sum(weights * (mean - counted + logs)) / jnp.sum(pixels)
