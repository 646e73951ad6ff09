"""Arrays as NumPy (.npy, .npz) and MATLAB (.mat, v5 and v7.3) store them, with angles found by their key names."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import InputError
from .hdf5 import array_at, attribute, lazy
from .keys import choose, with_keyed_facts
from .raw import Images, Raw, check_held, guarded


def read_npy(path: Path) -> Raw:
    """A single array `[tilt, y, x]`."""
    with guarded(path, "a NumPy file"), path.open("rb") as file:
        shape, fortran, dtype = _npy_header(path, file)
        offset = file.tell()
    images = Images(shape, dtype, lambda box: np.array(np.load(path, mmap_mode="r", allow_pickle=False)[box]))
    check_held(path, f"an array of shape {shape}", images.nbytes, path.stat().st_size - offset)
    return Raw(path, "NumPy", f"npy, {dtype}{', Fortran order' if fortran else ''}", images)


def _npy_header(path: Path, file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise InputError(f"{path}: NumPy format version {version}. Save it again with numpy.save.")
    if dtype.hasobject:
        raise InputError(f"{path}: holds Python objects, which are not read. Save a plain numeric array.")
    return tuple(int(n) for n in shape), bool(fortran), dtype


def read_npz(path: Path, dataset: str | None) -> Raw:
    """Named arrays: images by `dataset` or a known name, angles, pixel size and axis by theirs (see `keys.py`)."""
    with guarded(path, "a NumPy archive"), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        headers = {}
        for key, info in members.items():
            if not info.filename.endswith(".npy"):
                continue
            check_held(path, key, info.compress_size, path.stat().st_size)
            check_held(path, key, info.file_size, info.compress_size, packed=info.compress_type != zipfile.ZIP_STORED)
            with archive.open(info) as member:
                try:
                    headers[key] = _npy_header(path, member)  # pyright: ignore[reportArgumentType]
                except InputError:
                    continue  # an array of objects beside the images does no harm
        shapes = {key: header[0] for key, header in headers.items()}
        name = choose(path, shapes, dataset)
    shape, _, dtype = headers[name]

    def load(key: str) -> np.ndarray:
        with guarded(path, "a NumPy archive"), np.load(path, allow_pickle=False) as arrays:
            return arrays[key]

    images = Images(shape, dtype, lambda box: load(name)[box], whole=True)
    check_held(path, f"{name} {shape}", images.nbytes, members[name].file_size)
    return with_keyed_facts(Raw(path, "NumPy", f"npz, array {name}", images), shapes, load)


def read_mat73(path: Path, file: Any, dataset: str | None) -> Raw:
    """MATLAB v7.3: HDF5 with all axes reversed."""
    arrays = {k: d for k, d in file.items() if array_at(file, k) is not None and d.dtype.kind in "biuf"}
    shapes = {key: tuple(data.shape[::-1]) for key, data in arrays.items()}
    name = choose(path, shapes, dataset)
    images = lazy(path, arrays[name])
    images = images.moved(*reversed(range(len(images.shape))))
    raw = Raw(path, "MATLAB", f"v7.3, array {name}", images)
    return with_keyed_facts(raw, shapes, lambda key: _mat_value(arrays[key]), tilt_last=True)


def _mat_value(data: Any) -> np.ndarray:
    value = np.asarray(data[()]).T
    if attribute(data, "MATLAB_class") == "char":
        return np.array("".join(map(chr, value.ravel().astype(int))))
    return value


_MI = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8", 16: "u1", 17: "u2"}
_MI_MATRIX, _MI_COMPRESSED = 14, 15
_MX_CHAR, _MX_NUMERIC = 4, range(6, 16)
_MAT_DTYPE = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}


def read_mat5(path: Path, dataset: str | None) -> Raw:
    """MATLAB v5 (-v6 and -v7): plain numeric arrays, compressed or not. Structs and cells are skipped.

    Read without SciPy, so that looking at a file stays quick. [MathWorks, "MAT-File Format", 2019, chapter 1]
    """
    with guarded(path, "a MATLAB file"):
        found = _scan_mat5(path)
        shapes = {key: variable.shape for key, variable in found.items()}
        name = choose(path, shapes, dataset)

    def load(key: str) -> np.ndarray:
        with guarded(path, "a MATLAB file"):
            return _load_mat5(path, found[key])

    # A double may be stored as one byte when all values are small whole numbers.
    check_held(path, f"{name} {shapes[name]}", math.prod(shapes[name]), found[name].length, packed=found[name].packed)
    dtype = np.dtype(_MAT_DTYPE.get(found[name].mx, "u2"))
    images = Images(shapes[name], dtype, lambda box: load(name)[box], whole=True)
    return with_keyed_facts(Raw(path, "MATLAB", f"v5, array {name}", images), shapes, load, tilt_last=True)


@dataclass(frozen=True)
class _Variable:
    """Where one variable of a v5 file is: byte order, offset and length of its element, packing, shape, class."""

    order: str
    offset: int
    length: int
    packed: bool
    shape: tuple[int, ...]
    mx: int


def _scan_mat5(path: Path) -> dict[str, _Variable]:
    size = path.stat().st_size
    found = {}
    with path.open("rb") as file:
        head = file.read(128)
        if len(head) < 128:
            raise InputError(f"{path}: {size} bytes is less than a MATLAB header. It is truncated: copy it again.")
        order = "<" if head[126:128] == b"IM" else ">"
        at = 128
        while at + 8 <= size:
            file.seek(at)
            kind, length = struct.unpack(order + "II", file.read(8))
            check_held(path, "a variable", at + 8 + length, size)
            if kind in (_MI_MATRIX, _MI_COMPRESSED):
                packed = kind == _MI_COMPRESSED
                start = file.read(min(length, 4096))
                if packed:
                    start = zlib.decompressobj().decompress(start, 4096)[8:]
                if (described := _describe_mat5(start, order)) is not None:
                    name, shape, mx = described
                    found[name] = _Variable(order, at + 8, length, packed, shape, mx)
            at += 8 + length + (0 if kind == _MI_COMPRESSED else -length % 8)
    return found


def _element(data: bytes, at: int, order: str) -> tuple[int, int, int, int]:
    """(type, length, offset of the data, offset of the next element); small elements are packed in eight bytes."""
    (first,) = struct.unpack_from(order + "I", data, at)
    if first >> 16:
        return first & 0xFFFF, first >> 16, at + 4, at + 8
    (length,) = struct.unpack_from(order + "I", data, at + 4)
    return first, length, at + 8, at + 8 + length + (-length % 8)


def _describe_mat5(data: bytes, order: str) -> tuple[str, tuple[int, ...], int] | None:
    """(name, shape, class) of a full real numeric or text array; None for anything else."""
    _, _, flags_at, at = _element(data, 0, order)
    (flags,) = struct.unpack_from(order + "I", data, flags_at)
    mx, is_complex = flags & 0xFF, bool(flags & 0x800)
    _, length, dims_at, at = _element(data, at, order)
    shape = tuple(int(n) for n in np.frombuffer(data, order + "i4", length // 4, dims_at))
    _, length, name_at, _ = _element(data, at, order)
    if is_complex or (mx != _MX_CHAR and mx not in _MX_NUMERIC) or any(n < 0 for n in shape):
        return None
    return data[name_at : name_at + length].decode("latin-1"), shape, mx


def _load_mat5(path: Path, variable: _Variable) -> np.ndarray:
    order, shape, count = variable.order, variable.shape, math.prod(variable.shape)
    with path.open("rb") as file:
        file.seek(variable.offset)
        data = file.read(variable.length)
    if variable.packed:
        check_held(path, f"an array of shape {shape}", count, len(data), packed=True)
        data = zlib.decompressobj().decompress(data, 64 + 4096 + count * 8)[8:]
    end = 0
    for _ in range(3):  # flags, dimensions, name
        *_, end = _element(data, end, order)
    kind, size, start, _ = _element(data, end, order)
    stored = np.dtype(order + _MI[kind])
    check_held(path, f"an array of shape {shape}", count * stored.itemsize, min(size, len(data) - start))
    values = np.frombuffer(data, stored, count, start).reshape(shape, order="F")
    if variable.mx == _MX_CHAR:
        return np.array("".join(map(chr, values.ravel(order="F"))))
    return values.astype(np.dtype(_MAT_DTYPE[variable.mx]), copy=False)
