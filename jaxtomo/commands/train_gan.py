"""`jaxtomo train gan`: teach the two networks of --method gan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from ..console import Console
from ..errors import InputError
from .options import Outcome
from .training import Training, carry_out, refuse_below_one, refuse_rate


@dataclass(frozen=True)
class TrainGan(Training):
    """Train the two networks of --method gan on volumes, or slabs of them; they are sent through a simulated
    microscope: first the one that fills sinograms, then the one that cleans tomograms.

    Takes hours on a CPU. Ctrl-C stops it with a checkpoint, and --resume goes on to the same weights.
    """

    critical: Annotated[float, arg(metavar="NUMBER")] = 0.005
    """Weight of the critics beside that of the error; 0 for none."""
    side: Annotated[int, arg(metavar="N")] = 128
    """Voxels across of the slabs that are simulated."""
    rows: Annotated[int, arg(metavar="N")] = 8
    """Voxels along the tilt axis of a slab."""
    batch: Annotated[int, arg(metavar="N")] = 4
    """Patches in a step; they are shared by all devices if these divide them."""
    fill_steps: Annotated[int, arg(metavar="N")] = 1800
    """Of the training of the network that fills sinograms."""
    clean_steps: Annotated[int, arg(metavar="N")] = 5000
    """Of the one that cleans tomograms."""
    rate: Annotated[float, arg(metavar="NUMBER")] = 1e-3
    """The largest step length."""


def run(settings: TrainGan, console: Console) -> Outcome:
    refuse_below_one(settings, "batch", "fill_steps", "clean_steps")
    refuse_rate(settings.rate)
    if not 0 <= settings.critical < 100:
        raise InputError(f"--critical {settings.critical:g}: give 0 or a number below 100.")
    for name, least in (("side", 16), ("rows", 3)):
        if getattr(settings, name) < least:
            raise InputError(f"--{name} {getattr(settings, name)}: give {least} or more.")
    names = ("critical", "side", "rows", "batch", "fill_steps", "clean_steps", "rate")
    asked = {name: getattr(settings, name) for name in names}

    def teach(volumes, folder, **rest):
        from ..adversaries import train_gan

        return train_gan(volumes, folder, **asked, seed=settings.seed, resume=settings.resume, **rest)

    def said(facts):
        parts = (facts[name]["held out"] for name in ("filling", "cleaning"))
        return "on what was kept", "squared error {:.3g} and {:.3g} of what is shown".format(*parts)

    side, rows = 2 * settings.side, 2 * settings.rows
    return carry_out(settings, (side, rows, side), asked, teach, said, "gan", console)
