"""The data that ships with jaxtomo and where it lies; each file has its licence beside it.

needle.mrc, needle.rawtlt   77 HAADF-STEM images of a semiconductor needle, raw and misaligned, 128 × 128 pixels of
                            6.72 nm, tilt axis along image x: `jt.read(samples.path("needle.mrc"), tilt_axis="x")`
aet_CoPdPt.npz              `xyz_A` [atom, 3] Å and `type` [atom] of a metallic-glass nanoparticle;
                            types 1, 2, 3 are elements about as heavy as Co, Pd and Pt
spectra.npz                 isotropic power spectra of real volumes, for `jaxtomo.solvers.gaussian`; see `spectrum`
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spectrum import Spectrum

_FOLDER = Path(str(resources.files(__name__)))


def path(name: str) -> Path:
    """The file `name` that ships with jaxtomo. Raises InputError, listing what there is, for any other name."""
    if name not in names():
        raise InputError(f"{name}: no such sample. There are {', '.join(names())}.")
    return _FOLDER / name


def names() -> list[str]:
    """The names `path` knows."""
    return sorted(entry.name for entry in _FOLDER.iterdir() if entry.suffix in (".mrc", ".rawtlt", ".npz"))


def spectrum(name: str) -> Spectrum:
    """The spectrum of `fib_sem` (brain tissue), `porous_silicon` or `nanoparticles` (solid shapes, 0 or 1).

    Raises InputError for any other name. Made by `benchmarks/make_spectra.py`.
    """
    with np.load(path("spectra.npz")) as file:
        known = sorted(key for key in file.files if f"{key}_mean" in file.files)
        if name not in known:
            raise InputError(f"{name}: no such spectrum. There are {', '.join(known)}.")
        numbers = (float(file[f"{name}_{fact}"]) for fact in ("mean", "std", "voxel_nm"))
        return Spectrum(file["frequency"], file[name], *numbers)
