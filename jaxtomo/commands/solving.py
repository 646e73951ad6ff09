"""The solve of a run, and the numbers that judge it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .. import hosts, parallel, run_folder
from ..audit import audited
from ..callbacks import checkpoint, progress, restore, stop_when_converged, stop_when_overfitting
from ..console import Console
from ..data import Pose, Problem, Reconstruction
from ..errors import InputError
from ..plan import Plan
from ..prepare import rows_of
from ..resolution import assessed
from ..saturation import trusted
from ..series import TiltSeries
from ..solve import Solver, reconstruct
from ..validate import cross_check, prediction_error

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from .request import Reconstruct

SAVED_AFTER = 30.0  # seconds: a shorter run is not worth a checkpoint, unless it is interrupted


@dataclass(frozen=True)
class Task:
    """What a run has to solve.

    Attributes:
        plan: how: in how many slabs, and on how many rows it is judged.
        weights: `[tilt]`, 0 for tilts held out; None if none are.
        again: whether there is a run to go on with.
        mesh: the devices that share the work, if there are several.
        kappa: of the saturation that was taken out of the images; see `jaxtomo.saturation`.
    """

    settings: Reconstruct
    plan: Plan
    folder: Path
    console: Console
    series: TiltSeries
    pose: Pose
    likelihood: Callable
    weights: np.ndarray | None
    again: bool
    mesh: Mesh | None = None
    kappa: float = 0.0

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.settings.solving.seed)

    @property
    def held(self) -> slice:
        """The rows that this host holds: all, if it is the only one."""
        height = self.series.images.shape[-2]
        return slice(0, height) if self.mesh is None else parallel.held_rows(height, self.mesh)

    def problem(self, series: TiltSeries, pose: Pose, weights: np.ndarray | None, rows: slice | None = None) -> Problem:
        thickness = self.settings.solving.thickness or self.series.images.shape[-1]
        problem = Problem(series, pose, self.likelihood, weights=weights, thickness=thickness, rows=rows)
        return trusted(problem, self.kappa) if self.kappa else problem

    def split(self, problem: Problem, solver: Solver, height: int | None = None) -> tuple[Problem, Solver]:
        """Both on all the devices."""
        return (problem, solver) if self.mesh is None else parallel.split(problem, solver, self.mesh, height)

    def bars(self) -> list[Callable]:
        """What shows how far the run is."""
        return [] if self.console.quiet else [progress()]


@contextlib.contextmanager
def interruptible(console: Console) -> Iterator[Callable[[], bool]]:
    """While the block runs, the first Ctrl-C (or the TERM of a batch system) only asks to stop; a second one stops.

    So a run ends between two steps, with a whole state to keep.
    """
    asked = False

    def ask(number, frame):
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        console.say("stopping after this step; again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def solve_whole(task: Task, solver: Solver, steps: int, asked: Callable[[], bool]) -> Reconstruction:
    """The volume in one go, with a checkpoint now and then; `asked` says whether the user wants to stop."""
    problem = task.problem(task.series, task.pose, task.weights, task.held)
    problem, solver = task.split(problem, solver, task.series.images.shape[-2])
    place, resume, save = task.folder / run_folder.CHECKPOINT, None, None
    if task.again and run_folder.has_checkpoint(task.folder):
        resume = restore(place, problem, solver, task.key)
        task.console.say(f"going on after step {resume[0]}")

    def keep(now) -> None:
        nonlocal save
        if save is None and hosts.agreed(now.seconds > SAVED_AFTER or asked()):
            save = checkpoint(place, SAVED_AFTER)  # only now: Orbax takes seconds to start
        if save is not None:
            with run_folder.naming_disk_errors(place):
                save(now)

    log = [run_folder.step_log(task.folder, 0 if resume is None else resume[0])] if hosts.first() else []
    rules = [stop_when_converged(), stop_when_overfitting()]
    watchers = [*task.bars(), lambda now: "interrupted" if asked() else None, *rules, *log, keep]
    return reconstruct(problem, solver, steps, key=task.key, callbacks=watchers, resume=resume, assess=False)


def middle(task: Task, count: int) -> tuple[TiltSeries, Pose]:
    """At most `count` rows in the middle of the images; all of them where the pose does not let rows be cut out."""
    series, pose = task.series, task.pose
    mixed = any(value is not None for value in (pose.rotation, pose.magnification, pose.second_tilt))
    if not task.plan.in_files and (mixed or count >= series.images.shape[-2]):
        return series, pose
    return rows_of(series, pose, middle_rows(series, count))


def middle_rows(series: TiltSeries, count: int) -> slice:
    height = series.images.shape[-2]
    start = max(0, (height - count) // 2)
    return slice(start, min(start + count, height))


def judged(task: Task, solver: Solver, result: Reconstruction) -> dict[str, Any]:
    """The numbers that need no truth, from all tilts, on rows in the middle; of one member of an ensemble."""
    problem = task.problem(*middle(task, task.plan.judged_rows), None)
    steps = int(result.settings["steps"]) // task.settings.solving.asked.turns
    volume = result.volume
    if volume.ndim == 3 and volume.shape[1] > problem.shape[2]:
        volume = volume[:, middle_rows(task.series, task.plan.judged_rows)]
    found = cross_check(problem, solver, max(1, steps), key=task.key) | audited(problem, volume)
    return found | assessed(volume, np.rad2deg(np.asarray(result.pose.tilt)), result.samples)


def held_out_error(task: Task, result: Reconstruction, held: np.ndarray) -> dict[str, Any]:
    """How well the volume predicts the tilts it was not made from; see `validate.prediction_error`.

    Of a volume in slabs only its middle rows are looked at.
    """
    series, pose, volume = task.series, task.pose, result.volume
    if task.plan.in_files:
        rows = middle_rows(series, task.plan.judged_rows)
        volume = volume[:, rows]
        series, pose = rows_of(series, pose, rows)
    problem = task.problem(series, pose, 1 - (np.ones(len(series.tilt_deg)) if task.weights is None else task.weights))
    errors = np.asarray(prediction_error(problem, np.ascontiguousarray(np.asarray(volume).swapaxes(1, 2))))[held]
    return {
        "held_out_error": float(np.sqrt(np.mean(errors**2))),
        "held_out_error_by_tilt": errors,
        "held_out_tilts_deg": series.tilt_deg[held],
    }


def refuse_diverged(result: Reconstruction) -> None:
    """Raises InputError if the solver left the finite numbers."""
    if not all(np.isfinite(values).all() for values in result.history.values()):
        raise InputError(
            f"the reconstruction diverged: {result.message}. Take another --method, fewer --steps or a larger --weight."
        )
