"""A trained network, adapted to one series by updates of low rank to its kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from ..solvers.told import Told, seen_mirrored
from .score import Score


class Adapted(nnx.Module):
    """volume = what the network expects, its kernels W + U V with U [inputs, rank] and V [rank, outputs] to be fitted.

    Starts as the network itself: U is drawn, V is 0. [Hu et al. 2022; Barbano et al. 2024 for tomography]
    """

    def __init__(self, told: Told, rank: int, rngs: nnx.Rngs):
        graph, parameters, rest = told.network
        leaves, self.structure = jax.tree.flatten(parameters)
        self.graph, self.rest = graph, nnx.data(rest)
        self.kernels = nnx.List([nnx.Variable(leaf) for leaf in leaves])
        shapes = [(leaf.size // leaf.shape[-1], leaf.shape[-1]) for leaf in leaves]
        start = nnx.initializers.he_normal()
        self.updated = tuple(i for i, shape in enumerate(shapes) if min(shape) > rank)
        sizes = [shapes[i] for i in self.updated]
        self.left = nnx.List([nnx.Param(start(rngs.params(), (n, rank))) for n, _ in sizes])
        self.right = nnx.List([nnx.Param(jnp.zeros((rank, m))) for _, m in sizes])
        self.told = nnx.data(told._replace(network=None))

    def __call__(self):
        return self._seen(0)

    def perturbed(self, key):
        """The volume as it is seen in a mirror image of the specimen."""
        return self._seen(jax.random.randint(key, (), 0, 16))

    def _seen(self, number):
        score = self._score()
        return score.outward(seen_mirrored(score, self.told, number), self.told.density)

    def _score(self) -> Score:
        kernels = [kernel[...] for kernel in self.kernels]
        for i, left, right in zip(self.updated, self.left, self.right, strict=True):
            kernels[i] = kernels[i] + (left[...] @ right[...]).reshape(kernels[i].shape)
        return nnx.merge(self.graph, jax.tree.unflatten(self.structure, kernels), self.rest)
