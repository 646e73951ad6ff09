"""The methods by name, for the command line: which solver a name makes, what it can do, which weights are tried."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InputError
from .plan import TRIED_BY

WEIGHTED = ("tv", "tvq", "root-tv", "dip-tv", "inr", "gaussian")
"""Methods with a prior, whose strength `weight` sets."""
ANY_LIKELIHOOD = ("sirt", "sart", "tvq", "root-tv", "dip", "dip-tv", "inr", "diffusion", "gan")
"""Methods that take another noise model than the Gaussian."""
PLANNED = ("tvq", "root-tv", "dip", "dip-tv", "inr", "diffusion")
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

QUICK = ("sirt", "tv", "tvq", "root-tv")
"""What `--method auto` tries: those that take seconds on some slices."""

SHIPPED = {"diffusion": ("nano", "fibsem"), "gan": ("slices",)}
LEARNED = {"diffusion": "nano", "gan": "slices"}
"""Methods that have learned from other specimens, and the weights they take if none are named."""
TAUGHT = {"diffusion": "score", "gan": "gan"}
"""What `jaxtomo train` calls them."""
UNLIKE = 2.6  # standard deviations from the specimens that they learned from, above which they warn
SAMPLES = 4  # of diffusion, whose mean is the volume


def tries_weights(method: str, weight: float | str | None, tilts: int) -> bool:
    """Whether the weight is chosen by left-out tilts: if asked for, or if none is given and tilts can be spared."""
    return weight == "auto" or (weight is None and method in WEIGHTED and tilts >= 6)


def weights_folder(name: str | Path | None, method: str) -> Path:
    """Where weights of that name lie, or the folder itself; None is what the method takes if none are named.

    Raises InputError where there are none for the method.
    """
    name = LEARNED[method] if name is None else name
    own = [*SHIPPED[method], f"the folder 'weights' of a jaxtomo train {TAUGHT[method]}"]
    shipped = any(name in names for names in SHIPPED.values())
    folder = Path(__file__).parent / "weights" / name if shipped else Path(name).absolute()
    if not (folder / "card.json").is_file():
        raise InputError(f"{name}: no weights there. Give {' or '.join(own)}.")
    taught = json.loads((folder / "card.json").read_text()).get("method", "diffusion")
    if taught != method:
        raise InputError(f"{name}: weights of --method {taught}, not of {method}. Give others, or that method.")
    return folder


class Asked(NamedTuple):
    """What is asked of a method.

    Attributes:
        method: its name.
        steps: how many; None for the method's own.
        spectrum: of `gaussian`.
        weights: of a method that has learned: a name or a folder; None for its own, see `LEARNED`.
        members: of an ensemble; of `diffusion` samples of the posterior; None for the method's own.
        adapt: whether `diffusion` weighs its network against solutions without one, by left-out tilts.
    """

    method: str
    steps: int | None = None
    spectrum: str = "fib_sem"
    weights: str | None = None
    members: int | None = None
    adapt: bool = False

    @property
    def samples(self) -> int:
        """Members that are computed side by side."""
        return 1 if self.method != "diffusion" or self.adapt else self.members or SAMPLES

    @property
    def turns(self) -> int:
        """How many times the method's steps are done, one member after the other."""
        return 1 if self.method == "diffusion" else self.members or 1


def maker(asked: Asked) -> Callable[[float | None], Any]:
    """A function from a weight (None: the method's own) to the Solver of one member."""
    from . import solvers

    def make(weight: float | None):
        given: dict[str, Any] = {} if weight is None else {"weight": weight}
        planned: dict[str, Any] = {} if asked.steps is None else {"steps": asked.steps}
        match asked.method:
            case "wbp" | "sirt" | "sart" | "cgls":
                return getattr(solvers, asked.method)()
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
                return solvers.gaussian(asked.spectrum, **given)
            case "diffusion":
                trained = _trained(asked.method, asked.weights)
                if asked.adapt:
                    return solvers.stacked(trained, **planned)
                return solvers.sample(trained, samples=asked.samples, **planned)
            case "gan":
                return solvers.gan(_trained(asked.method, asked.weights))
            case _:
                raise InputError(f"no method {asked.method!r}. Take one of {', '.join(NAMES)}.")

    return make


@functools.cache
def _trained(method: str, name: str | None):
    from .priors import gan, score

    return {"diffusion": score, "gan": gan}[method].load(weights_folder(name, method))


def trial(asked: Asked) -> Callable[[float | None], Any]:
    """A function from a weight to the Solver that tries it."""
    if asked.method == "inr":
        from . import solvers

        return lambda weight: solvers.root_tv(**({} if weight is None else {"weight": weight}), steps=500, power=0.75)
    return maker(asked._replace(method=TRIED_BY[asked.method], steps=None) if asked.method in TRIED_BY else asked)


def trial_steps(asked: Asked) -> int:
    """How many steps of `trial` tell weights apart: for tv that is long before the duality gap closes."""
    if asked.steps is not None and asked.method not in TRIED_BY:
        usual = asked.steps
    else:
        usual = trial(asked)(None).steps
    return min(usual, 80) if asked.method == "tv" else usual


NAMES = ("wbp", "sirt", "sart", "cgls", "tv", "tvq", "root-tv", "dip", "dip-tv", "inr", "gaussian", "diffusion", "gan")


def noise_model(likelihood: str, fit_intensity: bool):
    """The likelihood of a name, with a gain and an offset per tilt fitted if asked."""
    from . import likelihood as models

    chosen = {"gaussian": models.gaussian, "poisson": models.poisson, "robust": models.robust}[likelihood]()
    return models.fitted_intensity(chosen) if fit_intensity else chosen
