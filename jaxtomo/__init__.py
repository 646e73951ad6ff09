"""jaxtomo: differentiable electron tomography in JAX. Importing has no side effect; names load when first used."""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOME = {
    "InputError": "errors",
    "DoesNotFitError": "errors",
    "TiltSeries": "series",
    "read": "io",
    "read_volume": "io",
    "write": "io",
    "Pose": "data",
    "Problem": "data",
    "Reconstruction": "data",
    "project": "projector",
    "back_project": "projector",
    "align": "align",
    "gaussian": "likelihood",
    "poisson": "likelihood",
    "robust": "likelihood",
    "fitted_intensity": "likelihood",
    "Solver": "solve",
    "reconstruct": "solve",
    "wbp": "solvers",
    "sirt": "solvers",
    "sart": "solvers",
    "cgls": "solvers",
    "tv": "solvers",
    "tvq": "solvers",
    "fit": "solvers",
    "voxels": "priors",
    "report": "reporting",
}
_MODULES = (
    "callbacks",
    "io",
    "metrics",
    "phantoms",
    "priors",
    "projector",
    "samples",
    "simulate",
    "solvers",
    "validate",
)

__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'jaxtomo' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
