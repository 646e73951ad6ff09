"""DM3, DM4, SER/EMI and .zspy through rosettasciio, which is an extra because it is GPL and large."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .hspy import signal_facts
from .raw import Fact, Images, Raw, guarded
from .tiff import natural, numbered_like

_READERS = {".dm3": "digitalmicrograph", ".dm4": "digitalmicrograph", ".ser": "tia", ".emi": "tia", ".zspy": "zspy"}
SUFFIXES = tuple(_READERS)


def read_em(path: Path, suffix: str) -> Raw:
    """A file that holds a stack; a single image with a number in its name stands for all such files.

    Raises InputError with the install command when rosettasciio is absent.
    """
    signals = _signals(path, suffix)
    stacks = [s for s in signals if np.ndim(s["data"]) == 3] or signals
    if len(stacks) != 1:
        raise InputError(f"{path}: holds {len(stacks)} images or stacks. Export the tilt series alone.")
    signal = stacks[0]
    if np.ndim(signal["data"]) == 2:
        files = numbered_like(path)
        if len(files) == 1 or files[0] != path:
            raise InputError(f"{path}: holds a single image. Give the folder, or the first of numbered files.")
        return read_em_files(files, path)
    tree = signal.get("metadata", {})
    tilts = _at(tree, "Tomography", "_sig_tilts", "data")
    alpha = _at(tree, "Acquisition_instrument", "TEM", "Stage", "tilt_alpha")
    return signal_facts(
        path,
        suffix[1:].upper(),
        _images(path, suffix, signal),
        signal["axes"],
        None if tilts is None else np.asarray(tilts, np.float64).ravel(),
        None if alpha is None else np.atleast_1d(np.asarray(alpha, np.float64)),
        etspy=tilts is not None,
    )


def read_em_files(files: list[Path], path: Path) -> Raw:
    """One image a file, in natural order, each with its own stage tilt."""
    files = sorted(files, key=natural)
    suffix = files[0].suffix.lower()
    first = _signals(files[0], suffix)[0]
    alphas = np.array([_alpha(_signals(file, suffix)[0]) for file in files])
    shape = np.shape(first["data"])
    if len(shape) != 2:
        raise InputError(f"{files[0]}: has shape {shape}. Give one stack, or files of one image each.")

    def fetch(box):
        images = []
        for file in files[box[0]]:
            image = np.asarray(_signals(file, suffix)[0]["data"])
            if image.shape != shape:
                raise InputError(
                    f"{file}: is {image.shape}, but {files[0].name} is {shape}. Take it out, or rescale it."
                )
            images.append(image[box[1:]])
        return np.stack(images)

    images = Images((len(files), *shape), np.dtype(first["data"].dtype), fetch)
    raw = signal_facts(path, suffix[1:].upper(), images, [{}, *first["axes"]])
    return raw.replace(
        dialect=f"{len(files)} files",
        files=tuple(files),
        angles=(Fact(alphas, "Stage Alpha in the tags of each file"),) if np.isfinite(alphas).any() else (),
        notes=(f"{len(files)} files in natural order, {files[0].name} to {files[-1].name}.",),
    )


def _signals(path: Path, suffix: str) -> list[dict[str, Any]]:
    try:
        reader = importlib.import_module(f"rsciio.{_READERS[suffix]}")
    except ImportError as error:
        raise InputError(
            f'{path}: reading {suffix} files needs rosettasciio. Install it with: pip install "jaxtomo[em]"'
        ) from error
    with guarded(path, f"a {suffix[1:].upper()} file"):
        signals = reader.file_reader(str(path), lazy=True)
    if not signals:
        raise InputError(f"{path}: holds no image. Export the tilt series again.")
    return signals


def _images(path: Path, suffix: str, signal: dict[str, Any]) -> Images:
    data = signal["data"]

    def fetch(box):
        with guarded(path, f"a {suffix[1:].upper()} file"):
            return np.asarray(data[box])

    return Images(tuple(int(n) for n in data.shape), np.dtype(data.dtype), fetch)


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _alpha(signal: dict[str, Any]) -> float:
    """Stage alpha in degrees, where DigitalMicrograph (tags of the image) or HyperSpy's metadata keep it."""
    tags = signal.get("original_metadata", {})
    for group in (_at(tags, "ImageList") or {}).values():
        value = _at(group, "ImageTags", "Microscope Info", "Stage Position", "Stage Alpha")
        if value is not None:
            return float(value)
    value = _at(signal.get("metadata", {}), "Acquisition_instrument", "TEM", "Stage", "tilt_alpha")
    return float(value) if np.ndim(value) == 0 and value is not None else float("nan")
