"""Implicit neural representation: a network of coordinates fitted to the one series there is."""

from __future__ import annotations

from ..priors.inr import network
from ..solve import Solver
from .fit import falling_adam, fit
from .tvq import count_weights


def inr(
    weight: float = 0.4,
    power: float = 0.75,
    steps: int = 700,
    rate: float = 0.03,
    rows: int | None = None,
    jitter: float = 0.0,
    **options,
) -> Solver:
    """min over a network of Σ w (A v - y)² / Σ w y² + λ mean √(|∇v^q|² + ε²), v = density softplus(10 network(r) - 3).

    Adam at `rate`, falling along a cosine to 2 % over `steps`; pixels weigh as counts do (`tvq.count_weights`). The
    network is asked once for every voxel, and what it says is projected. `weight` λ is for densities of about 1, which
    the solver sees to. `rows` and `jitter` are those of `fit`, `options` those of `priors.inr.INR`: by default tables
    at several scales and a small perceptron; for a SIREN
    `encoding=priors.inr.coordinates(), body=priors.inr.sines()` with a rate of 1e-3 and more steps.
    `fit.model_of(state)` is the network, which can be asked on a finer `Grid`. [Müller et al. 2022 for the tables]
    """
    settings = {"method": "inr", "weight": weight, "power": power, "planned_steps": steps, "rate": rate}
    return fit(
        network(weight, power=power, **options),
        falling_adam(rate, steps),
        pixel_weights=count_weights,
        rows=rows,
        jitter=jitter,
        settings=settings | {"rows": rows, "jitter": jitter},
        steps=steps,
    )
