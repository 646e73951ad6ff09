"""The methods, one rule a file. Each maker returns a `jaxtomo.solve.Solver`."""

from .adapt import adapt
from .cgls import cgls
from .dip import dip, dip_tv
from .elements import elements
from .expected import expected
from .fit import fit
from .gan import gan
from .gaussian import gaussian
from .inr import inr
from .plug_and_play import plug_and_play
from .root_tv import root_tv
from .sample import sample
from .sart import sart
from .sirt import sirt
from .stacked import stacked
from .tv import tv
from .tvq import tvq
from .wbp import wbp

__all__ = [
    "adapt",
    "cgls",
    "dip",
    "dip_tv",
    "elements",
    "expected",
    "fit",
    "gan",
    "gaussian",
    "inr",
    "plug_and_play",
    "root_tv",
    "sample",
    "sart",
    "sirt",
    "stacked",
    "tv",
    "tvq",
    "wbp",
]
