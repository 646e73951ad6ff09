"""Deep Image Prior, alone and with total variation: an untrained network fitted to the one series there is."""

from __future__ import annotations

import functools

import jax
import optax

from ..priors.dip import network
from ..solve import Solver
from ..stopping import Rule, held_out_pixels
from .fit import falling_adam, fit
from .tvq import count_weights


@functools.cache
def _optimizer(rate: float, voxel_rate: float, steps: int):
    """Adam for the network and, in longer steps, for the voxels beside it, both falling along a cosine to 2 %."""

    def labels(parameters):
        return jax.tree.map_with_path(lambda path, _: "voxels" if "voxels" in str(path[0]) else "network", parameters)

    return optax.partition({"network": falling_adam(rate, steps), "voxels": falling_adam(voxel_rate, steps)}, labels)


def dip(steps: int = 1500, rate: float = 1e-2, stopping: Rule | None = None, **options) -> Solver:
    """The network alone: no penalty, no voxels beside it; what it can make of noise before it makes noise is the prior.

    `stopping`, `stopping.held_out_pixels()` by default, says when. `options` are those of `priors.DIP`: three
    dimensions by default, `deep=False, patch=(1, 1, 1)` for slice by slice, `patch=(8, 1, 1)` for slices as channels.
    Here the default is 32 channels of noise that stays the same in all steps. Without a penalty it is slow, and behind
    `dip_tv` on all that was tried: for comparison and research.
    [Ulyanov, Vedaldi & Lempitsky 2018]
    """
    settings = {"method": "dip", "planned_steps": steps, "rate": rate, **options}
    optimizer, rule = _optimizer(rate, rate, steps), stopping or held_out_pixels()
    prior = network(beside=False, **({"inputs": 32, "noise": 0.0} | options))
    return fit(prior, optimizer, stopping=rule, settings=settings, steps=steps)


def dip_tv(
    weight: float = 0.2,
    steps: int = 700,
    rate: float = 3e-3,
    voxel_rate: float = 0.1,
    stopping: Rule | None = None,
    **options,
) -> Solver:
    """min over network and voxels of Σ w (A v - y)² / Σ w y² + λ mean |∇voxels|, v = density (0.1 + network + voxels)².

    Adam on both, in steps that fall along a cosine; pixels weigh as counts do (`tvq.count_weights`). `weight` λ is for
    densities of about 1, which the solver sees to. `stopping` and `options` as for `dip`.
    """
    settings = {"method": "dip-tv", "weight": weight, "planned_steps": steps, "rate": rate, "voxel_rate": voxel_rate}
    return fit(
        network(weight, **options),
        _optimizer(rate, voxel_rate, steps),
        pixel_weights=count_weights,
        stopping=stopping or held_out_pixels(),
        settings=settings | options,
        steps=steps,
    )
