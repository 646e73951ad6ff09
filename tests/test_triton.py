"""The Triton kernels without a GPU: run by Triton's interpreter, compiled for sm_90, lowered for CUDA."""

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtomo.projector import joseph, trapezoid, triton, xla

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

SHAPES = {  # (nz, nx, ny), width
    "one slice": ((9, 9, 1), 9),
    "thin": ((3, 13, 5), 13),
    "wide detector": ((5, 6, 33), 14),
    "narrow detector": ((9, 8, 4), 5),
    "one voxel": ((1, 1, 3), 3),
}
TILTS = np.deg2rad([-90, -61, -45, -20.3, 0.1, 31, 45, 46, 75, 90, 133, 178], dtype=np.float32)
SHIFTS = np.array([0, 1.3, 0, -2.2, 0, 0.4, 0, 0.5, -0.1, 0, 3.1, 0.7], np.float32)
TILES = triton.Tiles(
    forward=triton.Tile((4, 16), 4, 2), adjoint=triton.Tile((4, 8), 4), gradient=triton.Tile((8, 8), 4)
)
LOCK = threading.Lock()  # the interpreter runs one kernel at a time, XLA calls several at once
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
    """What stands in for `jax_triton.triton_call`; what a kernel forgets to write is not a number."""

    def run(*arrays):
        out = np.full(out_shape.shape, np.nan, out_shape.dtype)
        with LOCK, np.errstate(all="ignore"):
            kernel[grid](*(Tensor(np.array(a)) for a in arrays), Tensor(out), **constants)
        return out

    return jax.pure_callback(run, out_shape, *arrays, vmap_method="broadcast_all")


@pytest.fixture(scope="module")
def interpreter():
    """The kernels as the interpreter runs them; Triton must not have been imported before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("jaxtomo.projector.triton_kernels")
        stand_in = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("jax_triton", None))
        stand_in.triton_call = interpreted
        patch.setitem(sys.modules, "jax_triton", stand_in)
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


@pytest.mark.parametrize("name", [name for name in FOOTPRINTS if name[1] != "value"], ids=" ".join)
@pytest.mark.parametrize("size", ["thin", "narrow detector"])
def test_every_slope_equals_xla(size, name, interpreter):
    shape, width = SHAPES[size]
    volume, images = random(shape, 1), random((TILTS.size, width, shape[2]), 2)
    known = FOOTPRINTS[name]
    # Shifted, so that no voxel lies on a kink of a slope, where rounding decides.
    tilt, shift = jnp.asarray(TILTS), jnp.asarray(SHIFTS) + 0.137
    close(triton.forward(volume, tilt, shift, width, known), xla.forward(volume, tilt, shift, width, known), 5e-5)
    found = triton.adjoint(images, tilt, shift, shape[:2], known)
    close(found, xla.adjoint(images, tilt, shift, shape[:2], known), 5e-5)


def misfit_slopes(kernels, shape, width, footprint, seed=3):
    """Gradients of a misfit by volume, tilt and shift, and of the adjoint's, through `kernels`."""
    pose = jnp.asarray(TILTS[1::3]), jnp.asarray(SHIFTS[1::3]) + 0.137
    volume, images = random(shape, seed), random((pose[0].size, width, shape[2]), seed + 1)
    weights = random(shape, seed + 2)

    def there(volume, tilt, shift):
        return jnp.sum((kernels.forward(volume, tilt, shift, width, footprint) - images) ** 2)

    def back(images, tilt, shift):
        return jnp.vdot(kernels.adjoint(images, tilt, shift, shape[:2], footprint), weights)

    there, back = (jax.jit(jax.grad(misfit, (0, 1, 2))) for misfit in (there, back))
    return *there(volume, *pose), *back(images, *pose)


@pytest.mark.parametrize("footprint", [trapezoid, joseph], ids=["trapezoid", "joseph"])
def test_gradients_equal_xla(footprint, interpreter):
    shape, width = (7, 5, 34), 9
    for found, expected in zip(*(misfit_slopes(k, shape, width, footprint) for k in (triton, xla)), strict=True):
        close(found, expected, 5e-5)


def test_second_derivatives_equal_xla(interpreter):
    volume, tilt, shift = random((4, 5, 2), 1), jnp.asarray([-0.4, 0.9]), jnp.asarray([0.21, -1.13])

    def curvature(kernels):
        def slope(volume, tilt, shift):
            by = jax.grad(lambda *a: jnp.sum(kernels.forward(*a, 5) ** 2), (0, 1, 2))(volume, tilt, shift)
            return sum(jnp.vdot(random(g.shape, i), g) for i, g in enumerate(by))

        return jax.jit(jax.grad(slope, (0, 1, 2)))(volume, tilt, shift)

    for found, expected in zip(curvature(triton), curvature(xla), strict=True):
        close(found, expected, 1e-4)


