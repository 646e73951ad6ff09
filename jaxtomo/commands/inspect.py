"""`jaxtomo inspect`: what a file holds and states, from its headers alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..console import Console, table
from ..plan import size
from .options import NONE, Outcome, Reading, Showing, required


@dataclass(frozen=True)
class Inspect:
    """Say what a tilt series holds: its shape, its angles, its tilt axis and pixel size, and where each was found.

    Only headers are read. Exit code 3 if something is missing or contradictory that a reconstruction needs.
    """

    file: Annotated[str | None, Positional, arg(metavar="FILE", help_behavior_hint=NONE)] = None
    """A tilt series, a folder of images, or a pattern such as 'tilt_*.tif'."""
    devices: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Say instead what this computer would compute on, and with which projector; takes no FILE."""
    reading: Reading = field(default_factory=Reading)
    showing: Showing = field(default_factory=Showing)


def run(settings: Inspect, console: Console) -> Outcome:
    from ..io import inspect

    if settings.devices:
        return _devices()
    facts = inspect(required(settings.file, "FILE"), **settings.reading.arguments())
    problems = [f"{problem['fact']} {problem['cure']}" for problem in facts["problems"]]
    warning = f"{facts['file']}: {' '.join(problems)}" if problems else ""
    return Outcome(describe(facts), facts, code=3 if problems else 0, warning=warning)


def _devices() -> Outcome:
    from . import device

    device.start()
    facts = device.describe()
    there, free = facts["device"], device.memory()
    on_device = f", {size(free.device)} of a device" if free.device else ""
    rows = [
        ("devices", f"{there['count']} × {there['kind']} ({there['backend']})"),
        ("free", f"{size(free.host or 0)} of the computer{on_device}"),
        ("projector", f"{there['projector']} kernels"),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
    ]
    return Outcome(table(rows), facts)


def describe(facts: dict) -> str:
    """The facts for a person; of what is missing a dash, told about on stderr."""
    found = facts["provenance"]
    *lead, count, ny, nx = facts["shape"]
    channels = f"{lead[0]} channels of " if lead else ""
    axis = facts["tilt_axis"]
    low_high = "" if facts["range"] is None else f", values {facts['range'][0]:g} to {facts['range'][1]:g}"
    rows = [
        ("format", f"{facts['format']} ({facts['dialect']})"),
        ("images", f"{channels}{count} of {nx} × {ny} pixels, {facts['dtype']}, {size(facts['bytes'])}{low_high}"),
        ("angles", "—" if facts["angles"] is None else _angles(facts["angles"], found["tilt_deg"])),
        ("tilt axis", "—" if axis is None else found["tilt_axis"]),
        ("pixel size", found.get("pixel_nm", "—")),
        ("order", "recorded" if facts["exposure_order"] else None),
        ("beside it", ", ".join(Path(name).name for name in facts["side_files"]) or None),
    ]
    return f"{facts['file']}\n{table(rows)}"


def _angles(angles: dict, source: str) -> str:
    step = "" if angles["step"] is None else f" in steps of {angles['step']:.4g}°"
    uneven = "" if angles["even"] or angles["step"] is None else " (uneven)"
    return f"{source}\n{angles['min']:.4g}° to {angles['max']:.4g}°{step}{uneven}"
