"""The methods, one rule a file. Each maker returns a `jaxtomo.solve.Solver`."""

from .cgls import cgls
from .dip import dip, dip_tv
from .fit import fit
from .gaussian import gaussian
from .inr import inr
from .root_tv import root_tv
from .sart import sart
from .sirt import sirt
from .tv import tv
from .tvq import tvq
from .wbp import wbp

__all__ = ["cgls", "dip", "dip_tv", "fit", "gaussian", "inr", "root_tv", "sart", "sirt", "tv", "tvq", "wbp"]
