"""Tilt angles from a text file (.rawtlt, .tlt, .csv) or from `start:stop:step`."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from ..errors import InputError
from .text import read_text

_MOST = 100_000


def is_range(text: str) -> bool:
    """Whether `text` looks like `start:stop:step` rather than a path."""
    return re.fullmatch(r"[-+0-9.eE\s]+(:[-+0-9.eE\s]+){1,2}", text) is not None


def from_range(text: str) -> np.ndarray:
    """Angles of `start:stop:step` in degrees, the stop included: `-70:70:2` is 71 angles."""
    try:
        parts = [float(p) for p in text.split(":")]
    except ValueError as error:
        raise InputError(f"angles {text!r}: not numbers. Write start:stop:step in degrees, as in -70:70:2.") from error
    if len(parts) != 3 or not all(map(math.isfinite, parts)):
        raise InputError(f"angles {text!r}: needs start, stop and step. Write start:stop:step, as in -70:70:2.")
    start, stop, step = parts
    if step == 0 or (stop - start) / step < 0:
        raise InputError(
            f"angles {text!r}: the step does not lead from start to stop. Write start:stop:step, as in -70:70:2."
        )
    count = (stop - start) / step
    if count > _MOST:
        raise InputError(f"angles {text!r}: more than {_MOST} angles. Give a larger step.")
    return start + step * np.arange(math.floor(count + 1e-6) + 1)


def from_file(path: Path) -> np.ndarray:
    """Angles in degrees from a text file: one a line, or the column of a table that its heading names.

    A table without a heading may have one column, or a running number and the angle. `#` starts a comment.
    Raises InputError naming the line that is no number.
    """
    lines = [
        (number, line.split("#")[0].strip())
        for number, line in enumerate(read_text(path).replace("\r", "\n").split("\n"), 1)
    ]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise InputError(f"{path}: holds no angles. Give a file with one angle a line.")
    if len(lines) > _MOST:
        raise InputError(f"{path}: {len(lines)} lines are too many for tilt angles. Give another file.")
    separator = _separator([line for _, line in lines])
    rows = [(number, [cell for cell in re.split(separator, line) if cell]) for number, line in lines]
    heading = rows[0][1] if any(_number(cell) is None for cell in rows[0][1]) else None
    if heading is not None:
        rows = rows[1:]
    column = _column(path, heading, [cells for _, cells in rows])
    angles = []
    for number, cells in rows:
        value = _number(cells[column]) if column < len(cells) else None
        if value is None:
            raise InputError(
                f"{path}: line {number} ({' '.join(cells)[:40]!r}) is not an angle. "
                "Correct it: one angle in degrees a line."
            )
        angles.append(value)
    return np.array(angles, np.float64)


def _separator(lines: list[str]) -> str:
    """The pattern between two cells. A comma may be a decimal point, unless the numbers before it just count up."""
    if any(";" in line or "\t" in line for line in lines):
        return r"\s*[;\t]\s*"
    if not any("," in line for line in lines):
        return r"\s+"
    numbers = lines[1:] if _number(lines[0]) is None and "," not in lines[0] else lines
    before = [re.fullmatch(r"([-+\u2212]?\d+),\d+", line) for line in numbers]
    if all(before) and not _counts([int(found[1].replace("\u2212", "-")) for found in before if found]):
        return r"\s+"
    return r"\s*,\s*"


def _counts(numbers: list) -> bool:
    return numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))


def _number(cell: str) -> float | None:
    try:
        return float(cell.replace(",", ".").replace("\u2212", "-").strip("\"'"))
    except ValueError:
        return None


def _column(path: Path, heading: list[str] | None, rows: list[list[str]]) -> int:
    """Which column holds the angles; an error rather than a guess when that is not clear."""
    if not rows:
        raise InputError(f"{path}: holds no angles. Give a file with one angle a line.")
    width = max(map(len, rows))
    if width == 1:
        return 0
    if heading is not None and len(heading) == width:
        named = [i for i, cell in enumerate(heading) if re.search(r"tilt|angle|alpha|theta|deg", cell.lower())]
        if len(named) == 1:
            return named[0]
        raise InputError(
            f"{path}: {len(named)} of the columns {heading} are named as angles. "
            "Keep one column named 'tilt', in degrees."
        )
    if width == 2 and _counts([_number(row[0]) for row in rows]):
        return 1
    raise InputError(f"{path}: {width} columns and no heading. Keep one column, or head the angles with 'tilt'.")
