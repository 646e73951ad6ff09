"""MRC stacks and volumes, in the five header dialects seen at microscopes: plain/IMOD, old FEI, FEI1, FEI2, SERI."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE, get_ext_header_dtype

from ..errors import InputError
from .mdoc import TITLE_AXIS
from .raw import Fact, Images, Raw, guarded

_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_UNSUPPORTED = {3: "complex int16", 4: "complex float32", 16: "RGB", 101: "4-bit"}
_IMOD_STAMP = 1146047817
Order = Literal["<", ">"]  # little- or big-endian
_ORDERS: tuple[Order, Order] = ("<", ">")
_OLD_FEI_RECORD = 128  # bytes


def read_mrc(path: Path) -> Raw:
    """Read the header of an MRC file; the images stay on disk.

    Raises InputError if the header does not describe the file: sizes, mode, truncation.
    """
    size = path.stat().st_size
    with guarded(path, "an MRC file"), path.open("rb") as file:
        head = file.read(1024)
    header, order = _parse(path, head, size)
    nx, ny, nz = (int(header[n]) for n in ("nx", "ny", "nz"))
    offset = 1024 + int(header["nsymbt"])
    labels = [bytes(label).decode("latin-1").strip("\0 ") for label in header["label"][: max(0, int(header["nlabl"]))]]
    dtype, signed_note = _dtype(header, order)
    needed = offset + nx * ny * nz * dtype.itemsize
    if size < needed:
        whole = max(0, size - offset) // (nx * ny * dtype.itemsize)
        raise InputError(
            f"{path}: truncated: its header promises {nz} images of {nx} x {ny} ({needed} bytes), the file has {size} "
            f"bytes, {whole} whole images. Copy it again from the microscope."
        )
    notes = [signed_note] if signed_note else []
    if size > needed:
        notes.append(f"{size - needed} bytes after the last image were ignored.")
    with guarded(path, "an MRC file"), path.open("rb") as file:
        file.seek(1024)
        extended = file.read(min(offset - 1024, 16 * 2**20))
    dialect, angles, axis, pixel = _extended(header, order, extended, nz, labels)
    stamp = int.from_bytes(bytes(header["extra2"])[40:44], "little" if order == "<" else "big", signed=True)
    if stamp == _IMOD_STAMP and dialect == "plain":
        dialect = "IMOD"
    axis += [Fact(float(found[1]), "a label of the MRC header") for found in map(TITLE_AXIS.search, labels) if found]
    convention = None
    if stamp == _IMOD_STAMP and not dialect.startswith("FEI"):
        convention = Fact(0.0, "IMOD's convention for its own files (nothing states an axis)")
    pixel += _voxel(header, labels)
    low, high = float(header["dmin"]), float(header["dmax"])
    return Raw(
        path=path,
        format="MRC",
        dialect=f"{dialect}, mode {int(header['mode'])}, {'little' if order == '<' else 'big'}-endian",
        images=Images((nz, ny, nx), dtype, lambda box: _fetch(path, dtype, offset, (nz, ny, nx), box)),
        angles=tuple(angles),
        axis=tuple(axis),
        pixel_nm=tuple(pixel),
        convention=convention,
        transformed=any(re.search(r"NEWST.*transformed", label) for label in labels),
        range=(low, high) if np.isfinite([low, high]).all() and low < high else None,
        notes=tuple(notes),
    )


def _fetch(path: Path, dtype: np.dtype, offset: int, shape: tuple[int, ...], box) -> np.ndarray:
    return np.array(np.memmap(path, dtype, "r", offset, shape)[box])


def looks_like_mrc(head: bytes, size: int) -> bool:
    """Whether 1024 bytes can be an MRC header. The old dialects have no magic word, so sizes must make sense."""
    return len(head) == 1024 and any(_wrong(head, size, order) is None for order in _ORDERS)


def _wrong(head: bytes, size: int, order: Order) -> str | None:
    """What is wrong with the header read in byte order `order`; None if it can be true."""
    header = np.frombuffer(head, HEADER_DTYPE.newbyteorder(order))[0]
    nx, ny, nz, mode, extended = (int(header[n]) for n in ("nx", "ny", "nz", "mode", "nsymbt"))
    if not all(0 < n < 2**20 for n in (nx, ny, nz)):
        return f"{nx} x {ny} x {nz} images"
    if mode not in _MODES and mode not in _UNSUPPORTED:
        return f"mode {mode}"
    if not 0 <= extended <= max(0, size - 1024):
        return f"an extended header of {extended} bytes"
    return None


def _parse(path: Path, head: bytes, size: int) -> tuple[np.void, Order]:
    """The header and its byte order. Machine stamps are often wrong, so the order is the one that makes sense."""
    if len(head) < 1024:
        raise InputError(f"{path}: {size} bytes is less than an MRC header. It is truncated: copy it again.")
    wrong: dict[Order, str | None] = {order: _wrong(head, size, order) for order in _ORDERS}
    good: list[Order] = [order for order, what in wrong.items() if what is None]
    if not good:
        raise InputError(
            f"{path}: its MRC header is damaged: it states {wrong['<']}. Copy it again from the microscope."
        )
    order = good[0]
    header = np.frombuffer(head, HEADER_DTYPE.newbyteorder(order))[0]
    if len(good) == 2 and bytes(header["machst"][:2]) == b"\x11\x11":  # both make sense: believe the machine stamp
        order = good[1]
        header = np.frombuffer(head, HEADER_DTYPE.newbyteorder(order))[0]
    mode = int(header["mode"])
    if mode in _UNSUPPORTED:
        raise InputError(
            f"{path}: holds {_UNSUPPORTED[mode]} pixels (mode {mode}), which are not projections. "
            "Convert it with IMOD's newstack -mode 2."
        )
    axes = [int(header[n]) for n in ("mapc", "mapr", "maps")]
    if axes != [1, 2, 3] and sorted(axes) == [1, 2, 3]:  # old writers leave other numbers there: no statement
        raise InputError(
            f"{path}: stores its axes in the order {axes}, not x, y, z. Convert it with IMOD's clip or trimvol."
        )
    return header, order


def _dtype(header: np.void, order: Order) -> tuple[np.dtype, str]:
    """Pixel type, and a sentence when it is bytes: MRC 2014 says that they are signed, older writers differ."""
    mode = int(header["mode"])
    if mode != 0:
        return np.dtype(_MODES[mode]).newbyteorder(order), ""
    extra = bytes(header["extra2"])
    byteorder = "little" if order == "<" else "big"
    if int.from_bytes(extra[40:44], byteorder, signed=True) == _IMOD_STAMP:
        signed = bool(int.from_bytes(extra[44:48], byteorder) & 1)
        why = "IMOD's flags"
    elif float(header["dmax"]) > 127:
        signed, why = False, f"the header's maximum of {float(header['dmax']):g}"
    else:
        signed, why = True, "the MRC 2014 standard"
    kind = "signed" if signed else "unsigned"
    return np.dtype("i1" if signed else "u1"), f"Bytes read as {kind}, by {why}."


def _voxel(header: np.void, labels: list[str]) -> list[Fact]:
    """Pixel size from the cell. Exactly 1 Å is what programs write when they do not know, unless jaxtomo wrote it."""
    ours = any("jaxtomo" in label for label in labels)
    found = []
    for side, count in (("x", "mx"), ("y", "my")):
        cell, n = float(header["cella"][side]), int(header[count])
        if np.isfinite(cell) and cell > 0 and n > 0 and (ours or abs(cell / n - 1) > 1e-6):
            found.append(Fact(cell / n / 10, f"the MRC header's cell size along {side}"))
    return found if len(found) < 2 or abs(found[0].value / found[1].value - 1) > 1e-3 else found[:1]


def _extended(header: np.void, order: Order, data: bytes, nz: int, labels: list[str]):
    """(dialect, angles, axis, pixel) from the extended header. Zeros all through mean "not recorded"."""
    kind = bytes(header["exttyp"])
    nint, nreal = map(int, np.frombuffer(bytes(header["extra2"])[16:20], order + "i2"))
    if kind in (b"FEI1", b"FEI2"):
        return _new_fei(kind, order, data, nz)
    if kind == b"SERI" or (kind.strip(b"\0 ") == b"" and nint > 0 and _seri_bytes(nreal) == nint):
        return _seri(order, data, nint, nreal, nz)
    agard = kind == b"AGAR" or (kind.strip(b"\0 ") == b"" and (nint + nreal) * 4 == _OLD_FEI_RECORD)
    if data and (agard or (len(data) % _OLD_FEI_RECORD == 0 and any("Fei Company" in label for label in labels))):
        return _old_fei(order, data, nz)
    return "plain", [], [], []


def _old_fei(order: Order, data: bytes, nz: int):
    records = np.frombuffer(data[: len(data) // _OLD_FEI_RECORD * _OLD_FEI_RECORD], order + "f4")
    records = records.reshape(-1, _OLD_FEI_RECORD // 4).astype(np.float64)
    source = "the FEI extended header of 2003"
    return (
        f"FEI 2003, {len(records)} records for {nz} images",
        _stated(records[:nz, 0], f"{source}, record field 0"),
        _constant(records[:nz, 10], f"{source}, record field 10"),
        _constant(records[:nz, 11] * 1e9, f"{source}, record field 11, in metres"),
    )


def _new_fei(kind: bytes, order: Order, data: bytes, nz: int):
    layout: Any = get_ext_header_dtype(kind, order)
    fields = {n: layout.fields[n] for n in ("Bitmask 1", "Alpha tilt", "Tilt axis angle", "Pixel size X")}
    stride = int(np.frombuffer(data[:4].ljust(4, b"\0"), order + "i4")[0])  # "Metadata size", in bytes
    if not max(at + t.itemsize for t, at, *_ in fields.values()) <= stride <= 2**16:
        stride = layout.itemsize
    few = np.dtype(
        {
            "names": list(fields),
            "formats": [t for t, *_ in fields.values()],
            "offsets": [at for _, at, *_ in fields.values()],
            "itemsize": stride,
        }
    )
    records = np.frombuffer(data[: len(data) // stride * stride], few)
    used = records[:nz]
    name = kind.decode()
    axis = _constant(used["Tilt axis angle"], f"the {name} extended header, Tilt axis angle")
    if not axis and used.size and (used["Bitmask 1"] & (1 << 12) != 0).all():
        # The bit says that the field was filled in, so this zero is a statement.
        axis = [Fact(0.0, f"the {name} extended header, Tilt axis angle (marked as valid)")]
    return (
        f"{name}, {len(records)} records for {nz} images",
        _stated(used["Alpha tilt"], f"the {name} extended header, Alpha tilt"),
        axis,
        _constant(used["Pixel size X"] * 1e9, f"the {name} extended header, Pixel size X in metres"),
    )


def _seri_bytes(flags: int) -> int:
    """Bytes a section that SerialEM's flags stand for: tilt, montage, stage, magnification, intensity, dose."""
    return sum(size for bit, size in enumerate((2, 6, 4, 2, 2, 4)) if flags >> bit & 1)


def _seri(order: Order, data: bytes, stride: int, flags: int, nz: int):
    if stride < 2 or not flags & 1:
        return "SERI without tilts", [], [], []
    records = np.frombuffer(data[: len(data) // stride * stride], np.uint8).reshape(-1, stride)
    tilt = np.ascontiguousarray(records[:nz, :2]).view(order + "i2").ravel() / 100
    return f"SERI, {len(records)} records for {nz} images", _stated(tilt, "SerialEM's extended header"), [], []


def _stated(values: np.ndarray, source: str) -> list[Fact]:
    values = np.asarray(values, np.float64)
    return [Fact(values, source)] if values.size and np.any(values != 0) else []


def _constant(values: np.ndarray, source: str) -> list[Fact]:
    """One fact for each different value that is not zero (to seven digits, the precision of the records)."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values) & (np.abs(values) > 1e-12) & (np.abs(values) < 1e9)]
    return [Fact(float(v), source) for v in np.unique([float(f"{v:.6g}") for v in values])[:3]]
