"""The acquisition log that FEI's Xplore3D leaves beside a tilt series: it states the tilt axis, the MRC file not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from .text import read_text

_MOST_FILES = 50  # a folder with more text files than this is not a microscope's


@dataclass(frozen=True)
class Log:
    """What one log states: degrees, nm, and the pixels of an image (y, x)."""

    name: str
    tilt_axis_deg: float
    start_deg: float
    end_deg: float
    pixel_nm: float
    area: tuple[int, int]


def read_log(path: Path) -> Log | None:
    """The facts of an Xplore3D log, or None if the file is not one."""
    try:
        text = read_text(path)
    except InputError:
        return None

    def number(words: str) -> float | None:
        found = re.search(words + r"\D*?:\s*([-+]?\d+(?:\.\d+)?)", text)
        return float(found[1]) if found else None

    axis, pixel = number("Tilt Axis Angle"), number("Image pixel size")
    low, high = number("Max negative tilt"), number("Max positive tilt")
    area = re.search(r"Image area:\s*\((\d+), *(\d+)\),\((\d+), *(\d+)\)", text)
    if axis is None or pixel is None or low is None or high is None or area is None:
        return None
    left, top, right, bottom = map(int, area.groups())
    return Log(path.name, axis, low, high, pixel, (bottom - top, right - left))


def agreeing_log(image: Path, shape: tuple[int, ...], tilt_deg: np.ndarray, pixel_nm: float) -> Log | None:
    """The log in the folder of `image` whose tilt range, pixel size and image area are those of this series.

    The log seldom carries the name of the series, so the facts must match, and only one log may match.
    """
    texts = sorted([*image.parent.glob("*.txt"), *image.parent.glob("*.log")])[:_MOST_FILES]
    logs = [log for log in map(read_log, texts) if log is not None and _agrees(log, shape, tilt_deg, pixel_nm)]
    return logs[0] if len({log.tilt_axis_deg for log in logs}) == 1 else None


def _agrees(log: Log, shape: tuple[int, ...], tilt_deg: np.ndarray, pixel_nm: float) -> bool:
    return (
        log.area == shape[-2:]
        and abs(log.start_deg - tilt_deg.min()) < 0.5
        and abs(log.end_deg - tilt_deg.max()) < 0.5
        and abs(log.pixel_nm / pixel_nm - 1) < 0.01
    )
