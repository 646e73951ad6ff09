"""How dense a specimen is, guessed from a linear reconstruction, which a missing wedge smears and so makes too thin."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

RIDGE = 0.5  # of the regression, with features of unit variance
REACH = (-0.5, 2.5)  # of the logarithm of the correction: no further than any example was


def typical(volume):
    """Σ v² / Σ v over v > 0: the density that a bit of matter finds around itself."""
    filled = jnp.maximum(volume, 0)
    return jnp.sum(filled**2) / jnp.maximum(jnp.sum(filled), 1e-20)


@jax.jit
def features(guide, geometry):
    """`[12]` numbers of a reconstruction and its geometry that do not change with its intensity."""
    filled = jnp.maximum(guide, 0) / jnp.maximum(typical(guide), 1e-20)
    total = jnp.maximum(jnp.sum(filled), 1e-20)
    square, third, fourth, fifth = (jnp.maximum(jnp.sum(filled**k), 1e-20) for k in (2, 3, 4, 5))
    _, first, last, count, noise = geometry
    half = jnp.log(jnp.maximum(last - first, 1e-2) / 2)
    peak, top, fill = jnp.log(third / square), jnp.log(fifth / fourth), jnp.log(total**2 / square / guide.size)
    below = jnp.sum(jnp.maximum(-guide, 0)) / jnp.maximum(jnp.sum(jnp.maximum(guide, 0)), 1e-20)
    return jnp.stack(
        [half, half**2, count, noise, peak, top, fill, fill**2, half * peak, half * fill, half * noise, below]
    )


def learned(truths: Sequence[np.ndarray], guides: Sequence[np.ndarray], geometries: Sequence[np.ndarray]) -> np.ndarray:
    """`[3, 13]`: mean, standard deviation and coefficient of every feature, and the mean of what they explain; by ridge
    regression of the logarithm of the true density over that of the guide."""
    known = np.array([features(g, t) for g, t in zip(guides, geometries, strict=True)], float)
    wanted = np.array([np.log(float(typical(t) / typical(g))) for t, g in zip(truths, guides, strict=True)])
    mean, spread = known.mean(0), known.std(0) + 1e-6
    unit = (known - mean) / spread
    slope = np.linalg.solve(unit.T @ unit + RIDGE * np.eye(unit.shape[1]), unit.T @ (wanted - wanted.mean()))
    return np.stack([np.append(mean, wanted.mean()), np.append(spread, 1), np.append(slope, 1)]).astype(np.float32)


@jax.jit
def unlikeness(guide, geometry, table):
    """How unlike the examples of a table a guide is: by how many of their standard deviations it is peaked, dense at
    its densest, filled, or negative otherwise than they are; the largest of the four. Of examples 1, of one in a
    hundred 2.5."""
    mean, spread, _ = table
    unit = (features(guide, geometry) - mean[:-1]) / spread[:-1]
    return jnp.max(jnp.abs(unit[jnp.array([4, 5, 6, 11])]))


@jax.jit
def density(guide, geometry, table):
    """The typical density of the specimen behind a guide, by a table from `learned`."""
    mean, spread, slope = table
    unit = (features(guide, geometry) - mean[:-1]) / spread[:-1]
    return typical(guide) * jnp.exp(jnp.clip(unit @ slope[:-1] + mean[-1], *REACH))
