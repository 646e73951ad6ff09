"""Small files as microscopes and other programs write them, for the tests of the readers."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
from mrcfile.dtypes import HEADER_DTYPE, get_ext_header_dtype

ANGLES = np.arange(-60.0, 61.0, 20.0)  # 7 tilts
NM = 0.8


def specimen(n: int = 7, ny: int = 12, nx: int = 10) -> np.ndarray:
    """`[tilt, y, x]` float32: the mass of each row is the same at every tilt, as it is when y is the tilt axis."""
    y, x = np.arange(ny)[:, None], np.arange(nx)
    rows = 1 + np.sin(y) ** 2
    return np.stack([100 * rows * np.exp(-(((x - nx / 2 - 1.5 * np.cos(t)) / 1.5) ** 2)) + t for t in range(n)]).astype(
        np.float32
    )


def mrc(
    path: Path,
    images: np.ndarray,
    *,
    dialect: str = "plain",
    order: str = "<",
    mode: int = 2,
    angles=None,
    axis: float = 0.0,
    pixel_nm: float = NM,
    cell_nm: float | None = None,
    records: int | None = None,
    labels: tuple[str, ...] = (),
    stamp: bool = False,
    flags: int = 0,
    bitmask: int = 0,
    dmax: float = 0.0,
) -> Path:
    """An MRC file in one of the dialects plain, FEI2003, FEI1, FEI2, SERI; `records` of zeros follow the images'."""
    nz, ny, nx = images.shape
    kinds = {0: "u1" if images.min() >= 0 else "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
    count = nz if records is None else records
    values = np.zeros(count) if angles is None else np.resize(np.append(angles, np.zeros(max(0, count - nz))), count)
    header = np.zeros((), HEADER_DTYPE.newbyteorder(order))
    header["nx"], header["ny"], header["nz"], header["mode"] = nx, ny, nz, mode
    header["mx"], header["my"], header["mz"] = nx, ny, nz
    cell = 10 * (pixel_nm if cell_nm is None else cell_nm)
    header["cella"] = (cell * nx, cell * ny, cell * nz)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["dmax"] = dmax
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0) if order == "<" else (0x11, 0x11, 0, 0)
    extra = np.zeros(84, np.uint8)
    if dialect == "FEI2003":
        header["map"], header["machst"] = b"", (0, 0, 0, 0)
        labels = ("Fei Company (c) Copyright 2003", *labels)
        extra[16:20] = np.array([0, 32], order + "i2").view(np.uint8)
        block = np.zeros((count, 32), order + "f4")
        block[:, 0] = values
        block[: min(nz, count), 10], block[: min(nz, count), 11] = axis, pixel_nm * 1e-9
        extended = block.tobytes()
    elif dialect in ("FEI1", "FEI2"):
        header["exttyp"] = dialect.encode()
        block = np.zeros(count, get_ext_header_dtype(dialect.encode(), order))
        if angles is not None:
            block["Metadata size"], block["Alpha tilt"], block["Bitmask 1"] = block.dtype.itemsize, values, bitmask
            block["Tilt axis angle"][:nz], block["Pixel size X"][:nz] = axis, pixel_nm * 1e-9
        extended = block.tobytes()
    elif dialect == "SERI":
        header["exttyp"] = b"SERI"
        extra[16:20] = np.array([14, 61], order + "i2").view(np.uint8)
        block = np.zeros((count, 7), order + "i2")
        block[:, 0] = np.round(100 * values)
        extended = block.tobytes().ljust(5120, b"\0")
    else:
        extended = b""
    if stamp:
        extra[40:48] = np.array([1146047817, flags], order + "i4").view(np.uint8)
    header["extra2"] = extra.tobytes()
    header["nsymbt"], header["nlabl"] = len(extended), len(labels)
    header["label"][: len(labels)] = [label.encode() for label in labels]
    path.write_bytes(header.tobytes() + extended + images.astype(order + kinds[mode]).tobytes())
    return path


def mdoc(path: Path, angles, *, rotation=None, title=None, pixel_nm=NM, times=None) -> Path:
    """A SerialEM .mdoc; `times` are minutes after noon."""
    lines = [f"PixelSpacing = {10 * pixel_nm:g}", "Voltage = 300", ""]
    if title is not None:
        lines.append(f"[T =     Tilt axis angle = {title}, binning = 2  spot = 7  camera = 0]")
    for i, angle in enumerate(angles):
        lines += ["", f"[ZValue = {i}]", f"TiltAngle = {angle}", f"PixelSpacing = {10 * pixel_nm:g}"]
        if rotation is not None:
            lines.append(f"RotationAngle = {rotation}")
        if times is not None:
            lines.append(f"DateTime = 31-Mar-23  12:{times[i]:02d}:00")
    path.write_text("\n".join(lines) + "\n")
    return path


