"""What a benchmark says of the machine it ran on and of what that can do at most; how calls are timed and shown."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

MIB = 2**20
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def described(*packages: str) -> list[str]:
    """Machine, load, date and versions, in sentences; packages that are absent are left out."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    machine = named[0] if named else platform.processor() or platform.machine()
    return [f"{machine}, {cores()} cores{load}, {date.today()}.", f"{', '.join(versions)}."]


@cache
def _workloads(size: int = 2048, copied: int = 64 * MIB) -> list[tuple[Callable[[], Any], float]]:
    """(a call, how much it does): a matrix product counts two operations a multiply-add, a copy reads and writes."""
    import jax
    import jax.numpy as jnp

    square, line = jnp.ones((size, size)), jnp.ones(copied)
    multiply, copy = jax.jit(jnp.matmul), jax.jit(lambda a: a + 1)
    return [
        (lambda: multiply(square, square).block_until_ready(), 2.0 * size**3),
        (lambda: copy(line).block_until_ready(), 8.0 * copied),
    ]


def ceilings(calls: int = 5) -> list[float]:
    """The most JAX gets out of this machine in float32: operations/s of a matrix product, bytes/s of a copy.

    The best of some calls. Ask now and then over a run and keep the best: a ceiling is not an average.
    """
    return [amount / min(seconds(call) for _ in range(calls)) for call, amount in _workloads()]


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class Timing(NamedTuple):
    """first: seconds of the first call, with whatever it compiles or caches; taken: of the others; result: the last."""

    first: float
    taken: list[float]
    result: Any

    @property
    def median(self) -> float:
        return statistics.median(self.taken)

    def __str__(self) -> str:
        low, high = (1e3 * f(self.taken) for f in (min, max))
        return f"{1e3 * self.median:.3g} ({low:.3g} to {high:.3g}, n {len(self.taken)})"


def interleaved(
    calls: Mapping[str, Callable[[], Any]], rounds: int, *, budget: float = 120.0, turn: float = 0.2
) -> dict[str, Timing]:
    """Every call timed in turns, so that whatever else the machine does hits all of them alike.

    A quick call is repeated within its turn until `turn` seconds have passed, ten times at most; a slow one has no
    more turns once it has taken `budget` seconds.
    """
    first = {name: seconds(call) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    results = {}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in calls.items():
                if sum(taken[name]) > budget:
                    continue
                here: list[float] = []
                while not here or (sum(here) < turn and len(here) < 10):
                    results.pop(name, None)
                    began = time.perf_counter()
                    results[name] = call()
                    here.append(time.perf_counter() - began)
                taken[name] += here
    finally:
        gc.enable()
    return {name: Timing(first[name], taken[name], results[name]) for name in calls}


def temporary(function, *arguments) -> int:
    """Bytes of temporary memory that a jitted function asks for, inputs and outputs not counted."""
    return function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def peak_growth(call: Callable[[], Any]) -> float:
    """Bytes by which resident memory rises above its present level during a call, its output included.

    NaN where the system does not tell (outside Linux).
    """
    if not RESET.exists():
        return float("nan")
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # memory freed but kept would hide what the call needs
        libc.malloc_trim(0)
    RESET.write_text("5")  # sets the high-water mark to the present level
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def peak_memory() -> float:
    """The most resident memory, bytes, that this process has had (since the last `peak_growth`, if any)."""
    return _status("VmHWM") if STATUS.exists() else float("nan")


def _status(field: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return float(line.split()[1]) * 1024


def show(
    title: str, header: Sequence[str], rows: Iterable[Sequence[object]], notes: Sequence[str] = (), *, markdown: bool
) -> None:
    """Prints a table and the notes beneath it, as Markdown or in plain columns."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    # The first column is words, the others are numbers.
    rule = ["-" * widths[0], *("-" * (w - 1) + (":" if markdown else "-") for w in widths[1:])]
    print(f"\n### {title}\n" if markdown else f"\n{title}")
    for line in (lines[0], rule, *lines[1:]):
        cells = [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        print(f"| {' | '.join(cells)} |" if markdown else "  ".join(cells))
    for number, note in enumerate(notes):
        print("\n" * (markdown and number == 0) + ("- " if markdown else "  ") + note)
    print(end="", flush=True)
