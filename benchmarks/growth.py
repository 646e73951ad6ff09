"""How time and memory of one step grow with the size N of the volume and with the number T of tilts.

    python benchmarks/growth.py                                # everything: about ten minutes on two cores
    python benchmarks/growth.py --budget 60                    # begins nothing new after a minute; run again to go on
    python benchmarks/growth.py --methods TV --sizes 256 --tilts    # a part of it
    python benchmarks/growth.py --report --markdown --plot docs/growth.png    # its tables and its plot
    python benchmarks/growth.py --quick                        # three small cells for each method, not kept

N is varied at T = 61 and T at N = 128. Volumes are N³, images T × N², tilts within ±60°. Every measured cell is a line
of a file in benchmarks/.cache and is not measured again; with --redo it is, and the quicker one stands.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import machine
import numpy as np
import optax
from quality import CACHE, code_version

import jaxtomo as jt
from jaxtomo import plan, plot

AT_SIZE, AT_TILTS = 128, 61
SIZES, TILTS = (64, 96, 128, 192, 256, 384, 512), (7, 15, 31, 61, 91, 140)
QUICK_SIZES, QUICK_TILTS = (32, 64), (7, 14)
SPARE = 1.1  # of the memory that a step asks for must be free
MB = 1e6


def _there_and_back(problem, volume, key):
    """Forward and adjoint, scaled so that repeating them neither overflows nor fades."""
    return problem.back_project(problem.project(volume) / problem.images.size ** (2 / 3)), {}


METHODS = {
    "projector": jt.Solver(lambda problem, key: jnp.ones(problem.shape), _there_and_back, lambda _, v: (v, None), {}),
    "SIRT": jt.sirt(),
    "TV": jt.tv(),
    "fit": jt.fit(jt.voxels(weight=0.3), optax.adam(0.1)),
}
COLOURS = {"projector": plot.INK, "SIRT": plot.BLUE, "TV": plot.ORANGE, "fit": plot.GREEN}
MARKERS = {"projector": "o", "SIRT": "s", "TV": "^", "fit": "D"}


class Cell(NamedTuple):
    method: str
    size: int
    tilts: int

    @property
    def volume(self) -> int:
        """Bytes of one volume."""
        return 4 * self.size**3

    @property
    def stack(self) -> int:
        """Bytes of all images."""
        return 4 * self.size**2 * self.tilts


class Sweep(NamedTuple):
    """One axis of the growth: its letter, what is held, and the cell at each of its values."""

    letter: str
    held: str
    values: Sequence[int]
    cell: Callable[[str, int], Cell]


def sweeps(options) -> list[Sweep]:
    return [
        Sweep("N", f"T = {options.at_tilts}", options.sizes, lambda method, n: Cell(method, n, options.at_tilts)),
        Sweep("T", f"N = {options.at_size}", options.tilts, lambda method, t: Cell(method, options.at_size, t)),
    ]


def cells(options) -> Iterator[Cell]:
    """Small ones first, so that a run cut short has whole sweeps of fewer values."""
    wanted = {sweep.cell(m, value) for sweep in sweeps(options) for value in sweep.values for m in options.methods}
    yield from sorted(wanted, key=lambda c: (c.volume * c.tilts, [*METHODS].index(c.method)))


def posed(cell: Cell) -> jt.Problem:
    """The images of a ball, which are the same at every tilt."""
    across = (np.arange(cell.size) - (cell.size - 1) / 2) / (0.35 * cell.size)
    chord = 0.7 * cell.size * np.sqrt(np.maximum(1 - across**2 - across[:, None] ** 2, 0))
    images = np.broadcast_to(chord.astype(np.float32), (cell.tilts, cell.size, cell.size))
    return jt.Problem(jt.TiltSeries(images, np.linspace(-60, 60, cell.tilts)))


def measured(cell: Cell, options) -> dict[str, Any]:
    """What the compiled step asks for, and, if that is free, how long it takes and by how much memory then rises.

    The state's memory is reused by the next step, as in `jaxtomo.reconstruct`.
    """
    solver, problem, key = METHODS[cell.method], posed(cell), jax.random.key(0)
    began = time.perf_counter()
    lowered = jax.jit(solver.step, donate_argnums=1).lower(problem, jax.eval_shape(solver.init, problem, key), key)
    step: Any = lowered.compile()
    asked = step.memory_analysis()
    held = asked.argument_size_in_bytes
    new = asked.output_size_in_bytes - asked.alias_size_in_bytes + asked.temp_size_in_bytes
    record = {"compiling": time.perf_counter() - began, "held": held, "new": new, "taken": []}
    free = plan.free_memory()
    if free is not None and SPARE * (held + new) > free:
        why = f"needs {plan.size(held + new)}, and {plan.size(free)} were free"
        return record | {"skipped": why}

    state = jax.tree.map(jnp.copy, solver.init(problem, key))

    def call():
        nonlocal state
        state, _ = jax.block_until_ready(step(problem, state, key))

    before = os.times()
    timing = machine.interleaved({cell.method: call}, options.rounds, budget=options.seconds)[cell.method]
    after = os.times()
    user, system = after.user - before.user, after.system - before.system
    return record | {
        "taken": timing.taken,
        "system": system / max(user + system, 1e-9),
        "rise": machine.peak_growth(call),
    }


def done(file: Path) -> dict[Cell, dict]:
    """What stands for every cell: the last line, or the quickest of those under the same conditions, because whatever
    else the machine does can only add."""
    found: dict[Cell, dict] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        record = json.loads(line)
        cell = Cell(*record["cell"])
        before = found.get(cell)
        if before and before["taken"] and before["under"] == record["under"] and not seconds(record) < seconds(before):
            continue
        found[cell] = record
    return found


def work(file: Path, options) -> None:
    """Measures what is lacking, as long as there is time."""
    file.parent.mkdir(exist_ok=True)
    until, finished = time.monotonic() + options.budget, done(file)
    under = f"jax {jax.__version__}, code {code_version()}, {date.today()}"
    for cell in cells(options):
        if not options.redo and finished.get(cell, {}).get("taken"):
            continue
        if time.monotonic() > until:
            print("No time is left. Run again to go on.")
            return
        record = {"cell": cell, "under": under} | measured(cell, options)
        with file.open("a") as out:
            out.write(json.dumps(record) + "\n")
        jax.clear_caches()
        gc.collect()
        said = record.get("skipped") or f"{spread(record)} ms, system {record['system']:.0%}"
        print(*cell, said, plan.size(record["held"] + record["new"]), flush=True)


def spread(record: Mapping) -> str:
    return str(machine.Timing(0.0, record["taken"], None)) if record["taken"] else "skipped"


def seconds(record: Mapping) -> float:
    return machine.Timing(0.0, record["taken"], None).median if record["taken"] else math.nan


def memory(record: Mapping) -> float:
    """Bytes of arguments, results that do not reuse them, and temporaries."""
    return record["held"] + record["new"]


QUANTITIES = {"time": seconds, "memory": memory}


def series(sweep: Sweep, method: str, quantity: Callable, found) -> tuple[np.ndarray, np.ndarray]:
    """The values of a sweep at which a quantity is known, and the quantity."""
    known = [(v, quantity(found[cell])) for v in sweep.values if (cell := sweep.cell(method, v)) in found]
    values, amounts = np.array(known, float).reshape(-1, 2).T
    return values[np.isfinite(amounts)], amounts[np.isfinite(amounts)]


def exponent(values: np.ndarray, amounts: np.ndarray) -> tuple[float, float]:
    """a of c value^a, by least squares of logarithms, and its standard error."""
    if values.size < 2:
        return math.nan, math.nan
    x, y = np.log(values) - np.log(values).mean(), np.log(amounts) - np.log(amounts).mean()
    slope = float(x @ y / (x @ x))
    freedom = values.size - 2
    return slope, math.sqrt(float(np.sum((y - slope * x) ** 2) / (x @ x)) / freedom) if freedom else math.nan


def larger_half(values: np.ndarray, amounts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    half = values.size // 2
    return values[half:], amounts[half:]


def made_of(amounts: np.ndarray, *parts: np.ndarray) -> np.ndarray:
    """The multiples of `parts` that add up to `amounts`, by least squares of the relative errors."""
    return np.linalg.lstsq(np.stack(parts, 1) / amounts[:, None], np.ones(amounts.size), rcond=None)[0]


def show_sweep(sweep: Sweep, found, options) -> None:
    header = [sweep.letter, *(f"{method}" for method in options.methods)]

    def rows(cell_text):
        for value in sweep.values:
            cell = [sweep.cell(method, value) for method in options.methods]
            yield value, *(cell_text(c, found[c]) if c in found else "" for c in cell)

    skipped = [f"{c.method} at {c.size}³ was not timed: it {r['skipped']}." for c, r in found.items() if "skipped" in r]
    machine.show(
        f"Time of one step against {sweep.letter}, {sweep.held}, ms",
        header,
        rows(lambda cell, record: spread(record)),
        skipped if sweep.letter == "N" else [],
        markdown=options.markdown,
    )
    machine.show(
        f"Memory of one step against {sweep.letter}, {sweep.held}, MB (in volumes of N³)",
        header,
        rows(lambda cell, record: f"{memory(record) / MB:.4g} ({memory(record) / cell.volume:.1f})"),
        markdown=options.markdown,
    )


def show_exponents(found, options) -> None:
    def lines():
        for name, quantity in QUANTITIES.items():
            for method in options.methods:
                fits = []
                for sweep in sweeps(options):
                    known = series(sweep, method, quantity, found)
                    fits += [exponent(*known), exponent(*larger_half(*known))]
                yield f"{name}, {method}", *(f"{a:.2f}" + f" ± {e:.2f}" * math.isfinite(e) for a, e in fits)

    n, t = (sweep.values[len(sweep.values) // 2 :] for sweep in sweeps(options))
    machine.show(
        "Exponents a of N^a and b of T^b",
        ("", "a", f"a, N ≥ {n[0]}", "b", f"b, T ≥ {t[0]}"),
        lines(),
        ["Least squares of logarithms, with the standard error that the scatter about the line gives."],
        markdown=options.markdown,
    )


def show_parts(found, options) -> None:
    """Costs that are sums of powers, taken apart."""
    along_n, along_t = sweeps(options)

    def lines():
        for method in options.methods:
            mine = {c: r for c, r in found.items() if c.method == method and c in {*cells(options)}}
            amounts = np.array([memory(r) for r in mine.values()])
            sizes = np.array([(c.volume, c.stack, MB) for c in mine])
            parts = made_of(amounts, *sizes.T)
            worst = np.max(np.abs(sizes @ parts / amounts - 1))
            tilts, taken = series(along_t, method, seconds, found)
            fixed, each = made_of(taken, np.ones_like(tilts), tilts)
            system = [r["system"] for v in along_n.values if "system" in (r := found.get(along_n.cell(method, v), {}))]
            yield (
                method,
                *(f"{part:.1f}" for part in parts),
                f"{worst:.0%}",
                f"{1e3 * each:.3g}",
                f"{1e3 * fixed:.3g}",
                f"{fixed / each:.0f}",
                f"{system[0]:.0%} to {system[-1]:.0%}" if system else "",
                "{:.1f} to {:.1f}".format(*(f(r["compiling"] for r in mine.values()) for f in (min, max))),
            )

    ratios = [r["rise"] / r["new"] for c, r in found.items() if r.get("rise", math.nan) > 0 and r["new"] > 200 * MB]
    notes = [
        "Memory = volumes x 4 N³ bytes + stacks x 4 T N² bytes + MB, fitted to both sweeps; beside them the largest "
        "relative error.",
        f"Time = fixed + T x (a tilt), fitted to the sweep of T, {along_t.held}.",
        f"System: share of the processor time spent in the kernel, {along_n.held}, N = {along_n.values[0]} to "
        f"{along_n.values[-1]}: memory that is new in a step is filled with zeros by the system.",
    ]
    if ratios:
        notes.append(
            f"Resident memory rose in one call by {min(ratios):.2f} to {max(ratios):.2f} of what the program says it "
            f"asks for beside its arguments (the {len(ratios)} cells where that is over 200 MB)."
        )
    machine.show(
        "What the cost is made of",
        (
            "",
            "volumes",
            "stacks",
            "MB",
            "error",
            "ms a tilt",
            "ms fixed",
            "fixed, in tilts",
            "system",
            "compiled in, s",
        ),
        lines(),
        notes,
        markdown=options.markdown,
    )


def drawn(found, options):
    """Time and memory against N and T, each line with its name and the exponent of its larger half."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    figure = Figure((8.6, 7.0), facecolor="white", layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, sweep in enumerate(sweeps(options)):
        for row, (name, quantity) in enumerate(QUANTITIES.items()):
            axes, ends = panels[row, column], {}
            for method in options.methods:
                values, amounts = series(sweep, method, quantity, found)
                amounts = amounts / (1 if quantity is seconds else MB)
                style = {"color": COLOURS[method], "marker": MARKERS[method], "markersize": 4, "linewidth": 1.4}
                axes.plot(values, amounts, **style)
                ends[method] = amounts[-1], exponent(*larger_half(values, amounts))[0]
            axes.set(xscale="log", yscale="log")
            axes.set_xlim(min(sweep.values) / 1.1, max(sweep.values) * 1.1)
            axes.xaxis.set_major_locator(FixedLocator(sweep.values))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(color=plot.GRID, linewidth=0.6)
            axes.tick_params(labelsize=8, colors=plot.MUTED)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_title(f"{name} against {sweep.letter}, {sweep.held}", fontsize=9, color=plot.INK, loc="left")
            _reference(axes, sweep, row, found, options)
            _labels(axes, ends, sweep.letter)
            if row:
                axes.set_xlabel({"N": "N, voxels along each side", "T": "T, tilts"}[sweep.letter], fontsize=8.5)
        panels[0, 0].set_ylabel("seconds of one step", fontsize=8.5)
        panels[1, 0].set_ylabel("MB of one step", fontsize=8.5)
    return figure


