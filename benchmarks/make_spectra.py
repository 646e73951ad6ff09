"""Makes `jaxtomo/samples/spectra.npz`: the isotropic power spectra of real volumes, as a prior for reconstructions.

    python benchmarks/make_spectra.py FOLDER_WITH_THE_VOLUMES jaxtomo/samples/spectra.npz

The folder holds flyem_fib25_train1_250.npz, flyem_fib25_train2_250.npz, nanopores3d_si.npz and autolcet_shapes.npz.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxtomo.spectrum import spectrum_of


def shapes(file) -> Iterator[np.ndarray]:
    yield from file["chiralAu"]
    yield from file["Cu3As"]
    yield from np.unpackbits(file["PdAu"], axis=-1)[..., : int(file["PdAu_shape"][-1])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    tissue = [np.load(options.folder / f"flyem_fib25_train{region}_250.npz") for region in (1, 2)]
    groups = {
        "fib_sem": ((file["volume"] for file in tissue), float(tissue[0]["voxel_nm"])),
        "porous_silicon": ([np.load(options.folder / "nanopores3d_si.npz")["volume"]], np.nan),
        "nanoparticles": (shapes(np.load(options.folder / "autolcet_shapes.npz")), np.nan),
    }
    result = {}
    for name, (volumes, voxel_nm) in groups.items():
        found = spectrum_of(volumes, voxel_nm)
        result |= {"frequency": found.frequency, name: found.power}
        result |= {f"{name}_mean": found.mean, f"{name}_std": found.std, f"{name}_voxel_nm": voxel_nm}
    np.savez(options.output, **result)


if __name__ == "__main__":
    main()
