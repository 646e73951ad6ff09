"""The files beside the images: angles, .mdoc and acquisition log, added to the facts of the images themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from .angles import from_file
from .log import agreeing_log
from .mdoc import Mdoc, read_mdoc
from .raw import Fact, Raw, Trouble, guarded


def with_side_files(raw: Raw) -> Raw:
    """`raw` with the facts of `x.rawtlt`, `x.tlt`, `x.mdoc`, `x.mrc.mdoc`, `x.csv` and a microscope log beside `x.mrc`.

    A `.csv` is looked at only when nothing else states angles. For an aligned stack (`.ali`) IMOD's refined `.tlt`
    takes the place of the nominal angles.
    """
    with guarded(raw.path, "a folder"):
        found = {kind: _existing(raw.path, kind) for kind in ("rawtlt", "tlt", "mdoc", "csv")}
    refined = raw.path.suffix == ".ali" and found["tlt"] is not None
    for kind, path in found.items():
        if path is None or (kind == "rawtlt" and refined) or (kind == "csv" and raw.angles):
            continue
        try:
            raw = (
                _with_mdoc(raw, path, read_mdoc(path), refined) if kind == "mdoc" else _with_angles(raw, path, refined)
            )
        except InputError as error:
            raw = raw.replace(unread=(*raw.unread, Trouble(str(error), "Or give angles=... (--angles).")))
    raw = _with_log(raw)
    imod = raw.path.suffix in (".st", ".ali", ".preali") and (found["tlt"] or found["rawtlt"])
    if imod and raw.convention is None and not raw.dialect.startswith("FEI"):
        raw = raw.replace(
            convention=Fact(0.0, f"IMOD's convention for {raw.path.suffix} files (nothing states an axis)")
        )
    return raw


def _existing(image: Path, kind: str) -> Path | None:
    for path in (image.with_suffix(f".{kind}"), image.with_name(f"{image.name}.{kind}")):
        if path != image and path.is_file():
            return path
    return None


def _with_angles(raw: Raw, path: Path, refined: bool) -> Raw:
    fact = Fact(from_file(path), path.name, beside=True)
    if refined:
        nominal = [f for f in raw.angles if len(f.value) == len(fact.value)]
        apart = max((float(np.max(np.abs(f.value - fact.value))) for f in nominal), default=0.0)
        source = f"{path.name} (refined; IMOD's file for .ali stacks; up to {apart:.2f} degrees from the nominal ones)"
        return raw.replace(angles=(Fact(fact.value, source, beside=True),), beside=(*raw.beside, path.name))
    return raw.replace(angles=(*raw.angles, fact), beside=(*raw.beside, path.name))


def _with_mdoc(raw: Raw, path: Path, mdoc: Mdoc, refined: bool) -> Raw:
    axis = mdoc.axis
    if raw.format == "TIFF":
        # SerialEM states the axis with y up; a TIFF's rows go down, which mirrors the angle about x.
        axis = tuple(Fact(180 - f.value, f"{f.source}, turned for TIFF rows that go down", beside=True) for f in axis)
    angles = () if refined or mdoc.tilt_deg is None else (mdoc.tilt_deg,)
    return raw.replace(
        angles=(*raw.angles, *angles),
        axis=(*raw.axis, *axis),
        pixel_nm=(*raw.pixel_nm, *mdoc.pixel_nm),
        order=mdoc.order,
        beside=(*raw.beside, path.name),
    )


def _with_log(raw: Raw) -> Raw:
    """Only FEI's old files need the log, and only with angles and pixel size can it be told to belong to them."""
    if raw.axis or not raw.dialect.startswith("FEI 2003") or not raw.angles or not raw.pixel_nm:
        return raw
    angles = raw.angles[0].value
    if not np.isfinite(angles).all():
        return raw
    try:
        log = agreeing_log(raw.path, raw.images.shape, angles, raw.pixel_nm[0].value)
    except (OSError, InputError):
        return raw
    if log is None:
        return raw
    source = f"{log.name}, an Xplore3D log whose tilt range, pixel size and image area are those of this file"
    return raw.replace(axis=(Fact(log.tilt_axis_deg, source, beside=True),), beside=(*raw.beside, log.name))
