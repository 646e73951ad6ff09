"""Penalties on volumes, and the finite differences they are made of. Volumes are `[z, x, y]`, any axes will do."""

from __future__ import annotations

import jax.numpy as jnp


def gradient(volume):
    """Forward differences along the three axes, `[3, ...]`; zero across the far faces (Neumann)."""
    last = [volume[-1:], volume[:, -1:], volume[:, :, -1:]]
    return jnp.stack([jnp.diff(volume, axis=i, append=last[i]) for i in range(3)])


def divergence(field):
    """Minus the adjoint of `gradient`: ⟨gradient(v), g⟩ = -⟨v, divergence(g)⟩."""
    total = jnp.zeros(field.shape[1:], field.dtype)
    for axis in range(3):
        g = jnp.moveaxis(field[axis], axis, 0)
        inner = g[:-1]
        padded = jnp.concatenate([inner, jnp.zeros_like(g[:1])])
        before = jnp.concatenate([jnp.zeros_like(g[:1]), inner])
        total = total + jnp.moveaxis(padded - before, 0, axis)
    return total


def total_variation(volume, power: float = 1.0, smoothing: float = 0.0):
    """mean (|∇v|² + ε²)^(q/2): total variation for q = 1, closer to counting edges for q < 1.

    `smoothing` is ε. [Rudin, Osher & Fatemi 1992; Chartrand 2007 for q < 1]
    """
    squared = jnp.sum(gradient(volume) ** 2, axis=0) + smoothing**2
    return jnp.mean(squared ** (power / 2))
