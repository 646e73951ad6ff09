"""What a run will need before it starts: memory and time from the shapes alone, and the setting that makes it fit.

NumPy-free and JAX-free, so that a plan costs nothing. `tests/test_plan.py` compares the table with what XLA says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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
        code: bytes of its compiled code, and of what compiling leaves behind, beside those of `PROGRAM`.
        network: memory, in units of what a network sees at once; see `rows_at_once`.
        angles: images that it makes beside the measured ones.
    """

    volumes: float
    stacks: float
    projections: float
    passes: float
    padding: int = 0
    code: int = 0
    network: float = 0
    angles: int = 0


NEEDS = {
    "wbp": Need(2.7, 7.5, 2, 6),
    "sirt": Need(3.1, 5.4, 2, 6),
    "sart": Need(4.7, 6.0, 3, 100),
    "cgls": Need(4.1, 5.0, 2, 6),
    "tv": Need(20.5, 11.7, 2.2, 25, code=100_000_000),
    "tvq": Need(11, 6.4, 2, 80, code=80_000_000),
    "root-tv": Need(11.5, 4, 2, 80, code=80_000_000),
    "dip": Need(110, 3.5, 2, 700, code=200_000_000),
    "dip-tv": Need(103, 5, 2, 700, code=200_000_000),
    "inr": Need(15, 4, 2, 400, code=200_000_000),
    "diffusion": Need(6, 5, 22, 1500, code=300_000_000, network=170),
    "adapt": Need(18, 10, 60, 4000, code=300_000_000, network=170),
    "gan": Need(43, 6, 28, 600, code=300_000_000, network=130, angles=128),
    "gaussian": Need(7.3, 5.8, 2, 55, padding=16, code=80_000_000),
    "elements": Need(10, 14.5, 0, 0, code=80_000_000),
}
ELEMENT = Need(11.5, 11.5, 2, 60)  # of every element beside; two stacks are of the counts held back and the others
ATOMS = Need(14, 12, 0, 0, code=450_000_000)  # of finding atoms, beside the volume, and refining them against images
TRIED_BY = {"dip-tv": "root-tv", "inr": "root-tv"}
"""Methods whose weight is tried by another one: by the voxels alone, whose penalty it is, in a tenth of the time."""
TOGETHER = ("diffusion",)
"""Methods whose members are computed side by side, others one after the other."""
MEMBER = Need(7, 3, 0, 0)  # of every further member of an ensemble: its state
TABLE = 800  # bytes of the projector's weights for each tilt and pixel across the axis; counts in thin slabs
MARGIN = 2  # rows computed beyond each end of a slab, for shifts along the axis that are no whole number of pixels
HALO = 8  # the same for total variation: farther than that neighbouring rows do not feel where a slab ends
SLICED = {"wbp": MARGIN, "sirt": MARGIN, "sart": MARGIN, "tv": HALO}
"""Methods whose volume can be made in slabs, and the rows beyond each end of one that are computed and dropped."""

SEEN, LEAST = 2**22, 32  # voxels that a network sees at once, and fewest rows of them

PROGRAM = 470_000_000  # bytes of the program itself: libraries, compiled code
PREPARE = 4  # stacks while the images are aligned: as read, cleaned, smoothed, their masks
STREAMED = 200_000_000  # bytes while images are read and cleaned a few at a time
HELD = 2  # stacks a run holds beside the solver: its images, and those of the problem on their way
AHEAD = 3  # stacks of the next slab, read while the present one is solved
JUDGE = Need(18, 6, 0, 0)  # of the quality numbers, for the rows they are judged on
REPORT = Need(4, 9, 1, 0)  # of the report and the writing, after the solver's memory is free
REPORTED = (256, 192, 128, 96, 64)  # voxels: a volume in slabs is binned for the report until no side is longer
BINNINGS = (2, 3, 4, 6, 8, 12, 16)
PROJECTED = {"cpu": 5e9, "gpu": 4e11, "tpu": 2e11}  # voxels × tilts a second; of a CPU, for each core
MOVED = {"cpu": 1.5e9, "gpu": 5e11, "tpu": 3e11}  # voxels read or written a second; of a CPU, for each core
JUDGED, TRIED = 64, 32  # rows, at most, that the quality is judged on, and that weights are tried on
STARTING = 12.0  # seconds for imports, compilation, alignment of a small series and the report


