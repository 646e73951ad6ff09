"""The projector beside its peers in one run: time, agreement, floors, memory, and the cost of pose gradients.

    pip install "jaxtomo[bench]"
    python benchmarks/projector.py                 # 128³ and 256³, 61 tilts ±60°
    python benchmarks/projector.py --quick         # 64³, two rounds
    python benchmarks/projector.py --sizes 64 128 256 512 --peers     # no peers: shares of the machine's ceilings
    python benchmarks/projector.py --gpu           # 512³ and 1024³ on a GPU, XLA's kernels and Triton's

A peer that is not installed is left out, and the output says so.
"""

from __future__ import annotations

import argparse
from functools import partial

import machine
import projector_gpu
from peers import PEERS, Contender, joseph_in_float64  # before JAX: see there

# isort: split
import jax
import jax.numpy as jnp
import numpy as np

from jaxtomo import likelihood
from jaxtomo.data import Pose
from jaxtomo.projector import adjoint, back_project, forward, joseph, project, trapezoid

TILTS = np.deg2rad(np.linspace(-60, 60, 61))
BARS = {
    "forward": {"ASTRA": 75, "mbirjax": 14, "SciPy CSR": 12},
    "adjoint": {"ASTRA": 35, "mbirjax": 8, "SciPy CSR": 7},
}  # times faster at BARS_AT³
BARS_AT = 256
SHARE_BAR = 0.5  # of the multiply-adds that the machine can do
POSE_BAR = 4.0  # forward projections
# What computes the same sums as the peer does: only these are compared.
SAME = {"ASTRA": "joseph", "SciPy CSR": "joseph", "mbirjax": "trapezoid", "svmbir": "trapezoid", "jaxtomo": "trapezoid"}


def ours(volume, images) -> tuple[list[Contender], dict[tuple[str, str], tuple]]:
    """Both footprints in the axes of the kernels, as solvers use them, and one in the public axes.

    Also, by name and direction, each jitted function and its arguments. The pose is one of them, so that nothing of
    the geometry can be worked out while compiling.
    """
    v, p, pose = jnp.asarray(volume), jnp.asarray(images), Pose(jnp.asarray(TILTS, jnp.float32))
    (nz, nx, ny), width = volume.shape, images.shape[1]
    programs = {}
    for name, shape in (("joseph", joseph), ("trapezoid", trapezoid)):
        there, back = partial(forward, width=width, footprint=shape), partial(adjoint, shape=(nz, nx), footprint=shape)
        programs[name, "forward"], programs[name, "adjoint"] = (jax.jit(there), v, pose), (jax.jit(back), p, pose)
    name = "trapezoid, public axes"
    programs[name, "forward"] = jax.jit(project), v.swapaxes(1, 2), pose
    programs[name, "adjoint"] = jax.jit(partial(back_project, shape=(nz, ny, nx))), p.swapaxes(1, 2), pose

    def contender(name):
        read = (lambda a: np.asarray(a).swapaxes(1, 2)) if "public" in name else np.asarray
        calls = (partial(lambda f, *given: f(*given).block_until_ready(), *programs[name, d]) for d in BARS)
        return Contender(f"jaxtomo {name}", "jaxtomo", *calls, read, read)

    return [contender(name) for name, direction in programs if direction == "forward"], programs


def compare(size: int, options) -> None:
    """Everyone's forward and adjoint at size³ on random volumes and images."""
    rng = np.random.default_rng(0)
    volume, images = (rng.random(shape, np.float32) for shape in ((size,) * 3, (TILTS.size, size, size)))
    contenders, programs = ours(volume, images)
    notes = []
    for name in options.peers:
        try:
            found, said = PEERS[name](volume, images, TILTS)
        except ImportError as absent:
            found, said = [], [f"{name} was left out: {absent}."]
        contenders, notes = contenders + found, notes + said

    times, best = {}, [0.0, 0.0]
    for direction in BARS:
        calls = {c.name: getattr(c, direction) for c in contenders}
        times[direction] = machine.interleaved(calls, options.rounds, budget=options.budget)
        best = np.maximum(best, machine.ceilings())
        machine.show(
            f"{direction.capitalize()} projection, {size}³, {TILTS.size} tilts ±60°, float32",
            ("", "first call s", "median ms", "jaxtomo is faster by", "bar", "largest difference"),
            rows(direction, size, contenders, times[direction]),
            [*notes, rounding(volume, contenders, times)] if direction == "forward" else [],
            markdown=options.markdown,
        )
    show_floors(size, volume, images, contenders[:2], programs, times, best, options)


