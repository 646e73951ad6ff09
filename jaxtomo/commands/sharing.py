"""A run shared by several hosts: the first reads, aligns, judges and reports; each solves, and writes, its own rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from .. import hosts, methods, run_folder
from ..console import Console
from ..data import Pose, Reconstruction
from ..errors import InputError
from ..io.stored import Stored
from ..io.write_mrc import HEADER
from ..plan import Plan
from ..series import TiltSeries
from ..solve import Solver
from . import device
from .solving import Task, interruptible, solve_whole

if TYPE_CHECKING:
    from .request import Reconstruct

PREPARED, VOLUME = "prepared.npz", "volume.mrc"


def refuse_mixed(settings: Reconstruct, pose: Pose, trying: bool) -> None:
    """Raises InputError if some rows alone are to be looked at and the pose mixes rows: no host has all of them."""
    solving = settings.solving
    mixed = any(value is not None for value in (pose.rotation, pose.magnification, pose.second_tilt))
    if mixed and (solving.assess or solving.hold_out or trying):
        raise InputError(
            f"{settings.file}: its slices are mixed by a rotation or a magnification, so none can be judged apart and "
            "no host holds all. Align it first (jaxtomo align), or give --no-assess, --weight and no --hold-out."
        )


def share(task: Task, solver: Solver, steps: int, work: Path) -> None:
    """Tell the other hosts, by a file in `work`, what the first has prepared: the images are in files there already."""
    pose = {name: np.asarray(value) for name, value in vars(task.pose).items() if value is not None}
    known = {
        "steps": steps,
        "again": task.again,
        "shape": task.series.images.shape,
        "masked": task.series.mask is not None,
        "tilt_deg": task.series.tilt_deg,
        "pixel_nm": task.series.pixel_nm,
        "weights": task.weights,
        "kappa": task.kappa,
        "weight": solver.settings.get("weight"),
    }
    volume = _volume(task, work)
    with run_folder.naming_disk_errors(work):
        volume.allocate()
        given = {name: np.asarray(value) for name, value in (known | pose).items() if value is not None}
        np.savez(work / PREPARED, allow_pickle=False, **given)
    hosts.wait("prepared")


def assist(settings: Reconstruct, plan: Plan, folder: Path, console: Console) -> None:
    """The part of a host that is not the first one.

    Raises KeyboardInterrupt when the user asked any of them to stop.
    """
    work = run_folder.work_place(folder)
    hosts.wait("prepared")
    with np.load(work / PREPARED) as known:
        given = {name: known[name] for name in known.files}
    shape = tuple(map(int, given["shape"]))
    series = TiltSeries(
        images=Stored(work / "images", shape),  # pyright: ignore
        mask=Stored(work / "mask", shape, np.dtype(bool)) if given["masked"] else None,  # pyright: ignore
        tilt_deg=given["tilt_deg"],
        pixel_nm=float(given["pixel_nm"]) if "pixel_nm" in given else None,
        source=str(settings.file),
    )
    pose = Pose(**{name: jnp.asarray(given[name]) for name in Pose.__dataclass_fields__ if name in given})
    solving = settings.solving
    solver = methods.maker(solving.asked)(float(given["weight"]) if "weight" in given else None)
    likelihood = methods.noise_model(solving.likelihood, solving.fit_intensity)
    task = Task(
        settings=settings,
        plan=plan,
        folder=folder,
        console=console,
        series=series,
        pose=pose,
        likelihood=likelihood,
        weights=given.get("weights"),
        again=bool(given["again"]),
        mesh=device.mesh(None),
        kappa=float(given["kappa"]),
    )
    with interruptible(console) as asked:
        solve_shared(task, solver, int(given["steps"]), asked)
        if hosts.agreed(asked()):
            raise KeyboardInterrupt
    hosts.wait("written down")


def solve_shared(task: Task, solver: Solver, steps: int, asked: Callable[[], bool]) -> Reconstruction:
    """The rows of this host, written to the file of the volume."""
    result = solve_whole(task, solver, steps, asked)
    volume = _volume(task, run_folder.work_place(task.folder))
    with run_folder.naming_disk_errors(volume.path):
        volume.put(task.held, result.volume)
    hosts.wait("rows written")
    return result.replace(volume=volume)


def _volume(task: Task, work: Path) -> Stored:
    _, height, width = task.series.images.shape
    return Stored(work / VOLUME, (task.plan.thickness, height, width), offset=HEADER)
