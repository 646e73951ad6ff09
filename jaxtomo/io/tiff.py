"""TIFF: one multi-page file, or numbered single pages in natural order (2 before 10)."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .raw import Fact, Images, Raw, check_held, guarded

SUFFIXES = (".tif", ".tiff")
_TO_NM = {2: 2.54e7, 3: 1e7}  # TIFF ResolutionUnit: inch, centimetre


def natural(path: Path) -> list:
    """Sort key that reads digits as numbers."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", path.name)]


def numbered_like(path: Path) -> list[Path]:
    """All files that differ from `path` only in the last number of their name, in natural order."""
    found = re.fullmatch(r"(.*?)(\d+)", path.stem)
    if not found:
        return [path]
    same = re.compile(re.escape(found[1]) + r"\d+" + re.escape(path.suffix))
    return sorted((p for p in path.parent.iterdir() if same.fullmatch(p.name)), key=natural)


def read_tiff(path: Path) -> Raw:
    """A multi-page TIFF as `[page, y, x]`; a single page with a number in its name stands for all such files."""
    shape, dtype, pixel = _look(path)
    if len(shape) == 3:
        return _raw(path, Images(shape, dtype, lambda box: _box(path, box)), pixel, "multi-page", ())
    files = numbered_like(path)
    if len(files) == 1:
        raise InputError(
            f"{path}: holds a single image. Give a multi-page TIFF, a folder, or the first of numbered files."
        )
    if files[0] != path:
        raise InputError(
            f"{path}: is one of {len(files)} numbered files but not the first, {files[0].name}. "
            "Give the first one or the folder."
        )
    return read_pages(files, path)


def read_pages(files: list[Path], path: Path) -> Raw:
    """Single-page TIFF files as `[file, y, x]`, in the given order."""
    shape, dtype, pixel = _look(files[0])
    if len(shape) != 2:
        raise InputError(f"{files[0]}: holds several pages, and there are other files. Give one multi-page file only.")

    def fetch(box):
        return np.stack([_page(file, shape, files[0])[box[1:]] for file in files[box[0]]])

    images = Images((len(files), *shape), dtype, fetch)
    return _raw(path, images, pixel, f"{len(files)} files", tuple(files))


def _raw(path: Path, images: Images, pixel: tuple[Fact, ...], dialect: str, files: tuple[Path, ...]) -> Raw:
    notes = (f"{len(files)} files in natural order, {files[0].name} to {files[-1].name}.",) if files else ()
    return Raw(
        path=path,
        format="TIFF",
        dialect=f"{dialect}, {images.dtype}",
        images=images,
        pixel_nm=pixel,
        notes=notes,
        files=files,
    )


class _Complaints(logging.Handler):
    """What tifffile has to say. It logs a broken chain of pages, and then reads on with fewer pages."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.broken: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if re.search(r"page offset|offset to first page|page list|tag list of page", text := record.getMessage()):
            self.broken.append(text)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open TiffFile. Raises InputError where pages are missing or damaged, which tifffile alone passes over."""
    import tifffile

    log, complaints = logging.getLogger("tifffile"), _Complaints()
    propagate, log.propagate = log.propagate, False
    log.addHandler(complaints)
    try:
        with guarded(path, "a TIFF file"), tifffile.TiffFile(path) as tiff:
            yield tiff
            if complaints.broken:
                raise ValueError(f"its chain of pages is broken: {complaints.broken[0]}")
    finally:
        log.removeHandler(complaints)
        log.propagate = propagate


def _look(path: Path) -> tuple[tuple[int, ...], np.dtype, tuple[Fact, ...]]:
    """(shape, dtype, pixel facts) of the first series, without reading pixels."""
    with _opened(path) as tiff:
        if not tiff.series:
            raise InputError(f"{path}: a TIFF file without images. Export it again.")
        series = tiff.series[0]
        shape, dtype = _shape(series), np.dtype(series.dtype or "u1")
        page = series.keyframe
        if "S" in series.axes:
            raise InputError(f"{path}: holds colour images. Export grey-level images with the measured intensities.")
        if len(shape) not in (2, 3):
            raise InputError(f"{path}: has axes {series.axes} of {shape}. Export one image a tilt.")
        claimed = dtype.itemsize * math.prod(shape)
        check_held(path, "its image data", claimed, path.stat().st_size, packed=int(page.compression) != 1)
        return shape, dtype, _pixel(tiff, page)


def _pixel(tiff, page) -> tuple[Fact, ...]:
    """Pixel size where a program for microscopy wrote it; plain TIFF resolutions are for printers and mean nothing."""
    unit = str((tiff.imagej_metadata or {}).get("unit", ""))
    scale = {"nm": 1.0, "micron": 1e3, "um": 1e3, "\\u00B5m": 1e3, "µm": 1e3, "angstrom": 0.1, "Å": 0.1}.get(unit)
    tag = page.tags.get("XResolution")
    if scale is not None and tag is not None and tag.value[0] > 0:
        return (Fact(tag.value[1] / tag.value[0] * scale, "ImageJ's calibration in the TIFF file"),)
    if tiff.is_fei and isinstance(tiff.fei_metadata, dict):
        width = tiff.fei_metadata.get("Scan", {}).get("PixelWidth")  # metres
        if isinstance(width, float) and width > 0:
            return (Fact(width * 1e9, "FEI's metadata in the TIFF file"),)
    software = page.tags.get("Software")
    if software is not None and "SerialEM" in str(software.value) and tag is not None and tag.value[0] > 0:
        unit_tag = page.tags.get("ResolutionUnit")
        nm = _TO_NM.get(int(unit_tag.value) if unit_tag is not None else 0)
        if nm:
            return (Fact(nm * tag.value[1] / tag.value[0], "SerialEM's resolution in the TIFF file"),)
    return ()


def _shape(series) -> tuple[int, ...]:
    """The shape without axes of one element, unless it is [page, y, x] already."""
    shape = tuple(int(n) for n in series.shape)
    return shape if len(shape) == 3 else tuple(n for n in shape if n != 1)


def _box(path: Path, box) -> np.ndarray:
    with _opened(path) as tiff:
        series = tiff.series[0]
        shape = _shape(series)
        if series.dataoffset is not None:
            kind = np.dtype(series.dtype).newbyteorder(tiff.byteorder)
            return np.array(np.memmap(path, kind, "r", series.dataoffset, shape)[box])
        return np.stack([series.asarray(key=i).reshape(shape[1:])[box[1:]] for i in range(shape[0])[box[0]]])


def _page(path: Path, shape: tuple[int, ...], first: Path) -> np.ndarray:
    here, *_ = _look(path)
    if here != shape:
        raise InputError(f"{path}: is {here} pixels, but {first.name} is {shape}. Take it out, or rescale it.")
    with _opened(path) as tiff:
        return tiff.series[0].asarray().reshape(shape)
