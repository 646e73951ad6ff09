"""Where every tilt of a run looked: found by alignment, stated by an IMOD file, or taken as it is; and which part of
the images is meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from ..alignment import Alignment, apply, coarse
from ..callbacks import progress
from ..console import Console
from ..data import Pose, Problem
from ..errors import InputError
from ..freedom import Freedom, freedom
from ..io import inspect
from ..io.xf import read_xf, to_pose
from ..methods import noise_model
from ..prepare import as_it_is, rows_of
from ..refinement import Refined, refine
from ..series import TiltSeries
from .options import rows_asked

if TYPE_CHECKING:
    from .request import Reconstruct

AXIS_MATTERS_PX = 0.2  # at the ends of the image: a refined axis that is off by less does not turn images


def posed(series: TiltSeries, settings: Reconstruct, console: Console) -> tuple[TiltSeries, Pose, dict | None]:
    """The series without its background, the pose of each tilt, and what the alignment measured, if there was one."""
    preparing = settings.preparing
    alignment, raw, found = None, series, None
    if preparing.xf:
        series, pose = by_transforms(series, settings)
    elif preparing.align:
        found = coarse(series, background=preparing.background)
        series, pose = apply(series, found)
        alignment = found.plain()
        if found.suspect.any():
            which = ",".join(map(str, np.flatnonzero(found.suspect)))
            console.warn(f"images that agree badly with their neighbours: {which}. Look at them, or --skip them.")
    else:
        series, pose = as_it_is(series, preparing.background)
    if preparing.refine_poses:
        solving = settings.solving
        model = noise_model(solving.likelihood, True)
        free = freedom(preparing.refine_poses)
        refined, note = jointly(series, pose, free, console, model, solving.thickness, solving.seed)
        pose, turned = refined.pose, None if found is None else straightened(series, found, refined)
        if turned is not None:
            series, straight = apply(raw, turned)
            alignment = turned.plain()
            pose = pose.replace(shift=straight.shift, rotation=None)
        series = series.replace(provenance={**series.provenance, "refinement": note})
        alignment = (alignment or {}) | refined.plain()
    if preparing.channel is not None and series.images.ndim == 4:
        if not 0 <= preparing.channel < series.images.shape[0]:
            raise InputError(f"--channel {preparing.channel}: there are channels 0 to {series.images.shape[0] - 1}.")
        series = series.replace(images=series.images[preparing.channel])
    rows = rows_asked(preparing.slab)
    if rows is not None:
        series, pose = rows_of(series, pose, rows)
    return series, pose, alignment


def jointly(
    series: TiltSeries,
    pose: Pose,
    free: Freedom,
    console: Console,
    likelihood: Callable,
    thickness: int | None = None,
    seed: int = 0,
) -> tuple[Refined, str]:
    """The poses refined together with a volume, and a sentence about it."""
    images = series.images if series.images.ndim == 3 else series.images.sum(0)
    problem = Problem(series.replace(images=images), pose, likelihood, thickness=thickness)
    console.say("refining the poses together with a volume")
    key = jax.random.key(seed)
    refined = refine(problem, free, key=key, callbacks=lambda binning: [] if console.quiet else [progress()])
    largest = {name: float(np.abs(change).max()) for name, change in refined.change.items()}
    changed = ", ".join(f"{name.replace('_', ' ')} by up to {value:.3g}" for name, value in largest.items())
    note = f"refined together with a volume: {changed}"
    console.say(note)
    return refined, note


def straightened(series: TiltSeries, found: Alignment, refined: Refined) -> Alignment | None:
    """`found` with a refined axis and shifts, for `apply` to turn the images, once; None where they are turned or
    magnified one by one, which only a pose can say."""
    pose = refined.pose
    if pose.magnification is not None or "rotation_deg" in refined.change:
        return None
    turn, shift = 0.0 if pose.rotation is None else float(pose.rotation[0]), np.asarray(pose.shift, np.float64)
    if not found.turn and abs(np.sin(turn)) * max(series.images.shape[-2:]) / 2 < AXIS_MATTERS_PX:
        return replace(found, shift=shift)
    c, s = np.cos(turn), np.sin(turn)
    axis_deg = float(np.rad2deg(turn) + (found.axis_deg if found.turn else 0.0))
    notes = {**found.notes, "tilt_axis": f"{axis_deg:.2f}° off y, refined together with a volume; images turned"}
    return replace(found, shift=shift @ np.array([[c, -s], [s, c]]), axis_deg=axis_deg, turn=True, notes=notes)


def by_transforms(series: TiltSeries, settings: Reconstruct) -> tuple[TiltSeries, Pose]:
    """The pose that an IMOD transform file states for the images in the file's order.

    Raises InputError unless there is one transform for every image.
    """
    preparing = settings.preparing
    transforms = read_xf(preparing.xf)
    if len(transforms) != series.tilt_deg.size or "order" in series.provenance or settings.reading.skip:
        raise InputError(
            f"{preparing.xf}: {len(transforms)} transforms for {series.tilt_deg.size} images. There must be one for "
            "each image, none left out, and the file sorted by angle."
        )
    facts = inspect(settings.file, **settings.reading.arguments())
    numbers = to_pose(transforms, quarter_turns=facts["tilt_axis"]["quarter_turns"])
    series, pose = as_it_is(series.replace(tilt_axis_deg=0.0), preparing.background)
    rotated, scaled = np.abs(numbers.rotation).max() > 1e-5, np.abs(numbers.magnification - 1).max() > 1e-5
    note = f"from the transforms in {Path(preparing.xf or '').name}"
    return series.replace(provenance={**series.provenance, "alignment": note}), pose.replace(
        shift=jnp.asarray(numbers.shift / preparing.bin, jnp.float32),
        rotation=jnp.asarray(numbers.rotation, jnp.float32) if rotated else None,
        magnification=jnp.asarray(numbers.magnification, jnp.float32) if scaled else None,
    )
