"""jaxtomo: differentiable electron tomography in JAX. Importing has no side effect; names load when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import (
        atoms,
        audit,
        callbacks,
        io,
        metrics,
        parallel,
        phantoms,
        priors,
        projector,
        quantify,
        resolution,
        samples,
        saturation,
        simulate,
        solvers,
        stopping,
        validate,
    )
    from .alignment import align
    from .data import Pose, Problem, Reconstruction
    from .ensembles import ensemble
    from .errors import DoesNotFitError, InputError
    from .freedom import Freedom
    from .io import read, read_volume, write
    from .likelihood import fitted_intensity, gaussian, poisson, robust, saturated
    from .priors import voxels
    from .projector import back_project, project
    from .refinement import refine
    from .reporting import report
    from .series import TiltSeries
    from .solve import Solver, reconstruct
    from .solvers import cgls, dip, dip_tv, fit, inr, root_tv, sart, sirt, tv, tvq, wbp

__version__ = "0.1.0"

__all__ = [
    "DoesNotFitError",
    "Freedom",
    "InputError",
    "Pose",
    "Problem",
    "Reconstruction",
    "Solver",
    "TiltSeries",
    "align",
    "atoms",
    "audit",
    "back_project",
    "callbacks",
    "cgls",
    "dip",
    "dip_tv",
    "ensemble",
    "fit",
    "fitted_intensity",
    "gaussian",
    "inr",
    "io",
    "metrics",
    "parallel",
    "phantoms",
    "poisson",
    "priors",
    "project",
    "projector",
    "quantify",
    "read",
    "read_volume",
    "reconstruct",
    "refine",
    "report",
    "resolution",
    "robust",
    "root_tv",
    "samples",
    "sart",
    "saturated",
    "saturation",
    "simulate",
    "sirt",
    "solvers",
    "stopping",
    "tv",
    "tvq",
    "validate",
    "voxels",
    "wbp",
    "write",
]

_HOME = {
    "DoesNotFitError": "errors",
    "Freedom": "freedom",
    "InputError": "errors",
    "Pose": "data",
    "Problem": "data",
    "Reconstruction": "data",
    "Solver": "solve",
    "TiltSeries": "series",
    "align": "alignment",
    "back_project": "projector",
    "cgls": "solvers",
    "dip": "solvers",
    "dip_tv": "solvers",
    "ensemble": "ensembles",
    "fit": "solvers",
    "fitted_intensity": "likelihood",
    "gaussian": "likelihood",
    "inr": "solvers",
    "poisson": "likelihood",
    "project": "projector",
    "read": "io",
    "read_volume": "io",
    "reconstruct": "solve",
    "refine": "refinement",
    "report": "reporting",
    "robust": "likelihood",
    "root_tv": "solvers",
    "sart": "solvers",
    "saturated": "likelihood",
    "sirt": "solvers",
    "tv": "solvers",
    "tvq": "solvers",
    "voxels": "priors",
    "wbp": "solvers",
    "write": "io",
}


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'jaxtomo' has no attribute {name!r}")
    if name not in _HOME:
        return importlib.import_module(f"{__name__}.{name}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*__all__, "__version__"])