def rows(direction, size, contenders, times):
    """A line for each contender, compared with the footprint that computes the same sums."""
    to_array = {c.name: c.images if direction == "forward" else c.volume for c in contenders}
    expected = {name: to_array[f"jaxtomo {name}"](times[f"jaxtomo {name}"].result) for name in ("joseph", "trapezoid")}
    for contender in contenders:
        same, timing = SAME[contender.peer], times[contender.name]
        ratio = timing.median / times[f"jaxtomo {same}"].median
        bar = BARS[direction].get(contender.peer) if size == BARS_AT else None
        faster = difference = ""
        if contender.name not in ("jaxtomo joseph", "jaxtomo trapezoid"):
            found = to_array[contender.name](timing.result)
            difference = f"{np.max(np.abs(found - expected[same])) / np.max(np.abs(expected[same])):.1e}"
            faster = f"{ratio:.1f}x ({same})"
        verdict = "" if bar is None else f"{bar}x {'met' if ratio >= bar else 'MISSED'}"
        yield contender.name, f"{timing.first:.2f}", timing, faster, verdict, difference


def rounding(volume, contenders, times) -> str:
    """How far the linear projectors are from the same sums in double precision."""
    exact = joseph_in_float64(volume[:, :, 0], volume.shape[1], TILTS)
    first = {c.peer: c for c in contenders if SAME[c.peer] == "joseph" or c.name == "jaxtomo joseph"}
    errors = {
        peer: np.max(np.abs(c.images(times["forward"][c.name].result)[:, :, 0] - exact)) / exact.max()
        for peer, c in first.items()
    }
    said = ", ".join(f"{peer} {error:.1e}" for peer, error in errors.items())
    return f"Largest difference to the same linear sums in float64, first slice: {said}."


def repeated(function, argument, pose, calls: int = 4) -> float:
    """Seconds of one of some calls in one program, as solvers make them: memory is asked for once, not in each."""

    def again(_, moved):
        return 1e-12 * function(argument, pose.replace(tilt=pose.tilt + moved))[0, 0, 0]

    program = jax.jit(lambda pose: jax.lax.fori_loop(0, calls, again, 0.0))
    return machine.interleaved({"": lambda: program(pose).block_until_ready()}, rounds=3)[""].median / calls


