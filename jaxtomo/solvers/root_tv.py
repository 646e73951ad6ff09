"""Total variation of the root of the density: squared voxels under Adam, with count weights."""

from __future__ import annotations

from ..priors.voxels import root_voxels
from ..solve import Solver
from .fit import falling_adam, fit
from .tvq import count_weights


def root_tv(weight: float = 0.2, steps: int = 1000, rate: float = 0.1, power: float = 0.5, start=None) -> Solver:
    """min over p of Σ w (A v - y)² / Σ w y² + λ mean √(|∇v^q|² + ε²), v = density (p + 0.1)², q = `power`.

    Adam at `rate`, falling along a cosine to 2 % over `steps`. `weight` λ is for densities of about 1, which the solver
    sees to. With q = ½ an edge counts by the root of its height, so a faint support holds its own beside bright
    particles, and what is empty stays empty in the missing wedge. From a `start [z, x, y]`, where there is one, fewer
    steps are enough.
    """
    settings = {"method": "root-tv", "weight": weight, "power": power, "planned_steps": steps, "rate": rate}
    return fit(
        root_voxels(weight, power, start=start),
        falling_adam(rate, steps),
        pixel_weights=count_weights,
        settings=settings,
        steps=steps,
    )
