"""Finds the tiles of the Triton kernels on the GPU at hand and prints their line of `jaxtomo.projector.triton.TILES`.

    python benchmarks/tune_triton.py               # 512³, 61 tilts ±60°
    python benchmarks/tune_triton.py --size 256

Tiles that do not fit the registers, or differ from XLA, are left out, and the output says so.
"""

from __future__ import annotations

import argparse
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import machine
import numpy as np

from jaxtomo.projector import triton, xla

TILTS = np.deg2rad(np.linspace(-60, 60, 61))
SHAPE = ("trapezoid", "value")
ROWS = {
    "forward": [(4, 16), (4, 32), (8, 16), (8, 32), (8, 64), (16, 16), (16, 32), (1, 64), (2, 64), (4, 64)],
    "adjoint": [(4, 8), (8, 8), (4, 16), (8, 16), (16, 16), (8, 32), (16, 32), (1, 64)],
    "gradient": [(2, 16), (4, 16), (8, 16), (4, 32), (8, 32), (8, 8)],
}
ROUNDS = 7


def candidates(kernel: str):
    """Tiles worth a try: 8 to 256 of their numbers to a thread."""
    for rows, warps, pieces in itertools.product(ROWS[kernel], (2, 4, 8, 16), (1, 2) if kernel == "forward" else (1,)):
        if 8 <= rows[0] * rows[1] * pieces // warps * (2 if kernel == "gradient" else 1) <= 128:
            yield triton.Tile(rows, warps, pieces)


def programs(size: int):
    """For each kernel: how a tile computes its sums, and what XLA makes of the same."""
    rng = np.random.default_rng(0)
    volume = jnp.asarray(rng.random((size,) * 3, np.float32))
    images = jnp.asarray(rng.random((TILTS.size, size, size), np.float32))
    pose = jnp.asarray(TILTS, jnp.float32), jnp.full(TILTS.size, 0.3)

    def slopes(volume, images, tilt, shift):
        return jnp.stack(
            jax.grad(lambda *pose: jnp.vdot(xla.forward(volume, *pose, size), images), (0, 1))(tilt, shift)
        )

    def made(given, kernel, expected):
        def with_tile(tile):
            sums = jax.jit(partial(kernel, tile=tile))
            return lambda: sums(*given, *pose).block_until_ready()

        return with_tile, jax.jit(expected)(*given, *pose)

    shape = {"shape": SHAPE}
    yield (
        "forward",
        *made((volume,), partial(triton.ray_sums, width=size, **shape), lambda *a: xla.forward(*a, width=size)),
    )
    yield (
        "adjoint",
        *made(
            (images,),
            partial(triton.voxel_sums, size=(size, size), **shape),
            lambda *a: xla.adjoint(*a, shape=(size, size)),
        ),
    )
    yield "gradient", *made((volume, images), partial(triton.pose_sums, footprint=SHAPE[0]), slopes)


def tune(name: str, made, expected) -> triton.Tile:
    """Times every tile that works, shows them, the fastest first, and returns that."""
    calls, notes = {}, []
    for tile in candidates(name):
        call = made(tile)
        try:
            difference = float(jnp.max(jnp.abs(call() - expected)) / jnp.max(jnp.abs(expected)))
        except jax.errors.JaxRuntimeError as failed:  # more registers or shared memory than there are
            notes.append(f"{tile}: {str(failed).splitlines()[0]}")
            continue
        if difference > 1e-3:
            notes.append(f"{tile}: differs from XLA by {difference:.1e}")
        else:
            calls[tile] = call
    if not calls:
        raise SystemExit(f"No tile of the {name} works here.\n" + "\n".join(notes))
    times = machine.interleaved(calls, ROUNDS, turn=0.02)
    ranked = sorted(times, key=lambda tile: times[tile].median)
    machine.show(name, ("tile", "median ms"), ((f"{tile}", times[tile]) for tile in ranked[:12]), notes, markdown=False)
    return ranked[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    options = parser.parse_args()
    if not triton.available():
        raise SystemExit(f"Nothing to tune: {triton.missing()}.")
    best = {name: tune(name, made, expected) for name, made, expected in programs(options.size)}
    tiles = ", ".join(f"{name}=Tile({t.rows}, {t.warps}, {t.pieces})" for name, t in best.items())
    print(f'\n    "{jax.devices()[0].device_kind}": Tiles({tiles}),')


if __name__ == "__main__":
    main()
