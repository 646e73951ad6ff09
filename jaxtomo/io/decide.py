"""From the facts a file and its side files state to one value each for angles, axis and pixel size, or a trouble.

Nothing is guessed: facts that disagree, or that nobody states, become a `Trouble` with its cure.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .angles import from_file, from_range, is_range
from .mdoc import read_mdoc
from .raw import Fact, Raw, Trouble

ANGLE_TOLERANCE_DEG = 0.1
AXIS_TOLERANCE_DEG = 1.0
PIXEL_TOLERANCE = 0.01
_GIVE_ANGLES = "Give angles='FILE' or angles='start:stop:step' in degrees (--angles)."
_GIVE_AXIS = "Give tilt_axis='x', 'y' or degrees counter-clockwise from +y (--tilt-axis)."
_GIVE_PIXEL = "Give pixel_nm=NM, or pixel_nm='unknown' to work in voxels (--pixel-nm NM)."


@dataclass(frozen=True)
class Decision:
    """A value with the sentence on where it came from, or the troubles that stand in its way (value None)."""

    value: Any
    source: str = ""
    troubles: tuple[Trouble, ...] = ()


@dataclass(frozen=True)
class Orientation:
    """How the images get their tilt axis along y: `np.rot90(images, turns)`, and the degrees that remain."""

    turns: int
    residual_deg: float


def kept_images(raw: Raw, skip: Sequence[int]) -> np.ndarray:
    """Indices of the images that stay, in file order. Raises InputError if `skip` names an image that is not there."""
    n = raw.images.shape[-3]
    try:
        dropped = sorted({int(i) for i in np.atleast_1d(np.asarray(skip, np.int64)).ravel()})
    except (TypeError, ValueError) as error:
        raise InputError(f"skip={skip!r}: not image numbers. Give a list of indices, 0 is the first.") from error
    if dropped and not 0 <= dropped[0] <= dropped[-1] < n:
        raise InputError(f"{raw.path}: skip={dropped} but images are numbered 0 to {n - 1}. Correct skip (--skip).")
    return np.setdiff1d(np.arange(n), dropped)


def decide_angles(raw: Raw, given: Any, skip: Sequence[int] = ()) -> Decision:
    """`[kept]` degrees in file order. `given`: a path, "start:stop:step", numbers, "header", or None."""
    n = raw.images.shape[-3]
    kept = kept_images(raw, skip)
    header = isinstance(given, str) and given == "header"
    if header:
        facts = [fact for fact in raw.angles if not fact.beside]
    else:
        facts = list(raw.angles) if given is None else [_given_angles(given)]
    if raw.unread and given is None:
        return Decision(None, troubles=raw.unread)
    if not facts:
        looked = ", ".join(f"{raw.path.stem}.{kind}" for kind in ("rawtlt", "tlt", "mdoc", "csv"))
        where = "in its header" if header else f"in it or beside it (looked for {looked})"
        return Decision(None, troubles=(Trouble(f"no tilt angles {where}.", _GIVE_ANGLES),))
    troubles = tuple(_count_trouble(raw, fact, n, kept.size) for fact in facts if len(fact.value) not in (n, kept.size))
    if troubles:
        return Decision(None, troubles=troubles)
    values = [np.asarray(f.value, np.float64)[kept] if len(f.value) == n else np.asarray(f.value) for f in facts]
    if (trouble := _implausible(values[0], facts[0].source)) is not None:
        return Decision(None, troubles=(trouble,))
    agreeing = []
    for fact, other in zip(facts[1:], values[1:], strict=True):
        apart = np.abs(other - values[0])
        worst = int(np.argmax(np.where(np.isnan(apart), np.inf, apart)))
        if not apart[worst] <= ANGLE_TOLERANCE_DEG:
            what = (
                f"image {kept[worst]} is at {values[0][worst]:g} degrees by {facts[0].source} "
                f"but at {other[worst]:g} by {fact.source}."
            )
            cure = "Say which is right: angles='header' or angles='FILE' (--angles)."
            return Decision(None, troubles=(Trouble(what, cure),))
        agreeing.append(fact.source)
    source = f"{kept.size} angles from {values[0].min():g} to {values[0].max():g} degrees, from {facts[0].source}"
    if given is not None and not header and raw.angles:
        source += f"; not used: {', '.join(fact.source for fact in raw.angles)}"
    if agreeing:
        source += f"; {' and '.join(agreeing)} agree{'s' if len(agreeing) == 1 else ''}"
    return Decision(values[0], source + ".")


def _given_angles(given: Any) -> Fact:
    if isinstance(given, str) and is_range(given):
        return Fact(from_range(given), f"the range {given} given")
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        if path.suffix.lower() == ".mdoc":
            tilt = read_mdoc(path).tilt_deg
            if tilt is None:
                raise InputError(f"{path}: states no TiltAngle. {_GIVE_ANGLES}")
            return Fact(tilt.value, f"{path.name}, as given")
        return Fact(from_file(path), f"{path.name}, as given")
    try:
        return Fact(np.asarray(given, np.float64).reshape(-1), "the numbers given")
    except (TypeError, ValueError) as error:
        raise InputError(f"angles={given!r:.60}: not numbers in degrees. {_GIVE_ANGLES}") from error


def _count_trouble(raw: Raw, fact: Fact, n: int, kept: int) -> Trouble:
    count = len(fact.value)
    images = f"{n} images" if kept == n else f"{n} images, {kept} after skip,"
    cure = _GIVE_ANGLES
    if fact.beside and any(not other.beside and len(other.value) == n for other in raw.angles):
        cure = "Give angles='header' to use the file's own, or another list (--angles)."
    elif count == n - 1:
        cure = f"{_GIVE_ANGLES} Or drop the image without an angle: skip=[{n - 1}] drops the last (--skip {n - 1})."
    shape = raw.images.shape
    if count in shape[-2:] and count != n:
        cure += f" The array is {shape}: if another axis is the tilts, save it as [tilt, y, x]."
    return Trouble(f"{images} but {count} angles in {fact.source}.", cure)


def _implausible(degrees: np.ndarray, source: str) -> Trouble | None:
    n = degrees.size
    if not np.isfinite(degrees).all():
        return Trouble(
            f"{np.count_nonzero(~np.isfinite(degrees))} of {n} angles in {source} are missing or not finite.",
            _GIVE_ANGLES,
        )
    if n < 2:
        return Trouble("one image only; a tilt series has at least two.", "Give the stack with all tilts.")
    low, high = float(degrees.min()), float(degrees.max())
    if max(-low, high) > 360:
        return Trouble(f"angles from {low:g} to {high:g} degrees in {source} are none.", _GIVE_ANGLES)
    if high - low < 1e-6:
        return Trouble(f"all {n} angles in {source} are {low:g} degrees.", _GIVE_ANGLES)
    half_turn = low >= 0 and high <= np.pi + 0.02
    if n > 10 and (max(-low, high) <= np.pi / 2 + 0.05 or half_turn):
        return Trouble(
            f"{n} angles from {low:.4g} to {high:.4g} in {source} look like radians.",
            "Give them in degrees: angles=numpy.rad2deg(...), or a corrected file (--angles).",
        )
    return None


def decide_axis(raw: Raw, given: Any) -> Decision:
    """An `Orientation`. `given`: "x", "y", degrees counter-clockwise from +y (IMOD's RotationAngle), or None."""
    if given is not None:
        degrees = {"y": 0.0, "x": -90.0}.get(str(given).strip().lower())
        try:
            degrees = float(given) if degrees is None else degrees
        except (TypeError, ValueError) as error:
            raise InputError(f"tilt_axis={given!r}: is neither x, y nor degrees. {_GIVE_AXIS}") from error
        if not np.isfinite(degrees):
            raise InputError(f"tilt_axis={given!r}: is not a finite angle. {_GIVE_AXIS}")
        source = f"tilt_axis={given} as given"
    elif raw.axis:
        degrees, source = float(raw.axis[0].value), raw.axis[0].source
        for other in raw.axis[1:]:
            apart = abs((other.value - degrees + 180) % 360 - 180)
            if not apart <= AXIS_TOLERANCE_DEG:
                what = f"the tilt axis is at {degrees:g} degrees by {source} but at {other.value:g} by {other.source}."
                cure = f"Say which is right: tilt_axis={degrees:g} or tilt_axis={other.value:g} (--tilt-axis)."
                return Decision(None, troubles=(Trouble(what, cure),))
        if raw.transformed and degrees != 0:
            what = f"{source} puts the axis at {degrees:g} degrees, but newstack has transformed the images since."
            cure = "Give tilt_axis='y' if they are aligned, or its angle now (--tilt-axis)."
            return Decision(None, troubles=(Trouble(what, cure),))
        if not np.isfinite(degrees):
            return Decision(None, troubles=(Trouble(f"the tilt axis in {source} is not finite.", _GIVE_AXIS),))
    elif raw.convention is not None:
        degrees, source = float(raw.convention.value), raw.convention.source
    else:
        return Decision(None, troubles=(Trouble("nothing states the direction of the tilt axis.", _GIVE_AXIS),))
    degrees = (degrees + 180) % 360 - 180
    turns = round(degrees / 90)
    orientation = Orientation(turns % 4, degrees - 90 * turns)
    turned = "images not turned" if turns == 0 else f"images turned with np.rot90(k={turns}), which puts the axis on y"
    left = f", {orientation.residual_deg:g} degrees left" if orientation.residual_deg else ""
    return Decision(orientation, f"{degrees:g} degrees counter-clockwise from +y, from {source}; {turned}{left}.")


def decide_pixel(raw: Raw, given: Any) -> Decision:
    """Pixel size in nm; value None with a source, when the user says that it is unknown."""
    if isinstance(given, str) and given.strip().lower() == "unknown":
        return Decision(None, "unknown, as the user said: lengths are in pixels.")
    if given is not None:
        try:
            nm = float(given)
        except (TypeError, ValueError) as error:
            raise InputError(f"pixel_nm={given!r}: is not a number. {_GIVE_PIXEL}") from error
        if not (np.isfinite(nm) and nm > 0):
            raise InputError(f"pixel_nm={given!r}: is not a positive size. {_GIVE_PIXEL}")
        other = [fact for fact in raw.pixel_nm if abs(fact.value / nm - 1) > PIXEL_TOLERANCE]
        beaten = f"; not used: {other[0].value:g} nm of {other[0].source}" if other else ""
        return Decision(nm, f"{nm:g} nm as given{beaten}.")
    facts = [fact for fact in raw.pixel_nm if np.isfinite(fact.value) and fact.value > 0]
    if not facts:
        return Decision(None, troubles=(Trouble("nothing states the pixel size.", _GIVE_PIXEL),))
    for other in facts[1:]:
        if abs(other.value / facts[0].value - 1) > PIXEL_TOLERANCE:
            what = f"the pixel is {facts[0].value:g} nm by {facts[0].source} but {other.value:g} nm by {other.source}."
            return Decision(None, troubles=(Trouble(what, "Say which is right with pixel_nm=NM (--pixel-nm NM)."),))
    return Decision(facts[0].value, f"{facts[0].value:g} nm, from {facts[0].source}.")
