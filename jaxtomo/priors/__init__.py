"""Models of the volume: Flax modules that are the unknown. `prior()` returns the volume `[z, x, y]`, and
`prior.penalty(volume)`, if there is one, what it costs."""

from . import inr
from .dip import DIP, network
from .inr import INR
from .voxels import RootVoxels, Voxels, root_voxels, voxels

__all__ = ["DIP", "INR", "RootVoxels", "Voxels", "inr", "network", "root_voxels", "voxels"]
