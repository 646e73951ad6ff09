"""The solve of a run in slabs: from images on disk into the volume's own file, with a record of what is finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import run_folder
from ..callbacks import stop_when_converged
from ..console import plain
from ..data import Problem, Reconstruction
from ..io.atomic import replacing
from ..io.stored import Stored
from ..io.write_mrc import HEADER
from ..prepare import rows_of
from ..slabs import Slab, Survey, cuts, reconstruct_slabs, survey, whole
from ..solve import Solver
from ..solvers import tv
from .solving import Task, refuse_diverged

VOLUME = "volume.mrc"


def solve_in_slabs(task: Task, solver: Solver, steps: int, asked: Callable[[], bool]) -> Reconstruction:
    """The volume part by part, in the file in which it will be delivered; finished parts need not be made again.

    Total variation looks at all slabs first, for what they have to know of the whole, and begins with the one that
    holds most of the signal: when that has converged, the others take as many steps.

    Raises KeyboardInterrupt when the user asks to stop.
    """
    place = task.folder / run_folder.CHECKPOINT
    _, height, width = task.series.images.shape
    volume = Stored(place / VOLUME, (task.plan.thickness, height, width), offset=HEADER)
    known = _known(place, volume) if task.again else {}
    if not known:
        with run_folder.naming_disk_errors(place):
            place.mkdir(exist_ok=True)
            volume.allocate()
        known = {"surveys": [], "finished": {}}

    def stop(*_) -> None:
        if asked():
            raise KeyboardInterrupt

    def read(rows: slice) -> Problem:
        return task.problem(*rows_of(task.series, task.pose, rows), task.weights).replace(series=None)

    def looking(slab: Slab) -> None:
        stop()
        task.console.say(f"a first look at {_named(slab, height)}")

    def write(slab: Slab, part: Reconstruction, energy: float) -> Callable[[], None]:
        refuse_diverged(part)
        with run_folder.naming_disk_errors(volume.path):
            volume.put(slab.kept, part.volume[:, slab.inside])
        history = {name: values.tolist() for name, values in part.history.items()}
        facts = {"energy": energy, "history": history, "settings": part.settings, "message": part.message}

        def finish() -> None:
            with run_folder.naming_disk_errors(volume.path):
                volume.sync()
            known["finished"][str(slab.kept.start)] = plain(facts)
            _note(place, known)

        return finish

    slabs = cuts(height, task.plan.slabs, task.plan.margin)
    order, rules = slabs, []
    if solver.settings["method"] == "tv":
        if not known["surveys"]:
            known["surveys"] = survey(slabs, read, looking, task.split)
            _note(place, known)
        surveys = [Survey(*values) for values in known["surveys"]]
        solver = tv(solver.settings["weight"], whole(surveys, int(np.prod(volume.shape, dtype=np.int64))))
        first = int(np.argmax([part.energy for part in surveys]))
        order, rules = [slabs[first], *slabs[:first], *slabs[first + 1 :]], [stop_when_converged()]
    for facts in known["finished"].values():
        steps, rules = len(facts["history"]["misfit"]), []
    left = [slab for slab in order if str(slab.kept.start) not in known["finished"]]

    def watchers(slab: Slab) -> list[Callable]:
        number = len(order) - len(left) + left.index(slab) + 1
        task.console.say(f"slab {number} of {len(order)}: {_named(slab, height)}")
        return [*task.bars(), stop, *(rules if slab is left[0] else [])]

    if left:
        reconstruct_slabs(left, read, write, solver, steps, callbacks=watchers, split=task.split, key=task.key)
    result = _together(task, volume, [known["finished"][str(slab.kept.start)] for slab in order])
    run_folder.step_log(task.folder)(SimpleNamespace(step=result.settings["steps"], history=result.history))
    return result


def _together(task: Task, volume: Stored, parts: Sequence[dict[str, Any]]) -> Reconstruction:
    """One result from those of all slabs, in the order in which they were made."""
    energy = np.array([part["energy"] for part in parts])[:, None]
    histories = {name: np.array([part["history"][name] for part in parts]) for name in parts[0]["history"]}
    misfit = np.sqrt((energy * histories["misfit"] ** 2).sum(0) / max(energy.sum(), 1e-30))
    message = f"{parts[0]['message']}, in {len(parts)} slabs"
    history = {"misfit": misfit}
    if "gap" in histories:
        history["gap"] = histories["gap"].max(0)
        if message.startswith("converged"):
            message += f", at most {history['gap'][-1]:.1e} in any"
    seconds = {name: sum(part["settings"][name] for part in parts) for name in ("seconds", "seconds_to_first_step")}
    settings = {**parts[-1]["settings"], **seconds, "slabs": len(parts)}
    return Reconstruction(volume, task.pose, task.series, history, {}, settings, message)  # pyright: ignore


def _known(place: Path, volume: Stored) -> dict[str, Any]:
    """What an interrupted run left to go on with; empty if that is nothing."""
    record = place / run_folder.SLABS
    if not record.is_file() or not volume.path.is_file() or volume.path.stat().st_size != volume.end:
        return {}
    return json.loads(record.read_text(encoding="utf-8"))


def _note(place: Path, known: dict[str, Any]) -> None:
    with replacing(place / run_folder.SLABS) as partial:
        partial.write_text(json.dumps(known, allow_nan=False), encoding="utf-8")


def _named(slab: Slab, height: int) -> str:
    return f"rows {slab.kept.start} to {slab.kept.stop} of {height}"
