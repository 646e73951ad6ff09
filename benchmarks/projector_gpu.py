"""The projector on one GPU: XLA and Triton side by side, and its peers in the same run, data resident.

    python benchmarks/projector.py --gpu           # 512³ and 1024³, 61 tilts ±60°

Every call is waited for. What is not installed is left out, and the output says so; without a GPU it says that.
"""

from __future__ import annotations

from functools import partial

import machine
from peers import Contender, mbirjax_model  # before JAX: see there

# isort: split
import jax
import jax.numpy as jnp
import numpy as np

from jaxtomo.projector import joseph, trapezoid, triton, xla

TILTS = np.deg2rad(np.linspace(-60, 60, 61))
BAR_AT, BAR_DEVICE, BAR_MS = 512, "H200", 3.5
PEER_BAR, KEEP_BAR, GROWTH_BAR = 4.0, 1.3, 1.2  # times ASTRA and mbirjax; times XLA; times eight, from 512³ to 1024³
DIRECTIONS = ("forward", "adjoint")


def ours(volume, images) -> list[Contender]:
    """Both kernels and footprints on arrays that stay on the GPU, in the axes of the kernels."""
    tilt, shift = jnp.asarray(TILTS, jnp.float32), jnp.zeros(TILTS.size)
    (nz, nx, _), width = volume.shape, images.shape[1]
    kernels = {"XLA": xla} | ({"Triton": triton} if triton.available() else {})

    stored = {d: (jnp.asarray(volume, d), jnp.asarray(images, d)) for d in (jnp.float32, jnp.bfloat16)}

    def contender(name, module, footprint, dtype=jnp.float32):
        v, p = stored[dtype]
        there = jax.jit(partial(module.forward, width=width, footprint=footprint))
        back = jax.jit(partial(module.adjoint, shape=(nz, nx), footprint=footprint))
        return Contender(
            name,
            name.split(",")[0],
            lambda: there(v, tilt, shift).block_until_ready(),
            lambda: back(p, tilt, shift).block_until_ready(),
        )

    found = [
        contender(f"{backend}, {shape}", module, footprint)
        for shape, footprint in (("trapezoid", trapezoid), ("joseph", joseph))
        for backend, module in kernels.items()
    ]
    return found + [contender(f"{b}, trapezoid, bfloat16", m, trapezoid, jnp.bfloat16) for b, m in kernels.items()]


def astra_direct(volume, images, tilt) -> tuple[list[Contender], list[str]]:
    """ASTRA's `direct_FP3D` and `direct_BP3D` between arrays on the GPU, which it writes in place."""
    import astra
    from astra.experimental import direct_BP3D, direct_FP3D

    if not astra.use_cuda():
        raise ImportError("this build of ASTRA finds no GPU")
    (nz, nx, ny), width = volume.shape, images.shape[1]
    rays = astra.create_proj_geom("parallel3d", 1.0, 1.0, ny, width, -tilt)
    projector = astra.create_projector("cuda3d", rays, astra.create_vol_geom(nz, nx, ny))
    v, p = jnp.asarray(volume.transpose(2, 0, 1)), jnp.asarray(images.transpose(2, 0, 1))
    found_v, found_p = jnp.zeros_like(v).block_until_ready(), jnp.zeros_like(p).block_until_ready()
    contender = Contender(
        "ASTRA direct 3D",
        "ASTRA",
        lambda: direct_FP3D(projector, v, found_p),
        lambda: direct_BP3D(projector, found_v, p),
        lambda _: np.asarray(found_p).transpose(1, 2, 0),
        lambda _: np.asarray(found_v).transpose(1, 2, 0),
    )
    return [contender], []


PEERS = {"ASTRA": astra_direct, "mbirjax": mbirjax_model}


def compare(size: int, options, before: dict[str, float]) -> dict[str, float]:
    """Forward and adjoint of everyone at size³; `before` and the result are our best medians by direction."""
    rng = np.random.default_rng(0)
    volume, images = (rng.random(shape, np.float32) for shape in ((size,) * 3, (TILTS.size, size, size)))
    contenders, notes = ours(volume, images), []
    for name, peer in PEERS.items():
        try:
            found, said = peer(volume, images, TILTS)
        except ImportError as absent:
            found, said = [], [f"{name} was left out: {absent}."]
        contenders, notes = contenders + found, notes + said
    if not triton.available():
        notes.append(f"Triton was left out: {triton.missing()}.")
    best = {}
    for direction in DIRECTIONS:
        calls = {c.name: getattr(c, direction) for c in contenders}
        times = machine.interleaved(calls, options.rounds, budget=options.budget)
        best[direction] = min(t.median for name, t in times.items() if name.endswith("trapezoid"))
        machine.show(
            f"{direction.capitalize()} projection on the GPU, {size}³, {TILTS.size} tilts ±60°",
            ("", "first call s", "median ms", "XLA ÷ this", "largest difference to XLA"),
            rows(direction, contenders, times),
            [*verdicts(size, direction, times, before), *notes],
            markdown=options.markdown,
        )
    return best


