"""A trained network fitted to the one series there is: for specimens unlike those it was trained on."""

from __future__ import annotations

from flax import nnx

from ..priors.adapted import Adapted
from ..priors.score import Weights
from ..solve import Solver
from ..stopping import Rule, held_out_pixels
from .fit import falling_adam, fit
from .told import tell
from .tvq import count_weights


def adapt(
    weights: Weights, rank: int = 4, steps: int = 60, rate: float = 3e-3, stopping: Rule | None = None, **options
) -> Solver:
    """min over updates of low rank to the network's kernels of Σ w (A v - y)² / Σ w y², v what it then expects.

    Adam, in steps that fall along a cosine; pixels weigh as counts do (`tvq.count_weights`). Every step sees the
    specimen in another mirror image, and the average of the last steps is the volume, by `stopping` the one that
    predicts pixels held out best. `options` are those of `fit`: with `pose_optimizer` and `freedom` poses are learned
    too. [Barbano et al. 2024]
    """

    def prior(problem, density, key):
        return Adapted(tell(problem, weights), rank, nnx.Rngs(key))

    settings = {"method": "adapt", "weights": weights.name, "rank": rank, "planned_steps": steps, "rate": rate}
    return fit(
        prior,
        falling_adam(rate, steps),
        pixel_weights=count_weights,
        stopping=stopping or held_out_pixels(),
        settings=settings,
        steps=steps,
        **options,
    )
