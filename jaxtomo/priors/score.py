"""A score network: what a volume was before noise was added to it, learned from examples; told what was measured.

What is learned lies in a folder: `weights`, written by Orbax, and `card.json`, which says what they are and came from.
`load` reads one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..likelihood import noise_variance
from ..spectrum import Spectrum
from .dip import unfolded
from .nets import ConditionedUNet, Fine
from .stored import known_as, read, write

SIGMA_DATA = 0.5  # standard deviation of volumes in the network's units
SIGMA_MAX = 80.0  # noise in which nothing is left of them
GUIDES = 3  # volumes that it is told
GEOMETRY = 5  # numbers that `geometry` tells
HINTS = 4  # numbers for every voxel that the U-Net hands to full resolution beside its answer


class Score(nnx.Module):
    """D(v + n; σ, guides): the expected volume behind noise n of standard deviation σ, and behind guides g.

        D = c_skip x + (1 - c_skip) Σ Gₖ gₖ + c_out F(c_in x, g; ln σ),  Σ Gₖ = 1,  score = (D - x) / σ²,
        c_skip = σ_d² / (σ² + σ_d²),  c_out = σ σ_d / √(σ² + σ_d²),  c_in = 1 / √(σ² + σ_d²)

    The guides are what measured images make of a volume without a network: the Gaussian solution, in which all is that
    they say linearly, and two of sparse edges, root TV and |∇v|^0.7. F and G are the network's, and G says at every
    voxel which of them is right. The geometry says how the images were taken. With these it is the score of the
    posterior, learned, and without (zeros) that of the prior. At σ_max, where `noisy` is nothing (zeros), D is the
    expected volume given the images alone.
    [Karras et al. 2022; Vincent 2011; Batzolis et al. 2021 for the condition as a further input]

    F is a U-Net at the resolution of patches, and two small convolutions at that of voxels, which see what went in and
    what came out: patches alone leave their pattern at every edge.

    Volumes are in the network's units, in which those of the training set have mean 0 and standard deviation σ_d = 0.5:

        v = density (centre + scale x)

    - three dimensions: `patch=(2, 2, 2)`;
    - slices as channels: `deep=False, patch=(8, 1, 1)`;
    - slice by slice: `deep=False, patch=(1, 2, 2)`.
    """

    def __init__(
        self,
        *,
        deep: bool = True,
        patch: tuple[int, int, int] = (2, 2, 2),
        channels: Sequence[int] = (40, 80, 128),
        centre: float = 0.0,
        scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        """Args:
        deep: whether the network sees in three dimensions, or every slice (or group of them) by itself.
        patch: voxels (y, z, x) for which a pixel of the network stands.
        channels: of its levels, the finest first.
        centre, scale: of the network's units.
        """
        voxels = math.prod(patch)
        self.network = ConditionedUNet((1 + GUIDES) * voxels, (1 + HINTS) * voxels, 16 + GEOMETRY, channels, deep, rngs)
        self.fine = Fine(2 + GUIDES + HINTS, 16 + GEOMETRY, deep, rngs)
        self.centre = nnx.Variable(jnp.asarray(centre, jnp.float32))
        self.scale = nnx.Variable(jnp.asarray(scale, jnp.float32))
        self.deep, self.patch = deep, tuple(patch)
        self.shape = {"deep": deep, "patch": tuple(patch), "channels": tuple(channels)}

    def __call__(self, noisy, sigma, guide, geometry):
        """The denoised volume `[z, x, y]` of `noisy`, for one `sigma`, guides `[3, z, x, y]`, and a geometry `[5]`."""
        total = sigma**2 + SIGMA_DATA**2
        features = jnp.stack([noisy / jnp.sqrt(total), *(guide / SIGMA_DATA)], -1)
        waves = jnp.log(sigma) / 4 * 2 * jnp.pi * 2.0 ** (jnp.arange(8) / 2 - 2)
        conditions = jnp.concatenate([jnp.sin(waves), jnp.cos(waves), geometry])
        made = self.network(folded(features, self.patch), conditions)
        made = unfolded(made, self.patch, (1 + HINTS, *noisy.shape))
        seen = jnp.concatenate([features, jnp.moveaxis(made, 0, -1)], -1).transpose(2, 0, 1, 3)
        which, made = made[1:GUIDES], made[0] + self.fine(seen, conditions)[..., 0].transpose(1, 2, 0)
        kept = SIGMA_DATA**2 / total
        mixed = guide[0] + jnp.sum((1 / GUIDES + which) * (guide[1:] - guide[0]), 0)
        return kept * noisy + (1 - kept) * mixed + sigma * SIGMA_DATA / jnp.sqrt(total) * made

    def inward(self, volume, density):
        """A volume in the network's units."""
        return (volume / density - self.centre[...]) / self.scale[...]

    def outward(self, volume, density):
        """A volume of the network in those of the images."""
        return density * (self.centre[...] + self.scale[...] * volume)