def _reference(axes, sweep: Sweep, row: int, found, options) -> None:
    """What a pure power would look like: N³ T through the projector's time, and one volume."""
    values, middle = np.array(sweep.values, float), len(sweep.values) // 2
    style = {"color": plot.MUTED, "linewidth": 0.9, "linestyle": ":"}
    if row:
        axes.plot(values, [sweep.cell("", int(v)).volume / MB for v in values], **style)
        said, here = "one volume", sweep.cell("", sweep.values[middle]).volume / MB
    else:
        known, amounts = series(sweep, options.methods[0], seconds, found)
        power = 3 if sweep.letter == "N" else 1
        line = 0.5 * amounts[-1] * (values / known[-1]) ** power
        axes.plot(values, line, **style)
        said, here = f"slope {power}", line[middle]
    style = {"textcoords": "offset points", "fontsize": 7.5, "color": plot.MUTED}
    axes.annotate(said, (values[middle], here), (8, -12), **style)


def _labels(axes, ends: Mapping[str, tuple[float, float]], letter: str, apart: float = 0.052) -> None:
    """Names at the right ends of the lines, moved apart where they would touch."""
    low, high = np.log(axes.get_ylim())
    placed = -math.inf
    for method, (end, power) in sorted(ends.items(), key=lambda item: item[1][0]):
        placed = max((math.log(end) - low) / (high - low), placed + apart)
        said = f"{method}, ${letter}^{{{power:.2f}}}$" if math.isfinite(power) else method
        style = {"color": COLOURS[method], "fontsize": 8, "va": "center", "annotation_clip": False}
        axes.annotate(said, (1.02, placed), xycoords="axes fraction", **style)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help=f"N, at T = {AT_TILTS}")
    parser.add_argument("--tilts", type=int, nargs="*", default=TILTS, help=f"T, at N = {AT_SIZE}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timed calls in a cell")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which no new cell is begun")
    parser.add_argument("--redo", action="store_true", help="measure again what has been measured")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--plot", type=Path, help="file for the plot")
    parser.add_argument("--quick", action="store_true", help="three small cells for each method, not kept")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    options.at_size, options.at_tilts = AT_SIZE, AT_TILTS
    if options.quick:
        options.sizes, options.tilts, options.rounds = QUICK_SIZES, QUICK_TILTS, 2
        options.at_size, options.at_tilts = QUICK_SIZES[0], QUICK_TILTS[0]
    with tempfile.TemporaryDirectory() as temporary:
        file = (Path(temporary) if options.quick else CACHE) / "growth.jsonl"
        if not options.report:
            work(file, options)
        found = done(file)
    if {*cells(options)} <= {*found}:
        report(found, options)


def report(found, options) -> None:
    print(*machine.described("jaxtomo", "jax", "numpy"), sep="\n")
    print("Measured with " + "; ".join(sorted({found[cell]["under"] for cell in cells(options)})) + ".")
    for sweep in sweeps(options):
        if sweep.values:
            show_sweep(sweep, found, options)
    if min(len(options.sizes), len(options.tilts)) > 1:
        show_exponents(found, options)
        show_parts(found, options)
    if options.plot:
        drawn(found, options).savefig(options.plot, dpi=100)


if __name__ == "__main__":
    main()
