"""`jaxtomo report`: write the report of a finished run again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..console import Console
from ..errors import InputError
from ..run_folder import is_run
from . import device
from .options import NONE, Outcome, Showing, required


@dataclass(frozen=True)
class Report:
    """Write the report of a finished run as one HTML file, from what its reconstruction.h5 holds."""

    run: Annotated[str | None, Positional, arg(metavar="DIR", help_behavior_hint=NONE)] = None
    """The folder of a run, or a reconstruction.h5."""
    out: Annotated[str | None, arg(metavar="FILE.html", help_behavior_hint="(default: report.html beside it)")] = None
    """Where to write it."""
    showing: Showing = field(default_factory=Showing)


def run(settings: Report, console: Console) -> Outcome:
    place = Path(required(settings.run, "DIR"))
    source = place / "reconstruction.h5" if place.is_dir() else place
    if place.is_dir() and not source.is_file():
        state = "holds an unfinished run. Finish it with reconstruct --resume" if is_run(place) else "holds no run"
        raise InputError(f"{place}: {state}.")
    out = source.with_name("report.html") if settings.out is None else Path(settings.out)
    device.start()
    from ..io.reconstruction import read_reconstruction
    from ..reporting import report

    result = read_reconstruction(source)
    console.say(f"{source}: {' × '.join(map(str, result.volume.shape))} voxels")
    report(out, result)
    return Outcome(str(out), {"report": str(out), "source": str(source)})
