"""Makes the needle tilt series that ships with jaxtomo from the one NIST published with ETSpy.

    python benchmarks/make_sample.py needle_fei2003.mrc needle_fei2003.rawtlt jaxtomo/samples

The images are binned 2 × 2 by their mean and rounded back to int16; the offset of the microscope's digitiser stays in
them. Every oddity of the file stays too: no `MAP ` word, 128-byte records (1024 of them for 77 images), a cell that
claims 1 Å pixels. Only what binning changes is changed: sizes, cell, statistics, and the pixel size in the records.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

RECORD = 128  # bytes a section in FEI's extended header of 2003
PIXEL = 11  # the float of a record that holds the pixel size in metres


def binned(raw: bytes, factor: int = 2) -> bytes:
    """The same MRC file with `factor` × `factor` pixels averaged into one."""
    header = np.frombuffer(raw[:1024], HEADER_DTYPE.newbyteorder("<"))[0].copy()
    nx, ny, nz, start = int(header["nx"]), int(header["ny"]), int(header["nz"]), 1024 + int(header["nsymbt"])
    images = np.frombuffer(raw[start:], "<i2").reshape(nz, ny // factor, factor, nx // factor, factor)
    small = np.rint(images.mean(axis=(2, 4), dtype=np.float64)).astype("<i2")

    for axis, size in (("x", nx // factor), ("y", ny // factor)):
        header["n" + axis] = header["m" + axis] = header["cella"][axis] = size
    header["dmin"], header["dmax"], header["dmean"] = small.min(), small.max(), small.mean(dtype=np.float64)
    records = np.frombuffer(raw[1024:start], "<f4").reshape(-1, RECORD // 4).copy()
    records[:, PIXEL] *= factor
    return header.tobytes() + records.tobytes() + small.tobytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="the FEI 2003 MRC file")
    parser.add_argument("angles", type=Path, help="its .rawtlt file")
    parser.add_argument("folder", type=Path, help="where needle.mrc and needle.rawtlt go")
    options = parser.parse_args()
    (options.folder / "needle.mrc").write_bytes(binned(options.images.read_bytes()))
    shutil.copyfile(options.angles, options.folder / "needle.rawtlt")


if __name__ == "__main__":
    main()
