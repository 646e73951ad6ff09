"""What a run will need: of memory and time, and among which methods `--method auto` can choose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from .. import hosts, methods, plan
from ..errors import InputError
from . import device
from .options import images_after, rows_asked
from .request import Reconstruct, by, mixing


def planned(settings: Reconstruct, facts: dict, before: dict[str, Any] | None, free: plan.Memory) -> plan.Plan:
    """The plan of a run on a file with these headers: in as many slabs as it was begun with, as are asked for, or else
    as few as fit into the memory that is `free`."""
    whole = _in_one(settings, facts)
    if whole.hosts > 1:  # each of which holds only its rows
        if before is not None and before.get("slabs", 1) > 1:
            raise InputError(
                f"{before['folder']}: was begun in {before['slabs']} slabs, by one host. Resume it on one, or start "
                "afresh with --overwrite."
            )
        return whole
    if before is not None and before.get("slabs"):
        return replace(whole, slabs=before["slabs"])
    if settings.running.slabs is not None:
        return replace(whole, slabs=settings.running.slabs)
    solving = settings.solving
    together = solving.likelihood != "gaussian" or solving.fit_intensity or mixing(settings.preparing)
    return whole if together else plan.fewest_slabs(whole, free)


def _in_one(settings: Reconstruct, facts: dict) -> plan.Plan:
    solving, preparing = settings.solving, settings.preparing
    tilts, rows, width = images_after(facts, settings.reading, preparing.bin)
    asked = rows_asked(preparing.slab)
    if asked is not None:
        rows = max(1, min(rows, asked.stop) - asked.start)
    steps = solving.asked.turns * (solving.steps or methods.maker(solving.asked)(None).steps)
    trying = methods.tries_weights(solving.method, solving.weight, tilts)
    trial = methods.trial_steps(solving.asked)
    return plan.Plan(
        method="adapt" if solving.adapt else solving.method,
        tilts=tilts,
        rows=rows,
        width=width,
        thickness=solving.thickness or width,
        steps=steps,
        device=device.backend(),
        cores=device.cores(),
        judged=solving.assess,
        trial_steps=trial * len(methods.WEIGHTS[solving.method]) if trying else 0,
        binning=preparing.bin,
        devices=1 if (mesh := device.mesh(settings.running.devices)) is None else mesh.size,
        hosts=hosts.count(),
        members=max(solving.asked.turns, solving.asked.samples),
        streamed=len(facts["shape"]) == 3
        and preparing.refine_poses is None
        and preparing.saturation is None
        and (not preparing.align or preparing.xf is not None),
    )


class Rivals(NamedTuple):
    """Methods among which `--method auto` chooses.

    Attributes:
        plans: of each what it would need.
        left: of others why they are none.
        because: why there is only one, if there is.
    """

    plans: dict[str, plan.Plan]
    left: dict[str, str]
    because: str = ""

    @property
    def largest(self) -> plan.Plan:
        return max(self.plans.values(), key=lambda one: one.host_bytes)


def rivals_of(settings: Reconstruct, facts: dict, free: plan.Memory) -> Rivals:
    """The quick methods that can do what is asked and fit into memory in one piece; where there is nothing to choose,
    tv, or root-tv for another noise model."""
    plain_noise = settings.solving.likelihood == "gaussian" and not settings.solving.fit_intensity
    usual = "tv" if plain_noise else "root-tv"
    able = [name for name in methods.QUICK if plain_noise or name in methods.ANY_LIKELIHOOD]
    plans = {name: planned(by(name, settings), facts, None, free) for name in dict.fromkeys([*able, usual])}
    fitting = {name: plans[name] for name in able if plans[name].slabs == 1 and plan.fits(plans[name], free)}
    left = {
        name: f"needs about {plan.size(plans[name].host_bytes)} of memory, or slabs"
        for name in able
        if name not in fitting
    }
    tilts = plans[usual].tilts - settings.solving.hold_out
    if tilts < 4:
        because = f"{tilts} tilts are too few to leave any out"
    elif len(fitting) < 2:
        because = "no two of the quick methods can do that in the memory there is"
    else:
        return Rivals(fitting, left)
    return Rivals({usual: plans[usual]}, left, f"{usual}: {because}")
