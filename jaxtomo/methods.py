"""The methods by name, for the command line: which solver a name makes, what it can do, which weights are tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import InputError
from .plan import TRIED_BY

WEIGHTED = ("tv", "tvq", "root-tv", "dip-tv", "inr", "gaussian")
"""Methods with a prior, whose strength `weight` sets."""
ANY_LIKELIHOOD = ("sirt", "sart", "tvq", "root-tv", "dip", "dip-tv", "inr")
"""Methods that take another noise model than the Gaussian."""
PLANNED = ("tvq", "root-tv", "dip", "dip-tv", "inr")
"""Methods whose step length follows a plan for a number of steps, which more steps cannot go on with."""
WEIGHTS = {
    "tv": (0.01, 0.03, 0.1, 0.3, 1.0),
    "tvq": (0.1, 0.3, 0.7, 2.0),
    "root-tv": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    "dip-tv": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    "inr": (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6),
    "gaussian": (0.1, 0.3, 1.0, 3.0, 10.0),
}
"""What `--weight auto` tries."""


def tries_weights(method: str, weight: float | str | None, tilts: int) -> bool:
    """Whether the weight is chosen by left-out tilts: if asked for, or if none is given and tilts can be spared."""
    return weight == "auto" or (weight is None and method in WEIGHTED and tilts >= 6)


def maker(method: str, steps: int | None, spectrum: str) -> Callable[[float | None], Any]:
    """A function from a weight (None: the method's own) to the Solver."""
    from . import solvers

    def make(weight: float | None):
        given: dict[str, Any] = {} if weight is None else {"weight": weight}
        planned: dict[str, Any] = {} if steps is None else {"steps": steps}
        match method:
            case "wbp" | "sirt" | "sart" | "cgls":
                return getattr(solvers, method)()
            case "tv":
                return solvers.tv(**given)
            case "tvq":
                return solvers.tvq(**given, **planned)
            case "root-tv":
                return solvers.root_tv(**given, **planned)
            case "dip":
                return solvers.dip(**planned)
            case "dip-tv":
                return solvers.dip_tv(**given, **planned)
            case "inr":
                return solvers.inr(**given, **planned)
            case "gaussian":
                return solvers.gaussian(spectrum, **given)
            case _:
                raise InputError(f"no method {method!r}. Take one of {', '.join(NAMES)}.")

    return make


def trial(method: str, steps: int | None, spectrum: str) -> Callable[[float | None], Any]:
    """A function from a weight to the Solver that tries it."""
    if method == "inr":
        from . import solvers

        return lambda weight: solvers.root_tv(**({} if weight is None else {"weight": weight}), steps=500, power=0.75)
    return maker(TRIED_BY[method], None, spectrum) if method in TRIED_BY else maker(method, steps, spectrum)


def trial_steps(method: str, steps: int | None, spectrum: str) -> int:
    """How many steps of `trial` tell weights apart: for tv that is long before the duality gap closes."""
    usual = steps if steps is not None and method not in TRIED_BY else trial(method, steps, spectrum)(None).steps
    return min(usual, 80) if method == "tv" else usual


NAMES = ("wbp", "sirt", "sart", "cgls", "tv", "tvq", "root-tv", "dip", "dip-tv", "inr", "gaussian")


def noise_model(likelihood: str, fit_intensity: bool):
    """The likelihood of a name, with a gain and an offset per tilt fitted if asked."""
    from . import likelihood as models

    chosen = {"gaussian": models.gaussian, "poisson": models.poisson, "robust": models.robust}[likelihood]()
    return models.fitted_intensity(chosen) if fit_intensity else chosen