@pytest.mark.parametrize("footprint", [trapezoid, joseph], ids=["trapezoid", "joseph"])
def test_adjoint_is_exact_and_slopes_on_a_kink_are_the_mean_of_both_sides(footprint, interpreter):
    """At 0 and 90 degrees, unshifted, every voxel lies on a kink: both slopes of a constant are 0 away from edges."""
    tilt, shift = jnp.asarray([0.0, np.pi / 2, 0.3], jnp.float32), jnp.zeros(3)
    volume, images = random((9, 9, 5), 1), random((3, 9, 5), 2)
    projected, smeared = (
        triton.forward(volume, tilt, shift, 9, footprint),
        triton.adjoint(images, tilt, shift, (9, 9), footprint),
    )
    difference = np.vdot(projected, images) - np.vdot(volume, smeared)
    assert abs(difference) < 1e-5 * np.linalg.norm(projected) * np.linalg.norm(images)

    slope = triton.forward(jnp.ones((9, 9, 1)), tilt, shift, 9, xla.shift_derivative(footprint))
    np.testing.assert_allclose(slope[0, 1:-1], 0, atol=1e-5)
    low, high = (triton.forward(volume, tilt, shift + step, 9, footprint) for step in (-1e-2, 1e-2))
    slope = triton.forward(volume, tilt, shift, 9, xla.shift_derivative(footprint))
    np.testing.assert_allclose(slope[0], (high - low)[0] / 2e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_summed_in_float32(dtype, interpreter):
    shape, width = (5, 4, 66), 6
    volume, images = random(shape, 1, dtype), random((TILTS.size, width, shape[2]), 2, dtype)
    matrix = reference(shape, width, "trapezoid")
    found = triton.forward(volume, TILTS, SHIFTS, width)
    assert found.dtype == jnp.float32
    close(found, np.einsum("tuzx,zxy->tuy", matrix, np.asarray(volume, np.float64)))
    found = triton.adjoint(images, TILTS, SHIFTS, shape[:2])
    assert found.dtype == jnp.float32
    close(found, np.einsum("tuzx,tuy->zxy", matrix, np.asarray(images, np.float64)))
    slopes = jax.grad(lambda *a: jnp.sum(triton.forward(*a, width) ** 2), (0, 1))(volume, TILTS + 0.01, SHIFTS + 0.137)
    expected = jax.grad(lambda *a: jnp.sum(xla.forward(*a, width) ** 2), (0, 1))(volume, TILTS + 0.01, SHIFTS + 0.137)
    assert slopes[0].dtype == dtype
    close(slopes[0].astype(np.float32), expected[0].astype(np.float32), float(jnp.finfo(dtype).eps))
    close(slopes[1], expected[1], 1e-4)


def test_vmap_is_a_loop(interpreter):
    volumes, tilt, shift = random((2, 5, 5, 3), 1), jnp.asarray([0.3, 1.2]), jnp.zeros(2)
    found = jax.jit(jax.vmap(lambda v: triton.forward(v, tilt, shift, 5)))(volumes)
    close(found, jax.vmap(lambda v: xla.forward(v, tilt, shift, 5))(volumes))
    tilts = jnp.asarray([[0.3, 1.2], [0.4, -0.1]])
    found = jax.jit(jax.vmap(jax.grad(lambda t: jnp.sum(triton.forward(volumes[0], t, shift + 0.1, 5) ** 2))))(tilts)
    close(found, jax.vmap(jax.grad(lambda t: jnp.sum(xla.forward(volumes[0], t, shift + 0.1, 5) ** 2)))(tilts), 5e-5)


def test_what_the_kernels_do_not_know_is_left_to_xla(float64):
    mine = xla.Footprint(lambda *a: 2 * trapezoid.weight(*a), trapezoid.taps)
    tilt, shift = jnp.asarray([0.3, 1.2]), jnp.zeros(2)
    volume = random((5, 5, 3), 1, np.float64)
    np.testing.assert_array_equal(triton.forward(volume, tilt, shift, 5), xla.forward(volume, tilt, shift, 5))
    volume, tilt, shift = (a.astype(np.float32) for a in (volume, tilt, shift))
    found = triton.forward(volume, tilt, shift, 5, mine)
    np.testing.assert_array_equal(found, xla.forward(volume, tilt, shift, 5, mine))


def test_a_machine_without_a_gpu_is_told_so():
    assert not triton.available()
    assert "cpu" in triton.missing() or "jax_triton" in triton.missing()


def in_a_process_of_its_own(code: str, folder: Path):
    """What `code` prints as JSON last, where Triton compiles instead of interpreting."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-c", code, str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


COMPILED = r"""
import json, re, subprocess, sys, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from jaxtomo.projector import triton as tiled, triton_kernels

geometry = dict(tilts=61, width=512, nz=512, nx=512, ny=512, footprint="trapezoid")
tiles = tiled.TILES["default"]

def tile(t, names):
    return dict(zip(names, t.rows), height=32)

CASES = {
    "forward": ("ray_sums", tiles.forward, dict(slope="value", pieces=tiles.forward.pieces), ("tilts_tile", "rays")),
    "adjoint": ("voxel_sums", tiles.adjoint, dict(slope="value"), ("depth", "breadth")),
    "gradient": ("pose_gradient", tiles.gradient, {}, ("tilts_tile", "rays")),
}

def compiled(name, dtype="fp32", index=tl.int32, **other):
    kernel, t, more, names = CASES[name]
    kernel = getattr(triton_kernels, kernel)
    kinds = {"volume": "*" + dtype, "images": "*" + dtype, "table": "*fp32", "partial": "*fp32"}
    return triton.compile(
        triton.compiler.ASTSource(
            kernel,
            signature={a: kinds.get(a, "constexpr") for a in kernel.arg_names},
            constexprs={**geometry, **tile(t, names), **more, "index": index, **other},
            attrs={(i,): [["tt.divisibility", 16]] for i, a in enumerate(kernel.arg_names) if a in kinds},
        ),
        target=GPUTarget("cuda", 90, 32),
        options=dict(num_warps=t.warps, num_stages=1),
    )

def facts(program):
    ptx = program.asm["ptx"]
    with open(sys.argv[1] + "/kernel.ptx", "w") as file:
        file.write(ptx)
    ptxas = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
    said = subprocess.run(ptxas, capture_output=True, text=True, check=True).stderr
    return {
        "target": re.search(r"[.]target (\S+)", ptx)[1],
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes (?:stack|spill)", said))),
        "wide loads": len(re.findall(r"ld[.]global\S*[.]v4", ptx)),
        "fused": ptx.count("fma.rn.f32"),
        "atomics": len(re.findall(r"\b(?:atom|red)[.]", ptx)),
        "barriers": ptx.count("bar.sync"),
        "shared": program.metadata.shared,
    }

found = {name: facts(compiled(name)) for name in CASES}
found["adjoint, bfloat16"] = facts(compiled("adjoint", "bf16"))
for name in CASES:
    compiled(name, ny=33, footprint="joseph")
found["adjoint, 64-bit indices"] = facts(compiled("adjoint", index=tl.int64))
print(json.dumps(found))
"""


def test_the_kernels_compile_for_sm_90(tmp_path):
    """Loads of 16 bytes a thread, products fused, nothing spilled, and no program waits for another."""
    for name, facts in in_a_process_of_its_own(COMPILED, tmp_path).items():
        assert facts["target"].startswith("sm_90"), name
        assert facts["wide loads"] > 0 and facts["fused"] > 0, (name, facts)
        assert facts["spilled"] == facts["atomics"] == 0, (name, facts)
        assert facts["shared"] < 4096 and (facts["barriers"] == 0 or name != "adjoint"), (name, facts)


LOWERED = """
import json, jax, jax.numpy as jnp
from jax._src.lib import gpu_triton
from jaxtomo.projector import triton

gpu_triton.get_compute_capability = lambda device: 90
volume, tilt, shift = jnp.zeros((16, 16, 16)), jnp.zeros(3), jnp.zeros(3)

def calls(function, *given):
    text = jax.jit(function).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    return text.count("@triton_kernel_call")

def misfit(volume, tilt, shift):
    return jnp.sum(triton.forward(volume, tilt, shift, 16) ** 2)

print(json.dumps([
    calls(lambda *a: triton.forward(*a, 16), volume, tilt, shift),
    calls(lambda *a: triton.adjoint(*a, (16, 16)), volume[:3].astype(jnp.bfloat16), tilt, shift),
    calls(jax.grad(misfit, (0, 1, 2)), volume, tilt, shift),
]))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("jax_triton") is None or importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="JAX cannot lower for CUDA here",
)
def test_a_gradient_is_three_kernels(tmp_path):
    """Lowered for CUDA by jax-triton: the sums, their adjoint, and one for the pose."""
    assert in_a_process_of_its_own(LOWERED, tmp_path) == [1, 1, 3]
