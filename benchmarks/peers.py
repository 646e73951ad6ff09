"""What the projector is measured against: its peers in their fastest settings, all voxels, and a sum in float64."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import machine
import numpy as np

try:  # Before JAX starts: it asks for one virtual device a core, and is timed on one and on all of them.
    with warnings.catch_warnings(action="ignore"):
        import mbirjax
except ImportError:
    mbirjax = None
else:
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # which it turns on: compile times would be of another run


class Contender(NamedTuple):
    """One implementation in one setting, holding its inputs in its own layout.

    `images` and `volume` turn what the calls return into `[tilt, x, y]` and `[z, x, y]`; they are not timed.
    """

    name: str
    peer: str
    forward: Callable[[], Any]
    adjoint: Callable[[], Any]
    images: Callable[[Any], Any] = np.asarray
    volume: Callable[[Any], Any] = np.asarray


# Every maker below takes a volume [z, x, y], images [tilt, x, y] and tilts in radians, gives contenders and notes, and
# raises ImportError where the peer is not installed. The peers turn the other way round than jaxtomo: -tilt.


def astra_linear(volume, images, tilt) -> tuple[list[Contender], list[str]]:
    """ASTRA's matched CPU projector, slice by slice, on linked arrays and algorithms created beforehand.

    It leaves Python's lock while it works, so it also gets a thread a core.
    """
    import astra

    rays, voxels, linear = _astra_geometry(volume, images, tilt)
    pool = ThreadPoolExecutor(machine.cores())

    def algorithms(kind, slices, sinograms):
        for voxel_slice, sinogram in zip(slices, sinograms, strict=True):
            settings = astra.astra_dict(kind)
            settings["ProjectorId"] = linear
            settings["ProjectionDataId"] = astra.data2d.link("-sino", rays, sinogram)
            name = "VolumeDataId" if kind == "FP" else "ReconstructionDataId"
            settings[name] = astra.data2d.link("-vol", voxels, voxel_slice)
            yield astra.algorithm.create(settings)

    v, p = (np.ascontiguousarray(a.transpose(2, 0, 1)) for a in (volume, images))
    found_v, found_p = np.full_like(v, np.nan), np.full_like(p, np.nan)
    there, back = [*algorithms("FP", v, found_p)], [*algorithms("BP", found_v, p)]

    def contender(name, spread):
        return Contender(
            f"ASTRA linear, {name}",
            "ASTRA",
            lambda: list(spread(astra.algorithm.run, there)),
            lambda: list(spread(astra.algorithm.run, back)),
            lambda _: found_p.transpose(1, 2, 0),
            lambda _: found_v.transpose(1, 2, 0),
        )

    return [contender("1 thread", map), contender(f"{machine.cores()} threads", pool.map)], []


def _astra_geometry(volume, images, tilt):
    import astra

    rays = astra.create_proj_geom("parallel", 1.0, images.shape[1], -tilt)
    voxels = astra.create_vol_geom(*volume.shape[:2])
    return rays, voxels, astra.create_projector("linear", rays, voxels)


def scipy_csr(volume, images, tilt) -> tuple[list[Contender], list[str]]:
    """ASTRA's `linear` as a sparse matrix times all slices at once; its transpose, stored by rows, for the adjoint.

    SciPy uses one core; it leaves Python's lock, so it also gets a thread a core, over rows and over slices.
    """
    import astra

    matrix = astra.matrix.get(astra.projector.matrix(_astra_geometry(volume, images, tilt)[2]))
    matrix = matrix.tocsr().astype(np.float32)
    there, back = ((a, b.reshape(-1, b.shape[2])) for a, b in ((matrix, volume), (matrix.T.tocsr(), images)))
    pool, count = ThreadPoolExecutor(machine.cores()), machine.cores()

    def whole(a, x):
        return lambda: a @ x

    def by_rows(a, x):
        parts = [a[rows] for rows in np.array_split(np.arange(a.shape[0]), count)]
        return lambda: np.concatenate(list(pool.map(lambda part: part @ x, parts)))

    def by_slices(a, x):
        slabs = [np.ascontiguousarray(slab) for slab in np.array_split(x, count, axis=1)]
        return lambda: list(pool.map(lambda slab: a @ slab, slabs))

    def joined(shape):
        return lambda y: (np.concatenate(y, axis=1) if isinstance(y, list) else y).reshape(shape)

    def contender(name, made):
        return Contender(
            f"SciPy CSR, {name}", "SciPy CSR", made(*there), made(*back), joined(images.shape), joined(volume.shape)
        )

    threads = f"{count} threads by"
    settings = (("1 thread", whole), (f"{threads} rows", by_rows), (f"{threads} slices", by_slices))
    note = f"SciPy CSR: {matrix.nnz / 1e6:.1f} M float32 entries, and as many for the transpose; building is not timed."
    return [contender(*setting) for setting in settings], [note]


def mbirjax_model(volume, images, tilt) -> tuple[list[Contender], list[str]]:
    """mbirjax on one CPU device and on one a core (its default), inputs and outputs left where it computes."""
    if mbirjax is None:
        raise ImportError("No module named 'mbirjax'")
    import jax
    import jax.numpy as jnp

    tilts, width, ny = images.shape
    v, p = jnp.asarray(volume), jnp.asarray(np.ascontiguousarray(images.swapaxes(1, 2)))

    def contender(devices):
        model = mbirjax.ParallelBeamModel((tilts, ny, width), jnp.asarray(-tilt))
        model.set_params(no_warning=True, recon_shape=volume.shape, use_ror_mask=False)
        model.configure_devices(devices)
        return Contender(
            f"mbirjax, {devices} device{'s' * (devices > 1)}",
            "mbirjax",
            lambda: jax.block_until_ready(model.forward_project(v, output_sharded=True)),
            lambda: jax.block_until_ready(model.back_project(p, output_sharded=True)),
            lambda p: np.asarray(p)[:tilts, :ny].swapaxes(1, 2),
            lambda v: np.asarray(v)[:, :, :ny],
        )

    return [contender(devices) for devices in sorted({1, len(jax.devices())})], []


def svmbir_cached(volume, images, tilt) -> tuple[list[Contender], list[str]]:
    """svmbir through its public functions; its system matrix is on disk after the first call, which is not timed."""
    import svmbir

    folder = tempfile.TemporaryDirectory(prefix="svmbir-")  # lives as long as the first call below holds it
    settings = {
        "roi_radius": 2.0 * max(volume.shape),
        "num_threads": machine.cores(),
        "svmbir_lib_path": folder.name,
        "verbose": 0,
    }
    v, p = np.ascontiguousarray(volume.transpose(2, 0, 1)), np.ascontiguousarray(images.swapaxes(1, 2))
    contender = Contender(
        f"svmbir, {machine.cores()} threads",
        "svmbir",
        lambda folder=folder: svmbir.project(v, tilt - np.pi / 2, images.shape[1], **settings),
        lambda: svmbir.backproject(p, tilt - np.pi / 2, *volume.shape[:2], **settings),
        lambda p: p.swapaxes(1, 2),
        lambda v: v.transpose(1, 2, 0),
    )
    return [contender], ["svmbir: its matrix has 8 bits, which is what it differs by."]


def joseph_in_float64(plane, width, tilt):
    """Ray sums [tilt, x] of one slice [z, x], linear interpolation along the main axis, in double precision.

    What `linear` of ASTRA and Joseph's footprint of jaxtomo both mean; it tells whose rounding a difference is.
    """
    rays = np.arange(width)[:, None] - (width - 1) / 2
    sums = []
    for c, s in zip(np.cos(tilt), np.sin(tilt), strict=True):
        rows, along, across = (plane, c, s) if abs(c) >= abs(s) else (plane.T, s, c)
        planes, others = rows.shape
        crossing = (rays - across * (np.arange(planes) - (planes - 1) / 2)) / along + (others - 1) / 2
        below = np.floor(crossing).astype(int)
        padded = np.pad(rows.astype(float), ((0, 0), (1, 1)))
        taps = [padded[np.arange(planes), np.clip(k + 1, 0, others + 1)] for k in (below, below + 1)]
        part = crossing - below
        sums.append(((1 - part) * taps[0] + part * taps[1]).sum(1) / abs(along))
    return np.stack(sums)


PEERS = {"astra": astra_linear, "csr": scipy_csr, "mbirjax": mbirjax_model, "svmbir": svmbir_cached}
