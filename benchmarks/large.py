"""Volumes larger than memory: 1024³ from 61 tilts within 6 GiB, predicted and measured, stage by stage.

python benchmarks/large.py --folder /data/large                          # makes the series, runs wbp, sirt and tv
python benchmarks/large.py --folder scratch --size 256 --memory 1     # the same in a few minutes
python benchmarks/large.py --folder scratch --whole 96,160,256        # every method, whole: predicted and measured
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import machine
import numpy as np

import jaxtomo as jt

BAR_BYTES, BAR_AT = 6 * 2**30, 1024
BAR_PREDICTED = 0.15
STEPS = {"wbp": 1, "sirt": 20, "tv": 10}
WHOLE = ("wbp", "sirt", "sart", "cgls", "tv", "tvq", "gaussian")
PLANNED_ONLY = 2048


class Run(NamedTuple):
    """One run of the command line in a process of its own: what it printed, its seconds, and its peak in bytes."""

    document: dict
    seconds: float
    peak: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for the series and the volumes (default: a temporary one)")
    parser.add_argument("--size", type=int, default=BAR_AT, help="rows, columns and thickness")
    parser.add_argument("--tilts", type=int, default=61)
    parser.add_argument("--memory", type=float, default=6.0, help="GB that a run may use")
    parser.add_argument("--methods", default="wbp,sirt,tv")
    parser.add_argument("--steps", type=int, help="of every method but wbp (default: sirt 20, tv 10)")
    parser.add_argument("--whole", help="sizes, as in 96,160: every method on the whole volume instead")
    parser.add_argument("--keep", action="store_true", help="keep the volumes")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    print(*machine.described("jaxtomo", "jax", "numpy", "h5py"), sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.whole:
            whole_runs(folder, [int(n) for n in options.whole.split(",")], options)
        else:
            large_runs(folder, options)


def large_runs(folder: Path, options: argparse.Namespace) -> None:
    """In slabs, within the memory that was given."""
    series = made(folder, options.size, options.tilts)
    bar = options.size >= BAR_AT
    for method in options.methods.split(","):
        steps = STEPS[method] if options.steps is None or method == "wbp" else options.steps
        out = folder / f"{options.size}-{method}"
        given = ["--method", method, "--steps", steps, "--memory", options.memory, "--no-align", "--out", out]
        given += ["--weight", "0.3"] if method == "tv" else []
        plan = command("reconstruct", series, *given, "--dry-run").document
        run = command("reconstruct", series, *given, "--overwrite")
        planned, ratio = plan["memory_bytes"]["host"], plan["memory_bytes"]["host"] / run.peak
        rows = [
            ("peak memory, GiB", f"{run.peak / 2**30:.2f}", verdict(run.peak <= BAR_BYTES, "6") if bar else ""),
            ("planned / measured", f"{ratio:.2f}", verdict(abs(ratio - 1) <= BAR_PREDICTED, "1 ± 0.15")),
            ("planned, GiB", f"{planned / 2**30:.2f}", ""),
            ("whole run, s", f"{run.seconds:.0f}", ""),
            *((f"  {name}, s", f"{s:.0f}", "") for name, s in run.document["seconds"].items()),
            ("step between rows at seams / beside them", f"{seams(out / 'volume.mrc', plan['slabs']):.3f}", ""),
        ]
        notes = [
            f"{plan['slabs']} slabs of {plan['slab_rows']} rows, margins included ({plan['slabs_because']}).",
            f"{run.document['message']}; misfit {run.document['metrics']['misfit']:.4f}.",
        ]
        title = f"{method}, {options.size}³ from {options.tilts} tilts, {steps} steps, --memory {options.memory:g}"
        machine.show(title, ("", "", "bar"), rows, notes, markdown=options.markdown)
        if not options.keep:
            remove(out)
    plans(folder, options)


def plans(folder: Path, options: argparse.Namespace) -> None:
    """A volume that is only planned: `--dry-run` reads headers alone."""
    size, memory = (2 * options.size if options.size < BAR_AT else PLANNED_ONLY), 2 * options.memory
    series, rows = made(folder, size, options.tilts), []
    for method in options.methods.split(","):
        given = ("--method", method, "--memory", memory, "--no-align", "--out", folder / "planned")
        run = command("reconstruct", series, *given, "--dry-run")
        plan = run.document
        peak = f"{plan['memory_bytes']['host'] / 2**30:.2f}"
        hours = f"{plan['seconds'] / 3600:.1f}"
        rows.append((method, plan["slabs"], plan["slab_rows"], peak, hours, f"{run.seconds:.1f}"))
    header = ("", "slabs", "rows of one", "peak, GiB", "hours", "planned in, s")
    machine.show(f"{size}³ planned, --memory {memory:g}", header, rows, markdown=options.markdown)


def whole_runs(folder: Path, sizes: Sequence[int], options: argparse.Namespace) -> None:
    """Every method on the whole volume, aligned, judged and reported."""
    rows = []
    for size in sizes:
        series = made(folder, size, options.tilts)
        for method in WHOLE:
            out = folder / f"{size}-{method}"
            given = ["--method", method, "--steps", 1 if method == "wbp" else 12, "--out", out]
            given += ["--weight", "0.3"] if method in ("tv", "tvq", "gaussian") else []
            plan = command("reconstruct", series, *given, "--dry-run").document
            run = command("reconstruct", series, *given, "--overwrite")
            ratio = plan["memory_bytes"]["host"] / run.peak
            near = verdict(abs(ratio - 1) <= BAR_PREDICTED, "1 ± 0.15")
            memory = [f"{n / 2**20:.0f}" for n in (plan["memory_bytes"]["host"], run.peak)]
            rows.append((f"{method} {size}³", *memory, f"{ratio:.2f}", near, f"{run.seconds:.0f}"))
            print(*rows[-1], flush=True)
            remove(out)
    header = ("", "planned, MiB", "measured, MiB", "ratio", "bar", "seconds")
    machine.show(f"Whole runs from {options.tilts} tilts", header, rows, markdown=options.markdown)


def verdict(met: bool, bar: str) -> str:
    return f"{'met' if met else 'MISSED'} ({bar})"


def command(*argv) -> Run:
    """`jaxtomo …` in a process of its own, with nothing compiled before, so that compilation counts too."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
        began = time.perf_counter()
        words = [sys.executable, "-m", "jaxtomo.cli", *map(str, argv), "--json"]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, text=True)
        printed: list[str] = []
        reader = threading.Thread(target=lambda: printed.append(process.stdout.read() if process.stdout else ""))
        reader.start()
        _, status, usage = os.wait4(process.pid, 0)
        reader.join()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {process.returncode}\n{''.join(printed)}")
    scale = 1 if sys.platform == "darwin" else 1024
    return Run(json.loads("".join(printed)), time.perf_counter() - began, usage.ru_maxrss * scale)


