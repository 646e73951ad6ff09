"""Models of the volume: Flax modules that are the unknown. `prior()` returns the volume `[z, x, y]`, and
`prior.penalty(volume)`, if there is one, what it costs."""

from .voxels import Voxels, voxels

__all__ = ["Voxels", "voxels"]
