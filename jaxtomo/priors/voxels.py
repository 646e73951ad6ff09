"""The plain prior: every voxel a parameter, made non-negative by squaring, with a gradient penalty if wanted."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from ..penalty import power_variation, total_variation


def per_channel(density):
    """The density, such that it broadcasts against a volume: a number, or one for each channel."""
    return density.reshape(*density.shape, 1, 1, 1) if density.ndim else density


class Voxels(nnx.Module):
    """volume = density · (p + 0.1)², p from 0, or from where the volume is `start`.

    Squared, not softplus, which keeps too much mass where there is none. The penalty is
    λ mean((|∇v|² + ε²)^(q/2)) of the volume in units of `density`.
    """

    def __init__(self, shape, density=1.0, weight=0.0, power=1.0, smoothing=3e-3, start=None):
        root = jnp.zeros(shape) if start is None else jnp.sqrt(jnp.maximum(start, 0) / per_channel(density)) - 0.1
        self.root = nnx.Param(root)
        self.density = nnx.Variable(jnp.asarray(density, jnp.float32))
        self.weight = nnx.Variable(jnp.asarray(weight, jnp.float32))
        self.power, self.smoothing = power, smoothing

    def __call__(self):
        return per_channel(self.density[...]) * (self.root[...] + 0.1) ** 2

    def penalty(self, volume):
        return self.weight[...] * total_variation(volume / per_channel(self.density[...]), self.power, self.smoothing)


def voxels(weight: float = 0.0, power: float = 1.0, smoothing: float = 3e-3, start=None):
    """A maker of `Voxels` for `fit`: `(problem, density, key) -> module`."""
    return lambda problem, density, key: Voxels(problem.volume_shape, density, weight, power, smoothing, start)


class RootVoxels(Voxels):
    """The same with the penalty λ mean √(|∇v^q|² + ε²), v in units of `density`; see `penalty.power_variation`."""

    def penalty(self, volume):
        relative = volume / per_channel(self.density[...])
        return self.weight[...] * power_variation(relative, self.power, self.smoothing)


def root_voxels(weight: float = 0.0, power: float = 0.5, smoothing: float = 3e-3, start=None):
    """A maker of `RootVoxels` for `fit`: `(problem, density, key) -> module`."""
    return lambda problem, density, key: RootVoxels(problem.volume_shape, density, weight, power, smoothing, start)
