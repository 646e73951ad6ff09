"""Score networks that have learned nothing: as small as they can be, every parameter drawn at random."""

import jax
import numpy as np
from flax import nnx

from jaxtomo.priors import score as scores
from jaxtomo.spectrum import Spectrum


def drawn(module, scale=0.3, seed=5):
    """A module with every parameter moved at random: nothing in it is zero."""
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)
    leaves, structure = jax.tree.flatten(parameters)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        a + scale * jax.random.normal(k, a.shape) / np.sqrt(max(a.size // a.shape[-1], 1))
        for a, k in zip(leaves, keys, strict=True)
    ]
    return nnx.merge(graph, jax.tree.unflatten(structure, moved), rest)


def tiny(**options):
    options = {"channels": (4, 8), "centre": 0.1, "scale": 0.5, "rngs": nnx.Rngs(0)} | options
    return drawn(scores.Score(**options))


def weights(**options):
    """A network that has learned nothing, with a spectrum that falls."""
    frequency, table = np.linspace(0.01, 0.86, 32), np.zeros((3, 13), np.float32)
    table[1] = 1
    return scores.Weights(
        tiny(**options), Spectrum(frequency, 1 / (0.02 + frequency) ** 2, 0.1, 0.3), table, {"steps": 0}
    )
