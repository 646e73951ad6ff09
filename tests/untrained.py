"""Score networks that have learned nothing: as small as they can be, since each is compiled many times, every parameter
drawn at random."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtomo.priors import gan
from jaxtomo.priors import score as scores
from jaxtomo.spectrum import Spectrum


def drawn(shaped, scale=0.5, seed=5):
    """A module like one of `nnx.eval_shape`, with every parameter drawn at random: nothing in it is zero."""
    graph, parameters, rest = nnx.split(shaped, nnx.Param, ...)
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        fan = max(math.prod(leaf.shape[:-1]), 1) if len(leaf.shape) > 1 else 1
        value = ("scale" in jax.tree_util.keystr(path)) + scale / np.sqrt(fan) * rng.normal(size=leaf.shape)
        return jnp.asarray(value, jnp.float32)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(one, parameters), rest)


def tiny(**options):
    options = {"channels": (4,), "centre": 0.1, "scale": 0.5} | options
    score = drawn(nnx.eval_shape(lambda: scores.Score(**options, rngs=nnx.Rngs(0))))
    score.centre, score.scale = (nnx.Variable(jnp.float32(options[name])) for name in ("centre", "scale"))
    return score


def weights(**options):
    """A network that has learned nothing, with a spectrum that falls."""
    frequency, table = np.linspace(0.01, 0.86, 32), np.zeros((3, 13), np.float32)
    table[1] = 1
    return scores.Weights(
        tiny(**options), Spectrum(frequency, 1 / (0.02 + frequency) ** 2, 0.1, 0.3), table, {"steps": 0}
    )


def pair():
    """Two networks that have learned nothing, for slices."""
    known = weights()
    made = {"fill": {"channels": 4, "growth": 2, "blocks": 1}, "clean": {"channels": (4, 8)}}
    networks = drawn(nnx.eval_shape(lambda: gan.Pair(**made, rngs=nnx.Rngs(0))), scale=0.1)
    return gan.Weights(networks, known.spectrum, known.density, {"steps": 0, "error": 0.01})
