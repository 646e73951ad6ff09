"""Teaching a score network: noise is added to volumes, and it says what they were."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from . import plot
from .exposures import NOTHING_KEPT, Batches, Library
from .priors.density import learned
from .priors.reach import reach
from .priors.score import SIGMA_DATA, SIGMA_MAX, Score, Weights, save
from .priors.stored import renewed
from .train import LOG, train

MEAN, SPREAD = -1.2, 1.2  # of ln σ in training [Karras et al. 2022]
ALONE, BLIND = 0.25, 0.5  # share of examples without a guide, and of those with one the share that sees only that
USUAL, LEAST = 0.3, 0.005  # the guides' error over the variance of volumes: of most, and what is as good as none
VALIDATION = 16  # examples


def denoising_loss(score: Score, batch, key, only: bool | None = None):
    """Mean of |D - x|² (σ² + σ_d²) / (σ σ_d)²: about 1 of a network that knows nothing. [Karras et al. 2022, eq. 8]

    Each example of the batch draws its σ and noise from `key`; some see no guide, and some nothing but that. `only`
    decides that for all: True for the guide alone, False for denoising without it.
    """
    draw = jax.random.split(key, 4)
    truth = jax.vmap(lambda v: score.inward(v, 1.0))(batch.truth)
    guide = jax.vmap(lambda v: score.inward(v, 1.0))(batch.guide)
    count = truth.shape[0]
    if only is None:
        alone, blind = jax.random.uniform(draw[0], (count,)) < ALONE, jax.random.uniform(draw[1], (count,)) < BLIND
    else:
        alone, blind = jnp.full(count, not only), jnp.full(count, only)
    blind = blind & ~alone
    sigma = jnp.where(blind, SIGMA_MAX, jnp.exp(MEAN + SPREAD * jax.random.normal(draw[2], (count,))))

    def wide(a):
        return a.reshape(-1, 1, 1, 1)

    noisy = truth + wide(sigma) * jax.random.normal(draw[3], truth.shape)
    noisy = jnp.where(wide(blind), 0, noisy)
    guide, told = jnp.where(wide(alone)[..., None], 0, guide), jnp.where(alone[:, None], 0, batch.geometry)
    found = jax.vmap(score)(noisy, sigma, guide, told)
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    # What is well measured counts as much as what is not, where most of the error is nobody's to mend.
    hidden = jnp.mean((guide - truth[:, None]) ** 2, (2, 3, 4)).min(1) / SIGMA_DATA**2
    weight = jnp.where(blind, weight * USUAL / (hidden + LEAST), weight)
    return jnp.mean(wide(weight) * (found - truth) ** 2)


def train_score(
    volumes: Sequence[np.ndarray],
    folder: str | Path,
    *,
    network: Mapping[str, Any] | None = None,
    start: Weights | None = None,
    side: int = 48,
    patch: tuple[int, int, int] = (48, 32, 32),
    batch: int = 3,
    steps: int = 6000,
    rate: float = 1.5e-3,
    seed: int = 0,
    resume: bool = False,
    card: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train a `Score` on volumes, see `exposures.Library`; returns the card of `folder/weights`. Leaves a curve of the
    loss and a picture of validation examples beside them.

    Args:
        volumes: `[z, y, x]` each, 0 where there is nothing.
        folder: of the training.
        network: arguments of `Score`.
        start: trained weights to begin with, instead of random ones of such a network.
        side, patch: voxels of a simulated specimen, and (z, x, y) of what the network is shown of it.
        batch, steps, rate, seed: of the training.
        resume: go on with the one in the folder.
        card: what else the weights' card should say.
    """
    folder = Path(folder)
    library = Library.of(volumes, side)
    batches = Batches(library.example, batch, patch, seed)
    if not library.keeps_any:
        say(NOTHING_KEPT)
    say("simulating the first examples")
    batches(0)
    first = [*batches.pool.values()]
    truth = np.stack([example.truth for example in first])
    table = learned(list(truth), [example.guide[0] for example in first], [example.geometry for example in first])
    validation = Batches(library.example, VALIDATION, patch, seed, validation=True)(0)
    units = {"centre": float(truth.mean()), "scale": float(truth.std() / SIGMA_DATA)}
    shape = network or {} if start is None else start.score.shape
    score: Any = Score(**units, **shape, rngs=nnx.Rngs(seed))
    if start is not None:
        nnx.update(score, nnx.state(start.score, nnx.Param))
    score = train(
        score,
        batches,
        folder,
        loss=denoising_loss,
        steps=steps,
        rate=rate,
        checks={"alone": (_alone, validation), "guided": (_guided, validation)},
        seed=seed,
        resume=resume,
        say=say,
    )
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(score, nnx.Param)))
    known = reach([example.geometry for example in first])
    facts = {**(card or {}), **lines[-1], "parameters": parameters, "reach": known}
    with renewed(folder / "weights") as new:
        save(new, Weights(score, library.spectrum, table, facts))
    step = np.array([line["step"] for line in lines])
    curves = {name: np.array([line[name] for line in lines]) for name in ("loss", "alone", "guided")}
    plot.lines([("loss", step, curves)], "step", log=True, height=3).savefig(folder / "loss.png")
    answer = np.asarray(_answers(*nnx.split(score), validation))
    middle = answer.shape[3] // 2
    guides = dict(zip(("gaussian", "root TV", "tvq"), validation.guide.swapaxes(0, 1), strict=True))
    rows = {"truth": validation.truth, **guides, "answer": answer}
    plot.pictures({name: [v[:, :, middle] for v in volumes[:8]] for name, volumes in rows.items()}).savefig(
        folder / "examples.png"
    )
    return facts


@jax.jit
def _answers(graph, state, batch):
    """What is expected given the guides alone, in the units of the batch."""
    score = nnx.merge(graph, state)

    def one(guide, told):
        seen = score.inward(guide, 1.0)
        return score.outward(score(jnp.zeros_like(seen[0]), jnp.float32(SIGMA_MAX), seen, told), 1.0)

    return jax.vmap(one)(batch.guide, batch.geometry)


def _alone(score, batch):
    return denoising_loss(score, batch, jax.random.key(1), only=False)


def _guided(score, batch):
    return denoising_loss(score, batch, jax.random.key(1), only=True)
