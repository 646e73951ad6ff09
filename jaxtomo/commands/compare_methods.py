"""`jaxtomo compare methods`: several methods on one series, ranked by the tilts that none of them has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tyro.conf import Positional, arg

from .. import hosts, methods, run_folder
from ..console import Console, as_json, table
from ..errors import InputError
from . import device
from .contest import contest, resolution
from .options import NONE, Outcome, Reading, Showing, UsageError, required
from .planning import planned
from .reconstruct import run as reconstruct
from .request import Preparing, Reconstruct, Running, Solving, check_held
from .summary import duration

DEFAULT = "sirt,tv,root-tv,dip-tv,diffusion"
RANKED, PAGE = "compare.json", "compare.html"


@dataclass(frozen=True)
class CompareMethods:
    """Reconstruct a series by several methods and rank them by how well they predict tilts that none of them has seen.

    Each has its run in a folder of its own, with its report; one page shows the volumes side by side. Those expected
    to be quick come first; what does not fit into the time any more is left out. The same command goes on with what is
    there.
    """

    file: Annotated[str | None, Positional, arg(metavar="FILE", help_behavior_hint=NONE)] = None
    """The tilt series, as for jaxtomo reconstruct."""
    methods: Annotated[str, arg(metavar="NAME,NAME,...")] = DEFAULT
    """Which ones."""
    minutes: Annotated[float, arg(metavar="N")] = 30.0
    """The time for all together; the first of them is always tried, and none is stopped once it runs."""
    hold_out: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: a tenth of the tilts)")] = None
    """Tilts that are left out, spread over the range, and predicted."""
    weights: Annotated[str | None, arg(metavar="nano|fibsem|DIR", help_behavior_hint=NONE)] = None
    """Of diffusion or gan, as for jaxtomo reconstruct."""
    thickness: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the images' width)")] = None
    """Voxels along the beam."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Of whatever is random in a method."""
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: NAME-methods)")] = None
    """The folder of all runs."""
    reading: Reading = field(default_factory=Reading)
    preparing: Preparing = field(default_factory=Preparing)
    showing: Showing = field(default_factory=Showing)


