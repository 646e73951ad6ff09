"""Fill the sinogram, reconstruct it by any solver, clean the volume, weigh it against what the networks were told, and
make it agree with the images."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from .. import likelihood
from ..data import Pose
from ..plan import rows_at_once
from ..priors.density import density, unlikeness
from ..priors.gan import ANGLES, Weights, grid, told, unmeasured
from ..priors.score import geometry
from ..solve import Solver, after
from .coarse_to_fine import by_noise, coarse_to_fine
from .consistent import Images, agreeing, measured
from .gaussian import gaussian
from .sirt import sirt
from .stacked import left_out, shares
from .told import POWER
from .tvq import tvq

SPARSE = 200  # steps for that of |∇v|^0.7, from that of root TV
LINEAR = 50  # steps of conjugate gradients for the Gaussian solution
STEPS = 20  # of SIRT on the filled sinogram
LEAST = 0.25  # share of the network; left-out tilts tell what is right between tilts, not in the wedge
NEAR = 0.75  # steps of the grid: no filled angle counts that is as near to a measured one


class Shown(NamedTuple):
    """What the networks are shown of a problem, and themselves.

    Attributes:
        guide: `[3, z, x, y]`, the Gaussian solution, that of root TV and that of |∇v|^0.7.
        density: that of the specimen.
        geometry: `[5]`.
        images: what is known of their noise.
        pair: graph, parameters and the rest of the networks.
        error: variance of what they answer, in units of the density.
        unlike: how unlike the specimens they learned from this one is, see `priors.density.unlikeness`.
    """

    guide: jax.Array
    density: jax.Array
    geometry: jax.Array
    images: Images
    pair: Any
    error: jax.Array
    unlike: jax.Array


def show(problem, weights: Weights) -> Shown:
    """What the networks are shown."""
    guide, shown = guides(problem, weights.spectrum), geometry(problem)
    table = jnp.asarray(weights.density)
    return Shown(
        guide,
        density(guide[0], shown, table),
        shown,
        measured(problem),
        nnx.split(weights.pair, nnx.Param, ...),
        jnp.asarray(weights.card.get("error", 0.01), jnp.float32),
        unlikeness(guide[0], shown, table),
    )


def guides(problem, spectrum):
    """`[3, z, x, y]`: the Gaussian solution of a problem, that of root TV and that of |∇v|^0.7, whatever its
    likelihood."""
    solver, plain = gaussian(spectrum), problem.replace(likelihood=likelihood.gaussian())
    linear = after(plain, solver.init(plain, None), LINEAR, step=solver.step)
    edges = coarse_to_fine(plain)
    sparse = by_noise(plain, tvq, POWER, SPARSE, 0.1, edges)
    return jnp.stack([solver.read(plain, linear)[0], edges, sparse])


def projected(problem, volume):
    """`[angle, x, y]`: ray sums of a volume at all angles of the grid, by a perfect microscope."""
    images = jnp.zeros((ANGLES, *problem.images.shape[1:]))
    return problem.replace(images=images, pose=Pose(grid())).project(volume)


@jax.jit
def projections(problem, guide):
    """(seen `[guide, angle, x, y]`, scale, far `[angle]`): the projections of the guides, over their scale, and how far
    every angle is from a measured one, see `unmeasured`."""
    live = jnp.broadcast_to(problem.weights, problem.images.shape).any((1, 2))
    seen = jnp.stack([projected(problem, volume) for volume in guide])
    scale = jnp.sqrt(jnp.mean(seen[-1] ** 2)) + 1e-20
    return seen / scale, scale, unmeasured(problem.pose.tilt, live)


def fill(problem, weights: Weights):
    """The problem of a sinogram of half a turn, for any solver: its images as they are, and filled ones at all angles
    that are not measured."""
    return filled(problem, show(problem, weights))


@jax.jit
def filled(problem, shown: Shown):
    """See `fill`."""
    seen, scale, far = projections(problem, shown.guide)
    known, network = told(far, shown.geometry), nnx.merge(*shown.pair).fill
    return extended(problem, scale * slice_by_slice(lambda part: network(part, known), seen), far)


def extended(problem, sinogram, far):
    """The problem with further images, those of `sinogram [angle, x, y]` that are `far` from what is measured."""
    wanted = jnp.broadcast_to((far > NEAR)[:, None, None], sinogram.shape).astype(problem.weights.dtype)
    measured = jnp.broadcast_to(problem.weights, problem.images.shape)
    pose, zeros = problem.pose, jnp.zeros(ANGLES)
    perfect = Pose(grid(), jnp.zeros((ANGLES, 2)), zeros, zeros + 1, zeros)
    perfect = perfect.replace(**{name: None for name, value in vars(pose).items() if value is None})
    return problem.replace(
        images=jnp.concatenate([problem.images, sinogram]),
        weights=jnp.concatenate([measured, wanted]),
        pose=jax.tree.map(lambda a, b: jnp.concatenate([a, b]), pose, perfect),
    )


def slice_by_slice(network, seen):
    """A network's answer `[a, b, y]` to `seen [channel, a, b, y]`, its ends their own neighbours; of large volumes to
    some rows after the other, so that memory grows with the volume and no further."""
    rows = seen.shape[-1]
    wide = jnp.pad(seen, [(0, 0)] * 3 + [(1, 1)], mode="edge")
    size = rows_at_once(*seen.shape[1:])
    parts, before = [], 0.0
    for start in range(0, rows, size):
        found = network(wide[..., start : start + size + 2] + before)
        # Nothing, but XLA cannot know, and waits for these rows.
        before = 0 * lax.stop_gradient(found[0, 0, 0])
        parts.append(found)
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)


def cleaned(shown: Shown, volume):
    """What the second network makes of the volume of a filled sinogram."""
    network = nnx.merge(*shown.pair).clean
    seen = jnp.stack([volume, *shown.guide]) / shown.density
    return shown.density * slice_by_slice(lambda part: network(part, shown.geometry), seen)


@jax.jit
def answers(shown: Shown, volume):
    """`[4, z, x, y]`: what the second network makes of a volume, and the solutions that both were told."""
    return jnp.concatenate([cleaned(shown, volume)[None], shown.guide])


def gan(weights: Weights, inner: Solver | None = None) -> Solver:
    """Fill, reconstruct, clean, weigh, agree: no setting to choose.

    The first network fills the angles that were not measured; `inner`, by default some steps of SIRT, reconstructs
    measured and filled images; the second network cleans the volume. [Ding et al. 2019] The answer is a mixture of that
    and of the solutions that the networks were told, a quarter for the network and the rest with the shares that
    predict left-out tilts best, see `stacked`; a few steps of conjugate gradients make it agree with what was measured.

    Args:
        weights: trained networks, `priors.gan.load(...)`.
        inner: any other solver. The misfit that is recorded is its own, of measured and filled images.
    """
    usual = sirt()._replace(steps=STEPS)
    inner = usual if inner is None else inner

    def init(problem, key):
        kept, left = left_out(problem)
        shown = show(kept, weights)
        whole = filled(kept, shown)
        volume = usual.read(whole, after(whole, usual.init(whole, None), STEPS, step=usual.step))[0]
        found = (1 - LEAST) * shares(left, answers(shown, volume)) + LEAST * jnp.eye(4)[0]
        shown = show(problem, weights)
        whole = filled(problem, shown)
        return {"shown": shown, "problem": whole, "inner": inner.init(whole, key), "shares": found}

    settings = {"method": "gan", "weights": weights.name, "inner": dict(inner.settings)}
    return Solver(init, _stepper(inner.step), _reader(inner.read), settings, inner.steps)


@functools.lru_cache(16)
def _stepper(step):
    def inside(problem, state, key):
        new, info = step(state["problem"], state["inner"], key)
        seen = {"unlike": state["shown"].unlike, "network_share": state["shares"][0]}
        return {**state, "inner": new}, {**info, **seen}

    return inside


@functools.lru_cache(16)
def _reader(read):
    @jax.jit
    def cleaning(problem, state):
        shown = state["shown"]
        volumes = answers(shown, read(state["problem"], state["inner"])[0])
        volume = jnp.tensordot(state["shares"], volumes, 1)
        return agreeing(problem, shown.images, volume, 0.1 * shown.error * shown.density**2), problem.pose

    return cleaning
