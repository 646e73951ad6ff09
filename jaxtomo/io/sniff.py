"""What a path really is, told by its first bytes and not by its extension, and the reader for it."""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
from pathlib import Path

from ..errors import InputError
from .raw import Raw, guarded

# First bytes of formats that are read here. An MRC file of the old dialects has none: see `mrc.looks_like_mrc`.
_MAGIC = {
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\x93NUMPY": "npy",
    b"PK\x03\x04": "npz",
    b"MATLAB 5.0": "MAT",
    b"\0\0\0\3": "DM3",
    b"\0\0\0\4": "DM4",
    b"II\x97\x01": "SER",
}
# First bytes of what people give by mistake, and what to do about it.
_STRANGERS = {
    b"\x1f\x8b": ("a gzip archive", "Unpack it with gunzip."),
    b"BZh": ("a bzip2 archive", "Unpack it with bunzip2."),
    b"\xfd7zXZ": ("an xz archive", "Unpack it with unxz."),
    b"7z\xbc\xaf": ("a 7-Zip archive", "Unpack it."),
    b"\x89PNG": ("a PNG picture", "Export the measured intensities as TIFF or MRC."),
    b"\xff\xd8\xff": ("a JPEG picture", "Export the measured intensities as TIFF or MRC."),
    b"%PDF": ("a PDF document", "Give the image file."),
    b"<": ("an XML or HTML text", "Give the image file."),
}
_EXPECTED = {
    ".mrc": "MRC", ".st": "MRC", ".ali": "MRC", ".preali": "MRC", ".rec": "MRC", ".map": "MRC", ".mrcs": "MRC",
    ".tif": "TIFF", ".tiff": "TIFF", ".h5": "HDF5", ".hdf5": "HDF5", ".nxs": "HDF5", ".emd": "HDF5", ".hspy": "HDF5",
    ".npy": "npy", ".npz": "npz", ".mat": "MAT", ".dm3": "DM3", ".dm4": "DM4", ".ser": "SER",
}  # fmt: skip


def open_raw(path, dataset: str | None = None) -> Raw:
    """Read what the path states, images left on disk. A folder or a pattern (`*.tif`) is a sequence of images.

    Raises InputError for anything that is not a readable image file.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        raise InputError(f"{text!r}: is no path. Give the path of an image file.")
    path = Path(text)
    with guarded(path, "a path"):
        if path.is_dir():
            return _open_folder(path, dataset)
        if not path.exists():
            if glob.has_magic(text):
                return _open_sequence(path, [Path(p) for p in glob.glob(text)], dataset)
            raise InputError(f"{path}: there is no such file. {_suggestion(path)}")
        if not path.is_file():
            raise InputError(f"{path}: is not a regular file. Give the path of an image file.")
        with path.open("rb") as file:
            head = file.read(1024)
    kind = _kind(path, head)
    raw = _read(path, kind, dataset)
    expected = _EXPECTED.get(path.suffix.lower())
    if expected is not None and expected != kind and not (expected == "MAT" and kind == "HDF5"):
        raw = raw.replace(notes=(*raw.notes, f"The file is {kind}, although its name ends in {path.suffix}."))
    return raw


def sha256(path) -> str:
    """SHA-256 (hex) of a file's bytes; of a folder or pattern, of its files' names and bytes in sorted order."""
    path = Path(path)
    with guarded(path, "a file"):
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        inside = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path)))
        files = sorted(p for p in inside if p.is_file())
        if not files:
            raise InputError(f"{path}: there is no such file. Check the path.")
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{file.name} {sha256(file)}\n".encode())
        return digest.hexdigest()


def _kind(path: Path, head: bytes) -> str:
    """The format's name, or an InputError that says what the file is instead."""
    from .mrc import looks_like_mrc

    if not head:
        raise InputError(f"{path}: is empty (0 bytes). Copy it again from the microscope.")
    size = path.stat().st_size
    expected = _EXPECTED.get(path.suffix.lower())
    if head[208:212] == b"MAP " or (expected == "MRC" and looks_like_mrc(head, size)):
        return "MRC"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head.startswith(b"MATLAB 7.3") or head[512:520] == b"\x89HDF\r\n\x1a\n":
        return "HDF5"
    for magic, (what, cure) in _STRANGERS.items():
        if head.startswith(magic):
            raise InputError(f"{path}: is {what}, not an image file of a tilt series. {cure}")
    if looks_like_mrc(head, size):
        return "MRC"
    if expected == "MRC":
        return "MRC"  # its reader says what is wrong with the header
    if _is_text(head):
        raise InputError(
            f"{path}: is a text file, not images. Give the image file; angles go to angles=... (--angles)."
        )
    what = f"is not a {expected} file, whatever its name says" if expected else "is of no known format"
    raise InputError(
        f"{path}: {what} (it begins with {head[:8]!r}). "
        "Give MRC, TIFF, HDF5, EMD, NumPy, MATLAB, DM3 or DM4, or export it again."
    )


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n\f" for byte in head)


def _read(path: Path, kind: str, dataset: str | None) -> Raw:
    """Call the reader. Each is imported only when it is needed: h5py and tifffile take a while."""
    with guarded(path, f"a{'n' if kind[0] in 'HMn' else ''} {kind} file"):
        match kind:
            case "MRC":
                from .mrc import read_mrc

                return read_mrc(path)
            case "TIFF":
                from .tiff import read_tiff

                return read_tiff(path)
            case "HDF5":
                from .hdf5 import read_hdf5

                return read_hdf5(path, dataset)
            case "npy":
                from .numpy_mat import read_npy

                return read_npy(path)
            case "npz":
                from .numpy_mat import read_npz

                return read_npz(path, dataset)
            case "MAT":
                from .numpy_mat import read_mat5

                return read_mat5(path, dataset)
            case _:
                from .em import read_em

                return read_em(path, f".{kind.lower()}")


def _open_folder(path: Path, dataset: str | None) -> Raw:
    from .zarr_store import is_zarr, read_zarr

    if is_zarr(path):
        if path.suffix == ".zspy":
            from .em import read_em

            return read_em(path, ".zspy")
        return read_zarr(path, dataset)
    return _open_sequence(path, [p for p in path.iterdir() if p.is_file()], dataset)


def _open_sequence(path: Path, files: list[Path], dataset: str | None) -> Raw:
    """The images among `files`, which must be of one kind."""
    from .tiff import SUFFIXES, natural, read_pages

    kinds = {
        kind: sorted((f for f in files if f.suffix.lower() in kind), key=natural)
        for kind in (SUFFIXES, (".dm3",), (".dm4",))
    }
    kinds = {kind: found for kind, found in kinds.items() if found}
    if len(kinds) != 1:
        raise InputError(
            f"{path}: {len(kinds) or 'no'} kinds of numbered images (TIFF, DM3, DM4) here. "
            "Give the file of the tilt series, or a folder with its images only."
        )
    kind, found = kinds.popitem()
    if len(found) == 1:
        return open_raw(found[0], dataset)
    if kind == SUFFIXES:
        return read_pages(found, path)
    from .em import read_em_files

    return read_em_files(found, path)


def _suggestion(path: Path) -> str:
    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return "Check the path."
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {close[0]}?" if close else "Check the path."
