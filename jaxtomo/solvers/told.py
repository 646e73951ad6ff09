"""What a score network is told of a problem, and how it is asked."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from .. import likelihood
from ..plan import rows_at_once
from ..priors.density import density, unlikeness
from ..priors.score import SIGMA_MAX, Score, Weights, geometry, mirrored
from ..solve import after
from .coarse_to_fine import ROOT, by_noise
from .consistent import Images, measured
from .gaussian import gaussian, restarted
from .root_tv import root_tv
from .tvq import tvq

STEPS, AGAIN = 250, 30  # of conjugate gradients for the Gaussian solution, and after poses have changed
SPARSE = 300, 50  # of those of sparse edges, from next to nothing (streaks at the start would stay), and after that
POWER = 0.8  # weight of |∇v|^0.7 over the noise of images: near the best from 15 to 5,000 electrons
OVERLAP = 16  # rows over which one slab's answer fades into the next


class Told(NamedTuple):
    """What a network knows of a problem, and itself.

    Attributes:
        guide: `[3, z, x, y]`, the Gaussian solution and two of sparse edges, in the network's units.
        geometry: `[5]`.
        density: that the network's units are relative to.
        images: what is known of their noise.
        network: graph, parameters and the rest of the network.
        solved: the state of the Gaussian solution, if poses are to change; None if not.
        unlike: how unlike the specimens the network learned from this one is, see `priors.density.unlikeness`.
    """

    guide: jax.Array
    geometry: jax.Array
    density: jax.Array
    images: Images
    network: Any
    solved: Any
    unlike: jax.Array

    def score(self) -> Score:
        return nnx.merge(*self.network)


def guided(problem, spectrum):
    """(guides, geometry, state): the Gaussian solution and two of sparse edges `[3, z, x, y]` of a problem, whatever
    its likelihood, what a network is told of its images, and the state of the first solver."""
    solver, plain = gaussian(spectrum), problem.replace(likelihood=likelihood.gaussian())
    solved = after(plain, solver.init(plain, None), STEPS, step=solver.step)
    shown = geometry(problem)
    return jnp.stack([solver.read(plain, solved)[0], *sparse(plain, SPARSE[0])]), shown, solved


def sparse(problem, steps: int, starts=(None, None)):
    """The solutions of root TV and of |∇v|^0.7 as far as some large steps get."""
    for make, weight, start in zip((root_tv, tvq), (ROOT, POWER), starts, strict=True):
        yield by_noise(problem, make, weight, steps, 0.2, start)


def tell(problem, weights: Weights, moving: bool = False) -> Told:
    """What the network is told: its guides, and how dense such a specimen is likely to be. If poses are `moving`,
    `told_again` can go on from it."""
    guide, shown, solved = guided(problem, weights.spectrum)
    table = jnp.asarray(weights.density)
    known = density(guide[0], shown, table)
    network = nnx.split(weights.score, nnx.Param, ...)
    return Told(
        weights.score.inward(guide, known),
        shown,
        known,
        measured(problem),
        network,
        solved if moving else None,
        unlikeness(guide[0], shown, table),
    )


def told_again(problem, told: Told) -> Told:
    """The same when poses have changed: all solutions go on from where they were."""
    solver = gaussian()
    problem = problem.replace(likelihood=likelihood.gaussian())
    solved = after(problem, restarted(problem, told.solved), AGAIN, step=solver.step)
    score = told.score()
    edges = sparse(problem, SPARSE[1], score.outward(told.guide[1:], told.density))
    guide = score.inward(jnp.stack([solver.read(problem, solved)[0], *edges]), told.density)
    return told._replace(guide=guide, geometry=geometry(problem), solved=solved)


def slabs(shape: tuple[int, ...], volumes: int = 1) -> tuple[list[slice], np.ndarray]:
    """Rows that a network sees at once, of so many volumes, one slab after the other, and the weights `[slab, row]` its
    answers have in the volume: they fade over `OVERLAP` rows, and add up to 1."""
    depth, width, rows = shape
    size = rows_at_once(depth, width, rows, volumes)
    count = 1 if size == rows else -(-(rows - OVERLAP) // (size - OVERLAP))
    starts = np.linspace(0, rows - size, count).round().astype(int)
    inside = np.arange(rows) - starts[:, None]
    before, behind = inside + 1, size - inside
    before[0, :size], behind[-1, rows - size :] = OVERLAP, OVERLAP  # the volume's own ends
    weights = np.clip(np.minimum(before, behind), 0, OVERLAP)
    return [slice(start, start + size) for start in starts.tolist()], weights / weights.sum(0)


def denoised(score: Score, noisy, sigma, told: Told):
    """D(noisy; σ, guide) of every one of `noisy [sample, z, x, y]`. Large volumes are seen in overlapping slabs, one
    after the other, so that memory grows with the volume and attention, over a slab, no further."""
    sigma, guide = jnp.asarray(sigma, jnp.float32), told.guide

    def answer(noisy, guide):
        return jax.vmap(lambda one: score(one, sigma, guide, told.geometry))(noisy)

    parts, shares = slabs(guide.shape[1:], len(noisy))
    if len(parts) == 1:
        return answer(noisy, guide)
    total = jnp.zeros_like(noisy)
    before = 0.0
    for rows, share in zip(parts, shares, strict=True):
        found = jax.checkpoint(answer)(noisy[..., rows] + before, guide[..., rows])
        total = total.at[..., rows].add(found * share[rows])
        # Nothing, but XLA cannot know, and waits for this slab; it disregards a barrier, and a loop slows convolutions.
        before = 0 * lax.stop_gradient(found[0, 0, 0, 0])
    return total


@jax.jit
def first_answer(told: Told):
    """What the network expects of the images, in its units."""
    return seen_mirrored(told.score(), told, 0)


def seen_mirrored(score: Score, told: Told, number):
    """The network's answer to the guide as the `number`-th of eight mirror images of it, given back unmirrored; the
    next eight times it lies a voxel further, where other voxels make a patch."""
    flips, beside = [(number >> bit) & 1 for bit in range(3)], (number >> 3) & 1
    whole = told.guide.shape[1:]
    shape = [n + 1 for n in whole]

    def flipped(volume):
        for axis, flip in zip((-3, -2, -1), flips, strict=True):
            volume = jnp.where(flip, jnp.flip(volume, axis), volume)
        return volume

    guide = jnp.pad(told.guide, [(0, 0), *[(1, 1)] * 3], mode="edge")
    guide = lax.dynamic_slice(guide, [0, *[1 - beside] * 3], [len(guide), *shape])
    shown = jnp.where(flips[0] != flips[1], mirrored(told.geometry), told.geometry)
    nothing = jnp.zeros((1, *shape))
    (answer,) = denoised(score, nothing, SIGMA_MAX, told._replace(guide=flipped(guide), geometry=shown))
    return lax.dynamic_slice(flipped(answer), [beside] * 3, whole)
