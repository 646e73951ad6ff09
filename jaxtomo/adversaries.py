"""Teaching the pair of `priors.gan`: each network against a critic that learns to tell its answers from the truth."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from . import plot
from .errors import InputError
from .exposures import NOTHING_KEPT, POOL, Batches, Example, Library
from .priors.density import learned
from .priors.gan import Pair, SinogramFill, TomogramClean, Weights, save
from .priors.nets import PatchCritic
from .priors.reach import reach
from .priors.stored import renewed
from .sinograms import Filling, Slabs
from .train import LOG, optimizer, train

CRITICAL = 0.005  # weight of the critic beside that of the error
MISSING = 3.0  # how much more an angle counts that is not measured
MASS = 10.0  # weight of the moments that every sinogram has
LEAST = 1e-4  # squared error that is as good as none
PATCH = 96  # voxels across that a step sees of a slab; of its sinogram all
NEIGHBOURS = 3  # rows of a patch: one and those beside it
VALIDATION = 16  # examples


class Rivals(nnx.Module):
    """A network and its critic, of an answer beside what was shown. `critical` is the weight that the critic has in
    what the network learns; if it has none, it learns nothing itself."""

    def __init__(self, network: nnx.Module, critical: float, rngs: nnx.Rngs):
        self.network, self.critic, self.critical = network, PatchCritic(2, rngs), critical


def rivalry(rivals: Rivals, answers, truths):
    """What the two lose to each other: relativistic average least squares. The critic should find truths 1 more real
    than answers on average, and answers 1 less real than truths; the network the reverse. [Jolicoeur-Martineau 2019]

    `answers` and `truths` are `[image, row, column, channel]`. The gradient of the sum is that of each one's own loss:
    the network sees a fixed critic, and the critic fixed answers.
    """

    def lost(critic, answers, sign):
        answered, real = critic(answers), critic(truths)
        return jnp.mean((real - answered.mean() - sign) ** 2) + jnp.mean((answered - real.mean() + sign) ** 2)

    if not rivals.critical:
        return 0.0
    graph, parameters, rest = nnx.split(rivals.critic, nnx.Param, ...)
    fixed = nnx.merge(graph, lax.stop_gradient(parameters), rest)
    return rivals.critical * lost(fixed, answers, -1) + lost(rivals.critic, lax.stop_gradient(answers), 1)


@functools.cache
def apart(rate: float, steps: int) -> optax.GradientTransformation:
    """An optimizer for the network and one for its critic: neither's gradients clip the other's."""
    own: dict[Hashable, optax.GradientTransformation] = {name: optimizer(rate, steps) for name in ("network", "critic")}
    return optax.partition(own, lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, tree))


def moments(error):
    """Mean squares of what is wrong with the mass of every slice and its first moment, at every angle of sinograms
    `[angle, x, y]`. Both are the same for all of them but for a sine of the angle: the first two Helgason-Ludwig
    conditions, here with what is known of the specimen. [Natterer 1986, ch. II.4]"""
    width = error.shape[1]
    u = (jnp.arange(width) - (width - 1) / 2) * (2 / width)
    return jnp.mean(error.mean(1) ** 2) + jnp.mean(jnp.einsum("axy,x->ay", error, u / width) ** 2)


def inner(rows):
    """Those of the rows `[..., y]` of a patch that have both neighbours, for which the networks answer."""
    return rows[..., 1:-1]


def misses(answers, shown, truth, weight: Any = 1.0):
    """Absolute and squared error of a batch, relative to the least that is shown of it `[batch, shown, ...]`, so that
    what is well measured counts as much as what is not."""
    error = answers - truth
    relative = error / jnp.sqrt(_least(shown, truth)).reshape(-1, *[1] * (error.ndim - 1))
    return jnp.mean(weight * (jnp.abs(relative) + relative**2))


def _least(shown, truth):
    """`[batch]`, the squared error of the best that is shown."""
    return jnp.min(jnp.mean((shown - truth[:, None]) ** 2, tuple(range(2, shown.ndim))), 1) + LEAST


def as_images(answers, beside):
    """Slices `[batch, row, column, y]` as images, `[image, row, column, 2]`, beside what the network was shown."""
    pair = jnp.stack([answers, beside], -1)
    return pair.transpose(0, 3, 1, 2, 4).reshape(-1, *pair.shape[1:3], 2)


def filling_loss(rivals: Rivals, batch: Filling, key):
    """Error of filled sinograms, unmeasured angles heavier, and of their moments; and rivalry."""
    answers, seen, truth = jax.vmap(rivals.network)(batch.seen, batch.known), inner(batch.seen), inner(batch.sinogram)
    weight = 1 + MISSING * (batch.far > 1)[:, :, None, None]
    loss = misses(answers, seen, truth, weight) + MASS * jnp.mean(jax.vmap(moments)(answers - truth))
    return loss + rivalry(rivals, as_images(answers, seen[:, -1]), as_images(truth, seen[:, -1]))


def cleaning_loss(rivals: Rivals, batch: Example, key):
    """Error of cleaned volumes, and rivalry."""
    answers, seen, truth = jax.vmap(rivals.network)(batch.guide, batch.geometry), inner(batch.guide), inner(batch.truth)
    loss = misses(answers, seen, truth)
    return loss + rivalry(rivals, as_images(answers, seen[:, -1]), as_images(truth, seen[:, -1]))


def filling_error(rivals: Rivals, batch: Filling):
    """Squared error over that of the better of what was shown: below 1 of a network that is worth something."""
    return _over(jax.vmap(rivals.network)(batch.seen, batch.known), inner(batch.seen), inner(batch.sinogram))


def cleaning_error(rivals: Rivals, batch: Example):
    """The same for volumes."""
    return _over(jax.vmap(rivals.network)(batch.guide, batch.geometry), inner(batch.guide), inner(batch.truth))


def _over(answers, shown, truth):
    return jnp.mean(jnp.mean((answers - truth) ** 2, tuple(range(1, truth.ndim))) / _least(shown, truth))


def train_gan(
    volumes: Sequence[np.ndarray],
    folder: str | Path,
    *,
    fill: Mapping[str, Any] | None = None,
    clean: Mapping[str, Any] | None = None,
    critical: float = CRITICAL,
    side: int = 128,
    rows: int = 8,
    batch: int = 4,
    fill_steps: int = 1800,
    clean_steps: int = 5000,
    rate: float = 1e-3,
    seed: int = 0,
    resume: bool = False,
    card: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train a `Pair` on volumes, first the network that fills and then, on what that does, the one that cleans; returns
    the card of `folder/weights`. Leaves curves and pictures of both beside them.

    Args:
        volumes: `[z, y, x]` each, 0 where there is nothing.
        folder: of the training.
        fill, clean: arguments of `SinogramFill` and `TomogramClean`.
        critical: weight of the critics; 0 for none.
        side, rows: voxels of a simulated slab, across and along the tilt axis.
        fill_steps, clean_steps: of the one training and the other.
        batch, rate, seed: of both.
        resume: go on with the one in the folder.
        card: what else the weights' card should say.
    """
    folder = Path(folder)
    if rows < NEIGHBOURS:
        raise InputError(f"rows={rows}: a slab has {NEIGHBOURS} or more, for neighbours.")
    if not resume and not (folder / "fill").exists():
        shutil.rmtree(folder / "slabs", ignore_errors=True)  # of other volumes, for all one knows
    slabs = Slabs(Library.of(volumes, side, rows), folder / "slabs")
    if not slabs.library.keeps_any:
        say(NOTHING_KEPT)

    def taught(name, network, steps, example, loss, error, patch):
        place = folder / name
        say(f"{name}: simulating the first examples")
        validation = Batches(example, VALIDATION, patch, seed, validation=True)(0)
        rivals: Any = train(
            Rivals(network, critical, nnx.Rngs(seed + 1)),
            Batches(example, batch, patch, seed),
            place,
            loss=loss,
            optimizer=apart,
            checks={"held out": (error, validation)},
            steps=steps,
            rate=rate,
            seed=seed,
            resume=resume and place.exists(),
            say=say,
        )
        lines = [json.loads(line) for line in (place / LOG).read_text().splitlines()]
        step = np.array([line["step"] for line in lines])
        curves = {name: np.array([line[name] for line in lines]) for name in ("loss", "held out")}
        plot.lines([("loss", step, curves)], "step", log=True, height=3).savefig(place / "loss.png")
        return rivals.network, validation, lines[-1]

    network = SinogramFill(**(fill or {}), rngs=nnx.Rngs(seed))
    patch = (side, NEIGHBOURS)
    filling, kept, filled = taught("fill", network, fill_steps, slabs.filling, filling_loss, filling_error, patch)
    answers = np.asarray(_answers(*nnx.split(filling), kept.seen, kept.known))
    shown = {"truth": inner(kept.sinogram), "tvq": inner(kept.seen[:, -1]), "filled": answers}
    _pictured(folder / "fill" / "examples.png", shown)

    network = TomogramClean(**(clean or {}), rngs=nnx.Rngs(seed))
    example = functools.partial(slabs.cleaning, filling)
    patch = (min(side, PATCH), min(side, PATCH), NEIGHBOURS)
    cleaning, kept, cleaned = taught("clean", network, clean_steps, example, cleaning_loss, cleaning_error, patch)
    answers = np.asarray(_answers(*nnx.split(cleaning), kept.guide, kept.geometry))
    truth, guide = inner(kept.truth), inner(kept.guide)
    shown = {"truth": truth, "of the filled": guide[:, 0], "tvq": guide[:, -1], "cleaned": answers}
    _pictured(folder / "clean" / "examples.png", shown)

    known = [slabs((seed, 0, i)) for i in range(POOL)]
    geometries = [slab.geometry for slab in known]
    facts = {
        **(card or {}),
        "steps": fill_steps + clean_steps,
        "filling": filled,
        "cleaning": cleaned,
        "error": float(np.mean((answers - truth) ** 2)),
        "reach": reach(geometries),
    }
    pair = Pair(filling.shape, cleaning.shape, nnx.Rngs(0))
    pair.fill, pair.clean = filling, cleaning
    facts["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(pair, nnx.Param)))
    table = learned([s.truth for s in known], [s.guide[0] for s in known], geometries)
    with renewed(folder / "weights") as new:
        save(new, Weights(pair, slabs.library.spectrum, table, facts))
    return facts


@jax.jit
def _answers(graph, state, shown, told):
    return jax.vmap(nnx.merge(graph, state))(shown, told)


def _pictured(file: Path, rows: dict[str, np.ndarray]) -> None:
    """The middle slice of eight examples."""
    plot.pictures({name: [v[..., v.shape[-1] // 2] for v in volumes[:8]] for name, volumes in rows.items()}).savefig(
        file
    )
