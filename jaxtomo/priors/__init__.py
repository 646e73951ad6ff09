"""Models of the volume: Flax modules that are the unknown. `prior()` returns the volume `[z, x, y]`, and
`prior.penalty(volume)`, if there is one, what it costs."""

from .dip import DIP, network
from .voxels import RootVoxels, Voxels, root_voxels, voxels

__all__ = ["DIP", "RootVoxels", "Voxels", "network", "root_voxels", "voxels"]