def show_floors(size, volume, images, contenders, programs, times, ceilings, options) -> None:
    """What the machine could do at best, and how much memory the projections ask for."""
    arithmetic = 2 * 2 * volume.shape[0] * images.size / ceilings[0]
    traffic = (volume.nbytes + images.nbytes) / ceilings[1]
    allowed = volume.nbytes + images.nbytes

    def lines():
        for contender in contenders:
            for direction in BARS:
                name, median = contender.name.removeprefix("jaxtomo "), times[direction][contender.name].median
                looped = repeated(*programs[name, direction])
                shares = (
                    f"{arithmetic / t:.0%} {'met' if arithmetic / t >= SHARE_BAR else 'MISSED'}"
                    for t in (median, looped)
                )
                asked = (
                    machine.temporary(*programs[name, direction]),
                    machine.peak_growth(getattr(contender, direction)),
                )
                verdict = "" if size != BARS_AT else "met" if not max(asked) > allowed else "MISSED"
                sizes = (f"{x / machine.MIB:.1f} MiB, {x / allowed:.0%}" for x in asked)
                milliseconds = (f"{1e3 * t:.3g}" for t in (median, looped))
                yield f"{direction}, {name}", *milliseconds, *shares, f"{traffic / median:.0%}", *sizes, verdict

    machine.show(
        f"Floors and memory, {size}³",
        (
            "",
            "alone, ms",
            "in a loop, ms",
            f"of the FMA ceiling, bar {SHARE_BAR:.0%}",
            "in a loop",
            "of the memory ceiling",
            "temporary memory",
            "resident memory",
            "bar 100%",
        ),
        lines(),
        [
            f"FMA ceiling: 2 taps x {size} planes x {TILTS.size} tilts x {size}² pixels, a multiply-add each, at "
            f"the {ceilings[0] / 1e9:.0f} GFLOP/s of a matrix product: {1e3 * arithmetic:.2f} ms. "
            "The trapezoid has 3 taps forward and is held to the same.",
            f"Memory ceiling: volume and images once, at the {ceilings[1] / 1e9:.1f} GB/s of a large copy: "
            f"{1e3 * traffic:.2f} ms.",
            "In a loop: one of several calls in one program, as solvers make them. Alone, every call has fresh memory, "
            "which the system fills with zeros.",
            "Temporary: what the compiled program asks for beside input and output. Resident: the rise during a call, "
            f"its output included. In percent of one volume and one stack, {allowed / machine.MIB:.0f} MiB.",
        ],
        markdown=options.markdown,
    )


def pose_gradients(size: int, options) -> None:
    """A full misfit's gradient in every pose parameter, beside the forward projection through the same poses."""
    rng = np.random.default_rng(1)
    count, volume = TILTS.size, jnp.asarray(rng.random((size,) * 3, np.float32))

    def drawn(spread, *shape, about=0.0):
        return jnp.asarray(about + spread * rng.normal(size=(count, *shape)), jnp.float32)

    shifted = Pose(jnp.asarray(TILTS, jnp.float32), shift=drawn(1.0, 2))
    poses = {
        "tilt, shift": shifted,
        "tilt, shift, rotation, magnification": shifted.replace(
            rotation=drawn(0.01), magnification=drawn(0.01, about=1.0)
        ),
    }
    images = forward(volume, shifted, size) + 1

    def misfit(pose):
        return likelihood.gaussian()(forward(volume, pose, size), images, 1.0)

    calls = {}
    for name, pose in poses.items():
        projected, slope = jax.jit(lambda pose: forward(volume, pose, size)), jax.jit(jax.grad(misfit))
        calls[name, "forward"] = lambda f=projected, pose=pose: jax.block_until_ready(f(pose))
        calls[name, "gradient"] = lambda f=slope, pose=pose: jax.block_until_ready(f(pose))
    times = machine.interleaved(calls, options.rounds, budget=options.budget)
    ratios = {name: times[name, "gradient"].median / times[name, "forward"].median for name in poses}
    machine.show(
        f"Gradient of a full misfit in the poses, {size}³, {count} tilts, trapezoid",
        (
            "parameters of each tilt",
            "forward, median ms",
            "gradient, median ms",
            "gradient/forward",
            f"bar {POSE_BAR:g}x",
        ),
        (
            (name, times[name, "forward"], times[name, "gradient"], f"{r:.2f}", "met" if r <= POSE_BAR else "MISSED")
            for name, r in ratios.items()
        ),
        ["The gradient includes the forward projection and the misfit."],
        markdown=options.markdown,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", help="by default 128 and 256, on a GPU 512 and 1024")
    parser.add_argument("--gpu", action="store_true", help="the XLA path and the Triton kernels on a GPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--budget", type=float, default=120.0, help="seconds of timed calls, per contender and direction"
    )
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--quick", action="store_true", help="64³, two rounds")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.rounds = [64], 2
    packages = ("jaxtomo", "jax", "astra-toolbox", "mbirjax", "svmbir", "scipy", "numpy")
    print(*machine.described(*packages), sep="\n")
    if options.gpu:
        projector_gpu.run(options)
        return
    for size in options.sizes or [128, 256]:
        compare(size, options)
        pose_gradients(size, options)


if __name__ == "__main__":
    main()
