"""Atoms of a volume or of its images: where they are, how bright, of which species, and what their lattice lacks.

The order is that of atomic electron tomography: reconstruct, `find`, `refine` against the images, tell the `species`.
[Yang et al., Nature 592, 60 (2021)]
"""

from ..elemental import atomic_number
from .lattice import Defects, defects, write_defects
from .species import species
from .table import Atoms, atoms, write_table
from .tracing import CONVINCING, explained, find, refine
from .xyz import read_xyz, write_xyz

__all__ = [
    "CONVINCING",
    "Atoms",
    "Defects",
    "atomic_number",
    "atoms",
    "defects",
    "explained",
    "find",
    "read_xyz",
    "refine",
    "species",
    "write_defects",
    "write_table",
    "write_xyz",
]