def rows_at_once(depth: int, width: int, rows: int, volumes: int = 1) -> int:
    """Rows of so many volumes that a network sees at once."""
    return min(rows, max(LEAST, SEEN // (volumes * depth * width) // 8 * 8))


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
        binning: of the images after they are read.
        members: of an ensemble, or samples.
        streamed: whether slabs can be read without ever holding all images, which only a search for shifts needs.
        devices, hosts: that share the rows of every slab.
        elements: whose maps are reconstructed together with a HAADF series.
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
    binning: int = 1
    members: int = 1
    streamed: bool = False
    devices: int = 1
    hosts: int = 1
    elements: int = 0

    @property
    def need(self) -> Need:
        """Of the method, with all elements."""
        need, each = NEEDS[self.method], self.elements
        return need._replace(
            volumes=need.volumes + each * ELEMENT.volumes,
            stacks=need.stacks + each * ELEMENT.stacks,
            projections=need.projections + each * ELEMENT.projections,
            passes=need.passes + each * ELEMENT.passes,
        )

    @property
    def margin(self) -> int:
        """Rows computed beyond each end of a slab."""
        return SLICED.get(self.method, 0) if self.slabs > 1 else 0

    @property
    def slab_rows(self) -> int:
        """Rows of every slab, its margins included."""
        return min(self.rows, -(-self.rows // self.slabs) + 2 * self.margin)

    @property
    def in_files(self) -> bool:
        """Whether images and volume as a whole lie in files, not in memory."""
        return self.slabs > 1 or self.hosts > 1

    @property
    def judged_rows(self) -> int:
        """Rows in the middle that the quality is judged on: not more than memory has room for in slabs."""
        most = min(JUDGED, self.rows)
        if not self.in_files:
            return most
        return max(1, min(most, self.slab_rows, int(most * self._solving_bytes / self._needed(JUDGE, most))))

    @property
    def reported(self) -> int:
        """Longest side of a volume in slabs in its report: as long as memory has room for in slabs."""
        for longest in REPORTED:
            shown = self._binned_to(longest)
            if shown._needed(REPORT, shown.rows) <= self._solving_bytes:
                return longest
        return REPORTED[-1]

    @property
    def tried_rows(self) -> int:
        """Rows in the middle that weights are tried on."""
        return min(TRIED, self.slab_rows)

    @property
    def volume_bytes(self) -> int:
        return 4 * self.thickness * self.rows * self.width

    @property
    def stack_bytes(self) -> int:
        """Of all channels."""
        return 4 * (1 + self.elements) * self.tilts * self.rows * self.width

    @property
    def solver_bytes(self) -> int:
        """Peak of the solver, on each device that computes; devices of a CPU share one memory."""
        rows = -(-self.slab_rows // (self.hosts if self.device == "cpu" else self.devices))
        need = self.need
        further = (self.members - 1) * self._needed(MEMBER._replace(angles=need.angles), rows)
        members, depth = self.members if self.method in TOGETHER else 1, max(self.thickness, need.angles)
        seen = members * rows_at_once(depth, self.width, rows, members)
        network = int(4 * need.network * depth * self.width * seen)
        return self._needed(need, rows) + further + network + TABLE * (self.tilts + need.angles) * self.width

    @property
    def host_bytes(self) -> int:
        """Peak in the computer's own memory; on a CPU the solver is part of it."""
        stages = self._preparing_bytes, self._solving_bytes, self._judging_bytes, self._reporting_bytes
        return PROGRAM + NEEDS[self.method].code + max(stages)

    def _needed(self, need: Need, rows: int) -> int:
        """Bytes of so many volumes and stacks of `rows` rows."""
        padded = (self.thickness + 2 * need.padding) * (self.width + 2 * need.padding) * (rows + 2 * need.padding)
        return int(4 * (need.volumes * padded + need.stacks * (self.tilts + need.angles) * self.width * rows))

    @property
    def _preparing_bytes(self) -> int:
        if self.streamed and self.in_files:
            return STREAMED
        return int(PREPARE * self.stack_bytes + (self.binning**2 if self.binning > 1 else 0) * self.stack_bytes)

    @property
    def _solving_bytes(self) -> int:
        solver = self.solver_bytes if self.device == "cpu" else self._needed(Need(1, 0, 0, 0), self.slab_rows)
        if self.in_files:
            rows = -(-self.slab_rows // self.hosts)
            return solver + self._needed(Need(0, AHEAD, 0, 0), rows)
        return int(solver + HELD * self.stack_bytes + self._sampled_bytes)

    @property
    def _judging_bytes(self) -> int:
        held = self.volume_bytes + self.stack_bytes if not self.in_files else 0
        return held + self._needed(JUDGE, self.judged_rows) if self.judged else 0

    @property
    def _reporting_bytes(self) -> int:
        shown = self if not self.in_files else self._binned_to(self.reported)
        return (1 + self.elements) * shown._needed(REPORT, shown.rows) + self._sampled_bytes

    @property
    def _sampled_bytes(self) -> int:
        """Of samples, as they come and as they are kept."""
        return 2 * self.members * self.volume_bytes if self.members > 1 else 0

    def _binned_to(self, longest: int) -> Plan:
        return self.binned(-(-max(self.thickness, self.rows, self.width) // longest))

    def _step(self, method: str | None = None) -> float:
        """Seconds of one step on one core, or on one device."""
        need, voxels = self.need if method is None else NEEDS[method], self.volume_bytes / 4
        projected = need.projections * voxels * self.tilts / PROJECTED[self.device]
        each = projected + need.passes * voxels / MOVED[self.device]
        return each * (self.members if self.method in TOGETHER else 1)

    @property
    def seconds(self) -> float:
        """Rough wall time of the whole run on idle hardware."""
        cores = self.cores * self.hosts if self.device == "cpu" else self.devices
        overlap = self.slabs * self.slab_rows / self.rows
        turns = 1 if self.method in TOGETHER else self.members
        judging = 2 * self.steps / turns * min(1.0, self.judged_rows / self.rows) if self.judged else 0
        choosing = self.trial_steps * min(1.0, self.tried_rows / self.rows) * self._step(TRIED_BY.get(self.method))
        return STARTING + ((overlap * self.steps + judging) * self._step() + choosing) / cores

    @property
    def trial_seconds(self) -> float:
        """Rough wall time of trying the method on `tried_rows`."""
        return replace(self, rows=self.tried_rows, slabs=1, judged=False, members=1).seconds

    def binned(self, factor: int) -> Plan:
        """The same run with images (and volume) binned by `factor`."""
        small = [max(1, n // factor) for n in (self.rows, self.width, self.thickness)]
        binning = self.binning * factor
        return replace(self, rows=small[0], width=small[1], thickness=small[2], binning=binning)


class Memory(NamedTuple):
    """Bytes that a run may use: of the computer, and of the device that computes (None for a CPU); None: unknown."""

    host: int | None
    device: int | None = None


def fits(plan: Plan, memory: Memory) -> bool:
    """Whether the run stays within `memory`, of which an unknown part is taken to be enough."""
    if memory.host is not None and plan.host_bytes > memory.host:
        return False
    return plan.device == "cpu" or memory.device is None or plan.solver_bytes <= memory.device


def fewest_slabs(plan: Plan, memory: Memory) -> Plan:
    """`plan` with the least number of slabs that fits; where none does, with what needs least.

    A method that knows no slabs is left in one.
    """
    if plan.method not in SLICED:
        return plan
    sliced = [
        replace(plan, slabs=slabs) for slabs in sorted({-(-plan.rows // kept) for kept in range(1, plan.rows + 1)})
    ]
    return next((some for some in sliced if fits(some, memory)), min(sliced, key=lambda some: some.host_bytes))


def require(plan: Plan, memory: Memory, source: str) -> None:
    """Raises DoesNotFitError naming the settings that would make it fit, if the run needs more than `memory`."""
    if fits(plan, memory):
        return
    on_device = plan.device != "cpu" and memory.device is not None and plan.solver_bytes > memory.device
    needed, free = (plan.solver_bytes, memory.device) if on_device else (plan.host_bytes, memory.host)
    cures = list(_cures(plan, memory))
    cure = f"Give {' or '.join(cures)}." if cures else "Crop the images, or use a computer with more memory."
    work = f"{plan.thickness} × {plan.rows} × {plan.width} voxels and {plan.tilts} tilts"
    slabs = f" in {plan.slabs} slabs" if plan.slabs > 1 else ""
    raise DoesNotFitError(
        f"{source}: {plan.method} on {work}{slabs} needs about {size(needed)}, and {size(free or 0)} of "
        f"{'device ' if on_device else ''}memory are free. {cure}"
    )


def require_for_atoms(shape: Sequence[int], tilts: int, free: int | None, source: str) -> None:
    """Raises DoesNotFitError if finding atoms in a volume `[z, y, x]` that is in memory, and refining them against so
    many images, 0 if there are none, needs more than the `free` bytes."""
    depth, rows, width = shape
    need = 4 * rows * width * (ATOMS.volumes * depth + ATOMS.stacks * tilts) + ATOMS.code
    if free is None or need <= free:
        return
    alone = 4 * rows * width * ATOMS.volumes * depth + ATOMS.code
    cure = "Give --from-volume" if tilts and alone <= free else "Crop the volume to the particle"
    raise DoesNotFitError(
        f"{source}: atoms in {depth} × {rows} × {width} voxels{f' and {tilts} tilts' if tilts else ''} need about "
        f"{size(int(need))}, and {size(free)} of memory are free. {cure}, or use a computer with more memory."
    )


def _cures(plan: Plan, memory: Memory) -> Iterator[str]:
    for factor in BINNINGS:
        binned = plan.binned(factor)
        if fits(binned, memory) or fits(fewest_slabs(binned, memory), memory):
            yield f"--bin {factor}"
            break
    if plan.hosts > 1:
        yield "more hosts"
        return
    if plan.elements:
        return
    for method in (plan.method,) if plan.method in SLICED else ("tv", "sirt"):
        sliced = fewest_slabs(replace(plan, method=method), memory)
        if sliced.slabs > plan.slabs and fits(sliced, memory):
            yield f"--slabs {sliced.slabs}" if method == plan.method else f"--method {method}"
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