def made(folder: Path, size: int, tilts: int) -> Path:
    """A series of balls of density 1 and a film, from formulas, with noise of 2 % of the largest ray sum."""
    path = folder / f"series-{size}-{tilts}.h5"
    if path.is_file():
        return path
    rng = np.random.default_rng(0)
    angles = np.linspace(-60, 60, tilts)
    images = rng.normal(0, 0.005 * size, (tilts, size, size)).astype(np.float32)
    v, u = (np.arange(size, dtype=np.float32) - (size - 1) / 2 for _ in range(2))
    for _ in range(60):
        radius, away = size * rng.uniform(0.02, 0.1), size * rng.uniform(0, 0.3)
        turn, y = rng.uniform(0, 2 * np.pi), size * rng.uniform(-0.4, 0.4)
        rows = np.flatnonzero(np.abs(v - y) < radius)
        for image, angle in zip(images, np.deg2rad(angles), strict=True):
            centre = away * np.cos(turn - angle)
            columns = np.flatnonzero(np.abs(u - centre) < radius)
            square = radius**2 - (v[rows, None] - y) ** 2 - (u[columns] - centre) ** 2
            image[np.ix_(rows, columns)] += 2 * np.sqrt(np.maximum(square, 0))
    said = {name: "made by benchmarks/large.py" for name in ("images", "tilt_deg", "pixel_nm", "tilt_axis")}
    jt.write(path, jt.TiltSeries(images, angles, 1.0, provenance=said))
    return path


def seams(path: Path, slabs: int) -> float:
    """Mean |difference| of the two rows at each seam, over that of the rows 3 away; 1 where no seam shows."""
    with open(path, "rb") as file:
        nx, ny, nz = np.fromfile(file, "<i4", 3)
    total = np.zeros(ny - 1)
    for z in range(0, nz, 4):
        plane = np.fromfile(path, "<f4", int(ny) * int(nx), offset=1024 + 4 * z * int(ny) * int(nx)).reshape(ny, nx)
        total += np.abs(np.diff(plane, axis=0)).sum(1)
    ends = np.array([int(ny) * i // slabs - 1 for i in range(1, slabs)], int)
    return float(2 * total[ends].sum() / (total[ends - 3].sum() + total[ends + 3].sum())) if ends.size else 1.0


def remove(folder: Path) -> None:
    """Delete the run in `folder`."""
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


if __name__ == "__main__":
    main()
