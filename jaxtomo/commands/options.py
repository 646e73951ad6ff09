"""What several commands share: how a file is read, how results are shown, and what a command hands back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from ..errors import InputError


@dataclass(frozen=True)
class Outcome:
    """What a command hands back.

    Attributes:
        text: the result for a person, on stdout without `--json`.
        document: the result as plain values, on stdout with `--json`.
        code: the exit code.
        warning: why `code` is not 0, in a sentence.
    """

    text: str
    document: Mapping[str, Any] = field(default_factory=dict)
    code: int = 0
    warning: str = ""


class UsageError(Exception):
    """The flags do not make a command; exit code 2."""


def _numbers(words: list[str]) -> tuple[int, ...]:
    return tuple(int(word) for word in words[0].split(",") if word.strip())


def _gates(words: list[str]) -> dict[str, float]:
    pairs = [part.partition("=") for part in words[0].split(",") if part.strip()]
    return {name.strip(): float(value) for name, _, value in pairs}


Numbers = Annotated[
    tuple[int, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="N,N,...",
        instance_from_str=_numbers,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    ),
]
"""Whole numbers, written 3,5,7."""

Gates = Annotated[
    Mapping[str, float],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME=NUMBER,...",
        instance_from_str=_gates,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [",".join(f"{name}={bound:g}" for name, bound in value.items())],
    ),
]
"""Names of metrics with the worst value allowed, written psnr=30,ssim=0.9."""

FROM_FILE = "(default: as the file states)"
NONE = ""
TRANSIENT = frozenset(
    {"out", "resume", "overwrite", "dry_run", "devices", "memory", "fail_under", "showing", "minutes"}
)
"""Settings that are not part of what a run computes: not kept in config.toml, free to change when it goes on."""


@dataclass(frozen=True)
class Reading:
    """What the file does not state, or states wrongly."""

    angles: Annotated[str | None, arg(metavar="FILE|START:STOP:STEP", help_behavior_hint=FROM_FILE)] = None
    """Tilt angles in degrees: a file with one a line, a range such as -60:60:2, or header for the file's own where a
    file beside it disagrees."""
    tilt_axis: Annotated[str | None, arg(metavar="x|y|DEG", help_behavior_hint=FROM_FILE)] = None
    """Direction of the tilt axis in the images: x, y, or degrees counter-clockwise from y (IMOD's RotationAngle)."""
    pixel_nm: Annotated[float | Literal["unknown"] | None, arg(metavar="NM|unknown", help_behavior_hint=FROM_FILE)] = (
        None
    )
    """Pixel size in nm."""
    skip: Annotated[Numbers, arg(help_behavior_hint=NONE)] = ()
    """Images to leave out, numbered from 0 in the file's order."""
    fill_nan: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Replace pixels that are NaN or infinite by the median of their neighbours."""
    dataset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint=NONE)] = None
    """Which array, in a file that holds several."""

    def arguments(self) -> dict[str, Any]:
        """As `jaxtomo.read` and `jaxtomo.io.inspect` take them."""
        return {
            "angles": self.angles,
            "tilt_axis": self.tilt_axis,
            "pixel_nm": self.pixel_nm,
            "skip": self.skip,
            "fill_nan": self.fill_nan,
            "dataset": self.dataset,
        }


@dataclass(frozen=True)
class Showing:
    """What is printed, and where settings come from."""

    json: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Print one JSON document to stdout, and nothing else there."""
    quiet: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """No messages and no progress on stderr, errors only."""
    config: Annotated[str | None, arg(metavar="FILE.toml", help_behavior_hint=NONE)] = None
    """Settings from a TOML file, such as a run's config.toml; flags win over it."""
    debug: Annotated[bool, arg(help_behavior_hint=NONE)] = False
    """Show the traceback of an internal error."""


def required(value: str | None, name: str) -> str:
    """`value`, or UsageError if it was not given."""
    if value is None:
        raise UsageError(f"{name} is missing.")
    return value


def refuse_taken(places: Iterable[Path], overwrite: bool) -> None:
    """Raises InputError if a file to be written is there already and may not be replaced."""
    for place in places:
        if place.exists() and not overwrite:
            raise InputError(f"{place}: is there already. Replace it with --overwrite, or give another name (--out).")


HIGHER_IS_BETTER = frozenset({"psnr", "ssim"})


def check_gates(gates: Mapping[str, float], known: tuple[str, ...]) -> None:
    """Raises UsageError for a gate on a metric that this command does not compute."""
    for name in gates:
        if name not in known:
            raise UsageError(f"--fail-under {name}: no such metric. There are {', '.join(known)}.")


def missed_gates(gates: Mapping[str, float], metrics: Mapping[str, Any]) -> list[str]:
    """A sentence for each metric that is worse than its gate, or was not measured."""
    missed = []
    for name, bound in gates.items():
        value = metrics.get(name)
        if value is None or value != value:
            missed.append(f"{name} was not measured")
        elif (value < bound) if name in HIGHER_IS_BETTER else (value > bound):
            missed.append(f"{name} is {value:.4g}, worse than {bound:g}")
    return missed


def rows_asked(text: str | None) -> slice | None:
    """`A:B` as a slice. Raises UsageError for anything else."""
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    if not colon or not start.strip().isdigit() or not stop.strip().isdigit() or int(start) >= int(stop):
        raise UsageError(f"--slab {text}: write two row numbers, the first smaller, as in 100:164.")
    return slice(int(start), int(stop))


def images_after(facts: Mapping[str, Any], reading: Reading, binning: int) -> tuple[int, int, int]:
    """(tilts, rows, width) of a series with these headers as it will be read and binned."""
    *_, count, ny, nx = facts["shape"]
    turns = 0 if facts["tilt_axis"] is None else facts["tilt_axis"]["quarter_turns"]
    rows, width = (n // binning for n in ((ny, nx) if turns % 2 == 0 else (nx, ny)))
    return count - len(reading.skip), rows, width