def run(settings: CompareMethods, console: Console) -> Outcome:
    source = required(settings.file, "FILE")
    names = [name.strip() for name in settings.methods.split(",") if name.strip()]
    unknown = [name for name in names if name not in methods.NAMES]
    if unknown or len(set(names)) < 2 or len(set(names)) < len(names):
        raise UsageError(f"--methods {settings.methods}: give two or more of {', '.join(methods.NAMES)}.")
    if not (math.isfinite(settings.minutes) and settings.minutes > 0):
        raise UsageError(f"--minutes {settings.minutes:g}: give a number above 0.")
    if settings.hold_out is not None and settings.hold_out < 1:
        raise UsageError(f"--hold-out {settings.hold_out}: give 1 or more, by which methods can be ranked.")
    if hosts.several():
        raise InputError("compare methods: not on several hosts. Start it on one.")
    from ..io import inspect

    folder = Path(settings.out or f"{Path(source).stem.strip('*_.-') or 'series'}-methods")
    facts = inspect(source, **settings.reading.arguments())
    device.start()
    free = device.memory(None)
    *_, count, _, _ = facts["shape"]
    held = max(1, count // 10) if settings.hold_out is None else settings.hold_out
    check_held(held, facts, settings.reading)
    asked = {name: _asked(settings, name, folder / name, held) for name in names}
    expected, unplanned = {}, {}
    for name, one in asked.items():
        try:
            expected[name] = planned(one, facts, None, free).seconds
        except InputError as error:
            unplanned[name] = str(error)
    finished = {name for name in expected if run_folder.is_run(folder / name)}

    def attempt(name: str) -> Mapping[str, Any]:
        running = replace(asked[name].running, resume=name in finished)
        return reconstruct(replace(asked[name], running=running), console).document

    found, left = contest(expected, attempt, settings.minutes, console, finished)
    left = unplanned | left
    if not found:
        raise InputError(f"{source}: no method could be run. " + "; ".join(f"{n}: {why}" for n, why in left.items()))
    ranked = list(found)
    lines = [_line(i + 1, name, found[name]) for i, name in enumerate(ranked)]
    document = {
        "file": str(source),
        "folder": str(folder),
        "held_out_tilts_deg": found[ranked[0]]["metrics"].get("held_out_tilts_deg"),
        "ranked": ranked,
        "methods": {name: {"metrics": _numbers(found[name]), "seconds": _seconds(found[name])} for name in ranked},
        "left_out": left,
    }
    _page(folder, source, ranked, lines, left)
    from ..io.atomic import replacing

    with replacing(folder / RANKED) as partial:
        partial.write_text(as_json(document) + "\n")
    rows = [(line[1], f"{line[2]} on unseen tilts, {line[4]}, {line[6]}") for line in lines]
    rows += [(name, f"left out: {why}") for name, why in left.items()]
    text = f"{ranked[0]} predicts unseen tilts best\n{table([*rows, ('side by side', folder / PAGE)])}"
    return Outcome(text, document)


def _asked(settings: CompareMethods, name: str, folder: Path, held: int) -> Reconstruct:
    solving = Solving(
        method=name,  # type: ignore[arg-type]
        thickness=settings.thickness,
        hold_out=held,
        seed=settings.seed,
        weights=settings.weights if name in methods.LEARNED else None,
    )
    showing = replace(settings.showing, json=False)
    return Reconstruct(settings.file, settings.reading, settings.preparing, solving, Running(out=str(folder)), showing)


def _seconds(facts: dict) -> float:
    return round(sum(facts["seconds"].values()), 1)


def _numbers(facts: dict) -> dict[str, Any]:
    return {name: value for name, value in facts["metrics"].items() if isinstance(value, int | float)}


HEAD = ("", "method", "error on unseen tilts", "even from odd tilts", "FSC 0.143 at", "not determined", "time")


def _line(rank: int, name: str, facts: dict) -> tuple[str, ...]:
    metrics = facts["metrics"]

    def share(value) -> str:
        return "-" if value is None or not math.isfinite(value) else f"{100 * value:.3g} %"

    voxels, nm = resolution(facts), metrics.get("resolution_nm")
    length = f"{nm:.3g} nm" if nm and math.isfinite(nm) else f"{voxels:.3g} voxels" if math.isfinite(voxels) else "-"
    weight = f", weight {facts['weight']:g}" if facts.get("weight") else ""
    return (
        str(rank),
        name + weight,
        share(metrics.get("held_out_error")),
        share(metrics.get("prediction_error")),
        length,
        share(metrics.get("supplied_share")),
        duration(_seconds(facts)),
    )


def _page(folder: Path, source: str, ranked: list[str], lines: list[tuple[str, ...]], left: dict[str, str]) -> None:
    """The volumes side by side, the best first, with their numbers and links to their reports."""
    from .. import plot, viewer
    from ..io import read_volume
    from ..io.atomic import replacing
    from ..markup import as_table

    planes: dict[str, list[np.ndarray]] = {}
    for name in ranked:
        volume = read_volume(folder / name / "volume.mrc")[0]
        z, y, x = (n // 2 for n in volume.shape)
        planes[name] = [volume[:, y], volume[z], volume[:, :, x].T]
    drawn = plot.to_svg(plot.pictures(planes), "Planes through the middle of every volume")
    rows = "".join(f"<p>{viewer.escape(name)}: left out. {viewer.escape(why)}</p>" for name, why in left.items())
    links = ", ".join(f'<a href="{name}/report.html">{name}</a>' for name in ranked)
    body = (
        f"<header><p class='kind'>Methods compared</p><h1>{viewer.escape(Path(source).name)}</h1></header><main>"
        f"<section><h2>Numbers</h2>{as_table(lines, HEAD)}<p>Ranked by the relative error of tilts that no method has "
        "seen. That is about what is measured: of the missing wedge no tilt says anything, and a method that supplies "
        f"much there is not punished for it. Reports: {links}.</p>{rows}</section>"
        f"<section><h2>Volumes</h2><figure>{drawn}<figcaption>From the left: xz, the beam upwards; xy; zy. One grey "
        "scale a column, that of the first row.</figcaption></figure></section></main>"
    )
    with replacing(folder / PAGE) as partial:
        partial.write_text(viewer.page(f"{Path(source).name}: methods compared", body), encoding="utf-8")