def rows(direction, contenders, times):
    """A line for each contender; what computes other sums than XLA's trapezoid or joseph differs by more."""
    expected = {name: np.asarray(times[f"XLA, {name}"].result) for name in ("trapezoid", "joseph")}
    for contender in contenders:
        timing, same = times[contender.name], "joseph" if "joseph" in contender.name else "trapezoid"
        read = contender.images if direction == "forward" else contender.volume
        found = read(timing.result).astype(np.float32)
        difference = np.max(np.abs(found - expected[same])) / np.max(np.abs(expected[same]))
        ratio = times[f"XLA, {same}"].median / timing.median
        yield contender.name, f"{timing.first:.2f}", timing, f"{ratio:.2f}x", f"{difference:.1e}"


def verdicts(size, direction, times, before):
    """The bars that apply at this size, met or missed."""

    def verdict(said, met):
        return f"{said}: {'met' if met else 'MISSED'}."

    fastest, mine = min((t.median, name) for name, t in times.items() if name.endswith("trapezoid"))
    if "Triton, trapezoid" in times:
        ratio = times["XLA, trapezoid"].median / times["Triton, trapezoid"].median
        yield verdict(f"Triton is kept where it beats XLA by {KEEP_BAR}x, here {ratio:.2f}x", ratio >= KEEP_BAR)
    if size == BAR_AT:
        kind = jax.devices()[0].device_kind
        met = f"{BAR_MS} ms on an {BAR_DEVICE}, here {1e3 * fastest:.2f} ms by {mine} on {kind}"
        yield verdict(met, 1e3 * fastest <= BAR_MS) if BAR_DEVICE in kind else f"{met}: not the device of the bar."
        for peer in PEERS:
            theirs = [t.median for name, t in times.items() if name.startswith(peer)]
            if theirs:
                ratio = min(theirs) / fastest
                yield verdict(f"{PEER_BAR:g}x faster than {peer}, here {ratio:.1f}x", ratio >= PEER_BAR)
    elif size == 2 * BAR_AT and before:
        growth = fastest / (8 * before[direction])
        yield verdict(f"Within {GROWTH_BAR}x of eight times 512³, here {growth:.2f}x", growth <= GROWTH_BAR)


def pose_gradients(size: int, options) -> None:
    """A misfit's gradient by tilt and shift, beside the forward projection."""
    volume = jnp.asarray(np.random.default_rng(1).random((size,) * 3, np.float32))
    pose = jnp.asarray(TILTS, jnp.float32), jnp.full(TILTS.size, 0.3)
    calls = {}
    for backend, module in {"XLA": xla, **({"Triton": triton} if triton.available() else {})}.items():

        def misfit(pose, volume, module=module):
            return jnp.mean((module.forward(volume, *pose, size) - 1) ** 2)

        there = jax.jit(lambda pose, volume, module=module: module.forward(volume, *pose, size))
        slope = jax.jit(jax.grad(misfit))
        calls[f"{backend}, forward"] = lambda f=there: jax.block_until_ready(f(pose, volume))
        calls[f"{backend}, gradient"] = lambda f=slope: jax.block_until_ready(f(pose, volume))
    times = machine.interleaved(calls, options.rounds, budget=options.budget)
    machine.show(
        f"Gradient of a misfit in tilt and shift on the GPU, {size}³, {TILTS.size} tilts, trapezoid",
        ("", "median ms"),
        times.items(),
        ["The gradient includes the forward projection and the misfit."],
        markdown=options.markdown,
    )


def run(options) -> None:
    """The whole comparison; `options` needs `sizes` (None for 512 and 1024), `rounds`, `budget` and `markdown`."""
    kinds = sorted({device.device_kind for device in jax.devices() if device.platform == "gpu"})
    if not kinds:
        print(f"No GPU here: JAX computes on {jax.devices()[0].device_kind}. Nothing was measured.")
        return
    print(f"{', '.join(kinds)}.")
    before = {}
    for size in options.sizes or [BAR_AT, 2 * BAR_AT]:
        before = compare(size, options, before) | before
    pose_gradients(BAR_AT if not options.sizes else min(options.sizes), options)