def ncem(
    path: Path, images: np.ndarray, angles, *, unit="[deg]", group="data/tomography", fortran=False, **more
) -> Path:
    """An EMD file of NCEM or tomviz, angles first."""
    ny, nx = images.shape[1:]
    dims = [("angles", unit, angles), ("y", "[n_m]", NM * np.arange(ny)), ("x", "[n_m]", NM * np.arange(nx))]
    with h5py.File(path, "w") as file:
        file.attrs["version_major"] = 0
        where = file.create_group(group)
        where.attrs["emd_group_type"] = 1
        where.attrs.update(more)
        where["data"] = images.transpose(2, 1, 0) if fortran else images
        for i, (name, units, values) in enumerate(dims, 1):
            dim = where.create_dataset(f"dim{i}", data=np.asarray(values, np.float32))
            dim.attrs["name"], dim.attrs["units"] = np.bytes_(name), np.array([units.encode()])
    return path


def velox(path: Path, images: np.ndarray, angles, detectors=("HAADF",)) -> Path:
    """A Velox EMD: frames last, a JSON text a frame, stage tilt in radians."""
    with h5py.File(path, "w") as file:
        for detector in detectors:
            group = file.create_group(f"Data/Image/id{detector}")
            group["Data"] = np.moveaxis(images, 0, 2)
            texts = [
                json.dumps(
                    {
                        "Stage": {"AlphaTilt": str(np.deg2rad(angle))},
                        "BinaryResult": {
                            "Detector": detector,
                            "PixelSize": {"width": str(NM * 1e-9), "height": str(NM * 1e-9)},
                            "PixelUnitX": "m",
                        },
                    }
                ).encode()
                for angle in angles
            ]
            block = np.zeros((512, len(texts)), np.uint8)
            for i, text in enumerate(texts):
                block[: len(text), i] = np.frombuffer(text, np.uint8)
            group["Metadata"] = block
    return path


def dxchange(path: Path, images: np.ndarray, angles, unit: str | None = None) -> Path:
    with h5py.File(path, "w") as file:
        file["exchange/data"] = images
        file["exchange/theta"] = angles
        if unit:
            file["exchange/theta"].attrs["units"] = unit
        file["exchange/data_white"] = images[:1]
        file["measurement/instrument/detector/pixel_size_x"] = NM / 1000
        file["measurement/instrument/detector/pixel_size_x"].attrs["units"] = "um"
    return path


def nxtomo(path: Path, images: np.ndarray, angles) -> Path:
    """NXtomo with a dark and a flat frame around the projections."""
    frames = np.concatenate([images[:1] * 0, images, images[:1] * 0 + 9])
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry1/tomo_entry")
        entry["instrument/detector/data"] = frames
        entry["instrument/detector/image_key"] = [2, *([0] * len(images)), 1]
        entry["instrument/detector/x_pixel_size"] = NM * 1e-9
        entry["instrument/detector/x_pixel_size"].attrs["units"] = "m"
        entry["sample/rotation_angle"] = [0.0, *angles, 0.0]
        entry["sample/rotation_angle"].attrs["units"] = "degree"
    return path


def hspy(path: Path, images: np.ndarray, *, alpha=None, sig_tilts=None, calibrated=False) -> Path:
    """HyperSpy's HDF5, optionally with the metadata of ETSpy."""
    n = len(images)
    with h5py.File(path, "w") as file:
        file.attrs["file_format"] = "HyperSpy"
        group = file.create_group("Experiments/__unnamed__")
        group["data"] = images
        step = (ANGLES[1] - ANGLES[0], ANGLES[0], "degrees") if calibrated else (1.0, 0.0, "")
        for i, (name, scale, offset, units) in enumerate(
            [("Projections", *step), ("y", NM, 0, "nm"), ("x", NM, 0, "nm")]
        ):
            axis = group.create_group(f"axis-{i}")
            axis.attrs.update(name=name, scale=scale, offset=offset, units=units, size=images.shape[i])
        if alpha is not None:
            longer = np.zeros(1024, np.float32)
            longer[:n] = alpha
            group["metadata/Acquisition_instrument/TEM/Stage/tilt_alpha"] = longer
        if sig_tilts is not None:
            group.attrs["package"] = "etspy"
            group["metadata/Tomography/_sig_tilts/data"] = np.asarray(sig_tilts, np.float32)[:, None]
    return path


def mat73(path: Path, **arrays: np.ndarray) -> Path:
    """MATLAB v7.3: HDF5 behind 512 bytes of text, axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = np.asarray(array).T
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")
    return path
