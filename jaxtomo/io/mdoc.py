"""SerialEM's .mdoc: one `[ZValue = n]` block an image, beside the images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from ..errors import InputError
from .raw import Fact
from .text import read_text

TITLE_AXIS = re.compile(r"[Tt]ilt axis angle\s*=\s*([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)")


@dataclass(frozen=True)
class Mdoc:
    """What one .mdoc states, by section.

    Attributes:
        tilt_deg: fact with `[section]` degrees, NaN where a section states none; None when no section does.
        axis: facts in degrees (`RotationAngle`, and the title's "Tilt axis angle").
        pixel_nm: facts in nm.   order: fact with the order of exposure `[section]`.
    """

    tilt_deg: Fact | None
    axis: tuple[Fact, ...]
    pixel_nm: tuple[Fact, ...]
    order: Fact | None


def read_mdoc(path: Path) -> Mdoc:
    """Parse an .mdoc. Raises InputError if its blocks are not numbered 0, 1, 2, ..."""
    head: dict[str, str] = {}
    titles: list[str] = []
    sections: dict[int, dict[str, str]] = {}
    current = head
    for line in read_text(path).splitlines():
        block = re.match(r"\s*\[\s*(\w+)\s*=\s*(.*?)\s*\]\s*$", line)
        if block and block[1] == "T":
            titles.append(block[2])
        elif block and block[1] in ("ZValue", "FrameSet"):
            number = int(block[2]) if block[2].isdigit() else len(sections)
            if number in sections:
                raise InputError(f"{path}: two blocks [{block[1]} = {number}]. Give angles=... (--angles) instead.")
            current = sections[number] = {}
        elif "=" in line and not block:
            key, value = line.split("=", 1)
            current[key.strip()] = value.strip()
    if sorted(sections) != list(range(len(sections))):
        raise InputError(
            f"{path}: its blocks are numbered {sorted(sections)[:5]}..., not 0, 1, 2, ... "
            "Give angles=... (--angles) instead."
        )
    blocks = [sections[number] for number in range(len(sections))]
    source = path.name

    def column(key: str) -> np.ndarray:
        return np.array([_first_number(block.get(key)) for block in blocks], np.float64)

    tilt = column("TiltAngle")
    axis = [
        Fact(float(title[1]), f"the title of {source}", beside=True)
        for title in map(TITLE_AXIS.search, titles)
        if title
    ]
    rotation = column("RotationAngle")
    rotation = rotation[np.isfinite(rotation)]
    if rotation.size:
        axis += [Fact(float(r), f"RotationAngle in {source}", beside=True) for r in np.unique(rotation)]
    pixel = np.append(column("PixelSpacing"), _first_number(head.get("PixelSpacing")))
    pixel = pixel[np.isfinite(pixel) & (pixel > 0)]
    return Mdoc(
        tilt_deg=Fact(tilt, source, beside=True) if np.isfinite(tilt).any() else None,
        axis=tuple(axis),
        pixel_nm=tuple(Fact(float(p) / 10, f"PixelSpacing in {source}", beside=True) for p in np.unique(pixel)),
        order=_exposure_order(blocks, column("PriorRecordDose"), source),
    )


def _first_number(text: str | None) -> float:
    try:
        return float(text.split()[0]) if text else np.nan
    except ValueError:
        return np.nan


def _exposure_order(blocks: list[dict[str, str]], dose: np.ndarray, source: str) -> Fact | None:
    """Rank of each section in time: by DateTime, else by the dose received before, else by the section number."""
    times = [_time(block.get("DateTime", "")) for block in blocks]
    if not blocks:
        return None
    if all(times) and len(set(times)) == len(times):
        keys, how = np.array(times, "datetime64[s]"), "DateTime"
    elif np.isfinite(dose).all() and np.unique(dose).size == dose.size:
        keys, how = dose, "PriorRecordDose"
    else:
        keys, how = np.arange(len(blocks)), "the section numbers"
    return Fact(np.argsort(np.argsort(keys, kind="stable"), kind="stable"), f"{how} in {source}", beside=True)


def _time(text: str) -> datetime | None:
    months = "janfebmaraprmayjunjulaugsepoctnovdec"  # not strptime's %b, which follows the user's locale
    found = re.match(r"(\d+)-([A-Za-z]{3})-(\d+)\s+(\d+):(\d+):(\d+)", text.strip())
    if not found or (place := months.find(found[2].lower())) % 3:
        return None
    day, year = int(found[1]), int(found[3])
    if day > 31:
        day, year = year, day
    try:
        hour, minute, second = map(int, found.groups()[3:])
        return datetime(year + (2000 if year < 100 else 0), place // 3 + 1, day, hour, minute, second)
    except ValueError:
        return None
