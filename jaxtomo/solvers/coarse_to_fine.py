"""Solutions of sparse edges in few steps: first on voxels twice as coarse, then from there."""

from __future__ import annotations

import jax.numpy as jnp

from ..likelihood import gaussian
from ..priors.nets import doubled
from ..priors.score import geometry
from ..solve import after
from .root_tv import root_tv

COARSE, FINE = 300, 120  # steps
ROOT = 1.6  # weight of root TV over the noise of images: near the best from 15 to 5,000 electrons


def coarser(problem):
    """The problem on voxels and pixels twice as large; of an odd number the last is a pair with nothing."""
    believed = jnp.broadcast_to(problem.weights, problem.images.shape)

    def paired(images):
        tilts, width, rows = images.shape
        images = jnp.pad(images, [(0, 0), (0, width % 2), (0, rows % 2)])
        return images.reshape(tilts, (width + 1) // 2, 2, (rows + 1) // 2, 2).mean((2, 4))

    weights = paired(believed)
    images = paired(believed * problem.images) / jnp.maximum(2 * weights, 1e-20)  # in coarse voxel lengths
    pose = problem.pose
    if pose.shift is not None:
        pose = pose.replace(shift=pose.shift / 2)
    depth, width, across = (n % 2 / 4 for n in (*problem.shape[:2], problem.images.shape[1]))
    if depth or width or across:
        # What is added to odd numbers moves the middle that the specimen turns about.
        moved = depth * jnp.sin(pose.tilt) + width * jnp.cos(pose.tilt) - across
        moved = jnp.stack([moved, jnp.zeros_like(moved)], 1)
        pose = pose.replace(shift=moved if pose.shift is None else pose.shift + moved)
    shape = tuple((n + 1) // 2 for n in problem.shape)
    return problem.replace(images=images, weights=weights, pose=pose, shape=shape, mesh=None)


def coarse_to_fine(problem):
    """`[z, x, y]`, the solution of root TV, whatever the likelihood of the problem.

    The coarse solution is soon found, and where it is right, steps of full size are few: better than so many
    steps from nothing, which leave what is faint in the middle of thick matter, in a third of the time.
    """
    problem = problem.replace(likelihood=gaussian())
    coarse = by_noise(coarser(problem), root_tv, 2 * ROOT, COARSE, 0.2)
    start = doubled(coarse, problem.shape, (0, 1, 2))
    return by_noise(problem, root_tv, ROOT, FINE, 0.1, jnp.maximum(start, 0))


def by_noise(problem, make, weight: float, steps: int, rate: float, start=None):
    """`[z, x, y]`, the solution of `root_tv` or `tvq` after so many steps; `weight` is over the noise of the images."""
    noise = jnp.exp(4 * geometry(problem)[-1])
    solver = make(weight=weight * noise, steps=steps, rate=rate, start=start)
    return solver.read(problem, after(problem, solver.init(problem, None), steps, step=solver.step))[0]
