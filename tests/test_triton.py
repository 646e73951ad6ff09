"""The Triton kernels without a GPU: run by Triton's interpreter, compiled for sm_90, lowered for CUDA."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtomo.errors import InputError
from jaxtomo.projector import joseph, trapezoid, triton, xla

if not all(importlib.util.find_spec(name) for name in ("triton", "jax_triton")):
    pytest.skip("jax-triton is not installed", allow_module_level=True)

SHAPES = {  # (nz, nx, ny), width
    "cube": ((8, 8, 8), 8),
    "one slice": ((9, 9, 1), 9),
    "thin": ((3, 17, 5), 17),
    "tall": ((15, 6, 2), 6),
    "wide detector": ((5, 6, 33), 14),
    "narrow detector": ((12, 11, 4), 5),
    "one voxel": ((1, 1, 3), 3),
}
TILTS = np.deg2rad([-90, -61, -45, -20.3, 0.1, 31, 45, 46, 75, 90, 133, 178], dtype=np.float32)
SHIFTS = np.array([0, 1.3, 0, -2.2, 0, 0.4, 0, 0.5, -0.1, 0, 3.1, 0.7], np.float32)
TILES = triton.Tiles(
    forward=triton.Tile((4, 16), 4, 2), adjoint=triton.Tile((4, 8), 4), gradient=triton.Tile((8, 8), 4)
)
FOOTPRINTS = {name: shape for shape, name in triton.KNOWN.items()}


class Tensor:
    """What the interpreter asks of a tensor, over a NumPy array."""

    def __init__(self, array):
        self.array, self.dtype = array, array.dtype

    def data_ptr(self):
        return self.array.ctypes.data

    def untyped_storage(self):
        return self

    cpu = untyped_storage

    def new_empty(self, *_, **__):
        return Tensor(self.array)

    def nothing(self, *_):
        return 0

    set_ = size = stride = storage_offset = copy_ = nothing


def interpreted(*arrays, kernel, out_shape, grid, num_warps, num_stages, **constants):
    """`jax_triton.triton_call` on the CPU; what a kernel forgets to write is not a number."""

    def run(*arrays):
        out = np.full(out_shape.shape, np.nan, out_shape.dtype)
        with np.errstate(all="ignore"):
            kernel[grid](*(Tensor(np.array(a)) for a in arrays), Tensor(out), **constants)
        return out

    return jax.pure_callback(run, out_shape, *arrays, vmap_method="broadcast_all")


@pytest.fixture(scope="module")
def interpreter():
    """The kernels as the interpreter runs them; Triton must not have been imported before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("jaxtomo.projector.triton_kernels")
        patch.setattr(importlib.import_module("jax_triton"), "triton_call", interpreted)
        patch.setattr(triton, "tiles", lambda: TILES)
        yield


def random(shape, seed, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def reference(shape, width, footprint, tilt=TILTS, shift=SHIFTS):
    """The matrix [tilt, u, z, x] of a footprint in float64 NumPy, straight from its definition."""
    x, z, u = (np.arange(n) - (n - 1) / 2 for n in (shape[1], shape[0], width))
    tilt, shift = (np.asarray(a, np.float64)[:, None, None, None] for a in (tilt, shift))
    c, s = np.cos(tilt), np.sin(tilt)
    along = np.maximum(np.abs(c), np.abs(s))
    distance = np.abs(u[:, None, None] - shift - x * c - z[:, None] * s)
    if footprint == "trapezoid":
        return np.clip(((1 + along) / 2 - distance) / along, 0, 1)
    return np.clip(1 - distance / along, 0, 1) / along


def close(found, expected, tolerance=2e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("footprint", ["trapezoid", "joseph"])
@pytest.mark.parametrize("name", SHAPES)
def test_sums_equal_the_float64_reference(name, footprint, interpreter):
    shape, width = SHAPES[name]
    volume, images = random(shape, 1), random((TILTS.size, width, shape[2]), 2)
    matrix, known = reference(shape, width, footprint), FOOTPRINTS[footprint, "value"]
    found = triton.forward(volume, TILTS, SHIFTS, width, known)
    close(found, np.einsum("tuzx,zxy->tuy", matrix, volume))
    found = triton.adjoint(images, TILTS, SHIFTS, shape[:2], known)
    close(found, np.einsum("tuzx,tuy->zxy", matrix, images))


@pytest.mark.parametrize("name", FOOTPRINTS, ids=" ".join)
@pytest.mark.parametrize("size", ["thin", "narrow detector"])
def test_every_footprint_equals_xla(size, name, interpreter):
    shape, width = SHAPES[size]
    volume, images = random(shape, 1), random((TILTS.size, width, shape[2]), 2)
    known = FOOTPRINTS[name]
    # Shifted, so that no voxel lies on a kink of a slope, where rounding decides.
    tilt, shift = jnp.asarray(TILTS), jnp.asarray(SHIFTS) + 0.137
    close(triton.forward(volume, tilt, shift, width, known), xla.forward(volume, tilt, shift, width, known), 5e-5)
    found = triton.adjoint(images, tilt, shift, shape[:2], known)
    close(found, xla.adjoint(images, tilt, shift, shape[:2], known), 5e-5)
