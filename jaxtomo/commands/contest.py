"""Methods tried on one series under one time budget, and ranked by tilts that none of them has seen: for
`compare methods` and for `reconstruct --method auto`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..console import Console
from ..errors import DoesNotFitError, InputError
from .summary import duration


class Contest(NamedTuple):
    """How it went.

    Attributes:
        found: by method, the best first, what is known of it; its `metrics` have `held_out_error`.
        left: by method that was not tried, or failed, why.
    """

    found: dict[str, dict[str, Any]]
    left: dict[str, str]


def contest(
    expected: Mapping[str, float],
    attempt: Callable[[str], Mapping[str, Any]],
    minutes: float,
    console: Console,
    finished: Collection[str] = (),
) -> Contest:
    """Try methods that are `expected` to take so many seconds, the quickest first, and rank them.

    One that does not fit into what is left of the time is left out, but the first, and what is `finished` already. They
    are ranked by `held_out_error`, the relative error of tilts that none has seen, and where that is the same by
    `resolution_voxels`; one without a finite error comes last.
    """
    began, found, left = time.monotonic(), {}, {}
    for name in sorted(expected, key=expected.__getitem__):
        remaining = 60 * minutes - (time.monotonic() - began)
        if found and name not in finished and expected[name] > remaining:
            left[name] = f"would take about {duration(expected[name])}, and {duration(max(remaining, 0))} were left"
            continue
        console.say(f"{name}: about {duration(expected[name])}")
        try:
            found[name] = dict(attempt(name))
        except (InputError, DoesNotFitError) as error:
            left[name] = str(error)
            console.warn(f"{name}: {error}")
    return Contest(dict(sorted(found.items(), key=lambda item: (held_out(item[1]), resolution(item[1])))), left)


def tied(errors: Mapping[str, np.ndarray]) -> set[str]:
    """The best of some methods by their errors `[tilt]` on the same unseen tilts, and all that are as good within the
    noise: whose mean square is above the least by no more than the standard error of that difference. Of one tilt no
    noise is known, so that none are."""
    squares = {name: np.square(np.asarray(error, float)) for name, error in errors.items()}
    least = squares[min(squares, key=lambda name: squares[name].mean())]
    equal = set()
    for name, square in squares.items():
        worse = square - least
        noise = worse.std(ddof=1) / math.sqrt(worse.size) if worse.size > 1 else 0.0
        if worse.mean() <= noise:
            equal.add(name)
    return equal


def held_out(facts: Mapping[str, Any]) -> float:
    """The relative error of tilts that were left out; infinite where it is not known."""
    error = facts["metrics"].get("held_out_error")
    return math.inf if error is None or not math.isfinite(error) else error


def resolution(facts: Mapping[str, Any]) -> float:
    """Voxels, where even and odd tilts stop to agree; infinite where that is not known."""
    return facts["metrics"].get("resolution_voxels") or math.inf
