"""Penalties on volumes, and the finite differences they are made of. Volumes are `[z, x, y]`, any axes will do; the
penalties also take several channels, `[channel, z, x, y]`, and join them: |∇v|² is then the mean over channels.

Vector fields are tuples of three volumes: sums over a short leading axis are an order of magnitude slower on a CPU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

AXES = (-3, -2, -1)
Field = tuple[jax.Array, jax.Array, jax.Array]


def _moved(array, axis: int, by: int):
    """`array` moved by `by` voxels along `axis`; zeros move in. One pad, which devices that share the array exchange as
    one face; slices and concatenations would send all of it."""
    return lax.pad(
        array, jnp.zeros((), array.dtype), [(by * (a == axis), -by * (a == axis), 0) for a in range(-array.ndim, 0)]
    )


def _before_last(array, axis: int):
    """`array` with its far face set to zero."""
    index = lax.broadcasted_iota(jnp.int32, array.shape, array.ndim + axis)
    return jnp.where(index < array.shape[axis] - 1, array, 0)


def gradient(volume) -> Field:
    """Forward differences along the three axes; zero across the far faces (Neumann)."""
    x, y, z = (_before_last(_moved(volume, axis, -1) - volume, axis) for axis in AXES)
    return x, y, z


def divergence(field: Field):
    """Minus the adjoint of `gradient`: ⟨gradient(v), g⟩ = -⟨v, divergence(g)⟩."""
    inner = [_before_last(part, axis) for axis, part in zip(AXES, field, strict=True)]
    x, y, z = (part - _moved(part, axis, 1) for axis, part in zip(AXES, inner, strict=True))
    return x + y + z


def squared_length(field: Field):
    """|g|² at every voxel."""
    return field[0] ** 2 + field[1] ** 2 + field[2] ** 2


def total_variation(volume, power: float = 1.0, smoothing: float = 0.0):
    """mean (|∇v|² + ε²)^(q/2): total variation for q = 1, closer to counting edges for q < 1.

    `smoothing` is ε. [Rudin, Osher & Fatemi 1992; Chartrand 2007 for q < 1]
    """
    square = squared_length(gradient(volume))
    square = square.mean(0) if volume.ndim == 4 else square
    return jnp.mean((square + smoothing**2) ** (power / 2))


def power_variation(volume, power: float = 0.5, smoothing: float = 3e-3):
    """mean √(|∇v^q|² + ε²) of a volume that is nowhere negative: total variation of a power of it.

    With q = ½ an edge of density d counts √d: against bright particles a faint support weighs more than in
    `total_variation`, and haze in empty space, where the root is steep, most. `smoothing` is ε.
    """
    return total_variation((jnp.maximum(volume, 0) + 1e-8) ** power, 1.0, smoothing)
