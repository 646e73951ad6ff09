"""`jaxtomo train score`: teach the prior of --method diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import arg

from ..console import Console
from ..errors import InputError
from .options import NONE, Numbers, Outcome
from .training import Training, carry_out, refuse_below_one, refuse_rate

NETWORKS: dict[str, dict[str, Any]] = {
    "3d": {},
    "slab": {"deep": False, "patch": (8, 1, 1)},
    "slice": {"deep": False, "patch": (1, 2, 2)},
}
"""What a network sees: three dimensions, eight slices as channels, or one slice."""


@dataclass(frozen=True)
class TrainScore(Training):
    """Train the prior of --method diffusion on volumes; they are sent through a simulated microscope.

    Takes hours on a CPU. Ctrl-C stops it with a checkpoint, and --resume goes on to the same weights.
    """

    network: Annotated[Literal["3d", "slab", "slice"], arg(metavar="3d|slab|slice")] = "3d"
    """What the network sees: three dimensions, eight slices as channels, or slice by slice."""
    channels: Annotated[Numbers, arg(metavar="N,N,N")] = (40, 80, 128)
    """Features of its levels."""
    start: Annotated[str | None, arg(metavar="nano|fibsem|DIR", help_behavior_hint=NONE)] = None
    """Weights to begin with instead of random ones: those that ship, or of an earlier training. The network is theirs,
    and a few hundred steps go far."""
    side: Annotated[int, arg(metavar="N")] = 48
    """Voxels a side of the specimens that are simulated."""
    patch: Annotated[Numbers, arg(metavar="Z,X,Y")] = (48, 32, 32)
    """Voxels of what the network is shown of one."""
    batch: Annotated[int, arg(metavar="N")] = 3
    """Patches in a step; they are shared by all devices if these divide them."""
    steps: Annotated[int, arg(metavar="N")] = 6000
    """Of training."""
    rate: Annotated[float, arg(metavar="NUMBER")] = 1.5e-3
    """The largest step length."""


def run(settings: TrainScore, console: Console) -> Outcome:
    _check(settings)
    names = ("network", "start", "side", "batch", "steps", "rate")
    asked = {name: getattr(settings, name) for name in names}
    asked |= {"channels": list(settings.channels), "patch": list(settings.patch)}

    def teach(volumes, folder, **rest):
        from ..denoising import train_score
        from ..priors.score import load

        return train_score(
            volumes,
            folder,
            network={**NETWORKS[settings.network], "channels": settings.channels},
            start=None if settings.start is None else load(settings.start),
            side=settings.side,
            patch=(settings.patch[0], settings.patch[1], settings.patch[2]),
            batch=settings.batch,
            steps=settings.steps,
            rate=settings.rate,
            seed=settings.seed,
            resume=settings.resume,
            **rest,
        )

    def said(facts):
        return "on what was kept", f"{facts['guided']:.4g} told the images, {facts['alone']:.4g} denoising"

    side = 2 * settings.side
    return carry_out(settings, (side, side, side), asked, teach, said, "diffusion", console)


def _check(settings: TrainScore) -> None:
    refuse_below_one(settings, "side", "batch", "steps")
    refuse_rate(settings.rate)
    if len(settings.patch) != 3 or min(settings.patch) < 8 or max(settings.patch) > settings.side:
        raise InputError(f"--patch {settings.patch}: give three numbers from 8 to --side, {settings.side}.")
    if not settings.channels or min(settings.channels) < 4 or any(c % 4 for c in settings.channels):
        raise InputError(f"--channels {settings.channels}: give multiples of 4, a number for each level.")
    default = TrainScore()
    if settings.start and (settings.network, settings.channels) != (default.network, default.channels):
        raise InputError("--start: the network is that of the weights. Leave --network and --channels out.")
