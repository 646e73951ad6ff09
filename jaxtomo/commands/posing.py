"""Where every tilt of a run looked: found by alignment, stated by an IMOD file, or taken as it is; and which part of
the images is meant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from ..alignment import apply, coarse
from ..console import Console
from ..data import Pose
from ..errors import InputError
from ..io import inspect
from ..io.xf import read_xf, to_pose
from ..prepare import as_it_is, rows_of
from ..series import TiltSeries
from .options import rows_asked

if TYPE_CHECKING:
    from .reconstruct import Reconstruct


def posed(series: TiltSeries, settings: Reconstruct, console: Console) -> tuple[TiltSeries, Pose, dict | None]:
    """The series without its background, the pose of each tilt, and what the alignment measured, if there was one."""
    preparing = settings.preparing
    alignment = None
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
    if preparing.channel is not None and series.images.ndim == 4:
        if not 0 <= preparing.channel < series.images.shape[0]:
            raise InputError(f"--channel {preparing.channel}: there are channels 0 to {series.images.shape[0] - 1}.")
        series = series.replace(images=series.images[preparing.channel])
    rows = rows_asked(preparing.slab)
    if rows is not None:
        series, pose = rows_of(series, pose, rows)
    return series, pose, alignment


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
