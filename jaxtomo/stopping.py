"""When to stop a model that over-fits: which of its volumes is best, judged without the truth, step by step.

A model that can fit anything fits the noise in the end, and its training loss only falls. A `Rule` keeps some pixels
from the fit, watches running averages of what the model predicts, and scores them; `fit` keeps the last average that
was as good as any.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .data import each_channel
from .errors import InputError

MEMORY = 0.98  # of the running averages: about the last fifty steps
SETTLED = 10  # steps before an average can be the best
AS_GOOD = 1.005  # scores this close to the least are as good: what the noise of the pixels held out can tell apart


class Averages(NamedTuple):
    """Running means over the last steps.

    Attributes:
        count: steps so far.
        volume: `[z, x, y]`, or with channels before.
        images: `[tilt, x, y]`, its projections, likewise.
        variance: mean square of the volume's wandering about its average, a voxel.
    """

    count: jax.Array
    volume: jax.Array
    images: jax.Array
    variance: jax.Array

    def moved(self, volume, images) -> Averages:
        """With one more step. The first ones are averaged evenly, so that the start is soon forgotten."""
        kept = jnp.minimum(MEMORY, self.count / (self.count + 1))
        away = jnp.mean((volume - self.volume) ** 2)
        return Averages(
            self.count + 1,
            kept * self.volume + (1 - kept) * volume,
            kept * self.images + (1 - kept) * images,
            kept * (self.variance + (1 - kept) * away),
        )


class Rule(NamedTuple):
    """How to tell when a fit is at its best.

    Attributes:
        held: `(problem, key) -> mask`, 1 where a pixel is kept from the fit; broadcasts against the images.
        score: `(problem, mask, averages) -> score`, the lower the better.
        name: of the score, in the history: "held_out" or "wander", which `callbacks.SCORES` knows the meaning of.
    """

    held: Callable[..., jax.Array]
    score: Callable[..., jax.Array]
    name: str


def signal(problem, weights):
    """L(0) - L(y), of each channel: what there is to explain."""
    likelihood = each_channel(problem.likelihood)
    nothing, perfect = (
        likelihood(p, problem.images, weights) for p in (jnp.zeros_like(problem.images), problem.images)
    )
    return jnp.where(nothing > perfect, nothing - perfect, 1)


def relative_misfit(problem, predicted, weights, whole=None):
    """(L(p) - L(y)) / (L(0) - L(y)): of any likelihood 0 for a perfect prediction and 1 for none. Of several channels
    the mean. `whole`, the denominator, is by default the problem's own `signal`."""
    likelihood = each_channel(problem.likelihood)
    here, perfect = (likelihood(p, problem.images, weights) for p in (predicted, problem.images))
    return jnp.mean((here - perfect) / (signal(problem, weights) if whole is None else whole))


def _prediction(problem, mask, averages):
    """The relative misfit of what is held out; if that is nothing 1, by which the newest average is as good as any."""
    weights = problem.weights * mask
    score = jnp.sqrt(jnp.maximum(relative_misfit(problem, averages.images, weights), 0))
    return jnp.where(jnp.max(weights) > 0, score, 1.0)


@functools.cache
def held_out_pixels(fraction: float = 0.05) -> Rule:
    """Random pixels of all images, whose noise the fit cannot have seen; the score is how well they are predicted.

    (What is taken from the images before the fit, its density and its weights of the pixels, has seen them.)
    """
    return Rule(lambda problem, key: _random(problem, _checked(fraction), key), _prediction, "held_out")


@functools.cache
def held_out_tilts(fraction: float = 0.1) -> Rule:
    """Whole tilts, evenly spread, at least one and never the first or the last: what an alignment that cuts noise
    into correlated pixels asks for."""
    return Rule(lambda problem, key: _spread(problem, _checked(fraction)), _prediction, "held_out")


@functools.cache
def held_out_repeats() -> Rule:
    """Every second image of a tilt that was recorded more than once (split frames). Raises InputError if none was."""
    return Rule(lambda problem, key: _repeats(problem), _prediction, "held_out")


@functools.cache
def moving_variance() -> Rule:
    """The volume's wandering: it falls while the specimen is fitted and rises with the noise. Nothing is held out, but
    a falling learning rate hides the rise. The exponential form stores no window. [Wang et al. 2023, ES-EMV]"""
    return Rule(lambda problem, key: jnp.zeros((1, 1, 1)), lambda problem, mask, averages: averages.variance, "wander")


def _checked(fraction: float) -> float:
    if not 0 < fraction < 1:
        raise InputError(f"{fraction:g} of the pixels or tilts held out. Give a fraction between 0 and 1.")
    return fraction


def _live(problem):
    """`[tilt]`: which tilts have any weight."""
    weights = jnp.max(problem.weights, axis=(-2, -1))
    return jnp.broadcast_to((weights.max(0) if weights.ndim > 1 else weights) > 0, problem.pose.tilt.shape)


def _random(problem, fraction, key):
    return (jax.random.uniform(key, problem.images.shape) < fraction).astype(jnp.float32)


def _spread(problem, fraction):
    """Of the tilts that have weight; where there are fewer than three the mask is empty, and nothing is held out."""
    live = _live(problem)
    rank, tilts = jnp.cumsum(live) - 1, jnp.sum(live)
    count = jnp.clip(jnp.round(fraction * tilts), 1, jnp.maximum(tilts - 2, 1))
    index = jnp.arange(live.size)
    places = jnp.clip(jnp.round((index + 0.5) * tilts / count - 0.5), 1, jnp.maximum(tilts - 2, 1))
    places = jnp.where((index < count) & (tilts > 2), places, -1)
    return (live & jnp.isin(rank, places)).astype(jnp.float32)[:, None, None]


def _repeats(problem):
    tilt, live = problem.pose.tilt, _live(problem)
    same = jnp.abs(tilt[:, None] - tilt[None, :]) < 1e-4
    with contextlib.suppress(jax.errors.TracerBoolConversionError):  # under jit, shapes alone are known
        if not jnp.tril(same, -1).any():
            raise InputError("no tilt was recorded twice. Take stopping.held_out_pixels().")
    second = jnp.sum(jnp.tril(same & live[:, None] & live[None, :], -1), axis=1) % 2
    return second.astype(jnp.float32)[:, None, None]


class Watch(NamedTuple):
    """What a fit under a rule carries along: the pixels held out, the averages, and the best of them so far."""

    mask: jax.Array
    averages: Averages
    best: Any  # (volume, pose)
    score: jax.Array  # the least so far


def start(rule: Rule, problem, key) -> Watch:
    """Before the first step."""
    volume, images = jnp.zeros(problem.volume_shape), jnp.zeros_like(problem.images)
    averages = Averages(jnp.zeros(()), volume, images, jnp.zeros(()))
    return Watch(rule.held(problem, key), averages, (volume, problem.pose), jnp.asarray(jnp.inf))


def seen(rule: Rule, problem, watch: Watch, volume, pose, images) -> tuple[Watch, jax.Array]:
    """After a step that made this volume and predicted these images: what is watched, and its score."""
    averages = watch.averages.moved(volume, images)
    score = rule.score(problem, watch.mask, averages)
    settled = averages.count > SETTLED
    best = lax.cond(settled & (score <= AS_GOOD * watch.score), lambda: (averages.volume, pose), lambda: watch.best)
    return Watch(watch.mask, averages, best, jnp.where(settled, jnp.minimum(score, watch.score), watch.score)), score
