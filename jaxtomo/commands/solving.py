"""The solve of a run, whole or in slabs, and the numbers that judge it."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .. import run_folder
from ..callbacks import checkpoint, progress, restore, stop_when_converged
from ..console import Console
from ..data import Pose, Problem, Reconstruction
from ..errors import InputError
from ..prepare import rows_of
from ..series import TiltSeries
from ..slabs import reconstruct_slabs
from ..solve import Solver, reconstruct
from ..validate import SLAB, cross_check, prediction_error

if TYPE_CHECKING:
    from .reconstruct import Reconstruct

SAVED_AFTER = 30.0  # seconds: a shorter run is not worth a checkpoint, unless it is interrupted


@dataclass(frozen=True)
class Task:
    """What a run has to solve.

    Attributes:
        weights: `[tilt]`, 0 for tilts held out; None if none are.
        again: whether there is a run to go on with.
    """

    settings: Reconstruct
    folder: Path
    console: Console
    series: TiltSeries
    pose: Pose
    likelihood: Callable
    weights: np.ndarray | None
    again: bool

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.settings.solving.seed)

    def problem(self, series: TiltSeries, pose: Pose, weights: np.ndarray | None) -> Problem:
        thickness = self.settings.solving.thickness or self.series.images.shape[-1]
        return Problem(series, pose, self.likelihood, weights=weights, thickness=thickness)

    def watchers(self, asked: Callable[[], bool]) -> list[Callable]:
        """What stops the run when the user wants it, and shows how far it is."""
        bars = [] if self.console.quiet else [progress()]
        return [*bars, lambda now: "interrupted" if asked() else None]


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
    problem = task.problem(task.series, task.pose, task.weights)
    place, resume, save = task.folder / run_folder.CHECKPOINT, None, None
    if task.again and run_folder.has_checkpoint(task.folder):
        resume = restore(place, problem, solver, task.key)
        task.console.say(f"going on after step {resume[0]}")

    def keep(now) -> None:
        nonlocal save
        if save is None and (now.seconds > SAVED_AFTER or asked()):
            save = checkpoint(place, SAVED_AFTER)  # only now: Orbax takes seconds to start
        if save is not None:
            with run_folder.naming_disk_errors(place):
                save(now)

    log = run_folder.step_log(task.folder, 0 if resume is None else resume[0])
    watchers = [*task.watchers(asked), stop_when_converged(), log, keep]
    return reconstruct(problem, solver, steps, key=task.key, callbacks=watchers, resume=resume, assess=False)


def solve_in_slabs(task: Task, solver: Solver, steps: int, asked: Callable[[], bool]) -> Reconstruction:
    """The volume part by part, into a file; parts that are finished need not be made again.

    Raises KeyboardInterrupt when the user asks to stop.
    """
    settings = task.settings
    place = task.folder / run_folder.CHECKPOINT
    finished = place / run_folder.SLABS
    with run_folder.naming_disk_errors(place):
        place.mkdir(exist_ok=True)
        parts: list[dict] = json.loads(finished.read_text()) if task.again and finished.is_file() else []
        _, height, width = task.series.images.shape
        shape = (settings.solving.thickness or width, height, width)
        volume = np.lib.format.open_memmap(place / "volume.npy", "r+" if parts else "w+", np.float32, shape)

    def watch(number: int) -> list[Callable]:
        task.console.say(f"slab {number + 1} of {settings.running.slabs}")
        return task.watchers(asked)

    for part, energy in reconstruct_slabs(
        task.series,
        task.pose,
        task.problem,
        solver,
        steps,
        volume,
        settings.running.slabs,
        first=len(parts),
        callbacks=watch,
        weights=task.weights,
        key=task.key,
    ):
        if asked() and len(part.history["misfit"]) < steps:  # stopped on the way
            raise KeyboardInterrupt
        parts.append({"misfit": part.history["misfit"].tolist(), "energy": energy, **part.settings})
        with run_folder.naming_disk_errors(finished):
            volume.flush()
            finished.write_text(json.dumps(parts), encoding="utf-8")
        if asked():
            raise KeyboardInterrupt
    energy = np.array([part["energy"] for part in parts])
    misfit = np.array([part["misfit"] for part in parts])
    history = {"misfit": np.sqrt((energy[:, None] * misfit**2).sum(0) / energy.sum())}
    run_folder.step_log(task.folder)(SimpleNamespace(step=misfit.shape[1], history=history))
    seconds = {name: sum(part[name] for part in parts) for name in ("seconds", "seconds_to_first_step")}
    known = {name: value for name, value in parts[-1].items() if name not in ("misfit", "energy")}
    result = Reconstruction(volume, task.pose, task.series, history, {}, {**known, **seconds, "slabs": len(parts)})
    return result.replace(message=f"all {len(misfit[0])} steps done, in {len(parts)} slabs")


def judged(task: Task, solver: Solver, result: Reconstruction) -> dict[str, Any]:
    """The numbers that need no truth, from all tilts; of a volume in slabs on its middle rows only."""
    series, pose = task.series, task.pose
    if task.settings.running.slabs > 1:
        series, pose = rows_of(series, pose, middle_rows(series))
    problem = task.problem(series, pose, None)
    return cross_check(problem, solver, int(result.settings["steps"]), key=task.key)


def middle_rows(series: TiltSeries) -> slice:
    """What the quality of a volume in slabs is judged on."""
    height = series.images.shape[-2]
    start = max(0, (height - SLAB) // 2)
    return slice(start, min(height, start + SLAB))


def held_out_error(task: Task, result: Reconstruction, held: np.ndarray) -> dict[str, Any]:
    """How well the volume predicts the tilts it was not made from; see `validate.prediction_error`."""
    series, pose, volume = task.series, task.pose, result.volume
    if task.settings.running.slabs > 1:
        rows = middle_rows(series)
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
