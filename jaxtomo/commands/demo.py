"""`jaxtomo demo`: a real tilt series that ships with the package, from raw images to a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from .. import run_folder
from ..console import Console
from ..errors import InputError
from . import device
from .options import Outcome, Reading, Showing
from .planning import planned
from .request import Preparing, Reconstruct, Running, Solving


@dataclass(frozen=True)
class Demo:
    """Reconstruct a semiconductor needle from 77 raw HAADF-STEM images that ship with jaxtomo, in about a minute.

    Aligned, reconstructed with total variation, judged, written to a folder with a report.
    """

    out: Annotated[str, arg(metavar="DIR")] = "jaxtomo-demo"
    """The folder of the run; an earlier demo in it is replaced."""
    showing: Showing = field(default_factory=Showing)


def run(settings: Demo, console: Console) -> Outcome:
    from .. import samples
    from ..io import inspect, sha256

    folder, needle = Path(settings.out), samples.path("needle.mrc")
    run_folder.check_place(folder, resume=False, overwrite=True)
    if run_folder.is_run(folder) and run_folder.recorded(folder).get("input", {}).get("sha256") != sha256(needle):
        raise InputError(f"{folder}: holds a run on another series. Give another folder with --out.")
    device.start()
    from .reconstruct import outcome
    from .running import carry_out

    asked = Reconstruct(
        file=str(needle),
        reading=Reading(tilt_axis="x"),
        preparing=Preparing(),
        # What --weight auto chooses for this needle, which is 42 voxels across. After 40 steps the volume is within
        # 52 dB of that after 400.
        solving=Solving(weight=0.03, thickness=56, steps=40),
        running=Running(out=settings.out),
        showing=settings.showing,
    )
    console.say("a real tilt series: 77 raw, misaligned HAADF-STEM images of a semiconductor needle (NIST)")
    plan = planned(asked, inspect(needle, **asked.reading.arguments()), None, device.memory())
    return outcome(asked, carry_out(asked, plan, folder, None, console))
