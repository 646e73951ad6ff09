"""A reconstruction carried out: stage after stage, timed, told about, and written down."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import ensembles, hosts, methods, run_folder
from .. import settings as config
from ..console import Console, plain
from ..data import Reconstruction
from ..errors import InputError
from ..io import sha256, write
from ..io.outgoing import outgoing
from ..io.stored import Stored
from ..io.write import write_angles
from ..io.write_mrc import complete_mrc
from ..plan import Plan
from ..prepare import on_disk, read_binned, read_to_disk
from ..refinement import pose_table
from ..reporting import report
from ..series import TiltSeries
from ..slabs import for_report
from ..solve import Solver
from ..validate import choose_weight, spread
from . import device
from .choosing import choose_method
from .options import TRANSIENT
from .planning import Rivals
from .posing import posed
from .request import Reconstruct, by, lasting
from .saturating import unsaturated
from .sharing import refuse_mixed, share, solve_shared
from .solving import Task, held_out_error, interruptible, judged, middle, refuse_diverged, solve_whole
from .streaming import solve_in_slabs


class Stopped(KeyboardInterrupt):
    """Interrupted by the user; the text says how to go on."""


class Stages:
    """Times the stages of a run by name, and says what begins."""

    def __init__(self, console: Console):
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str, message: str) -> Iterator[None]:
        self.console.say(message)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - began, 3)
            device.release()  # stages hold different things: what one left must not add to what the next needs


def warn_of_unlike(task: Task, weights: str, result: Reconstruction) -> None:
    """Says where a network that has learned from others is used beyond what it learned."""
    from ..priors.reach import beyond
    from ..priors.score import geometry

    method = task.settings.solving.method
    unlike = float(result.history.get("unlike", np.zeros(1))[-1])
    if unlike > methods.UNLIKE:
        adapt = "--adapt or " if method == "diffusion" else ""
        task.console.warn(
            f"the specimen is unlike those that {weights} learned from ({unlike:.1f} standard deviations). "
            f"Try {adapt}other --weights, and compare with --method tv."
        )
    card = json.loads((methods.weights_folder(weights, method) / "card.json").read_text())
    told = geometry(task.problem(task.series, task.pose, task.weights))
    if far := beyond(card.get("reach", {}), told):
        task.console.warn(f"beyond what {weights} learned from: {'; '.join(far)}. Compare with --method tv.")


def carry_out(
    settings: Reconstruct,
    plan: Plan,
    folder: Path,
    before: dict[str, Any] | None,
    console: Console,
    rivals: Rivals | None = None,
) -> dict[str, Any]:
    """Run it; returns what `run.json` says in the end. `before` is what it said of the run to go on with. Of several
    `rivals` the method is chosen when the series is aligned.

    Raises Stopped when interrupted, after a checkpoint; any error removes what it began, unless a checkpoint is there.
    """
    stages, known = Stages(console), before or {}
    with run_folder.working(folder) if plan.in_files else contextlib.nullcontext() as work:
        with stages("read", f"reading {settings.file}"):
            series, digest = _read(settings, plan, folder, before, work)
        count, height, width = series.images.shape[-3:]
        finding = "aligning" if settings.preparing.align and not settings.preparing.xf else "taking as aligned"
        with stages("align", f"{finding} {count} images of {width} × {height} pixels"):
            series, pose, alignment = posed(series, settings, console)
        solving = settings.solving
        held = spread(count, solving.hold_out) if solving.hold_out else np.zeros(0, int)
        weights = np.isin(np.arange(count), held, invert=True).astype(np.float32) if held.size else None
        saturated: dict[str, Any] = {}
        if settings.preparing.saturation is not None:
            with stages("saturation", "finding how far images saturate"):
                earlier = known.get("saturation")
                series, saturated["saturation"] = unsaturated(series, pose, weights, settings, earlier, console)
        if work is not None:
            series = on_disk(series, work)
        likelihood = methods.noise_model(solving.likelihood, solving.fit_intensity)
        mesh = device.mesh(settings.running.devices)
        kappa = saturated["saturation"]["kappa"] if saturated else 0.0
        task = Task(settings, plan, folder, console, series, pose, likelihood, weights, before is not None, mesh, kappa)
        if rivals is not None:
            with stages("choose", f"choosing among {', '.join(rivals.plans)} by left-out tilts"):
                choice = choose_method(task, rivals)
            settings, plan = by(choice.method, settings), rivals.plans[choice.method]
            task, solving = replace(task, settings=settings, plan=plan), settings.solving
            known = {"weight": choice.weight, "chosen": choice.facts}
        trying = methods.tries_weights(solving.method, solving.weight, series.tilt_deg.size)
        if plan.hosts > 1:
            refuse_mixed(settings, pose, trying)
        solver = _solver(task, known.get("weight"), stages)
        steps = solving.steps or solver.steps
        judge = solver
        if (turns := solving.asked.turns) > 1:
            solver, steps = ensembles.in_turn(solver, turns), turns * steps
        facts: dict[str, Any] = {
            "status": "running",
            "folder": str(folder),
            "command": list(console.command),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            **device.describe(),
            "input": {"file": str(settings.file), "sha256": digest},
            "method": solving.method,
            **(
                {"weights": solving.weights or methods.LEARNED[solving.method]}
                if solving.method in methods.LEARNED
                else {}
            ),
            "seed": solving.seed,
            "steps_asked": steps,
            "slabs": plan.slabs,
            "weight": solver.settings.get("weight"),
            "weight_chosen": trying,
            **saturated,
            **({"chosen": known["chosen"]} if "chosen" in known else {}),
        }
        kept = config.dump(lasting(settings), leaving_out=TRANSIENT)
        if before is None:
            run_folder.begin(folder, kept)
        with keeping(folder, facts, stages, before is not None):
            run_folder.record(folder, facts)
            with interruptible(console) as asked, stages("solve", _solving_text(solving.method, steps, facts)):
                if plan.hosts > 1 and work is not None:
                    share(task, solver, steps, work)
                solve = solve_in_slabs if plan.slabs > 1 else solve_whole if plan.hosts == 1 else solve_shared
                result = solve(task, solver, steps, asked)
                if hosts.agreed(asked()):
                    raise KeyboardInterrupt
            refuse_diverged(result)
            if solving.method in methods.LEARNED:
                warn_of_unlike(task, facts["weights"], result)
            if "network_share" in result.history:
                facts["network_share"] = float(result.history["network_share"][-1])
            metrics = {"misfit": float(result.history["misfit"][-1])}
            if solving.assess:
                with stages("assess", "judging it by the even and the odd tilts apart"):
                    metrics |= judged(task, judge, result)
            if held.size:
                metrics |= held_out_error(task, result, held)
            more = {"seed": solving.seed} | ({} if alignment is None else {"alignment": alignment})
            more |= {name: facts[name] for name in ("chosen", "saturation") if name in facts}
            result = result.replace(metrics=metrics, settings={**result.settings, **more})
            with stages("write", f"writing the volume and the report to {folder}"):
                files = _write(task, result)
            facts |= _results(result, metrics, stages, files)
            facts["memory_bytes"] = {"planned": plan.host_bytes, "peak": device.peak_memory()}
            run_folder.configure(folder, kept)  # a run that goes on may have more steps than it was begun with
            run_folder.record(folder, facts)
            if facts["converged"] or solving.method in ("wbp", *methods.PLANNED) or plan.slabs > 1:
                run_folder.drop_checkpoint(folder)
            hosts.wait("written down")
    return plain(facts)


@contextlib.contextmanager
def keeping(folder: Path, facts: dict[str, Any], stages: Stages, again: bool) -> Iterator[None]:
    """If the block is left by an error or Ctrl-C: keep the run if there is a checkpoint. If there is none, remove a
    run that was new, and leave one that should go on as it was."""
    undo = run_folder.as_it_was(folder) if again else partial(run_folder.discard, folder)
    try:
        yield
    except KeyboardInterrupt as stop:
        if not run_folder.has_checkpoint(folder):
            undo()
            left = f"{folder} is as it was" if again else f"no {folder} is left behind"
            raise Stopped(f"interrupted before there was anything to keep; {left}") from stop
        run_folder.record(folder, {**facts, "status": "interrupted", "seconds": stages.seconds})
        raise Stopped(f"interrupted; go on with the same command and --resume (its state is in {folder})") from stop
    except BaseException:
        if run_folder.has_checkpoint(folder):
            run_folder.record(folder, {**facts, "status": "failed", "seconds": stages.seconds})
        else:
            undo()
        raise


def _read(
    settings: Reconstruct, plan: Plan, folder: Path, before: dict[str, Any] | None, work: Path | None
) -> tuple[TiltSeries, str]:
    """The series, in memory or in `work`, and the SHA-256 of its file."""
    digest = sha256(settings.file)
    if before and before.get("input", {}).get("sha256", digest) != digest:
        raise InputError(f"{settings.file}: is not the file that {folder} was begun with. Start with --overwrite.")
    reading = settings.reading.arguments()
    if plan.streamed and work is not None:
        return read_to_disk(settings.file, work, settings.preparing.bin, **reading), digest
    series = read_binned(settings.file, settings.preparing.bin, **reading)
    if series.images.ndim == 4 and settings.preparing.channel is None:
        raise InputError(f"{settings.file}: holds {series.images.shape[0]} channels. Choose one with --channel.")
    return series, digest


def _solver(task: Task, weight: float | None, stages: Stages) -> Solver:
    """The solver, with its weight chosen by left-out tilts if that is asked for and `weight` was not so before."""
    solving = task.settings.solving
    make = methods.maker(solving.asked)
    if not methods.tries_weights(solving.method, solving.weight, task.series.tilt_deg.size):
        return make(None if solving.weight == "auto" else solving.weight)
    if weight is not None:
        return make(weight)
    candidates = methods.WEIGHTS[solving.method]
    with stages("weight", f"choosing the weight of {solving.method}: {len(candidates)} trials on a slab"):
        problem = task.problem(*middle(task, task.plan.tried_rows), task.weights)
        trial, steps = methods.trial(solving.asked), methods.trial_steps(solving.asked)
        weight, errors = choose_weight(problem, trial, candidates, steps, key=task.key)
    tried = ", ".join(f"{w:g}: {100 * e:.3g} %" for w, e in zip(candidates, errors, strict=True))
    task.console.say(f"weight {weight:g}, by the error on left-out tilts ({tried})")
    if weight in (candidates[0], candidates[-1]):
        task.console.warn(f"{weight:g} is the end of what was tried; go further with --weight, and compare.")
    return make(weight)


def _solving_text(method: str, steps: int, facts: dict[str, Any]) -> str:
    limit = "" if steps == 1 else f", at most {steps} steps"
    return f"reconstructing: {method}{limit}, on the {facts['device']['backend'].upper()}"


def _write(task: Task, result: Reconstruction) -> list[str]:
    """All results, or none of them; their names. A volume that lies in its own file already is only moved."""
    with run_folder.results(task.folder) as stage:
        volume = stage / "volume.mrc"
        stored = result.volume if isinstance(result.volume, Stored) else None
        if stored is None:
            write(volume, result)
        else:
            with run_folder.naming_disk_errors(stored.path):
                complete_mrc(stored.path, outgoing(str(volume), result))
                write_angles(volume.with_suffix(".rawtlt"), np.rad2deg(np.asarray(result.pose.tilt, float)))
        if (deviation := result.spread) is not None:
            write(stage / run_folder.SPREAD, deviation, result.voxel_nm)
        write(stage / "reconstruction.h5", result)
        if task.settings.running.zarr:
            write(stage / run_folder.ZARR, result)
        if task.settings.preparing.refine_poses:
            (stage / run_folder.POSES).write_text(pose_table(result.pose, result.settings["alignment"]))
        report(stage / "report.html", result if stored is None else for_report(result, task.plan.reported))
        if stored is not None:
            stored.path.rename(volume)
        return sorted(file.name for file in stage.iterdir())


def _results(result: Reconstruction, metrics: dict, stages: Stages, files: list[str]) -> dict[str, Any]:
    if "audit" in metrics:  # its pictures are in the report
        metrics = {**metrics, "audit": {k: v for k, v in metrics["audit"].items() if k != "plane"}}
    return {
        "status": "done",
        "shape": list(result.volume.shape),
        "voxel_nm": result.voxel_nm,
        "steps": int(result.settings["steps"]),
        "converged": result.message.startswith("converged"),
        "message": result.message,
        "metrics": metrics,
        "seconds": stages.seconds,
        "files": files,
    }
