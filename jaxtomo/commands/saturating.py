"""How far the images of a run saturate with thickness, as stated or as left-out tilts tell, and their ray sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .. import saturation
from ..console import Console
from ..data import Pose, Problem
from ..errors import InputError
from ..series import TiltSeries
from .request import Reconstruct

ABOVE = 0.02  # of the pixels may be brighter than the level, by their noise


def unsaturated(
    series: TiltSeries,
    pose: Pose,
    weights: np.ndarray | None,
    settings: Reconstruct,
    known: Mapping[str, Any] | None,
    console: Console,
) -> tuple[TiltSeries, dict[str, Any]]:
    """The series without its saturation, and what `run.json` says of it: `kappa`, the `level` that no intensity
    exceeds (None if there is none), where it was found, left-out tilts with and without, and where it was given, the
    share of pixels above. `known` is what an earlier run of the same said.

    Raises InputError for a level that many pixels are above."""
    asked = settings.preparing.saturation
    facts: dict[str, Any]
    if known is not None:
        facts = dict(known)
    elif asked == "auto":
        problem = Problem(series, pose, weights=weights, thickness=settings.solving.thickness)
        found = saturation.find(problem, jax.random.key(settings.solving.seed))
        facts = found._asdict() | {"level": 1 / found.kappa if found.kappa else None, "chosen": True}
    else:
        assert isinstance(asked, float)
        facts = {"kappa": 1 / asked, "level": asked, "chosen": False}
        facts["above"] = float((series.images > asked).mean())
        if facts["above"] > ABOVE:
            raise InputError(
                f"--saturation {asked:g}: {100 * facts['above']:.2g} % of the pixels are above it, which no thickness "
                "reaches. Give a higher level, or auto."
            )
    if not facts["kappa"]:
        console.say("no saturation that these images can show: a linear model predicts left-out tilts nearly as well")
        return series, facts
    if facts["chosen"]:
        console.say(
            f"images saturate at {facts['level']:.4g}; the brightest are at {100 * facts['share']:.0f} % of it (error "
            f"on left-out tilts {100 * facts['error']:.3g} %, without {100 * facts['error_without']:.3g} %)"
        )
    return saturation.linearised(series, facts["kappa"]), facts
