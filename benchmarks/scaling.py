"""One problem on more and more devices: what a step exchanges and holds, and on real devices how long it takes.

    python benchmarks/scaling.py                 # all devices; eight pretended ones where there is only one
    python benchmarks/scaling.py --fake 8 --size 96

Strong scaling shares one volume between more devices; weak scaling gives every device as many rows. Pretended devices
share the cores of one CPU, so of them only bytes and memory mean anything, and no time is printed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections import defaultdict

KINDS = ("all-reduce", "all-to-all", "collective-permute", "all-gather", "reduce-scatter")
SIZES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4, "c64": 8, "f64": 8}


def exchanged(program: str) -> dict[str, tuple[int, int]]:
    """By kind of collective: how many one step makes, and how many bytes each device sends with them."""
    found = defaultdict(lambda: (0, 0))
    for shape, kind in re.findall(rf"^.*? = (.*?) ({'|'.join(KINDS)})(?:-start)?\(", program, re.MULTILINE):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
        moved = 0
        for dtype, extent in arrays:
            elements = 1
            for n in extent.split(","):
                elements *= int(n or 1)
            moved += SIZES.get(dtype, 4) * elements
        count, before = found[kind]
        found[kind] = count + 1, before + moved
    return dict(found)


def measure(devices: int, size: int, rows: int, tilts: int, rounds: int, timed: bool):
    """A line for every case: method, pose, exchanged bytes a step and device, memory of a device, seconds of a step."""
    import jax
    import numpy as np

    import jaxtomo as jt
    from jaxtomo.solve import scanned

    rng = np.random.default_rng(0)
    tilt_deg = np.linspace(-60, 60, tilts)
    images = rng.random((tilts, rows, size), np.float32)
    nominal = jt.Pose.nominal(tilt_deg)
    shifted = nominal.replace(shift=np.asarray(rng.normal(size=(tilts, 2)), np.float32))
    mesh, key = jt.parallel.mesh(devices), jax.random.key(0)
    cases = {
        ("SIRT", "aligned"): (jt.sirt(), nominal),
        ("SIRT", "shifts"): (jt.sirt(), shifted),
        ("TV", "aligned"): (jt.tv(), nominal),
    }
    for (method, pose_name), (solver, pose) in cases.items():
        problem = jt.Problem(jt.TiltSeries(images, tilt_deg, source="made"), pose)
        problem, solver = jt.parallel.split(problem, solver, mesh)
        state = solver.init(problem, key)
        # Ten steps in one call, as in a run; the state is given up, so every call gets the one before.
        compiled = scanned.lower(problem, state, key, 0, 10, step=solver.step).compile()
        memory = compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        seconds = timed_step(problem, solver, state, key, rounds) if timed else None
        yield method, pose_name, exchanged(compiled.as_text()), held, seconds


def timed_step(problem, solver, state, key, rounds: int) -> float:
    """Median seconds of a step, ten in a call as in a run."""
    import jax
    import machine

    from jaxtomo.solve import scanned

    def steps():
        nonlocal state  # each call gives up the state it was given
        state = jax.block_until_ready(scanned(problem, state, key, 0, 10, step=solver.step)[0])

    taken = [machine.seconds(steps) / 10 for _ in range(rounds + 1)][1:]
    return sorted(taken)[rounds // 2]


def table(name: str, counts: list[int], size: int, rows_of, options, timed: bool) -> None:
    """Every case on every number of devices, compared with one."""
    import machine

    measured = {n: list(measure(n, size, rows_of(n), options.tilts, options.rounds, timed)) for n in counts}

    def lines():
        for i in range(len(measured[counts[0]])):
            for n in counts:
                method, pose, moved, held, seconds = measured[n][i]
                alone = measured[counts[0]][i][4]
                volume = 4 * size * size * rows_of(n) / n
                sent = sum(b for _, b in moved.values())
                what = ", ".join(f"{count} {kind}" for kind, (count, _) in sorted(moved.items())) or "nothing"
                row = [f"{method}, {pose}", n, what, f"{sent / 1e6:.3g}", f"{sent / volume:.2%}", f"{held / 1e6:.0f}"]
                if timed:
                    shared = n if rows_of(n) == rows_of(counts[0]) else 1
                    row += [f"{1e3 * seconds:.1f}", f"{alone / seconds / shared:.0%}"]
                yield row

    head = ["", "devices", "collectives in a step", "MB sent a device", "of its volume", "MB held a device"]
    head += ["ms a step", "efficiency"] if timed else []
    machine.show(name, head, lines(), [], markdown=options.markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fake", type=int, metavar="N", help="pretend to have N devices, on a CPU")
    parser.add_argument("--size", type=int, default=128, help="voxels across the tilt axis, and rows of one device")
    parser.add_argument("--tilts", type=int, default=61)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.fake and "JAXTOMO_FAKE" not in os.environ:  # JAX must be told before it starts
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={options.fake}"
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAXTOMO_FAKE": "1"}
        sys.exit(subprocess.call([sys.executable, *sys.argv], env=environment))

    import jax
    import machine

    there = jax.device_count()
    if there == 1:
        print("One device here: eight pretended ones instead, of which only bytes and memory mean anything.\n")
        sys.exit(subprocess.call([sys.executable, *sys.argv, "--fake", "8"]))
    timed = jax.default_backend() != "cpu"
    print(*machine.described("jaxtomo", "jax", "numpy"), sep="\n")
    print(f"{there} devices, {jax.devices()[0].device_kind}{'' if timed else ', pretended'}.")
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= there]
    size = options.size
    table(f"Strong scaling, {size}³, {options.tilts} tilts", counts, size, lambda n: size, options, timed)
    weak = f"Weak scaling, {size} × {size} voxels and {size} rows a device, {options.tilts} tilts"
    table(weak, counts, size, lambda n: size * n, options, timed)


if __name__ == "__main__":
    main()