def folded(features, patch: Sequence[int]):
    """`[z, x, y, channel]` as `[y, z, x, channel]` with a patch of voxels for a pixel, the edge repeated beyond it."""
    features = features.transpose(2, 0, 1, 3)
    beyond = [(0, -n % p) for n, p in zip(features.shape, patch, strict=False)]
    features = jnp.pad(features, [*beyond, (0, 0)], mode="edge")
    (ny, nz, nx, c), (py, pz, px) = features.shape, patch
    laid = features.reshape(ny // py, py, nz // pz, pz, nx // px, px, c)
    return laid.transpose(0, 2, 4, 1, 3, 5, 6).reshape(ny // py, nz // pz, nx // px, -1)


@jax.jit
def geometry(problem):
    """What the network is told of how images were taken, `[5]`: 1, the first and the last tilt (rad), the logarithms
    of their number and of their noise over their mean, each about 1."""
    counted = jnp.broadcast_to(problem.weights, problem.images.shape) > 0
    live = counted.any((1, 2))
    first = jnp.min(jnp.where(live, problem.pose.tilt, jnp.inf))
    last = jnp.max(jnp.where(live, problem.pose.tilt, -jnp.inf))
    mean = jnp.sum(counted * jnp.abs(problem.images)) / jnp.maximum(counted.sum(), 1)
    noise = jnp.sqrt(noise_variance(problem.images, counted)) / jnp.maximum(mean, 1e-20)
    return jnp.stack([jnp.ones(()), first, last, jnp.log(live.sum()) / 4, jnp.log(jnp.clip(noise, 1e-3, 10)) / 4])


def mirrored(geometry):
    """The geometry of the same images as they see the specimen's mirror image, x or z turned round."""
    return geometry[jnp.array([0, 2, 1, 3, 4])] * jnp.array([1, -1, -1, 1, 1])


class Weights(NamedTuple):
    """A trained network.

    Attributes:
        score: the network.
        spectrum: of what it was trained on: that of its guides.
        density: `[3, 13]`, how dense a specimen is behind a guide; see `priors.density`.
        card: where it comes from, and what it can do.
    """

    score: Score
    spectrum: Spectrum
    density: np.ndarray
    card: Mapping[str, Any]

    @property
    def name(self) -> str:
        return known_as(self.card)


def save(folder: str | Path, weights: Weights) -> None:
    """Write weights and their card to a new folder, see `stored.write`."""
    score = weights.score
    model = {**score.shape, "centre": float(score.centre[...]), "scale": float(score.scale[...])}
    write(folder, score, weights.spectrum, weights.density, {**weights.card, "method": "diffusion", "network": model})


def load(name: str | Path) -> Weights:
    """The weights in a folder, or those that ship: `nano`, of nanoparticles, porous and crystalline matter, and
    `fibsem`, of stained tissue. Raises InputError where there are none."""
    score, spectrum, table, card = read(name, "diffusion", _untrained)
    score.centre, score.scale = (
        nnx.Variable(jnp.asarray(card["network"][name], jnp.float32)) for name in ("centre", "scale")
    )
    return Weights(score, spectrum, table, card)


def _untrained(card: Mapping[str, Any]) -> Score:
    model = card["network"]
    return Score(**dict(model, patch=tuple(model["patch"]), channels=tuple(model["channels"])), rngs=nnx.Rngs(0))
