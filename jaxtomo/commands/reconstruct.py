"""`jaxtomo reconstruct`: from a tilt series to a folder with the volume, its quality and a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import hosts, methods, plan, run_folder
from .. import settings as config
from ..console import Console
from ..errors import InputError
from . import device
from .options import TRANSIENT, Outcome, missed_gates, required
from .planning import Rivals, planned, rivals_of
from .request import Reconstruct, by, check, check_held, lasting


def run(settings: Reconstruct, console: Console) -> Outcome:
    from ..io import inspect

    source = required(settings.file, "FILE")
    check(settings)
    folder = Path(settings.running.out or f"{Path(source).stem.strip('*_.-') or 'series'}-{settings.solving.method}")
    if hosts.several():
        hosts.join()
        console = console if hosts.first() else replace(console, quiet=True)
    if not settings.running.dry_run and (not hosts.several() or hosts.first()):
        run_folder.check_place(folder, settings.running.resume, settings.running.overwrite)
    before = None
    if settings.running.resume and run_folder.is_run(folder):
        settings = _as_chosen(folder, settings)
        before = _earlier(folder, settings)
        if before.get("status") == "done" and not _more_steps(before, settings):
            console.say(f"{folder}: this run is finished.")
            return outcome(settings, before) if hosts.first() else Outcome("")
    facts = inspect(source, **settings.reading.arguments())
    check_held(settings.solving.hold_out, facts, settings.reading)
    device.start()
    free = device.memory(None if settings.running.memory is None else 1e9 * settings.running.memory)
    rivals = rivals_of(settings, facts, free) if settings.solving.method == "auto" else None
    chosen = planned(settings, facts, before, free) if rivals is None else rivals.largest
    plan.require(chosen, free, source)
    if settings.running.dry_run:
        return _dry(settings, facts, chosen, before, free, folder, rivals) if hosts.first() else Outcome("")
    if not hosts.first():
        from .sharing import assist

        assist(settings, chosen, folder, console)
        return Outcome("")
    from .running import carry_out

    return outcome(settings, carry_out(settings, chosen, folder, before, console, rivals))


def _as_chosen(folder: Path, settings: Reconstruct) -> Reconstruct:
    """The settings with the method that `auto` chose when the run was begun."""
    if settings.solving.method != "auto":
        return settings
    before = run_folder.recorded(folder) if (folder / run_folder.RECORD).is_file() else {}
    return by(before["method"], settings) if "chosen" in before else settings


def _earlier(folder: Path, settings: Reconstruct) -> dict[str, Any]:
    """`run.json` of the run to go on with. Raises InputError naming the setting that is not the same now."""
    old = config.load(Reconstruct, folder / run_folder.CONFIG)
    ignored = {"file", *TRANSIENT}  # the file is recognised by its SHA-256
    before = run_folder.recorded(folder) if (folder / run_folder.RECORD).is_file() else {}
    if settings.solving.method not in methods.PLANNED and before.get("slabs", 1) == 1:
        ignored.add("steps")  # but some step lengths follow a plan, and all slabs take as many steps
    for name, then, now in config.differences(old, lasting(settings), frozenset(ignored)):
        raise InputError(
            f"{folder}: {name} was {_said(then)} and is {_said(now)} now. Resume with the same settings "
            f"(--config {folder / run_folder.CONFIG}), or start afresh with --overwrite."
        )
    return before


def _said(value: Any) -> str:
    return "not given" if value is None else str(value)


def _more_steps(before: dict[str, Any], settings: Reconstruct) -> bool:
    wanted = settings.solving.steps
    return (
        wanted is not None
        and settings.solving.asked.turns * wanted > before.get("steps_asked", 0)
        and not before.get("converged", False)
    )


def _dry(
    settings: Reconstruct,
    facts: dict,
    chosen: plan.Plan,
    before: dict | None,
    free: plan.Memory,
    folder: Path,
    rivals: Rivals | None = None,
) -> Outcome:
    from .summary import dry_document, dry_text

    if facts["problems"]:
        raise InputError(f"{facts['file']}: " + " ".join(f"{p['fact']} {p['cure']}" for p in facts["problems"]))
    why = "as asked" if settings.running.slabs else "as begun" if before else "the fewest that fit into the memory"
    document = dry_document(facts, chosen, why, free, folder)
    if rivals is not None and len(rivals.plans) > 1:
        trying = min(60 * settings.solving.minutes, sum(one.trial_seconds for one in rivals.plans.values()))
        document |= {"method": "auto", "at_most": chosen.method, "one_of": list(rivals.plans)}
        document["seconds"] = round(chosen.seconds + trying)
    return Outcome(dry_text(document), document)


def outcome(settings: Reconstruct, facts: dict[str, Any]) -> Outcome:
    from .summary import run_text

    missed = missed_gates(settings.running.fail_under, facts["metrics"])
    return Outcome(run_text(facts), {**facts, "missed": missed}, 5 if missed else 0, "; ".join(missed))
