"""What a run will need before it starts: memory and time from the shapes alone, and the setting that makes it fit.

NumPy-free and JAX-free, so that a plan costs nothing. `tests/test_plan.py` compares the table with what XLA says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from .errors import DoesNotFitError


class Need(NamedTuple):
    """What one method needs at its peak, in volumes and stacks of float32, and what one of its steps costs.

    Attributes:
        volumes, stacks: memory of the solver, in units of the volume and of the image stack, problem included.
        projections: forward and back-projections of all tilts in one step.
        passes: how often one step reads or writes the volume beside that.
        padding: voxels added on each side of the volume it works on.
    """

    volumes: float
    stacks: float
    projections: float
    passes: float
    padding: int = 0


NEEDS = {
    "wbp": Need(2.5, 5.5, 2, 6),
    "sirt": Need(3.2, 5.6, 2, 6),
    "sart": Need(4.9, 6.2, 3, 100),
    "cgls": Need(4.3, 5.3, 2, 6),
    "tv": Need(18.5, 11, 2.2, 25),
    "tvq": Need(11, 6.2, 2, 80),
    "gaussian": Need(6.3, 5.6, 2, 55, padding=16),
}
TABLE = 800  # bytes of the projector's weights for each tilt and pixel across the axis; counts in thin slabs
SLICED = ("wbp", "sirt", "sart")
"""Methods that treat every slice across the tilt axis by itself, so that slabs give the same volume."""

PROGRAM = 500_000_000  # bytes of the program itself: libraries, compiled code
HELD = 6  # stacks a run holds beside the solver: as read, aligned, its mask, the problem's, a copy on its way
REPORT = Need(4, 9, 1, 0)  # of the report and the writing, after the solver's memory is free
BINNINGS = (2, 3, 4, 6, 8, 12, 16)
MARGIN = 2  # rows read beyond each end of a slab, for shifts along the axis that are no whole number of pixels
PROJECTED = {"cpu": 5e9, "gpu": 4e11, "tpu": 2e11}  # voxels × tilts a second; of a CPU, for each core
MOVED = {"cpu": 1.5e9, "gpu": 5e11, "tpu": 3e11}  # voxels read or written a second; of a CPU, for each core
JUDGED, TRIED = 64, 32  # rows that the quality is judged on, and weights are tried on
STARTING = 12.0  # seconds for imports, compilation, alignment of a small series and the report


@dataclass(frozen=True)
class Plan:
    """A run, by its shapes.

    Attributes:
        method: name of the method.
        tilts, rows, width: of the images after binning; rows lie along the tilt axis.
        thickness: voxels along the beam.
        steps: how many.
        slabs: parts the rows are reconstructed in.
        device: "cpu", "gpu" or "tpu".
        cores: of the CPU.
        judged: whether the quality numbers are computed too.
        trial_steps: steps spent on a slab of `TRIED` rows to choose the weight.
    """

    method: str
    tilts: int
    rows: int
    width: int
    thickness: int
    steps: int
    slabs: int = 1
    device: str = "cpu"
    cores: int = 1
    judged: bool = True
    trial_steps: int = 0

    @property
    def slab_rows(self) -> int:
        """Rows of the largest slab, its margins included."""
        return self.rows if self.slabs == 1 else min(self.rows, -(-self.rows // self.slabs) + 2 * MARGIN)

    @property
    def volume_bytes(self) -> int:
        return 4 * self.thickness * self.rows * self.width

    @property
    def stack_bytes(self) -> int:
        return 4 * self.tilts * self.rows * self.width

    @property
    def solver_bytes(self) -> int:
        """Peak of the solver, on the device that computes."""
        need = NEEDS[self.method]
        padded = [n + 2 * need.padding for n in (self.thickness, self.slab_rows, self.width)]
        stack = 4 * self.tilts * self.slab_rows * self.width
        table = TABLE * self.tilts * self.width
        return int(need.volumes * 4 * padded[0] * padded[1] * padded[2] + need.stacks * stack + table)

    @property
    def host_bytes(self) -> int:
        """Peak in the computer's own memory; on a CPU the solver is part of it."""
        held = HELD * self.stack_bytes
        solving = self.solver_bytes if self.device == "cpu" else 4 * self.thickness * self.slab_rows * self.width
        if self.slabs > 1:  # the volume grows in a file, and the report shows it binned
            return int(PROGRAM + held + solving)
        return int(PROGRAM + max(held + solving, REPORT.volumes * self.volume_bytes + REPORT.stacks * self.stack_bytes))

    @property
    def seconds(self) -> float:
        """Rough wall time of the whole run on idle hardware."""
        need, cores = NEEDS[self.method], self.cores if self.device == "cpu" else 1
        voxels = self.volume_bytes / 4
        step = (
            need.projections * voxels * self.tilts / PROJECTED[self.device] + need.passes * voxels / MOVED[self.device]
        )
        judging = 2 * self.steps * min(1.0, JUDGED / self.rows) if self.judged else 0
        choosing = self.trial_steps * min(1.0, TRIED / self.rows)
        return STARTING + (self.steps + judging + choosing) * step / cores

    def binned(self, factor: int) -> Plan:
        """The same run with images (and volume) binned by `factor`."""
        small = [max(1, n // factor) for n in (self.rows, self.width, self.thickness)]
        return replace(self, rows=small[0], width=small[1], thickness=small[2])


class Memory(NamedTuple):
    """Bytes that a run may use: of the computer, and of the device that computes (None for a CPU); None: unknown."""

    host: int | None
    device: int | None = None


def fits(plan: Plan, memory: Memory) -> bool:
    """Whether the run stays within `memory`, of which an unknown part is taken to be enough."""
    if memory.host is not None and plan.host_bytes > memory.host:
        return False
    return plan.device == "cpu" or memory.device is None or plan.solver_bytes <= memory.device


def require(plan: Plan, memory: Memory, source: str) -> None:
    """Raises DoesNotFitError naming the settings that would make it fit, if the run needs more than `memory`."""
    if fits(plan, memory):
        return
    on_device = plan.device != "cpu" and memory.device is not None and plan.solver_bytes > memory.device
    needed, free = (plan.solver_bytes, memory.device) if on_device else (plan.host_bytes, memory.host)
    cures = list(_cures(plan, memory))
    cure = f"Give {' or '.join(cures)}." if cures else "Crop the images, or use a computer with more memory."
    raise DoesNotFitError(
        f"{source}: {plan.method} on {plan.thickness} × {plan.rows} × {plan.width} voxels and {plan.tilts} tilts needs "
        f"about {size(needed)}, and {size(free or 0)} of {'device ' if on_device else ''}memory are free. {cure}"
    )


def _cures(plan: Plan, memory: Memory) -> Iterator[str]:
    for factor in BINNINGS:
        if fits(plan.binned(factor), memory):
            yield f"--bin {factor}"
            break
    sliced = plan if plan.method in SLICED else replace(plan, method="sirt")
    for slabs in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256):
        if slabs <= plan.rows and slabs > plan.slabs and fits(replace(sliced, slabs=slabs), memory):
            yield f"--slabs {slabs}" + ("" if sliced is plan else " --method sirt")
            break


def free_memory() -> int | None:
    """Bytes this process can still have: what the system has free, within the limit of its container."""
    found = [value for value in (_available(), _container()) if value is not None]
    return min(found, default=None)


def _available() -> int | None:
    if Path("/proc/meminfo").is_file():
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _container() -> int | None:
    """What the limit of a control group (a container, a batch job) leaves; its file cache can be given up."""
    root = Path("/sys/fs/cgroup")
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            most, now = (root / limit).read_text().strip(), (root / used).read_text().strip()
            facts = dict(line.split() for line in (root / stat).read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most.isdigit() and int(most) < 1 << 60:
            return max(0, int(most) - int(now) + int(facts.get("inactive_file", 0)))
    return None


def size(count: float) -> str:
    """Bytes in words: 1.2 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
